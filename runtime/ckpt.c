/* ckpt.c - `muddpipe ckpt inspect | verify | diff`, on one process. */
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/ckpt_private.h"
#include "runtime/runtime.h"

/* A checkpoint's folder, or the newest one's of a run. */
static status_t find_folder(const char *path, char *out)
{
    int64_t *steps;
    int count;
    int length = snprintf(out, PATH_MAX, "%s", path);
    if (length < 0 || length >= PATH_MAX) {
        return FAIL(STATUS_INVALID, "the path is too long: %.200s", path);
    }
    if (checkpoint_here(path)) {
        return STATUS_OK;
    }
    TRY(checkpoint_list(path, &steps, &count));
    status_t status = count > 0
                          ? checkpoint_path(path, steps[0], false, out)
                          : FAIL(STATUS_INVALID,
                                 "%s is no checkpoint (it has no " CHECKPOINT_MANIFEST
                                 ") and no run with checkpoints (" CHECKPOINT_FOLDER "/step-N)",
                                 path);
    free(steps);
    return status;
}

status_t checkpoint_open_found(const char *path, char *folder, struct checkpoint **out)
{
    TRY(find_folder(path, folder));
    return checkpoint_open(folder, out);
}

/* ---- inspect, verify ---- */

static void print_shape(const struct checkpoint_tensor *tensor, FILE *out)
{
    for (int d = 0; d < tensor->dims; d++) {
        fprintf(out, "%s%lld", d > 0 ? " x " : "", (long long)tensor->shape[d]);
    }
}

static void print_checkpoint(const char *folder, const struct checkpoint *checkpoint, FILE *out)
{
    const struct checkpoint_info *info = checkpoint_info(checkpoint);
    int64_t raw, stored, trained = 0;
    checkpoint_bytes(checkpoint, &raw, &stored);
    for (int t = 0; t < info->tensors; t++) {
        trained += info->tensor[t].trained ? checkpoint_elements(&info->tensor[t]) : 0;
    }
    fprintf(out, "checkpoint   %s\n", folder);
    fprintf(out, "step         %lld, behind sequence %lld of the data\n", (long long)info->step,
            (long long)info->sequences);
    fprintf(out, "written by   muddpipe %s, %d rank%s\n", info->program, info->shards,
            info->shards == 1 ? "" : "s");
    fprintf(out, "values       %lld trained parameters in %d tensors: weights and both moments\n",
            (long long)trained, info->tensors);
    fprintf(out, "bytes        %lld, stored in %lld (%.2f of them)%s\n\n", (long long)raw,
            (long long)stored, raw > 0 ? (double)stored / (double)raw : 1.0,
            info->level > 0 ? "" : ", as they are");
    for (int t = 0; t < info->tensors; t++) {
        fprintf(out, "  %-48s ", info->tensor[t].name);
        print_shape(&info->tensor[t], out);
        fprintf(out, "%s\n", info->tensor[t].trained ? "" : "  (not trained)");
    }
    fprintf(out, "\nconfig.yaml\n\n%s", info->config);
}

status_t checkpoint_inspect(const char *path, FILE *out)
{
    char folder[PATH_MAX];
    struct checkpoint *checkpoint;
    TRY(checkpoint_open_found(path, folder, &checkpoint));
    print_checkpoint(folder, checkpoint, out);
    checkpoint_close(checkpoint);
    return STATUS_OK;
}

status_t checkpoint_prove(const char *path, FILE *out)
{
    char folder[PATH_MAX];
    struct checkpoint *checkpoint;
    int64_t raw, stored;
    TRY(checkpoint_open_found(path, folder, &checkpoint));
    status_t status = checkpoint_verify(checkpoint, 0, 1);
    if (status == STATUS_OK) {
        checkpoint_bytes(checkpoint, &raw, &stored);
        fprintf(out, "%s: whole, %lld bytes read and compared\n", folder, (long long)stored);
    }
    checkpoint_close(checkpoint);
    return status;
}

