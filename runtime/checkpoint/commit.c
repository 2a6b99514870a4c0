/* commit.c - from the ranks' shards to a checkpoint. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/checkpoint/private.h"

const char *checkpoint_kind_name(int kind)
{
    static const char *const name[CHECKPOINT_KINDS] = {"weights", "first moment", "second moment"};
    return name[kind];
}

/* The table at the end of a shard; freed with muddpipe__shard__free_unpacked. */
static status_t table_read(const char *folder, int rank, Muddpipe__Shard **out)
{
    char path[PATH_MAX + 64];
    unsigned char tail[8] = {0}, *data = NULL;
    const unsigned char *message;
    struct stat info;
    size_t size = 0, length;
    snprintf(path, sizeof path, "%s/rank-%d.shard", folder, rank);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || fstat(file, &info) != 0 || info.st_size < (off_t)sizeof tail) {
        status_t status = FAIL(STATUS_IO, "cannot read %s: %s", path,
                               file < 0 ? strerror(errno) : "it is cut short");
        if (file >= 0) {
            close(file);
        }
        return status;
    }
    int64_t last = info.st_size - (int64_t)sizeof tail;
    status_t status = file_read(file, path, tail, sizeof tail, last);
    for (size_t i = 0; i < sizeof tail; i++) {
        size |= (size_t)tail[i] << (8 * i);
    }
    if (status == STATUS_OK && (size > (size_t)last || !(data = malloc(size + 1)))) {
        status = FAIL(STATUS_INVALID, "%s: its table has no %zu bytes", path, size);
    }
    if (status == STATUS_OK) {
        status = file_read(file, path, data, size, last - (int64_t)size);
    }
    if (status == STATUS_OK) {
        status = sealed_check(path, SEALED_SHARD, data, size, &message, &length);
    }
    if (status == STATUS_OK) {
        *out = muddpipe__shard__unpack(NULL, length, message);
        status = *out ? STATUS_OK : FAIL(STATUS_INVALID, "%s: its table is no table", path);
    }
    free(data);
    close(file);
    return status;
}

static void tensors_free(Muddpipe__Tensor **tensor, int tensors)
{
    for (int t = 0; tensor && t < tensors; t++) {
        free(tensor[t] ? tensor[t]->shape : NULL);
        free(tensor[t]);
    }
    free(tensor);
}

static status_t tensors_fill(const struct checkpoint_info *info, Muddpipe__Tensor ***out)
{
    Muddpipe__Tensor **tensor = calloc((size_t)info->tensors + 1, sizeof *tensor);
    bool made = tensor != NULL;
    for (int t = 0; made && t < info->tensors; t++) {
        const struct checkpoint_tensor *from = &info->tensor[t];
        tensor[t] = calloc(1, sizeof **tensor);
        made = tensor[t] != NULL;
        if (!made) {
            break;
        }
        muddpipe__tensor__init(tensor[t]);
        tensor[t]->shape = calloc((size_t)from->dims + 1, sizeof *tensor[t]->shape);
        made = tensor[t]->shape != NULL;
        tensor[t]->name = (char *)(uintptr_t)from->name;
        tensor[t]->trained = from->trained;
        tensor[t]->n_shape = (size_t)from->dims;
        for (int d = 0; made && d < from->dims; d++) {
            tensor[t]->shape[d] = (uint64_t)from->shape[d];
        }
    }
    if (!made) {
        tensors_free(tensor, info->tensors);
        return FAIL(STATUS_NOMEM, "no memory for the names of %d tensors", info->tensors);
    }
    *out = tensor;
    return STATUS_OK;
}

/* All strings are borrowed. */
static status_t manifest_save(const char *folder, const struct checkpoint_info *info,
                              Muddpipe__Tensor **tensor, Muddpipe__Shard **shard)
{
    char path[PATH_MAX + 64];
    char *kind[CHECKPOINT_KINDS];
    size_t size;
    Muddpipe__Manifest manifest = MUDDPIPE__MANIFEST__INIT;
    for (int k = 0; k < CHECKPOINT_KINDS; k++) {
        kind[k] = (char *)(uintptr_t)checkpoint_kind_name(k);
    }
    manifest.format = CHECKPOINT_FORMAT;
    for (int s = 0; s < info->shards && manifest.format == CHECKPOINT_FORMAT; s++) {
        manifest.format = (uint32_t)chunks_format(shard[s]->chunk, shard[s]->n_chunk);
    }
    manifest.program = (char *)(uintptr_t)info->program;
    manifest.step = (uint64_t)info->step;
    manifest.sequences = (uint64_t)info->sequences;
    manifest.train_data = info->train_data;
    manifest.config = (char *)(uintptr_t)info->config;
    manifest.model = (char *)(uintptr_t)info->model;
    manifest.encoding = (char *)(uintptr_t)encoding_name(info->level);
    manifest.n_kind = CHECKPOINT_KINDS;
    manifest.kind = kind;
    manifest.n_tensor = (size_t)info->tensors;
    manifest.tensor = tensor;
    manifest.n_shard = (size_t)info->shards;
    manifest.shard = shard;
    snprintf(path, sizeof path, "%s/" CHECKPOINT_MANIFEST, folder);
    TRY(coverage_check(path, &manifest));
    unsigned char *data = sealed_pack(SEALED_MANIFEST, (int)manifest.format, &manifest.base, &size);
    if (!data) {
        return FAIL(STATUS_NOMEM, "no memory for %s", path);
    }
    status_t status = file_save(path, data, size);
    free(data);
    return status;
}

static status_t manifest_make(const char *folder, const struct checkpoint_info *info)
{
    Muddpipe__Tensor **tensor = NULL;
    Muddpipe__Shard **shard = calloc((size_t)info->shards + 1, sizeof *shard);
    status_t status = shard ? tensors_fill(info, &tensor)
                            : FAIL(STATUS_NOMEM, "no memory for %d shards", info->shards);
    for (int r = 0; r < info->shards && status == STATUS_OK; r++) {
        status = table_read(folder, r, &shard[r]);
    }
    if (status == STATUS_OK) {
        status = manifest_save(folder, info, tensor, shard);
    }
    for (int r = 0; shard && r < info->shards; r++) {
        if (shard[r]) {
            muddpipe__shard__free_unpacked(shard[r], NULL);
        }
    }
    free(shard);
    tensors_free(tensor, info->tensors);
    return status;
}

static status_t text_save(const char *folder, const char *name, const char *text)
{
    char path[PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return file_save(path, text, strlen(text));
}

status_t checkpoint_commit(const char *temporary, const char *final,
                           const struct checkpoint_info *info)
{
    char parent[PATH_MAX];
    TRY(text_save(temporary, "config.yaml", info->config));
    TRY(text_save(temporary, "config.json", info->model));
    TRY(manifest_make(temporary, info));
    TRY(folder_sync(temporary));
    if (rename(temporary, final) != 0) {
        return FAIL(STATUS_IO, "cannot rename %s to %s: %s", temporary, final, strerror(errno));
    }
    snprintf(parent, sizeof parent, "%.*s", (int)(strrchr(final, '/') - final), final);
    return folder_sync(parent);
}
