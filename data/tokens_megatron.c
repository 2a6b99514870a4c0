/* tokens_megatron.c - the .idx of a Megatron pair. Nothing in it is believed before it was compared
 * with the sizes of the two files. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "data/tokens_internal.h"

static uint64_t read_u64(const unsigned char *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static int64_t read_i64(const unsigned char *at)
{
    int64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static int32_t read_i32(const unsigned char *at)
{
    int32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

bool megatron_is_index(const char *path)
{
    char magic[TOKENS_INDEX_MAGIC_SIZE];

    return file_begin(path, magic, sizeof magic) &&
           memcmp(magic, TOKENS_INDEX_MAGIC, sizeof magic) == 0;
}

static status_t set_type(const char *path, int code, struct tokens *tokens)
{
    switch (code) {
    case TOKENS_INDEX_U8:
        tokens->type = TOKEN_U8;
        return STATUS_OK;
    case TOKENS_INDEX_U16:
        tokens->type = TOKEN_U16;
        return STATUS_OK;
    case TOKENS_INDEX_I32:
        tokens->type = TOKEN_I32;
        return STATUS_OK;
    case TOKENS_INDEX_I64:
        tokens->type = TOKEN_I64;
        return STATUS_OK;
    default:
        return FAIL(STATUS_INVALID,
                    "%s: its tokens are of type %d; 1 (u8), 8 (u16), 4 (i32) and 5 (i64) are known",
                    path, code);
    }
}

/* Header and table sizes; lengths, first bytes and documents may be read afterwards. */
static status_t check_header(const char *path, struct tokens *tokens)
{
    const unsigned char *at = tokens->index.at;
    size_t size = tokens->index.size;
    unsigned __int128 expected = TOKENS_INDEX_HEADER;

    if (size < TOKENS_INDEX_HEADER) {
        return FAIL(STATUS_INVALID, "%s: %zu bytes are too few for an index: cut off", path, size);
    }
    if (memcmp(at, TOKENS_INDEX_MAGIC, TOKENS_INDEX_MAGIC_SIZE) != 0) {
        return FAIL(STATUS_INVALID, "%s: it does not begin like a Megatron index (MMIDIDX)", path);
    }
    if (read_u64(at + 9) != TOKENS_INDEX_VERSION) {
        return FAIL(STATUS_INVALID, "%s: version %" PRIu64 " of its format; only %d is known", path,
                    read_u64(at + 9), TOKENS_INDEX_VERSION);
    }
    TRY(set_type(path, at[17], tokens));
    uint64_t sequences = read_u64(at + 18), entries = read_u64(at + 26);
    expected += (unsigned __int128)sequences * 12 + (unsigned __int128)entries * 8;
    /* a byte for each sequence may follow: its mode, in indexes of several kinds of data */
    if (size != expected && size != expected + sequences) {
        return FAIL(STATUS_INVALID,
                    "%s: its header announces %" PRIu64 " sequences and %" PRIu64
                    " document entries; its %zu bytes hold another number: cut off or damaged",
                    path, sequences, entries, size);
    }
    if (entries == 0) {
        return FAIL(STATUS_INVALID, "%s: its list of documents is empty; it must begin with 0",
                    path);
    }
    tokens->sequences = (int64_t)sequences;
    tokens->documents = (int64_t)entries - 1;
    tokens->first_byte = at + TOKENS_INDEX_HEADER + 4 * sequences;
    tokens->document = tokens->first_byte + 8 * sequences;
    return STATUS_OK;
}

/* Sequences must follow each other without a gap and fill the file. */
static status_t check_sequences(const char *path, struct tokens *tokens)
{
    const unsigned char *length = tokens->index.at + TOKENS_INDEX_HEADER;
    int64_t width = token_width(tokens->type), size = (int64_t)tokens->file.size, at = 0;

    for (int64_t s = 0; s < tokens->sequences; s++) {
        int64_t tokens_here = read_i32(length + 4 * s),
                begins = read_i64(tokens->first_byte + 8 * s);
        if (tokens_here < 0) {
            return FAIL(STATUS_INVALID, "%s: sequence %" PRId64 " has %" PRId64 " tokens", path, s,
                        tokens_here);
        }
        if (begins != at) {
            return FAIL(STATUS_INVALID,
                        "%s: sequence %" PRId64 " begins at byte %" PRId64 ", the one before ends "
                        "at %" PRId64
                        "; they must follow each other (write the pair anew in order)",
                        path, s, begins, at);
        }
        at += width * tokens_here; /* at <= size, so nothing overflows */
        if (at > size) {
            return FAIL(STATUS_INVALID,
                        "%s: sequence %" PRId64 " ends at byte %" PRId64 ", but %s has %" PRId64
                        ": cut off, or not its pair",
                        path, s, at, tokens->path, size);
        }
    }
    if (at != size) {
        return FAIL(STATUS_INVALID,
                    "%s: its sequences end at byte %" PRId64 ", but %s has %" PRId64
                    ": damaged, or not its pair",
                    path, at, tokens->path, size);
    }
    tokens->count = size / width;
    return STATUS_OK;
}

static status_t check_documents(const char *path, const struct tokens *tokens)
{
    int64_t before = 0;

    for (int64_t d = 0; d <= tokens->documents; d++) {
        int64_t sequence = read_i64(tokens->document + 8 * d);
        if (sequence < before || sequence > tokens->sequences || (d == 0 && sequence != 0)) {
            return FAIL(STATUS_INVALID,
                        "%s: document %" PRId64 " begins with sequence %" PRId64
                        "; that must be between %" PRId64 " and %" PRId64,
                        path, d, sequence, before, d == 0 ? 0 : tokens->sequences);
        }
        before = sequence;
    }
    if (before != tokens->sequences) {
        return FAIL(STATUS_INVALID,
                    "%s: its documents end at sequence %" PRId64 " of %" PRId64
                    ": cut off, or made without document ends",
                    path, before, tokens->sequences);
    }
    return STATUS_OK;
}

status_t megatron_load(const char *index_path, const char *path, struct tokens *tokens)
{
    tokens->format = TOKENS_MEGATRON;
    TRY(mapping_open(index_path, false, &tokens->index));
    TRY(mapping_open(path, true, &tokens->file));
    tokens->data = tokens->file.at;
    TRY(check_header(index_path, tokens));
    TRY(check_sequences(index_path, tokens));
    return check_documents(index_path, tokens);
}

int64_t tokens_documents(const struct tokens *tokens)
{
    return tokens->format == TOKENS_MEGATRON ? tokens->documents : -1;
}

int64_t tokens_document(const struct tokens *tokens, int64_t document)
{
    CHECK(document >= 0 && document <= tokens_documents(tokens), "document %" PRId64 " of %" PRId64,
          document, tokens_documents(tokens));
    int64_t sequence = read_i64(tokens->document + 8 * document);
    return sequence == tokens->sequences
               ? tokens->count
               : read_i64(tokens->first_byte + 8 * sequence) / token_width(tokens->type);
}
