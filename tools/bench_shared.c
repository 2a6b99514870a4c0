/* bench_shared.c - what measuring commands share: medians, and numbers to multiply. */
#include <stdlib.h>
#include <string.h>

#include "tools/bench.h"

enum { TILE = 1 << 20 }; /* bytes */

static int ascending(const void *left, const void *right)
{
    const double *a = left, *b = right;
    return (*a > *b) - (*a < *b);
}

struct bench_value bench_value_of(double *samples, int count)
{
    qsort(samples, (size_t)count, sizeof *samples, ascending);
    return (struct bench_value){samples[count / 2], samples[0], samples[count - 1], count};
}

/* bf16 is the upper half of a float32. */
static void tile_fill(unsigned char *tile, size_t element)
{
    uint64_t state = 1;
    for (size_t i = 0; i < TILE; i += element) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        uint32_t bits =
            0x3f000000u | (uint32_t)(state >> 63) << 31 | (uint32_t)(state >> 40 & 0x7fffffu);
        uint16_t half = (uint16_t)(bits >> 16);
        memcpy(tile + i, element == sizeof half ? (const void *)&half : &bits, element);
    }
}

status_t bench_fill_numbers(struct device *device, void *stream, enum dtype dtype, void *memory,
                            size_t bytes)
{
    unsigned char *tile = malloc(TILE);
    if (!tile) {
        return FAIL(STATUS_NOMEM, "no memory for numbers to multiply");
    }
    tile_fill(tile, dtype_size(dtype));
    status_t status = STATUS_OK;
    for (size_t at = 0; at < bytes && status == STATUS_OK; at += TILE) {
        size_t part = bytes - at < TILE ? bytes - at : TILE;
        status = device_copy(device, (char *)memory + at, tile, part, stream);
    }
    if (status == STATUS_OK) {
        status = device_stream_sync(device, stream);
    }
    free(tile);
    return status;
}
