/* data_write.c - token files, written under another name first: a file of its name is always whole. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data/data.h"
#include "tools/data.h"

enum { BUFFER = 1 << 16 }; /* tokens */

struct token_file {
    char *path, *part;             /* of the tokens */
    char *index_path, *index_part; /* for an llm.c file, too: it must not take the pair's .bin */
    bool index;                    /* Megatron */
    FILE *stream;
    unsigned char *buffer; /* [4 * BUFFER] */
    bool wide;
    int64_t count, begun; /* tokens so far; where the open document begins */
    int32_t *length;      /* [documents] */
    int64_t documents, room;
};

static char *joined(const char *text, size_t length, const char *tail)
{
    char *out = malloc(length + strlen(tail) + 1);
    if (out != NULL) {
        memcpy(out, text, length);
        memcpy(out + length, tail, strlen(tail) + 1);
    }
    return out;
}

static status_t name_files(const char *path, struct token_file *file)
{
    size_t length = strlen(path);
    bool index = length > 4 && strcmp(path + length - 4, ".idx") == 0;

    if (!index && (length <= 4 || strcmp(path + length - 4, ".bin") != 0)) {
        return FAIL(STATUS_INVALID,
                    "%s: the name of a token file must end in .bin (llm.c) or .idx (Megatron)",
                    path);
    }
    file->index = index;
    file->path = joined(path, length - 4, ".bin");
    file->part = joined(path, length - 4, ".bin.part");
    file->index_path = joined(path, length - 4, ".idx");
    file->index_part = joined(path, length - 4, ".idx.part");
    bool named = file->path && file->part && file->index_path && file->index_part;
    return named ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory to write %s", path);
}

static status_t refuse_existing(const char *path)
{
    return access(path, F_OK) != 0
               ? STATUS_OK
               : FAIL(STATUS_INVALID, "%s exists already and is left as it is; --force replaces it",
                      path);
}

static void put_header(const struct token_file *file, FILE *stream)
{
    int32_t header[TOKENS_HEADER / sizeof(int32_t)] = {
        file->wide ? TOKENS_U32_MAGIC : TOKENS_U16_MAGIC,
        file->wide ? TOKENS_U32_VERSION : TOKENS_U16_VERSION, (int32_t)file->count};
    fwrite(header, sizeof header, 1, stream);
}

static status_t create(const char *path, bool force, struct token_file *file)
{
    TRY(name_files(path, file));
    if (!force) {
        TRY(refuse_existing(file->path));
    }
    if (!file->index && access(file->index_path, F_OK) == 0) {
        return FAIL(
            STATUS_INVALID,
            "%s would be taken for the other half of %s, which exists; choose another name, "
            "or delete that pair first",
            file->path, file->index_path);
    }
    if (!force) {
        TRY(refuse_existing(file->index_path));
    }
    file->buffer = malloc((size_t)4 * BUFFER);
    if (file->buffer == NULL) {
        return FAIL(STATUS_NOMEM, "no memory to write %s", path);
    }
    file->stream = fopen(file->part, "wb");
    if (file->stream == NULL) {
        return FAIL(STATUS_IO, "cannot create %s: %s", file->part, strerror(errno));
    }
    if (!file->index) {
        put_header(file, file->stream); /* the number of tokens follows */
    }
    return STATUS_OK;
}

status_t token_file_create(const char *path, bool wide, bool force, struct token_file **out)
{
    struct token_file *file = calloc(1, sizeof *file);

    if (file == NULL) {
        return FAIL(STATUS_NOMEM, "no memory to write %s", path);
    }
    file->wide = wide;
    status_t status = create(path, force, file);
    if (status != STATUS_OK) {
        token_file_abandon(file);
        return status;
    }
    *out = file;
    return STATUS_OK;
}

status_t token_file_put(struct token_file *file, const int32_t *tokens, int64_t count)
{
    size_t width = file->wide ? 4 : 2;

    if (!file->index && count > INT32_MAX - file->count) {
        return FAIL(STATUS_INVALID,
                    "%s: an llm.c file holds at most %d tokens; write a Megatron pair (.idx), or "
                    "split the text into several files",
                    file->path, INT32_MAX);
    }
    for (int64_t at = 0, some; at < count; at += some) {
        some = count - at < BUFFER ? count - at : BUFFER;
        for (int64_t i = 0; i < some; i++) {
            uint32_t token = (uint32_t)tokens[at + i];
            for (size_t byte = 0; byte < width; byte++) {
                file->buffer[width * (size_t)i + byte] = (unsigned char)(token >> 8 * byte);
            }
        }
        if (fwrite(file->buffer, width, (size_t)some, file->stream) != (size_t)some) {
            return FAIL(STATUS_IO, "cannot write %s: %s", file->part, strerror(errno));
        }
    }
    file->count += count;
    return STATUS_OK;
}

