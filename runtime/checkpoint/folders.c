/* folders.c - the checkpoints of a run: which there are, and which go. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "runtime/checkpoint/private.h"

bool checkpoint_here(const char *folder)
{
    char path[PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/" CHECKPOINT_MANIFEST, folder);
    return access(path, F_OK) == 0;
}

status_t checkpoint_fingerprint(const char *folder, uint64_t *out)
{
    char path[PATH_MAX + 64];
    unsigned char *data;
    size_t size;
    snprintf(path, sizeof path, "%s/" CHECKPOINT_MANIFEST, folder);
    TRY(file_load(path, &data, &size));
    *out = hash_bytes(data, size, 0);
    free(data);
    return STATUS_OK;
}

status_t checkpoint_path(const char *run, int64_t step, bool temporary, char *out)
{
    int length = snprintf(out, PATH_MAX, "%s/" CHECKPOINT_FOLDER "/%sstep-%lld%s", run,
                          temporary ? "." : "", (long long)step, temporary ? ".part" : "");
    return length > 0 && length < PATH_MAX
               ? STATUS_OK
               : FAIL(STATUS_INVALID, "the path of the run folder is too long: %.200s", run);
}

/* The step of "step-N"; -1 for anything else. */
static int64_t step_of(const char *name)
{
    char *end;
    if (strncmp(name, "step-", 5) != 0 || name[5] < '0' || name[5] > '9') {
        return -1;
    }
    errno = 0;
    long long step = strtoll(name + 5, &end, 10);
    return *end == '\0' && errno == 0 ? step : -1;
}

static int newest_first(const void *one, const void *other)
{
    const int64_t *a = one, *b = other;
    return *a > *b ? -1 : *a < *b;
}

status_t checkpoint_list(const char *run, int64_t **out, int *out_count)
{
    char path[PATH_MAX + 64];
    int count = 0, room = 64;
    snprintf(path, sizeof path, "%s/" CHECKPOINT_FOLDER, run);
    int64_t *step = malloc((size_t)room * sizeof *step);
    DIR *folder = opendir(path);
    if (!step || (!folder && errno != ENOENT)) {
        free(step);
        if (folder) {
            closedir(folder);
        }
        return FAIL(step ? STATUS_IO : STATUS_NOMEM, "cannot look into %s: %s", path,
                    strerror(errno));
    }
    for (const struct dirent *entry; folder && (entry = readdir(folder)) != NULL;) {
        int64_t found = step_of(entry->d_name);
        if (found >= 0 && count == room) {
            room *= 2;
            int64_t *more = realloc(step, (size_t)room * sizeof *step);
            if (!more) {
                free(step);
                closedir(folder);
                return FAIL(STATUS_NOMEM, "no memory for a list of %d checkpoints", room);
            }
            step = more;
        }
        if (found >= 0) {
            step[count++] = found;
        }
    }
    if (folder) {
        closedir(folder);
    }
    qsort(step, (size_t)count, sizeof *step, newest_first);
    *out = step;
    *out_count = count;
    return STATUS_OK;
}

void checkpoint_remove(const char *path)
{
    char inner[PATH_MAX + 300];
    DIR *folder = opendir(path);
    for (const struct dirent *entry; folder && (entry = readdir(folder)) != NULL;) {
        snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name);
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            unlink(inner);
        }
    }
    if (folder) {
        closedir(folder);
    }
    if (rmdir(path) != 0 && errno != ENOENT) {
        log_warn("cannot remove %s: %s", path, strerror(errno));
    }
}

status_t checkpoint_begin(const char *run, int64_t step)
{
    char path[PATH_MAX], parent[PATH_MAX + 64];
    TRY(checkpoint_path(run, step, true, path));
    snprintf(parent, sizeof parent, "%s/" CHECKPOINT_FOLDER, run);
    if (mkdir(parent, 0777) != 0 && errno != EEXIST) {
        return FAIL(STATUS_IO, "cannot make the folder %s: %s", parent, strerror(errno));
    }
    return mkdir(path, 0777) == 0 || errno == EEXIST
               ? STATUS_OK
               : FAIL(STATUS_IO, "cannot make the folder %s: %s", path, strerror(errno));
}

static bool is_temporary(const char *name)
{
    size_t length = strlen(name);
    return strncmp(name, ".step-", 6) == 0 && length > 5 && strcmp(name + length - 5, ".part") == 0;
}

void checkpoint_sweep(const char *run)
{
    char path[PATH_MAX + 64], inner[PATH_MAX + 400];
    snprintf(path, sizeof path, "%s/" CHECKPOINT_FOLDER, run);
    DIR *folder = opendir(path);
    for (const struct dirent *entry; folder && (entry = readdir(folder)) != NULL;) {
        if (is_temporary(entry->d_name)) {
            snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name);
            log_info("removed %s, which a job left unfinished", inner);
            checkpoint_remove(inner);
        }
    }
    if (folder) {
        closedir(folder);
    }
}

/* An old one first gets a name that nobody takes for whole. */
void checkpoint_prune(const char *run, int keep)
{
    int64_t *step;
    int count;
    char path[PATH_MAX], temporary[PATH_MAX];
    if (checkpoint_list(run, &step, &count) != STATUS_OK) {
        return;
    }
    for (int i = keep; i < count; i++) {
        if (checkpoint_path(run, step[i], false, path) == STATUS_OK &&
            checkpoint_path(run, step[i], true, temporary) == STATUS_OK) {
            bool renamed = rename(path, temporary) == 0;
            checkpoint_remove(renamed ? temporary : path);
        }
    }
    free(step);
}
