/* data_encode.c - muddpipe data encode: bytes of text as a token file. */
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/runtime.h"
#include "tools/tools.h"

struct text {
    unsigned char *bytes; /* owned */
    size_t size, room;
};

static const size_t text_max = INT32_MAX; /* what the header of a token file can count */

static status_t text_grow(struct text *text)
{
    size_t room = text->room > 0 ? 2 * text->room : (size_t)1 << 20;
    unsigned char *bytes = realloc(text->bytes, room);

    if (bytes == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for %zu bytes of text", room);
    }
    text->bytes = bytes;
    text->room = room;
    return STATUS_OK;
}

static status_t text_append(struct text *text, FILE *stream, const char *path)
{
    size_t got;

    do {
        if (text->size == text->room) {
            TRY(text_grow(text));
        }
        got = fread(text->bytes + text->size, 1, text->room - text->size, stream);
        text->size += got;
        if (text->size > text_max) {
            return FAIL(STATUS_INVALID, "%s: more than %zu bytes do not fit one token file", path,
                        text_max);
        }
    } while (got > 0);
    return ferror(stream) ? FAIL(STATUS_IO, "cannot read %s: %s", path, strerror(errno))
                          : STATUS_OK;
}

static status_t text_read(struct text *text, const char *path)
{
    if (strcmp(path, "-") == 0) {
        return text_append(text, stdin, "standard input");
    }
    FILE *stream = fopen(path, "rb");
    if (stream == NULL) {
        return FAIL(STATUS_IO, "cannot open %s: %s", path, strerror(errno));
    }
    status_t status = text_append(text, stream, path);
    fclose(stream);
    return status;
}

static void tokens_put(FILE *stream, const unsigned char *bytes, size_t count)
{
    int32_t header[TOKENS_HEADER / sizeof(int32_t)] = {TOKENS_U16_MAGIC, TOKENS_U16_VERSION,
                                                       (int32_t)count};
    unsigned char token[2] = {0, 0}; /* little-endian */

    fwrite(header, sizeof header, 1, stream);
    for (size_t i = 0; i < count; i++) {
        token[0] = bytes[i];
        fwrite(token, sizeof token, 1, stream);
    }
}

/* Under another name first: a file of that name is always whole. */
static status_t tokens_save(const char *path, const unsigned char *bytes, size_t count)
{
    char part[4096];
    int length = snprintf(part, sizeof part, "%s.part", path);

    if (length < 0 || (size_t)length >= sizeof part) {
        return FAIL(STATUS_INVALID, "%s: too long a path", path);
    }
    FILE *stream = fopen(part, "wb");
    if (stream == NULL) {
        return FAIL(STATUS_IO, "cannot create %s: %s", part, strerror(errno));
    }
    tokens_put(stream, bytes, count);
    bool failed = ferror(stream) != 0;
    if (fclose(stream) != 0 || failed || rename(part, path) != 0) {
        status_t status = FAIL(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
        remove(part);
        return status;
    }
    printf("%s: %zu tokens\n", path, count);
    return STATUS_OK;
}

struct encode {
    char **texts;
    int count;
    const char *out, *valid;
    double fraction;
};

static status_t encode_run(const struct encode *encode, struct text *text)
{
    for (int i = 0; i < encode->count; i++) {
        TRY(text_read(text, encode->texts[i]));
    }
    size_t held = (size_t)floor((double)text->size * encode->fraction);
    if (text->size - held == 0 || (encode->valid != NULL && held == 0)) {
        return FAIL(STATUS_INVALID, "%zu bytes of text are too few", text->size);
    }
    TRY(tokens_save(encode->out, text->bytes, text->size - held));
    if (encode->valid != NULL) {
        TRY(tokens_save(encode->valid, text->bytes + text->size - held, held));
    }
    return STATUS_OK;
}

int data_encode(int argc, char **argv)
{
    struct encode encode = {.texts = argv};
    struct text text = {0};
    char *end;

    if (argc >= 3 && strcmp(argv[argc - 3], "--valid") == 0) {
        encode.fraction = strtod(argv[argc - 2], &end);
        encode.valid = argv[argc - 1];
        if (*end != '\0' || !(encode.fraction > 0 && encode.fraction < 1)) {
            return data_usage_failed("--valid takes a fraction between 0 and 1, and a file");
        }
        argc -= 3;
    }
    if (argc < 2) {
        return data_usage_failed("encode needs a text and the file to make of it");
    }
    for (int i = 0; i < argc; i++) {
        if (argv[i][0] == '-' && argv[i][1] != '\0') {
            return data_usage_failed("options come last: --valid FRACTION VALID.bin");
        }
    }
    encode.out = argv[argc - 1];
    encode.count = argc - 1;
    status_t status = encode_run(&encode, &text);
    free(text.bytes);
    return status == STATUS_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
