/* agree.c - rank 0's text beside one's own. */
#include "runtime/agree.h"

#include <stdlib.h>
#include <string.h>

static const char *trim(const char *line, size_t *length)
{
    size_t blanks = strspn(line, " ");
    blanks = blanks < *length ? blanks : *length;
    *length -= blanks;
    return line + blanks;
}

static status_t compare_lines(const char *own, const char *other, const char *unlike,
                              const char *advice)
{
    static const char nothing[] = "(nothing)";
    size_t mine = strcspn(own, "\n"), theirs = strcspn(other, "\n");
    while (mine == theirs && memcmp(own, other, mine) == 0) {
        if (!own[mine] && !other[theirs]) {
            return STATUS_OK;
        }
        own += mine + (own[mine] == '\n');
        other += theirs + (other[theirs] == '\n');
        mine = strcspn(own, "\n");
        theirs = strcspn(other, "\n");
    }
    own = trim(own, &mine);
    other = trim(other, &theirs);
    return FAIL(STATUS_MISMATCH, "this rank %s than rank 0: `%.*s` here, `%.*s` there; %s", unlike,
                mine ? (int)mine : (int)strlen(nothing), mine ? own : nothing,
                theirs ? (int)theirs : (int)strlen(nothing), theirs ? other : nothing, advice);
}

status_t agree_on_text(struct group *group, const char *own, const char *unlike, const char *advice)
{
    uint64_t bytes = strlen(own) + 1;
    TRY(group_broadcast(group, &bytes, sizeof bytes, 0));
    char *root = calloc(1, bytes);
    if (root && group_rank(group) == 0) {
        memcpy(root, own, bytes);
    }
    status_t status = group_agree(
        group, root ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for a text to compare"));
    if (status == STATUS_OK) {
        status = group_broadcast(group, root, bytes, 0);
    }
    if (status == STATUS_OK) {
        status = group_agree(group, compare_lines(own, root, unlike, advice));
    }
    free(root);
    return status;
}