/* ---- diff ---- */

struct difference {
    double most; /* of absolute values; NaN where only one is */
    int64_t elements;
};

static struct difference compare_values(const float *a, const float *b, int64_t count)
{
    struct difference found = {0};
    for (int64_t i = 0; i < count; i++) {
        if (memcmp(&a[i], &b[i], sizeof a[i]) == 0) {
            continue;
        }
        double apart = fabs((double)a[i] - (double)b[i]);
        found.elements++;
        found.most = isnan(apart) || apart > found.most ? apart : found.most;
    }
    return found;
}

/* *out_same: the three kinds of the tensor have the same bits. */
static status_t compare_tensor(const struct checkpoint *one, const struct checkpoint *other,
                               int tensor, int at, FILE *out, bool *out_same)
{
    const struct checkpoint_tensor *what = &checkpoint_info(one)->tensor[tensor];
    size_t count = (size_t)checkpoint_elements(what);
    float *a = malloc(2 * count * sizeof *a);
    status_t status = a ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for two times %s", what->name);
    *out_same = true;
    for (int k = 0; k < CHECKPOINT_KINDS && status == STATUS_OK; k++) {
        status = checkpoint_read(one, tensor, k, a);
        if (status == STATUS_OK) {
            status = checkpoint_read(other, at, k, a + count);
        }
        if (status != STATUS_OK) {
            break;
        }
        struct difference found = compare_values(a, a + count, (int64_t)count);
        if (found.elements > 0) {
            *out_same = false;
            fprintf(out, "  %-48s %-13s %lld of %zu differ, by %.3g at most\n", what->name,
                    checkpoint_kind_name(k), (long long)found.elements, count, found.most);
        }
    }
    free(a);
    return status;
}

static bool same_shape(const struct checkpoint_tensor *a, const struct checkpoint_tensor *b)
{
    return a->dims == b->dims &&
           memcmp(a->shape, b->shape, (size_t)a->dims * sizeof *a->shape) == 0;
}

static status_t compare_all(const struct checkpoint *one, const struct checkpoint *other, FILE *out,
                            int *out_different)
{
    const struct checkpoint_info *a = checkpoint_info(one), *b = checkpoint_info(other);
    *out_different = 0;
    for (int t = 0; t < a->tensors; t++) {
        int at = checkpoint_find(other, a->tensor[t].name);
        bool same = false;
        if (at < 0 || !same_shape(&a->tensor[t], &b->tensor[at])) {
            fprintf(out, "  %-48s %s\n", a->tensor[t].name,
                    at < 0 ? "is in the first alone" : "has another shape");
        } else {
            TRY(compare_tensor(one, other, t, at, out, &same));
        }
        *out_different += !same;
    }
    for (int t = 0; t < b->tensors; t++) {
        if (checkpoint_find(one, b->tensor[t].name) < 0) {
            fprintf(out, "  %-48s is in the second alone\n", b->tensor[t].name);
            ++*out_different;
        }
    }
    return STATUS_OK;
}

status_t checkpoint_compare(const char *path, const char *other_path, FILE *out)
{
    char folder[2][PATH_MAX];
    struct checkpoint *one = NULL, *other = NULL;
    int different = 0;
    TRY(checkpoint_open_found(path, folder[0], &one));
    status_t status = checkpoint_open_found(other_path, folder[1], &other);
    if (status == STATUS_OK) {
        status = compare_all(one, other, out, &different);
    }
    if (status == STATUS_OK) {
        fprintf(out, "%s, step %lld, and %s, step %lld: ", folder[0],
                (long long)checkpoint_info(one)->step, folder[1],
                (long long)checkpoint_info(other)->step);
        fprintf(out, different > 0 ? "%d of %d tensors differ\n" : "all values are the same bits\n",
                different, checkpoint_info(one)->tensors);
        if (different > 0) {
            status = STATUS_MISMATCH;
        }
    }
    checkpoint_close(one);
    checkpoint_close(other);
    return status;
}
