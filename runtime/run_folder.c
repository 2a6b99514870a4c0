/* run_folder.c - a run's folder: made once, never overwritten. */
#include "runtime/run_folder.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/log.h"

enum { NAMES = 1000 }; /* tries of runs/<date>-<time>-N */

static status_t make_parents(const char *path)
{
    char part[PATH_MAX];
    for (const char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        snprintf(part, sizeof part, "%.*s", (int)(slash - path), path);
        if (mkdir(part, 0777) != 0 && errno != EEXIST) {
            return FAIL(STATUS_IO, "cannot make the folder %s: %s", part, strerror(errno));
        }
    }
    return STATUS_OK;
}

static status_t make_named(const char *name, char *out, size_t size)
{
    size_t length = strlen(name);
    while (length > 1 && name[length - 1] == '/') {
        length--;
    }
    snprintf(out, size, "%.*s", (int)length, name);
    TRY(make_parents(out));
    if (mkdir(out, 0777) == 0) {
        return STATUS_OK;
    }
    if (errno == EEXIST) {
        return FAIL(STATUS_INVALID,
                    "the run folder %s exists already and is left as it is: name another one with "
                    "logging.run=, or leave logging.run out for a fresh name",
                    out);
    }
    return FAIL(STATUS_IO, "cannot make the run folder %s: %s", out, strerror(errno));
}

static status_t make_dated(char *out, size_t size)
{
    char date[32];
    time_t now = time(NULL);
    struct tm local;
    localtime_r(&now, &local);
    strftime(date, sizeof date, "%Y%m%d-%H%M%S", &local);
    snprintf(out, size, "runs/%s", date);
    TRY(make_parents(out));
    for (int i = 2; mkdir(out, 0777) != 0; i++) {
        if (errno != EEXIST || i == NAMES) {
            return FAIL(STATUS_IO, "cannot make the run folder %s: %s", out, strerror(errno));
        }
        snprintf(out, size, "runs/%s-%d", date, i);
    }
    return STATUS_OK;
}

static status_t open_in(const char *folder, const char *name, FILE **out)
{
    char path[PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    *out = fopen(path, "w");
    return *out ? STATUS_OK : FAIL(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
}

static status_t create_root(const struct run_config *config, struct run_folder *folder)
{
    FILE *file;
    TRY(config->logging.run[0] ? make_named(config->logging.run, folder->path, PATH_MAX)
                               : make_dated(folder->path, PATH_MAX));
    TRY(open_in(folder->path, "metrics.jsonl", &folder->metrics));
    TRY(open_in(folder->path, "config.yaml", &file));
    config_print(config, file);
    if (fclose(file) != 0) {
        return FAIL(STATUS_IO, "cannot write %s/config.yaml: %s", folder->path, strerror(errno));
    }
    return STATUS_OK;
}

status_t run_folder_create(const struct run_config *config, struct group *group,
                           struct run_folder *out)
{
    char name[32];
    status_t status = STATUS_OK;
    memset(out, 0, sizeof *out);
    if (group_rank(group) == 0) {
        status = create_root(config, out);
    }
    TRY(group_agree(group, status));
    TRY(group_broadcast(group, out->path, sizeof out->path, 0));
    int length = snprintf(out->model, sizeof out->model, "%s/model", out->path);
    CHECK(length > 0 && (size_t)length < sizeof out->model, "run folder's path too long");
    snprintf(name, sizeof name, "rank-%d.log", group_rank(group));
    status = open_in(out->path, name, &out->log);
    if (status == STATUS_OK) {
        log_set_file(out->log);
    }
    return group_agree(group, status);
}

void run_folder_metrics(struct run_folder *folder, const struct step_result *result, double lr,
                        int64_t tokens, const struct step_cost *cost, const double *heldout)
{
    fprintf(folder->metrics,
            "{\"step\":%lld,\"loss\":%.17g,\"grad_norm\":%.17g,\"lr\":%.9g,\"tokens\":%lld,"
            "\"step_time_s\":%.6f,\"tokens_per_s\":%.1f,\"bubble\":%.6f,\"exposed_plain\":%.6f,"
            "\"exposed_dense\":%.6f,\"bytes_plain\":%lld,\"bytes_dense\":%lld",
            (long long)result->step, result->loss, result->grad_norm, lr, (long long)tokens,
            cost->seconds, cost->seconds > 0 ? (double)tokens / cost->seconds : 0.0,
            cost->share[TRACE_WAIT], cost->share[TRACE_EXPOSED_PLAIN],
            cost->share[TRACE_EXPOSED_DENSE], (long long)cost->bytes_plain,
            (long long)cost->bytes_dense);
    if (heldout) {
        fprintf(folder->metrics, ",\"heldout_loss\":%.17g", *heldout);
    }
    fprintf(folder->metrics, "}\n");
    fflush(folder->metrics);
}

void run_folder_close(struct run_folder *folder)
{
    if (folder->metrics) {
        fclose(folder->metrics);
    }
    if (folder->log) {
        log_set_file(NULL);
        fclose(folder->log);
    }
    memset(folder, 0, sizeof *folder);
}
