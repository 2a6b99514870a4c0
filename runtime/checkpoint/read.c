/* read.c - a checkpoint of the disk, for whoever wants some of it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/checkpoint/private.h"

struct checkpoint {
    char folder[PATH_MAX];
    Muddpipe__Manifest *manifest;
    struct checkpoint_info info;
    struct checkpoint_tensor *tensor;
    int64_t *shapes; /* of all tensors */
    int *file;       /* [shards] */
    bool compressed;
};

static void shard_path(const struct checkpoint *checkpoint, size_t shard, char *out, size_t size)
{
    snprintf(out, size, "%s/%s", checkpoint->folder, checkpoint->manifest->shard[shard]->file);
}

/* The file of a chunk's shard is opened once. A name is that of a file in the folder, never a path. */
static status_t shard_open(struct checkpoint *checkpoint, size_t shard)
{
    char path[PATH_MAX + 256];
    struct stat info;
    const Muddpipe__Shard *of = checkpoint->manifest->shard[shard];
    if (strchr(of->file, '/') != NULL || of->file[0] == '.' || strlen(of->file) > 200) {
        return FAIL(STATUS_INVALID, "%s/" CHECKPOINT_MANIFEST ": a shard is called \"%s\"",
                    checkpoint->folder, of->file);
    }
    shard_path(checkpoint, shard, path, sizeof path);
    checkpoint->file[shard] = open(path, O_RDONLY | O_CLOEXEC);
    if (checkpoint->file[shard] < 0 || fstat(checkpoint->file[shard], &info) != 0) {
        return FAIL(STATUS_IO, "cannot read %s: %s", path, strerror(errno));
    }
    if ((uint64_t)info.st_size < of->bytes) {
        return FAIL(STATUS_INVALID, "%s has %lld of its %llu bytes: it was cut short", path,
                    (long long)info.st_size, (unsigned long long)of->bytes);
    }
    return STATUS_OK;
}

static status_t manifest_open(struct checkpoint *checkpoint)
{
    char path[PATH_MAX + 64];
    unsigned char *data = NULL;
    const unsigned char *message;
    size_t size, length;
    snprintf(path, sizeof path, "%s/" CHECKPOINT_MANIFEST, checkpoint->folder);
    TRY(file_load(path, &data, &size));
    status_t status = sealed_check(path, SEALED_MANIFEST, data, size, &message, &length);
    if (status == STATUS_OK) {
        checkpoint->manifest = muddpipe__manifest__unpack(NULL, length, message);
        status = checkpoint->manifest ? STATUS_OK : FAIL(STATUS_INVALID, "%s: no manifest", path);
    }
    free(data);
    TRY(status);
    const Muddpipe__Manifest *m = checkpoint->manifest;
    checkpoint->compressed = strcmp(m->encoding, encoding_name(1)) == 0;
    if (!checkpoint->compressed && strcmp(m->encoding, encoding_name(0)) != 0) {
        return FAIL(STATUS_UNSUPPORTED,
                    "%s: chunks are encoded as \"%s\", which this program cannot read", path,
                    m->encoding);
    }
    if (m->n_kind != CHECKPOINT_KINDS || m->step > INT64_MAX || m->sequences > INT64_MAX) {
        return FAIL(STATUS_UNSUPPORTED, "%s: %zu kinds of values a tensor, step %llu", path,
                    m->n_kind, (unsigned long long)m->step);
    }
    return coverage_check(path, m);
}

/* The tables that callers see. */
static status_t info_fill(struct checkpoint *checkpoint)
{
    const Muddpipe__Manifest *m = checkpoint->manifest;
    size_t dims = 0;
    for (size_t t = 0; t < m->n_tensor; t++) {
        dims += m->tensor[t]->n_shape;
    }
    checkpoint->tensor = calloc(m->n_tensor + 1, sizeof *checkpoint->tensor);
    checkpoint->shapes = calloc(dims + 1, sizeof *checkpoint->shapes);
    checkpoint->file = malloc((m->n_shard + 1) * sizeof *checkpoint->file);
    if (!checkpoint->tensor || !checkpoint->shapes || !checkpoint->file) {
        return FAIL(STATUS_NOMEM, "no memory for the tables of %s", checkpoint->folder);
    }
    int64_t *shape = checkpoint->shapes;
    for (size_t s = 0; s < m->n_shard; s++) {
        checkpoint->file[s] = -1;
    }
    for (size_t t = 0; t < m->n_tensor; t++) {
        const Muddpipe__Tensor *from = m->tensor[t];
        checkpoint->tensor[t] =
            (struct checkpoint_tensor){from->name, shape, (int)from->n_shape, from->trained};
        for (size_t d = 0; d < from->n_shape; d++) {
            *shape++ = (int64_t)from->shape[d];
        }
    }
    checkpoint->info = (struct checkpoint_info){.step = (int64_t)m->step,
                                                .sequences = (int64_t)m->sequences,
                                                .train_data = m->train_data,
                                                .program = m->program,
                                                .config = m->config,
                                                .model = m->model,
                                                .tensor = checkpoint->tensor,
                                                .tensors = (int)m->n_tensor,
                                                .shards = (int)m->n_shard,
                                                .level = checkpoint->compressed};
    return STATUS_OK;
}

/* A file beside the manifest has the text that it had when both were written. */
static status_t text_check(const struct checkpoint *checkpoint, const char *name, const char *text)
{
    char path[PATH_MAX + 64];
    unsigned char *data = NULL;
    size_t size;
    snprintf(path, sizeof path, "%s/%s", checkpoint->folder, name);
    TRY(file_load(path, &data, &size));
    bool same = size == strlen(text) && memcmp(data, text, size) == 0;
    free(data);
    return same ? STATUS_OK
                : FAIL(STATUS_INVALID, "%s is not what the checkpoint was written with", path);
}