status_t token_file_end_document(struct token_file *file)
{
    int64_t length = file->count - file->begun;

    if (!file->index) {
        return STATUS_OK;
    }
    if (length > INT32_MAX) {
        return FAIL(STATUS_INVALID, "%s: a document of %" PRId64 " tokens; the most is %d",
                    file->index_path, length, INT32_MAX);
    }
    if (file->documents == file->room) {
        int64_t room = file->room > 0 ? 2 * file->room : 1024;
        int32_t *grown = realloc(file->length, (size_t)room * sizeof *grown);
        if (grown == NULL) {
            return FAIL(STATUS_NOMEM, "no memory for %" PRId64 " documents", room);
        }
        file->length = grown;
        file->room = room;
    }
    file->length[file->documents++] = (int32_t)length;
    file->begun = file->count;
    return STATUS_OK;
}

/* A document is one sequence. */
static void put_index(const struct token_file *file, FILE *stream)
{
    uint64_t version = TOKENS_INDEX_VERSION, entries = (uint64_t)file->documents + 1;
    unsigned char type = file->wide ? TOKENS_INDEX_I32 : TOKENS_INDEX_U16;
    int64_t at = 0;

    fwrite(TOKENS_INDEX_MAGIC, TOKENS_INDEX_MAGIC_SIZE, 1, stream);
    fwrite(&version, sizeof version, 1, stream);
    fwrite(&type, sizeof type, 1, stream);
    fwrite(&file->documents, sizeof file->documents, 1, stream);
    fwrite(&entries, sizeof entries, 1, stream);
    fwrite(file->length, sizeof *file->length, (size_t)file->documents, stream);
    for (int64_t d = 0; d < file->documents; d++) {
        fwrite(&at, sizeof at, 1, stream);
        at += (file->wide ? 4 : 2) * (int64_t)file->length[d];
    }
    for (int64_t d = 0; d <= file->documents; d++) {
        fwrite(&d, sizeof d, 1, stream);
    }
}

static status_t close_stream(FILE *stream, const char *part)
{
    bool failed = ferror(stream) != 0;
    return fclose(stream) == 0 && !failed
               ? STATUS_OK
               : FAIL(STATUS_IO, "cannot write %s: %s", part, strerror(errno));
}

static status_t finish(struct token_file *file)
{
    if (file->count > file->begun) {
        TRY(token_file_end_document(file));
    }
    if (!file->index) {
        rewind(file->stream);
        put_header(file, file->stream);
    }
    FILE *stream = file->stream;
    file->stream = NULL;
    TRY(close_stream(stream, file->part));
    if (file->index) {
        stream = fopen(file->index_part, "wb");
        if (stream == NULL) {
            return FAIL(STATUS_IO, "cannot create %s: %s", file->index_part, strerror(errno));
        }
        put_index(file, stream);
        TRY(close_stream(stream, file->index_part));
    }
    if (rename(file->part, file->path) != 0 ||
        (file->index && rename(file->index_part, file->index_path) != 0)) {
        return FAIL(STATUS_IO, "cannot write %s: %s", file->path, strerror(errno));
    }
    printf("%s: %" PRId64 " tokens", file->index ? file->index_path : file->path, file->count);
    if (file->index) {
        printf(" in %" PRId64 " documents", file->documents);
    }
    printf("\n");
    return STATUS_OK;
}

status_t token_file_finish(struct token_file *file)
{
    status_t status = finish(file);
    token_file_abandon(file);
    return status;
}

void token_file_abandon(struct token_file *file)
{
    if (file == NULL) {
        return;
    }
    if (file->stream != NULL) {
        fclose(file->stream);
    }
    if (file->buffer != NULL) { /* else nothing was created */
        remove(file->part);     /* gone already if all went well */
    }
    if (file->index && file->buffer != NULL) {
        remove(file->index_part);
    }
    free(file->buffer);
    free(file->length);
    free(file->path);
    free(file->part);
    free(file->index_path);
    free(file->index_part);
    free(file);
}

/* By whatever names. */
static bool same_file(FILE *first, FILE *second)
{
    struct stat a, b;
    return fstat(fileno(first), &a) == 0 && fstat(fileno(second), &b) == 0 &&
           a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

status_t token_files_create(const char *first, const char *second, bool wide, bool force,
                            struct token_file **out_pair)
{
    struct token_file *pair[2] = {NULL, NULL};

    TRY(token_file_create(first, wide, force, &pair[0]));
    status_t status = STATUS_OK;
    if (second != NULL) {
        status = token_file_create(second, wide, force, &pair[1]);
    }
    if (status == STATUS_OK && second != NULL && same_file(pair[0]->stream, pair[1]->stream)) {
        status = FAIL(STATUS_INVALID, "%s is to hold both parts", pair[0]->path);
    }
    if (status != STATUS_OK) {
        token_file_abandon(pair[0]);
        token_file_abandon(pair[1]);
        return status;
    }
    out_pair[0] = pair[0];
    out_pair[1] = pair[1];
    return STATUS_OK;
}

status_t token_files_finish(struct token_file **pair, status_t status)
{
    for (int i = 0; i < 2; i++) {
        if (pair[i] != NULL && status == STATUS_OK) {
            status = token_file_finish(pair[i]);
        } else {
            token_file_abandon(pair[i]);
        }
    }
    return status;
}
