/* data_encode.c - muddpipe data encode: bytes of text as a token file. */
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/data.h"
#include "tools/data.h"

struct text {
    unsigned char *bytes; /* owned */
    size_t size, room;
    size_t *end; /* [ends] where each text ends; owned */
    int ends;
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

/* Bytes [from, to) as tokens, each text a document. */
static status_t tokens_put(struct token_file *file, const struct text *text, size_t from, size_t to)
{
    enum { SOME = 4096 };
    int32_t some[SOME];
    int next = 0;

    for (size_t at = from, count; at < to; at += count) {
        while (next < text->ends && text->end[next] <= at) {
            next++;
        }
        size_t stop = next < text->ends && text->end[next] < to ? text->end[next] : to;
        count = stop - at < SOME ? stop - at : SOME;
        for (size_t i = 0; i < count; i++) {
            some[i] = text->bytes[at + i];
        }
        TRY(token_file_put(file, some, (int64_t)count));
        if (at + count == stop) {
            TRY(token_file_end_document(file));
        }
    }
    return STATUS_OK;
}

static status_t encode_run(const struct data_arguments *arguments, struct text *text)
{
    const char *out = arguments->file[arguments->files - 1];

    text->end = calloc((size_t)arguments->files, sizeof *text->end);
    if (text->end == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for %d texts", arguments->files);
    }
    for (int i = 0; i < arguments->files - 1; i++) {
        TRY(text_read(text, arguments->file[i]));
        text->end[text->ends++] = text->size;
    }
    size_t held = (size_t)floor((double)text->size * arguments->fraction);
    size_t cut = text->size - held;
    if (cut == 0 || (arguments->valid != NULL && held == 0)) {
        return FAIL(STATUS_INVALID, "%s%s: %zu bytes of text are too few", arguments->file[0],
                    arguments->files > 2 ? " and the files behind it" : "", text->size);
    }
    struct token_file *part[2];
    TRY(token_files_create(out, arguments->valid, false, arguments->force, part));
    status_t status = tokens_put(part[0], text, 0, cut);
    if (status == STATUS_OK && held > 0) {
        status = tokens_put(part[1], text, cut, text->size);
    }
    return token_files_finish(part, status);
}

int data_encode(const struct data_arguments *arguments)
{
    struct text text = {0};

    if (arguments->files < 2) {
        return data_usage_failed("encode needs a text and the file to make of it");
    }
    status_t status = encode_run(arguments, &text);
    free(text.bytes);
    free(text.end);
    return status == STATUS_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
