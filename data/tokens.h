/* tokens.h - one token file: its format, its tokens, its documents.
 *
 *     Megatron        PREFIX.idx and PREFIX.bin; either name or the prefix opens the pair
 *     llm.c's .bin    a header of 256 int32, then u16 or u32 tokens
 *     any other file  its bytes: each a token of a vocabulary of 256
 *
 * Files are mapped, never copied whole. All numbers in them are little-endian. Which part of which
 * file a sequence of the run is, is the business of dataset.h.
 */
#ifndef RUNTIME_TOKENS_H
#define RUNTIME_TOKENS_H

#include <stdint.h>

#include "base/status.h"

struct tokens;

/* llm.c's format: int32 [256] = magic, version, number of tokens, zeros; then the tokens. */
enum {
    TOKENS_HEADER = 1024, /* bytes */
    TOKENS_U16_MAGIC = 20240520,
    TOKENS_U16_VERSION = 1,
    TOKENS_U32_MAGIC = 20240801,
    TOKENS_U32_VERSION = 7
};

/* Megatron's index: these 9 bytes, u64 version, u8 code of the tokens' type, u64 sequences S,
 * u64 entries D + 1, i32 [S] tokens of each sequence, i64 [S] its first byte in the .bin,
 * i64 [D + 1] first sequence of each document, then S. */
#define TOKENS_INDEX_MAGIC "MMIDIDX\0\0"
enum {
    TOKENS_INDEX_MAGIC_SIZE = 9,
    TOKENS_INDEX_VERSION = 1,
    TOKENS_INDEX_HEADER = 34,
    TOKENS_INDEX_U8 = 1, /* codes of types; others exist and are refused */
    TOKENS_INDEX_I32 = 4,
    TOKENS_INDEX_I64 = 5,
    TOKENS_INDEX_U16 = 8
};

enum token_format { TOKENS_BYTES, TOKENS_LLMC, TOKENS_MEGATRON };
enum token_type { TOKEN_U8, TOKEN_U16, TOKEN_U32, TOKEN_I32, TOKEN_I64 };

/* `vocab`: every token must be below it (0: whatever fits an int32). Files below 256 MiB are looked
 * through at once, larger ones as they are read. */
MUST_USE status_t tokens_open(const char *path, int64_t vocab, struct tokens **out);
void tokens_close(struct tokens *tokens);

int64_t tokens_count(const struct tokens *tokens);
enum token_format tokens_format(const struct tokens *tokens);
enum token_type tokens_type(const struct tokens *tokens);
/* "Megatron .idx and .bin, u16" */
const char *tokens_format_name(const struct tokens *tokens, char *buffer, int size);
const char *tokens_path(const struct tokens *tokens); /* the file that holds the tokens */
/* Tokens [start, start + count), which must exist. STATUS_INVALID names file, position and id of a
 * token that is not in the vocabulary. */
MUST_USE status_t tokens_read(const struct tokens *tokens, int64_t start, int64_t count,
                              int32_t *out);

/* Documents by the file's own index; -1 in formats without one. They follow each other without a
 * gap; document `document` begins at tokens_document, and tokens_documents is where they all end. */
int64_t tokens_documents(const struct tokens *tokens);
int64_t tokens_document(const struct tokens *tokens, int64_t document);

#endif
