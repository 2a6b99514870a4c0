/* encode.c - a chunk's values as bytes and back.
 *
 * Bytes of equal significance stand together: all lowest bytes, then all second ones, and so on. Signs and
 * exponents of neighbours are alike while the low bits of mantissas are noise, and a compressor finds the
 * former only where the latter do not lie between them.
 */
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "runtime/checkpoint/private.h"

struct encoder {
    int level;
    ZSTD_CCtx *context;
    unsigned char *planes, *out;
    size_t room; /* of `out` */
};

struct encoder *encoder_create(int level)
{
    struct encoder *encoder = calloc(1, sizeof *encoder);
    if (!encoder) {
        return NULL;
    }
    size_t most = (size_t)CHECKPOINT_CHUNK * sizeof(float);
    encoder->level = level;
    encoder->room = level > 0 ? ZSTD_compressBound(most) : most;
    encoder->out = malloc(encoder->room);
    encoder->planes = level > 0 ? malloc(most) : NULL;
    encoder->context = level > 0 ? ZSTD_createCCtx() : NULL;
    if (!encoder->out || (level > 0 && (!encoder->planes || !encoder->context))) {
        encoder_destroy(encoder);
        return NULL;
    }
    return encoder;
}

void encoder_destroy(struct encoder *encoder)
{
    if (encoder) {
        ZSTD_freeCCtx(encoder->context);
        free(encoder->planes);
        free(encoder->out);
        free(encoder);
    }
}

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Little-endian, whatever the machine. */
static void to_bytes(const float *values, size_t count, unsigned char *out)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = bits_of(values[i]);
        for (size_t b = 0; b < sizeof bits; b++) {
            out[i * sizeof bits + b] = (unsigned char)(bits >> (8 * b));
        }
    }
}

static void to_planes(const float *values, size_t count, unsigned char *out)
{
    unsigned char *plane[4] = {out, out + count, out + 2 * count, out + 3 * count};
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = bits_of(values[i]);
        plane[0][i] = (unsigned char)bits;
        plane[1][i] = (unsigned char)(bits >> 8);
        plane[2][i] = (unsigned char)(bits >> 16);
        plane[3][i] = (unsigned char)(bits >> 24);
    }
}

status_t encoder_run(struct encoder *encoder, const float *values, size_t count,
                     const unsigned char **out, size_t *out_size)
{
    size_t raw = count * sizeof(float);
    CHECK(count <= CHECKPOINT_CHUNK, "a chunk of %zu elements", count);
    *out = encoder->out;
    *out_size = raw;
    if (encoder->level == 0) {
        to_bytes(values, count, encoder->out);
        return STATUS_OK;
    }
    to_planes(values, count, encoder->planes);
    *out_size = ZSTD_compressCCtx(encoder->context, encoder->out, encoder->room, encoder->planes,
                                  raw, encoder->level);
    return ZSTD_isError(*out_size) ? FAIL(STATUS_INTERNAL, "zstd: %s", ZSTD_getErrorName(*out_size))
                                   : STATUS_OK;
}

static float value_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

status_t decode(const char *where, bool compressed, const unsigned char *data, size_t size,
                unsigned char *scratch, float *out, size_t count)
{
    size_t raw = count * sizeof(float);
    const unsigned char *bytes = data;
    size_t stride = 1, next = sizeof(float); /* between bytes of a value; between values */
    if (compressed) {
        size_t got = ZSTD_decompress(scratch, raw, data, size);
        if (ZSTD_isError(got) || got != raw) {
            return FAIL(STATUS_INVALID, "%s: %s", where,
                        ZSTD_isError(got) ? ZSTD_getErrorName(got) : "fewer values than it says");
        }
        bytes = scratch;
        stride = count;
        next = 1;
    } else if (size != raw) {
        return FAIL(STATUS_INVALID, "%s: %zu bytes for %zu values", where, size, count);
    }
    for (size_t i = 0; i < count; i++) {
        const unsigned char *b = bytes + i * next;
        out[i] = value_of((uint32_t)b[0] | (uint32_t)b[stride] << 8 |
                          (uint32_t)b[2 * stride] << 16 | (uint32_t)b[3 * stride] << 24);
    }
    return STATUS_OK;
}

const char *encoding_name(int level)
{
    return level > 0 ? "planes+zstd" : "none";
}
