/* run_folder.c - a run's folder: made once, never overwritten. */
#include "runtime/run_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/nvml.h"
#include "runtime/resume.h"
#include "runtime/run_lock.h"

enum { NAMES = 1000, LINE = 1024 }; /* tries of runs/<date>-<time>-N; bytes of a line */

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

/* *out_old: it was there, and `again` allows that. */
static status_t make_named(const char *name, bool again, char *out, size_t size, bool *out_old)
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
    *out_old = errno == EEXIST && again;
    if (*out_old) {
        return STATUS_OK;
    }
    if (errno == EEXIST) {
        return FAIL(
            STATUS_INVALID,
            "the run folder %s exists already and is left as it is: go on in it with "
            "checkpoint.resume=auto, name another one with logging.run=, or leave logging.run out "
            "for a fresh name",
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

static status_t open_in(const char *folder, const char *name, const char *mode, FILE **out)
{
    char path[PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    *out = fopen(path, mode);
    return *out ? STATUS_OK : FAIL(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
}

static status_t open_metrics(struct run_folder *folder)
{
    char path[PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder->path);
    folder->metrics = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    return folder->metrics >= 0 ? STATUS_OK
                                : FAIL(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
}

/* Bytes of the lines of steps up to `step`, from the start on. */
static int64_t lines_until(FILE *file, int64_t step)
{
    char *line = NULL;
    size_t size = 0;
    int64_t kept = 0;
    long long found;
    ssize_t length;
    while ((length = getline(&line, &size, file)) > 0) {
        bool whole = line[length - 1] == '\n' && sscanf(line, "{\"step\":%lld,", &found) == 1;
        if (!whole || found > step) {
            break;
        }
        kept += length;
    }
    free(line);
    return kept;
}

static status_t rewind_metrics(struct run_folder *folder, int64_t step)
{
    char path[PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder->path);
    FILE *file = fopen(path, "r");
    if (!file) {
        return FAIL(STATUS_IO, "cannot read %s: %s", path, strerror(errno));
    }
    folder->whole = lines_until(file, step);
    fclose(file);
    return ftruncate(folder->metrics, (off_t)folder->whole) == 0
               ? STATUS_OK
               : FAIL(STATUS_IO, "cannot shorten %s: %s", path, strerror(errno));
}

/* As it was resolved, with the table that this run multiplies by: what is measured again may differ. */
static void print_config(const struct run_config *config, bool table, const char *folder,
                         FILE *file)
{
    struct run_config kept = *config;
    bool measured = strcmp(config->kernels.algorithms, "measure") == 0;
    if (table) {
        fprintf(file, "# kernels.algorithms: the table of this run, %s; it repeats the bits\n",
                measured ? "measured at its start" : "made of the file that it was given");
        snprintf(kept.kernels.algorithms, sizeof kept.kernels.algorithms, "%s/" ALGORITHMS_FILE,
                 folder);
    }
    config_print(&kept, file);
}

static status_t create_root(const struct run_config *config, struct run_folder *folder)
{
    bool again = resume_auto(config);
    if (again && !config->logging.run[0]) {
        return FAIL(STATUS_INVALID,
                    "checkpoint.resume=auto goes on in the run folder, so it has to have a "
                    "name: set logging.run");
    }
    TRY(config->logging.run[0]
            ? make_named(config->logging.run, again, folder->path, PATH_MAX, &folder->old)
            : make_dated(folder->path, PATH_MAX));
    TRY(run_lock_take(folder->path, &folder->lock));
    return open_metrics(folder);
}

/* config.yaml, and in an old folder metrics.jsonl without the steps that will be made again. */
status_t run_folder_begin(struct run_folder *folder, const struct run_config *config, bool table,
                          int64_t step)
{
    FILE *file;
    TRY(folder->old ? rewind_metrics(folder, step) : STATUS_OK);
    TRY(open_in(folder->path, "config.yaml", "w", &file));
    print_config(config, table, folder->path, file);
    bool failed = ferror(file) != 0;
    if (fclose(file) != 0 || failed) {
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
    out->metrics = out->lock = -1;
    if (group_rank(group) == 0) {
        status = create_root(config, out);
    }
    TRY(group_agree(group, status));
    TRY(group_broadcast(group, out->path, sizeof out->path, 0));
    int length = snprintf(out->model, sizeof out->model, "%s/model", out->path);
    CHECK(length > 0 && (size_t)length < sizeof out->model, "run folder's path too long");
    TRY(group_broadcast(group, &out->old, sizeof out->old, 0));
    TRY(group_size(group) > 1 ? run_lock_check_shared(group, out->path) : STATUS_OK);
    snprintf(name, sizeof name, "rank-%d.log", group_rank(group));
    status = open_in(out->path, name, out->old ? "a" : "w", &out->log);
    if (status == STATUS_OK) {
        log_set_file(out->log);
    }
    return group_agree(group, status);
}

static status_t metrics_fail(const struct run_folder *folder, int error)
{
    return FAIL(
        STATUS_IO,
        "cannot write %s/metrics.jsonl: %s; this run ends without weights (make room there, or "
        "name a folder elsewhere with logging.run=)",
        folder->path, strerror(error));
}

/* The whole line or nothing. */
static status_t metrics_append(struct run_folder *folder, const char *line, size_t length)
{
    for (size_t done = 0; done < length;) {
        ssize_t written = write(folder->metrics, line + done, length - done);
        if (written >= 0) {
            done += (size_t)written;
        } else if (errno != EINTR) {
            int error = errno;
            if (ftruncate(folder->metrics, (off_t)folder->whole) != 0) {
                log_warn("%s/metrics.jsonl ends with half a line", folder->path);
            }
            return metrics_fail(folder, error);
        }
    }
    folder->whole += (int64_t)length;
    return STATUS_OK;
}

/* With all digits; JSON has no nan. */
static const char *number(double value, char *buffer, size_t size)
{
    snprintf(buffer, size, "%.17g", value);
    return isfinite(value) ? buffer : "null";
}

static void print_cards(const struct step_cost *cost, char *out, size_t size)
{
    char reasons[160];
    out[0] = '\0';
    if (cost->cards > 0) {
        snprintf(out, size,
                 ",\"sm_mhz_least\":%.0f,\"watts\":%.1f,\"celsius_most\":%.0f,\"throttle\":\"%s\"",
                 cost->sm_mhz_least, cost->watts, cost->celsius_most,
                 nvml_throttle_print(cost->throttle, reasons, sizeof reasons));
    }
}

/* With other replicas, and within stages; nothing where there is none. */
static void print_exchanged(const struct step_cost *cost, char *buffer, size_t size)
{
    int used = 0;
    buffer[0] = '\0';
    if (cost->bytes_collective > 0) {
        used = snprintf(buffer, size, ",\"exposed_collective\":%.6f,\"bytes_collective\":%lld",
                        cost->share[TRACE_COLLECTIVE], (long long)cost->bytes_collective);
    }
    if (cost->bytes_tensor > 0) {
        snprintf(buffer + used, size - (size_t)used,
                 ",\"exposed_tensor\":%.6f,\"bytes_tensor\":%lld", cost->share[TRACE_TENSOR],
                 (long long)cost->bytes_tensor);
    }
}

status_t run_folder_metrics(struct run_folder *folder, const struct step_result *result, double lr,
                            int64_t tokens, int64_t sequences, const struct step_cost *cost,
                            const double *heldout)
{
    char line[LINE], loss[64] = "", cards[320], value[2][32], exchanged[192];
    print_cards(cost, cards, sizeof cards);
    if (heldout) {
        snprintf(loss, sizeof loss, ",\"heldout_loss\":%s",
                 number(*heldout, value[0], sizeof value[0]));
    }
    print_exchanged(cost, exchanged, sizeof exchanged);
    int length =
        snprintf(line, sizeof line,
                 "{\"step\":%lld,\"loss\":%s,\"grad_norm\":%s,\"lr\":%.9g,\"tokens\":%lld,"
                 "\"sequences\":%lld,\"step_time_s\":%.6f,\"tokens_per_s\":%.1f,\"bubble\":%.6f,"
                 "\"exposed_plain\":%.6f,\"exposed_dense\":%.6f,\"bytes_plain\":%lld,"
                 "\"bytes_dense\":%lld%s%s%s%s}\n",
                 (long long)result->step, number(result->loss, value[0], sizeof value[0]),
                 number(result->grad_norm, value[1], sizeof value[1]), lr, (long long)tokens,
                 (long long)sequences, cost->seconds,
                 cost->seconds > 0 ? (double)tokens / cost->seconds : 0.0, cost->share[TRACE_WAIT],
                 cost->share[TRACE_EXPOSED_PLAIN], cost->share[TRACE_EXPOSED_DENSE],
                 (long long)cost->bytes_plain, (long long)cost->bytes_dense, exchanged,
                 result->skipped ? ",\"skipped\":true" : "", loss, cards);
    CHECK(length > 0 && length < LINE, "a line of metrics.jsonl has %d bytes", length);
    return metrics_append(folder, line, (size_t)length);
}

void run_folder_check_log(struct run_folder *folder)
{
    if (folder->log && ferror(folder->log)) {
        log_set_file(NULL);
        fclose(folder->log);
        folder->log = NULL;
        log_warn("%s/rank-%d.log cannot be written any more (is the disk full?); messages go to "
                 "stderr only",
                 folder->path, log_rank() >= 0 ? log_rank() : 0);
    }
}

status_t run_folder_close(struct run_folder *folder)
{
    status_t status = STATUS_OK;
    run_folder_check_log(folder);
    if (folder->metrics >= 0 && close(folder->metrics) != 0) {
        status = metrics_fail(folder, errno);
    }
    if (folder->log) {
        log_set_file(NULL);
        fclose(folder->log);
    }
    if (folder->lock >= 0) {
        close(folder->lock);
    }
    memset(folder, 0, sizeof *folder);
    folder->metrics = folder->lock = -1;
    return status;
}
