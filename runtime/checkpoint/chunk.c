/* chunk.c - the stored bytes of a chunk. */
#include "runtime/checkpoint/private.h"

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
