/* chunk.c - the stored bytes of a chunk. */
#include "runtime/checkpoint/private.h"

uint64_t chunk_run(const Muddpipe__Chunk *chunk)
{
    return chunk->has_run ? chunk->run : chunk->count;
}

uint64_t chunk_stride(const Muddpipe__Chunk *chunk)
{
    return chunk->has_run ? chunk->stride : chunk->count;
}

int chunks_format(Muddpipe__Chunk *const *chunk, size_t chunks)
{
    for (size_t c = 0; c < chunks; c++) {
        if (chunk[c]->has_run) {
            return CHECKPOINT_FORMAT_RUNS;
        }
    }
    return CHECKPOINT_FORMAT;
}

status_t chunk_read(int file, const char *path, const Muddpipe__Chunk *chunk, unsigned char *data)
{
    if (chunk->bytes > ENCODED_MOST) {
        return FAIL(STATUS_INVALID, "%s: a chunk of %llu bytes, and none has more than %d", path,
                    (unsigned long long)chunk->bytes, ENCODED_MOST);
    }
    TRY(file_read(file, path, data, chunk->bytes, (int64_t)chunk->offset));
    struct hash128 hash = hash_bytes128(data, chunk->bytes);
    if (hash.low != chunk->hash_low || hash.high != chunk->hash_high) {
        return FAIL(STATUS_INVALID,
                    "%s: bytes %llu to %llu are not those that were written (wrong hash)", path,
                    (unsigned long long)chunk->offset,
                    (unsigned long long)(chunk->offset + chunk->bytes));
    }
    return STATUS_OK;
}
