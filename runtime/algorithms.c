/* algorithms.c - one table of product algorithms for all ranks (kernels.h), complete before training.
 *
 * What is wanted is what the rehearsal of a stage (stage.h) has run, so nobody lists shapes twice; rank 0
 * times what nobody has measured and tells the others, and all rehearse again with what they then have.
 * Choosing at the first use would be less code, but a rank would measure beside others that compute, or
 * inside a step, and two ranks could choose differently. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/log.h"
#include "runtime/run_folder.h"
#include "runtime/trainer.h"

static const char title[] =
    "# muddpipe: measured algorithms of matrix products; delete a line, and it "
    "is measured again\n";

/* The file that kernels.algorithms names; "" = none. */
static const char *path_of(const struct run_config *config)
{
    const char *named = config->kernels.algorithms;
    return strcmp(named, "measure") == 0 ? "" : named;
}

/* The file's text, "" if there is none yet; malloc'ed. */
static status_t text_read(const char *path, char **out)
{
    FILE *file = path[0] ? fopen(path, "r") : NULL;
    size_t size = 0;
    if (!file && path[0] && errno != ENOENT) {
        return FAIL(STATUS_IO, "kernels.algorithms: cannot read %s: %s", path, strerror(errno));
    }
    *out = NULL;
    ssize_t length = file ? getdelim(out, &size, '\0', file) : 0;
    bool failed = file && ferror(file);
    if (file) {
        fclose(file);
    }
    if (failed) {
        free(*out);
        *out = NULL;
        return FAIL(STATUS_IO, "kernels.algorithms: cannot read %s", path);
    }
    if (length <= 0) { /* an empty file, or none */
        free(*out);
        *out = calloc(1, 1);
    }
    return *out ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for a table of algorithms");
}

/* Can the file be written? It is replaced by another of its folder. */
static status_t writable(const char *path)
{
    char folder[CONFIG_STRING];
    const char *slash = strrchr(path, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) + 1 : 1,
             slash ? path : ".");
    return access(folder, W_OK | X_OK) == 0
               ? STATUS_OK
               : FAIL(STATUS_IO,
                      "kernels.algorithms: cannot write %s, where what is measured would go, for "
                      "its folder: %s",
                      path, strerror(errno));
}

status_t algorithms_check(const struct run_config *config)
{
    const char *path = path_of(config);
    char *text;
    if (!path[0]) {
        return STATUS_OK;
    }
    TRY(text_read(path, &text));
    free(text);
    return access(path, F_OK) == 0 ? STATUS_OK : writable(path);
}

/* How much of a line names card and library, the blank behind it too; 0 for an empty table. */
static size_t place_length(const char *table)
{
    const char *product = strstr(table, " product=");
    return product ? (size_t)(product - table) + 1 : 0;
}

/* Lines of `old` that are not of the table's card and library, comments too, then the table; malloc'ed,
 * or NULL. */
static char *text_merge(const char *old, const char *table)
{
    size_t place = place_length(table);
    char *text = malloc(sizeof title + strlen(old) + 1 + strlen(table)), *end = text;
    if (!text) {
        return NULL;
    }
    end = stpcpy(end, *old ? "" : title);
    while (*old) {
        size_t length = strcspn(old, "\n");
        if (place == 0 || strncmp(old, table, place) != 0) {
            end = mempcpy(end, old, length);
            *end++ = '\n';
        }
        old += length + (old[length] == '\n');
    }
    strcpy(end, table);
    return text;
}

/* Whole or not at all, whoever else reads or writes there. */
static status_t text_write(const char *path, const char *text)
{
    char temporary[PATH_MAX + 64];
    snprintf(temporary, sizeof temporary, "%s.new.%ld", path, (long)getpid());
    FILE *file = fopen(temporary, "w");
    if (!file) {
        return FAIL(STATUS_IO, "table of algorithms: cannot write %s: %s", temporary,
                    strerror(errno));
    }
    bool written = fputs(text, file) >= 0;
    written = fclose(file) == 0 && written;
    if (!written || rename(temporary, path) != 0) {
        status_t status =
            FAIL(STATUS_IO, "table of algorithms: cannot write %s: %s", path, strerror(errno));
        unlink(temporary);
        return status;
    }
    return STATUS_OK;
}

static size_t lines_of(const char *text)
{
    size_t lines = 0;
    for (; *text; text++) {
        lines += *text == '\n';
    }
    return lines;
}

/* Of products and algorithms, not of times. The order of lines, which tells only who measured first, makes
 * no difference. */
static uint64_t table_hash(const char *text)
{
    uint64_t hash = 0;
    while (*text) {
        size_t length = strcspn(text, "\n");
        const char *times = strstr(text, " us=");
        size_t kept = times && times < text + length ? (size_t)(times - text) : length;
        hash += hash_bytes(text, kept, 0);
        text += length + (text[length] == '\n');
    }
    return hash;
}

