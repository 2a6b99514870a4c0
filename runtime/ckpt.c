/* ckpt.c - what `muddpipe ckpt` does with checkpoints, on one process. */
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "runtime/checkpoint/checkpoint.h"
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

static status_t open_found(const char *path, char *folder, struct checkpoint **out)
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
    TRY(open_found(path, folder, &checkpoint));
    print_checkpoint(folder, checkpoint, out);
    checkpoint_close(checkpoint);
    return STATUS_OK;
}

status_t checkpoint_prove(const char *path, FILE *out)
{
    char folder[PATH_MAX];
    struct checkpoint *checkpoint;
    int64_t raw, stored;
    TRY(open_found(path, folder, &checkpoint));
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
    TRY(open_found(path, folder[0], &one));
    status_t status = open_found(other_path, folder[1], &other);
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

/* ---- export, import ---- */

static status_t make_model(const char *folder, struct model **out)
{
    struct model_config config;
    TRY(model_config_load(folder, NULL, NULL, &config));
    return model_create(&config, &(struct model_use){.B = 1, .T = config.block_size}, out);
}

/* Its config.json and an empty model.safetensors. */
static status_t begin_official(const struct model *model, const char *folder, const char *file,
                               const struct tensor_entry *entries)
{
    char config[PATH_MAX + 32];
    if (mkdir(folder, 0777) != 0) {
        return FAIL(STATUS_IO, "cannot make the folder %s: %s", folder, strerror(errno));
    }
    snprintf(config, sizeof config, "%s/config.json", folder);
    TRY(model_config_save(&model->config, config));
    return tensor_writer_create(file, entries, model->params);
}

static status_t export_values(const struct checkpoint *checkpoint, const struct model *model,
                              const char *file, const struct tensor_entry *entries)
{
    for (int p = 0; p < model->params; p++) {
        int tensor = checkpoint_find(checkpoint, model->param[p].name);
        if (tensor < 0 || checkpoint_elements(&checkpoint_info(checkpoint)->tensor[tensor]) !=
                              model->param[p].count) {
            return FAIL(STATUS_INVALID, "the checkpoint has no tensor %s of the model's size",
                        model->param[p].name);
        }
        float *values = malloc((size_t)model->param[p].count * sizeof *values);
        status_t status = values ? checkpoint_read(checkpoint, tensor, 0, values)
                                 : FAIL(STATUS_NOMEM, "no memory for %s", model->param[p].name);
        if (status == STATUS_OK) {
            status = tensor_writer_write(file, entries, model->params, p, values);
        }
        free(values);
        TRY(status);
    }
    return STATUS_OK;
}

status_t checkpoint_export(const char *path, const char *out)
{
    char folder[PATH_MAX], file[PATH_MAX + 32];
    struct checkpoint *checkpoint;
    struct model *model = NULL;
    struct tensor_entry *entries = NULL;
    TRY(open_found(path, folder, &checkpoint));
    snprintf(file, sizeof file, "%s/model.safetensors", out);
    status_t status = make_model(folder, &model);
    if (status == STATUS_OK) {
        status = model_entries(model, &entries);
    }
    if (status == STATUS_OK) {
        status = begin_official(model, out, file, entries);
    }
    if (status == STATUS_OK) {
        status = export_values(checkpoint, model, file, entries);
    }
    free(entries);
    model_destroy(model);
    checkpoint_close(checkpoint);
    return status;
}

/* All weights one after the other, as the official folder has them; then moments of 0. */
static status_t import_values(const struct model *model, const struct tensor_file *file,
                              float *weights)
{
    for (int p = 0; p < model->params; p++) {
        const struct param *param = &model->param[p];
        struct tensor tensor;
        if (tensor_file_find(file, param->name, &tensor)) {
            TRY(tensor_to_float(&tensor, weights));
        } else { /* not trained, so any will do */
            for (int64_t e = 0; e < param->count; e++) {
                weights[e] = param_initial(param, 1, e);
            }
        }
        weights += param->count;
    }
    return STATUS_OK;
}

/* Returns their number; piece NULL: only counts. */
static size_t lay_pieces(const struct model *model, const float *weights, const float *zeros,
                         struct checkpoint_piece *piece)
{
    size_t pieces = 0;
    for (int p = 0; p < model->params; p++) {
        int64_t count = model->param[p].count;
        for (int k = 0; k < CHECKPOINT_KINDS; k++) {
            for (int64_t begin = 0; begin < count; begin += CHECKPOINT_CHUNK, pieces++) {
                int64_t some = count - begin < CHECKPOINT_CHUNK ? count - begin : CHECKPOINT_CHUNK;
                if (piece) {
                    piece[pieces] =
                        (struct checkpoint_piece){k == 0 ? weights + begin : zeros, (uint32_t)p,
                                                  (uint32_t)k, (uint64_t)begin, (uint64_t)some};
                }
            }
        }
        weights += count;
    }
    return pieces;
}

struct import {
    struct model *model;
    struct tensor_file *file;
    float *weights, *zeros; /* [all], [CHECKPOINT_CHUNK] */
    struct checkpoint_piece *piece;
    struct checkpoint_tensor *tensor;
    char *text; /* of config.json */
};

static status_t import_fill(struct import *import)
{
    const struct model *model = import->model;
    size_t all = 0, size;
    for (int p = 0; p < model->params; p++) {
        all += (size_t)model->param[p].count;
    }
    size_t pieces = lay_pieces(model, NULL, NULL, NULL);
    import->weights = malloc(all * sizeof *import->weights);
    import->zeros = calloc(CHECKPOINT_CHUNK, sizeof *import->zeros);
    import->piece = calloc(pieces + 1, sizeof *import->piece);
    import->tensor = calloc((size_t)model->params + 1, sizeof *import->tensor);
    FILE *text = open_memstream(&import->text, &size);
    if (text) {
        model_config_print(&model->config, text);
        fclose(text);
    }
    if (!import->weights || !import->zeros || !import->piece || !import->tensor || !text) {
        return FAIL(STATUS_NOMEM, "no memory for the %zu weights of the model", all);
    }
    for (int p = 0; p < model->params; p++) {
        const struct param *param = &model->param[p];
        import->tensor[p] =
            (struct checkpoint_tensor){param->name, param->shape, param->dims, param->trained};
    }
    TRY(model_check_tensors(model, import->file));
    TRY(import_values(model, import->file, import->weights));
    lay_pieces(model, import->weights, import->zeros, import->piece);
    return STATUS_OK;
}

static status_t import_write(struct import *import, const char *final)
{
    char temporary[PATH_MAX];
    struct shard_result result;
    int length = snprintf(temporary, sizeof temporary, "%s.part", final);
    if (length < 0 || (size_t)length >= sizeof temporary) {
        return FAIL(STATUS_INVALID, "the path is too long: %.200s", final);
    }
    if (mkdir(temporary, 0777) != 0) {
        return FAIL(STATUS_IO, "cannot make the folder %s: %s", temporary, strerror(errno));
    }
    struct shard_options shard = {.folder = temporary,
                                  .piece = import->piece,
                                  .pieces = lay_pieces(import->model, NULL, NULL, NULL),
                                  .level = 1,
                                  .threads = 4};
    struct checkpoint_info info = {.program = MUDDPIPE_VERSION,
                                   .config = "# imported: no run has written it\n",
                                   .model = import->text,
                                   .tensor = import->tensor,
                                   .tensors = import->model->params,
                                   .shards = 1,
                                   .level = 1};
    status_t status = shard_write(&shard, &result);
    if (status == STATUS_OK) {
        status = checkpoint_commit(temporary, final, &info);
    }
    if (status != STATUS_OK) {
        checkpoint_remove(temporary);
    }
    return status;
}

status_t checkpoint_import(const char *official, const char *out)
{
    struct import import = {0};
    TRY(make_model(official, &import.model));
    status_t status = tensor_file_open(official, &import.file);
    if (status == STATUS_OK) {
        status = import_fill(&import);
    }
    if (status == STATUS_OK) {
        status = import_write(&import, out);
    }
    tensor_file_close(import.file);
    model_destroy(import.model);
    free(import.weights);
    free(import.zeros);
    free(import.piece);
    free(import.tensor);
    free(import.text);
    return status;
}
