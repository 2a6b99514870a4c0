/* coverage.c - every element exactly once. */
#include <stdlib.h>

#include "runtime/checkpoint/private.h"

struct run { /* of elements */
    uint64_t begin, end;
};

static int compare_runs(const void *one, const void *other)
{
    const struct run *a = one, *b = other;
    return a->begin < b->begin ? -1 : a->begin > b->begin;
}

/* By tensor and kind. */
static int compare_chunks(const void *one, const void *other)
{
    const Muddpipe__Chunk *a = *(const Muddpipe__Chunk *const *)one;
    const Muddpipe__Chunk *b = *(const Muddpipe__Chunk *const *)other;
    if (a->tensor != b->tensor) {
        return a->tensor < b->tensor ? -1 : 1;
    }
    return a->kind < b->kind ? -1 : a->kind > b->kind;
}

/* 0 if there is no such number. */
static uint64_t elements_of(const Muddpipe__Tensor *tensor)
{
    uint64_t count = 1;
    for (size_t d = 0; d < tensor->n_shape; d++) {
        if (tensor->shape[d] == 0 || count > INT64_MAX / 4 / tensor->shape[d]) {
            return 0;
        }
        count *= tensor->shape[d];
    }
    return count;
}

/* Are its runs within the tensor's `elements`? */
static bool has_place(const Muddpipe__Chunk *chunk, uint64_t elements)
{
    uint64_t run = chunk_run(chunk), stride = chunk_stride(chunk);
    if (chunk->count == 0 || chunk->count > CHECKPOINT_CHUNK || chunk->begin > elements ||
        run == 0 || chunk->count % run != 0 || stride < run || stride > elements) {
        return false;
    }
    uint64_t between = (chunk->count / run - 1) * stride;
    return between <= elements - chunk->begin && run <= elements - chunk->begin - between;
}

static status_t chunk_check(const char *path, const Muddpipe__Manifest *manifest,
                            const Muddpipe__Shard *shard, const Muddpipe__Chunk *chunk)
{
    bool known = chunk->tensor < manifest->n_tensor && chunk->kind < manifest->n_kind;
    uint64_t count = known ? elements_of(manifest->tensor[chunk->tensor]) : 0;
    if (!known || !has_place(chunk, count) || chunk->offset > shard->bytes ||
        chunk->bytes > shard->bytes - chunk->offset) {
        return FAIL(STATUS_INVALID,
                    "%s: a chunk of %s says elements %llu to %llu of tensor %u, bytes %llu to "
                    "%llu: no such "
                    "place",
                    path, shard->file, (unsigned long long)chunk->begin,
                    (unsigned long long)(chunk->begin + chunk->count), chunk->tensor,
                    (unsigned long long)chunk->offset,
                    (unsigned long long)(chunk->offset + chunk->bytes));
    }
    return STATUS_OK;
}

/* All chunks of all shards, sorted. */
static status_t chunks_fill(const char *path, const Muddpipe__Manifest *manifest,
                            const Muddpipe__Chunk **out, size_t chunks)
{
    const Muddpipe__Chunk **at = out;
    for (size_t s = 0; s < manifest->n_shard; s++) {
        const Muddpipe__Shard *shard = manifest->shard[s];
        for (size_t c = 0; c < shard->n_chunk; c++) {
            TRY(chunk_check(path, manifest, shard, shard->chunk[c]));
            *at++ = shard->chunk[c];
        }
    }
    qsort(out, chunks, sizeof *out, compare_chunks);
    return STATUS_OK;
}

/* The runs of the chunks of one tensor and kind must follow each other from 0 to its end. */
static status_t check_tensor(const char *path, const Muddpipe__Manifest *manifest, uint32_t tensor,
                             uint32_t kind, const Muddpipe__Chunk *const *chunk, size_t chunks)
{
    uint64_t count = elements_of(manifest->tensor[tensor]), reached = 0;
    size_t runs = 0, i = 0;
    for (size_t c = 0; c < chunks; c++) {
        runs += chunk[c]->count / chunk_run(chunk[c]);
    }
    struct run *run = malloc((runs + 1) * sizeof *run);
    if (!run) {
        return FAIL(STATUS_NOMEM, "no memory for the %zu runs of a tensor of %s", runs, path);
    }
    for (size_t c = 0; c < chunks; c++) {
        uint64_t each = chunk_run(chunk[c]), stride = chunk_stride(chunk[c]);
        for (uint64_t r = 0; r < chunk[c]->count / each; r++) {
            uint64_t begin = chunk[c]->begin + r * stride;
            run[i++] = (struct run){begin, begin + each};
        }
    }
    qsort(run, runs, sizeof *run, compare_runs);
    for (i = 0; i < runs && run[i].begin == reached; i++) {
        reached = run[i].end;
    }
    bool twice = i < runs && run[i].begin < reached;
    free(run);
    return count > 0 && reached == count && i == runs
               ? STATUS_OK
               : FAIL(STATUS_INVALID, "%s: element %llu of the %s of %s is %s", path,
                      (unsigned long long)reached, manifest->kind[kind],
                      manifest->tensor[tensor]->name, twice ? "there twice" : "missing");
}

static status_t check_all(const char *path, const Muddpipe__Manifest *manifest,
                          const Muddpipe__Chunk *const *chunk, size_t chunks)
{
    size_t first = 0;
    for (uint32_t t = 0; t < manifest->n_tensor; t++) {
        for (uint32_t k = 0; k < manifest->n_kind; k++) {
            size_t last = first;
            while (last < chunks && chunk[last]->tensor == t && chunk[last]->kind == k) {
                last++;
            }
            TRY(check_tensor(path, manifest, t, k, chunk + first, last - first));
            first = last;
        }
    }
    return STATUS_OK;
}

status_t coverage_check(const char *path, const Muddpipe__Manifest *manifest)
{
    size_t chunks = 0;
    for (size_t s = 0; s < manifest->n_shard; s++) {
        chunks += manifest->shard[s]->n_chunk;
    }
    const Muddpipe__Chunk **chunk = calloc(chunks + 1, sizeof(const Muddpipe__Chunk *));
    if (!chunk) {
        return FAIL(STATUS_NOMEM, "no memory for the %zu chunks of %s", chunks, path);
    }
    status_t status = chunks_fill(path, manifest, chunk, chunks);
    if (status == STATUS_OK) {
        status = check_all(path, manifest, chunk, chunks);
    }
    free(chunk);
    return status;
}
