/* coverage.c - every element exactly once. */
#include <stdlib.h>

#include "runtime/checkpoint/private.h"

struct run { /* of elements */
    uint32_t tensor, kind;
    uint64_t begin, end;
};

static int compare_runs(const void *one, const void *other)
{
    const struct run *a = one, *b = other;
    if (a->tensor != b->tensor) {
        return a->tensor < b->tensor ? -1 : 1;
    }
    if (a->kind != b->kind) {
        return a->kind < b->kind ? -1 : 1;
    }
    return a->begin < b->begin ? -1 : a->begin > b->begin;
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

static status_t chunk_check(const char *path, const Muddpipe__Manifest *manifest,
                            const Muddpipe__Shard *shard, const Muddpipe__Chunk *chunk)
{
    bool known = chunk->tensor < manifest->n_tensor && chunk->kind < manifest->n_kind;
    uint64_t count = known ? elements_of(manifest->tensor[chunk->tensor]) : 0;
    if (!known || chunk->count == 0 || chunk->count > CHECKPOINT_CHUNK || chunk->begin > count ||
        chunk->count > count - chunk->begin || chunk->offset > shard->bytes ||
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

static status_t runs_fill(const char *path, const Muddpipe__Manifest *manifest, struct run *out)
{
    for (size_t s = 0; s < manifest->n_shard; s++) {
        const Muddpipe__Shard *shard = manifest->shard[s];
        for (size_t c = 0; c < shard->n_chunk; c++) {
            const Muddpipe__Chunk *chunk = shard->chunk[c];
            TRY(chunk_check(path, manifest, shard, chunk));
            *out++ =
                (struct run){chunk->tensor, chunk->kind, chunk->begin, chunk->begin + chunk->count};
        }
    }
    return STATUS_OK;
}

/* The runs are sorted: those of a tensor and kind must follow each other from 0 to its end. */
static status_t runs_check(const char *path, const Muddpipe__Manifest *manifest,
                           const struct run *run, size_t runs)
{
    size_t i = 0;
    for (uint32_t t = 0; t < manifest->n_tensor; t++) {
        uint64_t count = elements_of(manifest->tensor[t]);
        for (uint32_t k = 0; k < manifest->n_kind; k++) {
            uint64_t reached = 0;
            for (; i < runs && run[i].tensor == t && run[i].kind == k && run[i].begin == reached;
                 i++) {
                reached = run[i].end;
            }
            if (count == 0 || reached != count) {
                return FAIL(
                    STATUS_INVALID, "%s: element %llu of the %s of %s is %s", path,
                    (unsigned long long)reached, manifest->kind[k], manifest->tensor[t]->name,
                    i < runs && run[i].tensor == t && run[i].kind == k && run[i].begin < reached
                        ? "there twice"
                        : "missing");
            }
        }
    }
    return STATUS_OK;
}

status_t coverage_check(const char *path, const Muddpipe__Manifest *manifest)
{
    size_t runs = 0;
    for (size_t s = 0; s < manifest->n_shard; s++) {
        runs += manifest->shard[s]->n_chunk;
    }
    struct run *run = calloc(runs + 1, sizeof *run);
    if (!run) {
        return FAIL(STATUS_NOMEM, "no memory for the %zu chunks of %s", runs, path);
    }
    status_t status = runs_fill(path, manifest, run);
    if (status == STATUS_OK) {
        qsort(run, runs, sizeof *run, compare_runs);
        status = runs_check(path, manifest, run, runs);
    }
    free(run);
    return status;
}
