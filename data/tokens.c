/* tokens.c - token files: what is common to the formats, llm.c's and plain bytes. */
#include "data/tokens.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "data/tokens_internal.h"

enum { CHUNK = 1 << 16 };                    /* tokens looked at before the largest is compared */
static const int64_t scan_limit = 256 << 20; /* bytes */

/* ---- reading ---- */

int64_t token_width(enum token_type type)
{
    static const int64_t bytes[] = {1, 2, 4, 4, 8};
    return bytes[type];
}

static int64_t token_at(const struct tokens *tokens, int64_t i)
{
    uint16_t u16;
    uint32_t u32;
    int32_t i32;
    int64_t i64;

    switch (tokens->type) {
    case TOKEN_U8:
        return tokens->data[i];
    case TOKEN_U16:
        memcpy(&u16, tokens->data + 2 * i, sizeof u16);
        return u16;
    case TOKEN_U32:
        memcpy(&u32, tokens->data + 4 * i, sizeof u32);
        return u32;
    case TOKEN_I32:
        memcpy(&i32, tokens->data + 4 * i, sizeof i32);
        return i32;
    case TOKEN_I64:
        break;
    }
    memcpy(&i64, tokens->data + 8 * i, sizeof i64);
    return i64;
}

/* The largest token id that can be used: below vocab, and an int32. */
static int64_t token_limit(const struct tokens *tokens)
{
    return tokens->vocab > 0 ? tokens->vocab : (int64_t)INT32_MAX + 1;
}

static bool token_can_exceed(const struct tokens *tokens)
{
    return tokens->type > TOKEN_U16 || token_limit(tokens) < (int64_t)1
                                                                 << 8 * token_width(tokens->type);
}

static status_t token_refuse(const struct tokens *tokens, int64_t position)
{
    long long token = token_at(tokens, position), limit = token_limit(tokens);

    if (token < 0) {
        return FAIL(STATUS_INVALID, "%s: token %lld at position %lld is negative: damaged?",
                    tokens->path, token, (long long)position);
    }
    return FAIL(STATUS_INVALID,
                "%s: token %lld at position %lld is not below the vocabulary's %lld; "
                "was the file made with another tokenizer?",
                tokens->path, token, (long long)position, limit);
}

static status_t tokens_check(const struct tokens *tokens, int64_t start, int64_t count)
{
    uint64_t limit = (uint64_t)token_limit(tokens); /* negative ids are large ones then */
    int64_t end = start + count;

    for (int64_t at = start; at < end && token_can_exceed(tokens); at += CHUNK) {
        int64_t stop = end - at < CHUNK ? end : at + CHUNK;
        uint64_t largest = 0;
        for (int64_t i = at; i < stop; i++) {
            uint64_t token = (uint64_t)token_at(tokens, i);
            largest = token > largest ? token : largest;
        }
        for (int64_t i = at; i < stop && largest >= limit; i++) {
            if ((uint64_t)token_at(tokens, i) >= limit) {
                return token_refuse(tokens, i);
            }
        }
    }
    return STATUS_OK;
}

status_t tokens_read(const struct tokens *tokens, int64_t start, int64_t count, int32_t *out)
{
    CHECK(start >= 0 && count >= 0 && start <= tokens->count - count,
          "tokens %lld and %lld more of %lld", (long long)start, (long long)count,
          (long long)tokens->count);
    TRY(tokens_check(tokens, start, count));
    for (int64_t i = 0; i < count; i++) {
        out[i] = (int32_t)token_at(tokens, start + i);
    }
    return STATUS_OK;
}

int64_t tokens_count(const struct tokens *tokens)
{
    return tokens->count;
}

enum token_format tokens_format(const struct tokens *tokens)
{
    return tokens->format;
}

enum token_type tokens_type(const struct tokens *tokens)
{
    return tokens->type;
}

const char *tokens_format_name(const struct tokens *tokens, char *buffer, int size)
{
    static const char *const formats[] = {"bytes", "llm.c .bin", "Megatron .idx and .bin"};
    static const char *const types[] = {"u8", "u16", "u32", "i32", "i64"};

    if (tokens->format == TOKENS_BYTES) {
        return "bytes, each a token";
    }
    snprintf(buffer, (size_t)size, "%s, %s", formats[tokens->format], types[tokens->type]);
    return buffer;
}

