/* sealed.c - messages that tell when they were cut short or altered. */
#include <stdlib.h>
#include <string.h>

#include "runtime/checkpoint/private.h"

static const char magic[8] = {'M', 'U', 'D', 'D', 'P', 'I', 'P', 'E'};

static void put(unsigned char *out, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++) {
        out[i] = (unsigned char)(value >> (8 * i));
    }
}

static uint64_t get(const unsigned char *in, int bytes)
{
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) {
        value |= (uint64_t)in[i] << (8 * i);
    }
    return value;
}

unsigned char *sealed_pack(enum sealed_kind kind, int format, const ProtobufCMessage *message,
                           size_t *out_size)
{
    size_t length = protobuf_c_message_get_packed_size(message);
    unsigned char *data = malloc(SEALED_HEAD + length);
    if (!data) {
        return NULL;
    }
    protobuf_c_message_pack(message, data + SEALED_HEAD);
    struct hash128 hash = hash_bytes128(data + SEALED_HEAD, length);
    memcpy(data, magic, sizeof magic);
    put(data + 8, (uint64_t)format, 4);
    put(data + 12, kind, 4);
    put(data + 16, length, 8);
    put(data + 24, hash.low, 8);
    put(data + 32, hash.high, 8);
    *out_size = SEALED_HEAD + length;
    return data;
}

status_t sealed_check(const char *path, enum sealed_kind kind, const unsigned char *data,
                      size_t size, const unsigned char **out_message, size_t *out_length)
{
    if (size < SEALED_HEAD || memcmp(data, magic, sizeof magic) != 0) {
        return FAIL(STATUS_INVALID, "%s: not written by muddpipe, or cut short at its start", path);
    }
    uint64_t format = get(data + 8, 4), length = get(data + 16, 8);
    if (format != CHECKPOINT_FORMAT && format != CHECKPOINT_FORMAT_RUNS) {
        return FAIL(STATUS_UNSUPPORTED,
                    "%s: format %llu, and this program reads formats %d and %d: use the program "
                    "that wrote it",
                    path, (unsigned long long)format, CHECKPOINT_FORMAT, CHECKPOINT_FORMAT_RUNS);
    }
    if (get(data + 12, 4) != kind || length != size - SEALED_HEAD) {
        return FAIL(STATUS_INVALID,
                    "%s: %zu bytes, which is not what its head says: it was cut short", path, size);
    }
    struct hash128 hash = hash_bytes128(data + SEALED_HEAD, length);
    if (hash.low != get(data + 24, 8) || hash.high != get(data + 32, 8)) {
        return FAIL(STATUS_INVALID, "%s: its contents are not those that were written (wrong hash)",
                    path);
    }
    *out_message = data + SEALED_HEAD;
    *out_length = length;
    return STATUS_OK;
}