/* Rank 0's text on all ranks; *text is replaced. */
static status_t text_share(struct group *group, char **text)
{
    uint64_t bytes = *text ? strlen(*text) + 1 : 0;
    TRY(group_broadcast(group, &bytes, sizeof bytes, 0));
    if (group_rank(group) != 0) {
        free(*text);
        *text = malloc(bytes);
    }
    TRY(group_agree(group,
                    *text ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for a table of algorithms")));
    return group_broadcast(group, *text, bytes, 0);
}

/* Every rank's text, one after the other; malloc'ed. */
static status_t texts_gather(struct group *group, const char *mine, char **out)
{
    size_t ranks = (size_t)group_size(group), length = strlen(mine), total = 0;
    size_t *counts = calloc(ranks, sizeof *counts);
    if (!counts) {
        return FAIL(STATUS_NOMEM, "no memory for %zu sizes", ranks);
    }
    status_t status = group_allgather(group, &length, sizeof length, counts);
    for (size_t r = 0; r < ranks; r++) {
        total += counts[r];
    }
    char *all = calloc(total + 1, 1);
    if (status == STATUS_OK && !all) {
        status = FAIL(STATUS_NOMEM, "no memory for lists of products");
    }
    if (status == STATUS_OK) {
        status = group_allgatherv(group, mine, counts, all);
    }
    free(counts);
    if (status != STATUS_OK) {
        free(all);
        return status;
    }
    *out = all;
    return STATUS_OK;
}

/* Rank 0: adds what is missing to the table, to *text, and to the file, if one is named. */
static status_t measure(const struct trainer *trainer, const char *missing, char **text)
{
    const char *path = path_of(&trainer->config);
    int64_t begun = trace_now();
    TRY(path[0] ? writable(path) : STATUS_OK);
    char *before = kernels_cuda_algorithms_save();
    status_t status = kernels_cuda_algorithms_measure(missing);
    char *table = kernels_cuda_algorithms_save();
    if (status == STATUS_OK && strcmp(before, table) != 0) {
        log_info("measured algorithms of bf16 products: %zu in the table, %.1f s", lines_of(table),
                 (double)(trace_now() - begun) * 1e-9);
        char *merged = text_merge(*text, table);
        status = merged ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for a table of algorithms");
        free(*text);
        *text = merged;
        if (merged && path[0]) {
            status = text_write(path, merged);
        }
    }
    free(before);
    free(table);
    return status;
}

/* What a rank multiplies by. */
struct view {
    uint64_t hash, missing;
};

/* Ranks on one kind of card have one table. Another card's rank is left to its library's choice where the
 * file says nothing of that card: rank 0 says so. */
static status_t views_compare(struct group *group)
{
    int ranks = group_size(group);
    struct view *view = calloc((size_t)ranks, sizeof *view);
    if (!view) {
        return FAIL(STATUS_NOMEM, "no memory for %d ranks' tables", ranks);
    }
    char *table = kernels_cuda_algorithms_save(), *missing = kernels_cuda_algorithms_missing();
    struct view own = {table_hash(table), lines_of(missing)};
    free(table);
    free(missing);
    status_t status = group_allgather(group, &own, sizeof own, view);
    for (int r = 0; status == STATUS_OK && group_rank(group) == 0 && r < ranks; r++) {
        if (view[r].missing > 0) {
            log_warn("rank %d: %llu bf16 products have no measured algorithm and take the "
                     "library's own choice%s",
                     r, (unsigned long long)view[r].missing,
                     view[r].hash != view[0].hash ? ": its GPU or cuBLASLt is not that of rank 0, "
                                                    "which measures"
                                                  : "");
        }
    }
    if (status == STATUS_OK && group_rank(group) == 0) {
        log_info("algorithms of bf16 products: table %016llx", (unsigned long long)own.hash);
    }
    free(view);
    return status;
}

/* With rank 0's file, `text`, in the table of every rank: measures what lacks, on rank 0; *text becomes
 * all that is known then. */
static status_t complete(const struct trainer *trainer, char **text)
{
    struct group *group = trainer->group;
    char *missing = kernels_cuda_algorithms_missing(), *all = NULL;
    status_t status = texts_gather(group, missing, &all);
    free(missing);
    TRY(status);
    if (group_rank(group) == 0 && all[0]) {
        status = measure(trainer, all, text);
    }
    free(all);
    TRY(group_agree(group, status));
    TRY(text_share(group, text));
    TRY(group_agree(group, kernels_cuda_algorithms_load("rank 0's table of algorithms", *text)));
    return views_compare(group);
}

static bool wanted(const struct trainer *trainer)
{
    return trainer->place.device && trainer->place.kernels->dtype == DTYPE_BF16 &&
           trainer->config.kernels.algorithms[0];
}

/* What the file says, on all ranks. */
static status_t table_load(const char *path, const char *text)
{
    char name[PATH_MAX + 32];
    snprintf(name, sizeof name, "kernels.algorithms: %s", path);
    return kernels_cuda_algorithms_load(name, text);
}

status_t algorithms_prepare(struct trainer *trainer)
{
    const char *path = path_of(&trainer->config);
    struct group *group = trainer->group;
    char **text = &trainer->algorithms;
    status_t status = STATUS_OK;
    if (!wanted(trainer)) {
        if (trainer->config.kernels.algorithms[0] && group_rank(group) == 0) {
            log_info("kernels.algorithms has no use here: only bf16 on GPUs chooses by a table");
        }
        return STATUS_OK;
    }
    if (group_rank(group) == 0) {
        status = text_read(path, text);
    }
    TRY(group_agree(group, status));
    TRY(text_share(group, text));
    TRY(group_agree(group, table_load(path, *text)));
    TRY(complete(trainer, text));
    return group_agree(group,
                       worker_rehearse(trainer->workers.train ? trainer->workers.train
                                                              : trainer->workers.evaluation));
}

uint64_t algorithms_hash(const struct trainer *trainer)
{
    char *table = wanted(trainer) ? kernels_cuda_algorithms_save() : NULL;
    uint64_t hash = table ? table_hash(table) : 0;
    free(table);
    return hash;
}

bool trainer_has_algorithms(const struct trainer *trainer)
{
    return trainer->algorithms != NULL;
}

status_t trainer_keep_algorithms(const struct trainer *trainer, const char *folder)
{
    char path[PATH_MAX + 32];
    if (!trainer->algorithms || group_rank(trainer->group) != 0) {
        return STATUS_OK;
    }
    snprintf(path, sizeof path, "%s/" ALGORITHMS_FILE, folder);
    return text_write(path, trainer->algorithms);
}