const char *tokens_path(const struct tokens *tokens)
{
    return tokens->path;
}

/* ---- opening ---- */

static bool has_suffix(const char *text, const char *suffix)
{
    size_t length = strlen(text), tail = strlen(suffix);
    return length > tail && strcmp(text + length - tail, suffix) == 0;
}

/* What a file begins with that is no text. */
static const char *binary_kind(const struct tokens *tokens)
{
    static const struct {
        const char *begin;
        size_t length;
        const char *kind;
    } kinds[] = {
        {"\x1f\x8b", 2, "gzip"},
        {"\x28\xb5\x2f\xfd", 4, "zstd"},
        {"\xfd"
         "7zXZ",
         5, "xz"},
        {"BZh", 3, "bzip2"},
        {"PK\3\4", 4, "a zip archive"},
        {"\x93NUMPY", 6, "a NumPy array"},
        {"PAR1", 4, "Parquet"},
        {"ARROW1", 6, "Arrow"},
        {"\x89HDF", 4, "HDF5"},
        {"\x7f"
         "ELF",
         4, "a program"},
        {"%PDF-", 5, "PDF"},
        {"\x89PNG", 4, "a picture"},
        {"SQLite format 3", 15, "a database"},
        {"\x80\x04\x95", 3, "a Python pickle"},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (tokens->file.size >= kinds[i].length &&
            memcmp(tokens->file.at, kinds[i].begin, kinds[i].length) == 0) {
            return kinds[i].kind;
        }
    }
    return NULL;
}

/* A name that says numbers of several bytes. */
static bool says_numbers(const char *path)
{
    static const char *const endings[] = {".u16",    ".uint16", ".i16",   ".int16", ".u32",
                                          ".uint32", ".i32",    ".int32", ".i64",   ".int64",
                                          ".npy",    ".npz",    ".tokens"};
    for (size_t i = 0; i < sizeof endings / sizeof endings[0]; i++) {
        if (has_suffix(path, endings[i])) {
            return true;
        }
    }
    return false;
}

static status_t check_text(const struct tokens *tokens)
{
    const char *kind = binary_kind(tokens);
    if (kind != NULL) {
        return FAIL(
            STATUS_INVALID,
            "%s: it begins as %s does and is no text, so its bytes are no tokens: unpack or "
            "convert "
            "it, and make a token file of it (`muddpipe data encode`, tools/text_to_tokens.py)",
            tokens->path, kind);
    }
    if (says_numbers(tokens->path)) {
        return FAIL(STATUS_INVALID,
                    "%s: the name says that tokens have several bytes each, but without a header "
                    "nobody knows "
                    "which: write it as llm.c's .bin or a Megatron pair (docs/data.md)",
                    tokens->path);
    }
    if (tokens->vocab > 512 && log_rank() <= 0) {
        log_warn("%s is read byte by byte, so no token is above 255, and the vocabulary has %lld: "
                 "is it text "
                 "that a tokenizer was to make tokens of? (docs/data.md)",
                 tokens->path, (long long)tokens->vocab);
    }
    return STATUS_OK;
}

/* An llm.c header whose numbers have their bytes the other way round? */
static bool is_big_endian(const struct tokens *tokens)
{
    int32_t word[2];
    if (tokens->file.size < sizeof word) {
        return false;
    }
    memcpy(word, tokens->file.at, sizeof word);
    int32_t magic = (int32_t)__builtin_bswap32((uint32_t)word[0]);
    return magic == 20240520 || magic == 20240801;
}

static status_t load_bytes(struct tokens *tokens)
{
    if (is_big_endian(tokens)) {
        return FAIL(
            STATUS_INVALID,
            "%s: an llm.c token file with big-endian numbers: they must be little-endian (write it "
            "on, or for, such a machine)",
            tokens->path);
    }
    if (has_suffix(tokens->path, ".bin")) {
        return FAIL(STATUS_INVALID,
                    "%s: the name is a token file's, but it does not begin like an llm.c .bin and "
                    "no Megatron .idx lies beside it; `muddpipe data encode` makes a token file "
                    "from text (a file of another name is read byte by byte)",
                    tokens->path);
    }
    TRY(check_text(tokens));
    tokens->format = TOKENS_BYTES;
    tokens->type = TOKEN_U8;
    tokens->data = tokens->file.at;
    tokens->count = (int64_t)tokens->file.size;
    if (log_rank() <= 0) {
        log_info("%s is read byte by byte: each byte is a token", tokens->path);
    }
    return STATUS_OK;
}

