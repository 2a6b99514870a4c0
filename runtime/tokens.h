/* tokens.h - token files, and which part of one a sequence of the run is.
 *
 * Two formats: llm.c's .bin (a header of 256 int32, then u16 or u32 tokens) and, for any other file,
 * its bytes: each a token of a vocabulary of 256. The file is mapped, never copied whole.
 *
 * A file of N tokens has W = (N - 1) / T windows of T + 1 tokens, T apart: the first T are inputs,
 * the last T targets. Epoch e visits all windows once in an order that follows from seed and e by
 * a permutation without a table, so any rank of any layout knows where sequence s of the run is.
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

enum token_format { TOKENS_BYTES, TOKENS_U16, TOKENS_U32 };

/* `vocab`: every token must be below it (0: whatever fits). Files below 256 MiB are looked through
 * at once, larger ones as they are read. */
MUST_USE status_t tokens_open(const char *path, int64_t vocab, struct tokens **out);
void tokens_close(struct tokens *tokens);

int64_t tokens_count(const struct tokens *tokens);
enum token_format tokens_format(const struct tokens *tokens);
const char *tokens_path(const struct tokens *tokens);
/* Tokens [start, start + count), which must exist. STATUS_INVALID names a token that is too large. */
MUST_USE status_t tokens_read(const struct tokens *tokens, int64_t start, int64_t count,
                              int32_t *out);

/* W; a file too short for one window is refused. */
MUST_USE status_t tokens_windows(const struct tokens *tokens, int64_t T, int64_t *out);
/* First token of the window that is sequence s of the run, s = 0, 1, ... over all epochs. The file
 * must have a window. */
int64_t tokens_window(const struct tokens *tokens, int64_t T, uint64_t seed, int64_t s);

#endif
