/* ckpt_official.c - `muddpipe ckpt export | import`: to and from official folders, on one process. */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/ckpt_private.h"
#include "runtime/runtime.h"

static status_t make_model(const char *folder, struct model **out)
{
    struct model_config config;
    TRY(model_config_load(folder, NULL, NULL, &config));
    return model_create(&config, &(struct model_use){.B = 1, .T = config.block_size}, out);
}

/* ---- export ---- */

/* The files of an official folder: one model.safetensors, or model-00001-of-0000N.safetensors with an index. */
struct files {
    char folder[PATH_MAX];
    int count, *first; /* [count + 1] their parameters */
    struct tensor_entry *entries;
    int64_t bytes; /* of all values */
};

static int64_t value_bytes(const struct model *model, int param, enum tensor_dtype dtype)
{
    return model->param[param].count * (dtype == TENSOR_BF16 ? 2 : 4);
}

/* In the order of the parameters; a file has at least one, and else at most `most` bytes of values. */
static status_t files_lay(struct files *files, const struct model *model,
                          const struct export_options *options)
{
    enum tensor_dtype dtype = options->bf16 ? TENSOR_BF16 : TENSOR_F32;
    int64_t in_file = 0;
    files->first = calloc((size_t)model->params + 1, sizeof *files->first);
    if (!files->first) {
        return FAIL(STATUS_NOMEM, "no memory for the list of files");
    }
    TRY(model_entries(model, &files->entries));
    for (int p = 0; p < model->params; p++) {
        int64_t bytes = value_bytes(model, p, dtype);
        files->entries[p].dtype = dtype;
        files->bytes += bytes;
        if (p == 0 || (options->shard_bytes > 0 && in_file + bytes > options->shard_bytes)) {
            files->first[files->count++] = p;
            in_file = 0;
        }
        in_file += bytes;
    }
    files->first[files->count] = model->params;
    return STATUS_OK;
}

static void file_name(const struct files *files, int file, char *out, size_t size)
{
    if (files->count == 1) {
        snprintf(out, size, "model.safetensors");
    } else {
        snprintf(out, size, "model-%05d-of-%05d.safetensors", file + 1, files->count);
    }
}

static status_t index_write(const struct files *files, FILE *out)
{
    char name[64];
    fprintf(out, "{\n  \"metadata\": {\"total_size\": %lld},\n  \"weight_map\": {",
            (long long)files->bytes);
    for (int f = 0; f < files->count; f++) {
        file_name(files, f, name, sizeof name);
        for (int p = files->first[f]; p < files->first[f + 1]; p++) {
            fprintf(out, "%s\n    \"%s\": \"%s\"", p > 0 ? "," : "", files->entries[p].name, name);
        }
    }
    fprintf(out, "\n  }\n}\n");
    return ferror(out) ? STATUS_IO : STATUS_OK;
}

static status_t index_save(const struct files *files)
{
    char path[PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", files->folder);
    FILE *out = fopen(path, "w");
    status_t status = out ? index_write(files, out) : STATUS_IO;
    if (out && fclose(out) != 0) {
        status = STATUS_IO;
    }
    return status == STATUS_OK ? STATUS_OK
                               : FAIL(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
}

static status_t export_value(const struct checkpoint *checkpoint, const struct model *model,
                             const struct files *files, int file, int param)
{
    char name[64], path[PATH_MAX + 64];
    int first = files->first[file], count = files->first[file + 1] - first;
    int tensor = checkpoint_find(checkpoint, model->param[param].name);
    if (tensor < 0 || checkpoint_elements(&checkpoint_info(checkpoint)->tensor[tensor]) !=
                          model->param[param].count) {
        return FAIL(STATUS_INVALID, "the checkpoint has no tensor %s of the model's size",
                    model->param[param].name);
    }
    file_name(files, file, name, sizeof name);
    snprintf(path, sizeof path, "%s/%s", files->folder, name);
    float *values = malloc((size_t)model->param[param].count * sizeof *values);
    status_t status = values ? checkpoint_read(checkpoint, tensor, 0, values)
                             : FAIL(STATUS_NOMEM, "no memory for %s", model->param[param].name);
    if (status == STATUS_OK) {
        status = tensor_writer_write(path, files->entries + first, count, param - first, values);
    }
    free(values);
    return status;
}

static status_t export_file(const struct checkpoint *checkpoint, const struct model *model,
                            const struct files *files, int file)
{
    char name[64], path[PATH_MAX + 64];
    int first = files->first[file];
    file_name(files, file, name, sizeof name);
    snprintf(path, sizeof path, "%s/%s", files->folder, name);
    TRY(tensor_writer_create(path, files->entries + first, files->first[file + 1] - first));
    for (int p = first; p < files->first[file + 1]; p++) {
        TRY(export_value(checkpoint, model, files, file, p));
    }
    return STATUS_OK;
}

/* config.json comes last: a folder without it is no model. */
static status_t export_all(const struct checkpoint *checkpoint, const struct model *model,
                           const struct files *files)
{
    char config[PATH_MAX + 64];
    if (mkdir(files->folder, 0777) != 0) {
        return FAIL(STATUS_IO, "cannot make the folder %s: %s", files->folder, strerror(errno));
    }
    for (int f = 0; f < files->count; f++) {
        TRY(export_file(checkpoint, model, files, f));
    }
    TRY(files->count > 1 ? index_save(files) : STATUS_OK);
    snprintf(config, sizeof config, "%s/config.json", files->folder);
    return model_config_save(&model->config, config);
}

status_t checkpoint_export(const char *path, const char *out, const struct export_options *options)
{
    char folder[PATH_MAX];
    struct checkpoint *checkpoint;
    struct model *model = NULL;
    struct files files = {.count = 0};
    int length = snprintf(files.folder, sizeof files.folder, "%s", out);
    if (length < 0 || (size_t)length >= sizeof files.folder) {
        return FAIL(STATUS_INVALID, "the path is too long: %.200s", out);
    }
    TRY(checkpoint_open_found(path, folder, &checkpoint));
    status_t status = make_model(folder, &model);
    if (status == STATUS_OK) {
        status = files_lay(&files, model, options);
    }
    if (status == STATUS_OK) {
        status = export_all(checkpoint, model, &files);
    }
    free(files.entries);
    free(files.first);
    model_destroy(model);
    checkpoint_close(checkpoint);
    return status;
}

/* ---- import ---- */

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
                    piece[pieces] = (struct checkpoint_piece){k == 0 ? weights + begin : zeros,
                                                              (uint32_t)p,
                                                              (uint32_t)k,
                                                              (uint64_t)begin,
                                                              (uint64_t)some,
                                                              (uint64_t)some,
                                                              (uint64_t)some};
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