/* An llm.c .bin or bytes. */
static status_t load_single(struct tokens *tokens)
{
    int32_t header[3] = {0};

    TRY(mapping_open(tokens->path, false, &tokens->file));
    size_t size = tokens->file.size;
    memcpy(header, tokens->file.at, size < sizeof header ? size : sizeof header);
    if (header[0] != TOKENS_U16_MAGIC && header[0] != TOKENS_U32_MAGIC) {
        return load_bytes(tokens);
    }
    bool narrow = header[0] == TOKENS_U16_MAGIC;
    int version = narrow ? TOKENS_U16_VERSION : TOKENS_U32_VERSION;
    int64_t expected = TOKENS_HEADER + (narrow ? 2 : 4) * (int64_t)header[2];
    if (header[1] != version) {
        return FAIL(STATUS_INVALID, "%s: version %d of its format; only %d is known", tokens->path,
                    header[1], version);
    }
    if (header[2] < 0 || (int64_t)size != expected) {
        return FAIL(STATUS_INVALID,
                    "%s: its header announces %d tokens, so %lld bytes; the file has %zu: cut off "
                    "or damaged",
                    tokens->path, header[2], (long long)expected, size);
    }
    tokens->format = TOKENS_LLMC;
    tokens->type = narrow ? TOKEN_U16 : TOKEN_U32;
    tokens->data = tokens->file.at + TOKENS_HEADER;
    tokens->count = header[2];
    return STATUS_OK;
}

static bool is_llmc(const char *path)
{
    int32_t header[2] = {0};

    return file_begin(path, header, sizeof header) &&
           ((header[0] == TOKENS_U16_MAGIC && header[1] == TOKENS_U16_VERSION) ||
            (header[0] == TOKENS_U32_MAGIC && header[1] == TOKENS_U32_VERSION));
}

/* PREFIX.idx, PREFIX.bin or PREFIX: the pair if there is an index, else the file itself. */
static status_t load(const char *path, struct tokens *tokens)
{
    bool named = has_suffix(path, ".idx");
    size_t length = strlen(path) - (named || has_suffix(path, ".bin") ? 4 : 0);
    char *index = malloc(length + sizeof ".idx");
    tokens->path = malloc(strlen(path) + sizeof ".bin");

    if (index == NULL || tokens->path == NULL) {
        free(index);
        return FAIL(STATUS_NOMEM, "no memory to open %s", path);
    }
    memcpy(index, path, length);
    memcpy(index + length, ".idx", sizeof ".idx");
    bool prefix = path[length] == '\0'; /* neither suffix, or the file itself */
    bool single = prefix ? access(path, F_OK) == 0 : is_llmc(path);
    if (named || (!single && megatron_is_index(index))) {
        memcpy(tokens->path, path, length);
        memcpy(tokens->path + length, ".bin", sizeof ".bin");
        status_t status = megatron_load(index, tokens->path, tokens);
        free(index);
        return status;
    }
    free(index);
    memcpy(tokens->path, path, strlen(path) + 1);
    return load_single(tokens);
}

status_t tokens_open(const char *path, int64_t vocab, struct tokens **out)
{
    struct tokens *tokens = calloc(1, sizeof *tokens);

    if (tokens == NULL) {
        return FAIL(STATUS_NOMEM, "no memory to open %s", path);
    }
    tokens->vocab = vocab;
    status_t status = load(path, tokens);
    if (status == STATUS_OK && (int64_t)tokens->file.size < scan_limit) {
        status = tokens_check(tokens, 0, tokens->count);
    }
    if (status != STATUS_OK) {
        tokens_close(tokens);
        return status;
    }
    *out = tokens;
    return STATUS_OK;
}

void tokens_close(struct tokens *tokens)
{
    if (tokens == NULL) {
        return;
    }
    mapping_close(&tokens->file);
    mapping_close(&tokens->index);
    free(tokens->path);
    free(tokens);
}