static status_t open_all(struct checkpoint *checkpoint)
{
    TRY(manifest_open(checkpoint));
    TRY(info_fill(checkpoint));
    TRY(text_check(checkpoint, "config.yaml", checkpoint->info.config));
    TRY(text_check(checkpoint, "config.json", checkpoint->info.model));
    for (size_t s = 0; s < checkpoint->manifest->n_shard; s++) {
        TRY(shard_open(checkpoint, s));
    }
    return STATUS_OK;
}

status_t checkpoint_open(const char *folder, struct checkpoint **out)
{
    struct checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    if (!checkpoint || strlen(folder) >= sizeof checkpoint->folder) {
        free(checkpoint);
        return FAIL(STATUS_NOMEM, "no memory for a checkpoint, or a path too long: %.200s", folder);
    }
    strcpy(checkpoint->folder, folder);
    status_t status = open_all(checkpoint);
    if (status != STATUS_OK) {
        checkpoint_close(checkpoint);
        return status;
    }
    *out = checkpoint;
    return STATUS_OK;
}

void checkpoint_close(struct checkpoint *checkpoint)
{
    if (!checkpoint) {
        return;
    }
    for (int s = 0; checkpoint->file && s < checkpoint->info.shards; s++) {
        if (checkpoint->file[s] >= 0) {
            close(checkpoint->file[s]);
        }
    }
    if (checkpoint->manifest) {
        muddpipe__manifest__free_unpacked(checkpoint->manifest, NULL);
    }
    free(checkpoint->tensor);
    free(checkpoint->shapes);
    free(checkpoint->file);
    free(checkpoint);
}

const struct checkpoint_info *checkpoint_info(const struct checkpoint *checkpoint)
{
    return &checkpoint->info;
}

void checkpoint_bytes(const struct checkpoint *checkpoint, int64_t *out_raw, int64_t *out_stored)
{
    *out_raw = *out_stored = 0;
    for (size_t s = 0; s < checkpoint->manifest->n_shard; s++) {
        const Muddpipe__Shard *shard = checkpoint->manifest->shard[s];
        for (size_t c = 0; c < shard->n_chunk; c++) {
            *out_raw += (int64_t)(shard->chunk[c]->count * sizeof(float));
            *out_stored += (int64_t)shard->chunk[c]->bytes;
        }
    }
}

static status_t verify_shard(const struct checkpoint *checkpoint, size_t index, unsigned char *data)
{
    char path[PATH_MAX + 256];
    const Muddpipe__Shard *shard = checkpoint->manifest->shard[index];
    shard_path(checkpoint, index, path, sizeof path);
    file_forget(checkpoint->file[index]);
    for (size_t c = 0; c < shard->n_chunk; c++) {
        TRY(chunk_read(checkpoint->file[index], path, shard->chunk[c], data));
    }
    return STATUS_OK;
}

status_t checkpoint_verify(const struct checkpoint *checkpoint, int first, int every)
{
    unsigned char *data = malloc(ENCODED_MOST);
    status_t status =
        data ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory to verify %s", checkpoint->folder);
    for (int s = first; s < checkpoint->info.shards && status == STATUS_OK; s += every) {
        status = verify_shard(checkpoint, (size_t)s, data);
    }
    free(data);
    return status;
}

/* What reading a chunk needs: its bytes, as stored and as planes; its values, if these have several places. */
struct reading {
    unsigned char data[ENCODED_MOST], scratch[CHECKPOINT_CHUNK * sizeof(float)];
    float values[CHECKPOINT_CHUNK];
};

static status_t read_chunk(const struct checkpoint *checkpoint, size_t index,
                           const Muddpipe__Chunk *chunk, struct reading *reading, float *out)
{
    char path[PATH_MAX + 256];
    uint64_t run = chunk_run(chunk);
    float *values = run < chunk->count ? reading->values : out + chunk->begin;
    shard_path(checkpoint, index, path, sizeof path);
    TRY(chunk_read(checkpoint->file[index], path, chunk, reading->data));
    TRY(decode(path, checkpoint->compressed, reading->data, chunk->bytes, reading->scratch, values,
               chunk->count));
    for (uint64_t at = 0; values == reading->values && at < chunk->count; at += run) {
        memcpy(out + chunk->begin + at / run * chunk_stride(chunk), values + at, run * sizeof *out);
    }
    return STATUS_OK;
}

status_t checkpoint_read(const struct checkpoint *checkpoint, int tensor, int kind, float *out)
{
    const Muddpipe__Manifest *m = checkpoint->manifest;
    struct reading *reading = malloc(sizeof *reading);
    status_t status =
        reading ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory to read %s", checkpoint->folder);
    for (size_t s = 0; s < m->n_shard && status == STATUS_OK; s++) {
        for (size_t c = 0; c < m->shard[s]->n_chunk && status == STATUS_OK; c++) {
            const Muddpipe__Chunk *chunk = m->shard[s]->chunk[c];
            if (chunk->tensor == (uint32_t)tensor && chunk->kind == (uint32_t)kind) {
                status = read_chunk(checkpoint, s, chunk, reading, out);
            }
        }
    }
    free(reading);
    return status;
}

int checkpoint_find(const struct checkpoint *checkpoint, const char *name)
{
    for (int t = 0; t < checkpoint->info.tensors; t++) {
        if (strcmp(checkpoint->tensor[t].name, name) == 0) {
            return t;
        }
    }
    return -1;
}

int64_t checkpoint_elements(const struct checkpoint_tensor *tensor)
{
    int64_t count = 1;
    for (int d = 0; d < tensor->dims; d++) {
        count *= tensor->shape[d];
    }
    return count;
}
