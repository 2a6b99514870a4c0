/* tokens.c - token files. */
#include "runtime/tokens.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/rng.h"

enum { CHUNK = 1 << 16 };                    /* tokens looked at before the largest is compared */
static const int64_t scan_limit = 256 << 20; /* bytes */

struct tokens {
    char *path;
    unsigned char *map; /* the whole file */
    size_t size;
    const unsigned char *data; /* [count] of `format` */
    enum token_format format;
    int64_t count;
    int64_t vocab; /* 0: unchecked */
};

/* ---- reading ---- */

static int64_t token_at(const struct tokens *tokens, int64_t i)
{
    uint16_t narrow;
    uint32_t wide;

    switch (tokens->format) {
    case TOKENS_BYTES:
        return tokens->data[i];
    case TOKENS_U16:
        memcpy(&narrow, tokens->data + 2 * i, sizeof narrow);
        return narrow;
    case TOKENS_U32:
        break;
    }
    memcpy(&wide, tokens->data + 4 * i, sizeof wide);
    return wide;
}

/* The largest token id that can be used: below vocab, and an int32. */
static int64_t token_limit(const struct tokens *tokens)
{
    return tokens->vocab > 0 ? tokens->vocab : (int64_t)INT32_MAX + 1;
}

static bool token_can_exceed(const struct tokens *tokens)
{
    static const int64_t ids[] = {1 << 8, 1 << 16, (int64_t)1 << 32};
    return token_limit(tokens) < ids[tokens->format];
}

static status_t tokens_check(const struct tokens *tokens, int64_t start, int64_t count)
{
    int64_t limit = token_limit(tokens), end = start + count;

    for (int64_t at = start; at < end && token_can_exceed(tokens); at += CHUNK) {
        int64_t stop = end - at < CHUNK ? end : at + CHUNK, largest = 0;
        for (int64_t i = at; i < stop; i++) {
            int64_t token = token_at(tokens, i);
            largest = token > largest ? token : largest;
        }
        for (int64_t i = at; i < stop && largest >= limit; i++) {
            if (token_at(tokens, i) >= limit) {
                return FAIL(STATUS_INVALID,
                            "%s: token %lld at position %lld is not below the vocabulary's %lld; "
                            "was the file made with another tokenizer?",
                            tokens->path, (long long)token_at(tokens, i), (long long)i,
                            (long long)limit);
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

const char *tokens_path(const struct tokens *tokens)
{
    return tokens->path;
}

/* ---- opening ---- */

static bool has_suffix(const char *text, const char *suffix)
{
    size_t length = strlen(text), tail = strlen(suffix);
    return length >= tail && strcmp(text + length - tail, suffix) == 0;
}

static status_t tokens_set_bytes(struct tokens *tokens)
{
    if (has_suffix(tokens->path, ".bin") || has_suffix(tokens->path, ".idx")) {
        return FAIL(STATUS_INVALID,
                    "%s: the name is a token file's, but it does not begin like an llm.c .bin; "
                    "`muddpipe data encode` makes one from text (a file of another name is read "
                    "byte by byte)",
                    tokens->path);
    }
    tokens->format = TOKENS_BYTES;
    tokens->data = tokens->map;
    tokens->count = (int64_t)tokens->size;
    if (log_rank() <= 0) {
        log_info("%s is read byte by byte: each byte is a token", tokens->path);
    }
    return STATUS_OK;
}

static status_t tokens_set_format(struct tokens *tokens)
{
    int32_t header[3] = {0};

    memcpy(header, tokens->map, tokens->size < sizeof header ? tokens->size : sizeof header);
    if (header[0] != TOKENS_U16_MAGIC && header[0] != TOKENS_U32_MAGIC) {
        return tokens_set_bytes(tokens);
    }
    bool narrow = header[0] == TOKENS_U16_MAGIC;
    int version = narrow ? TOKENS_U16_VERSION : TOKENS_U32_VERSION;
    int64_t expected = TOKENS_HEADER + (narrow ? 2 : 4) * (int64_t)header[2];
    if (header[1] != version) {
        return FAIL(STATUS_INVALID, "%s: version %d of its format; only %d is known", tokens->path,
                    header[1], version);
    }
    if (header[2] < 0 || (int64_t)tokens->size != expected) {
        return FAIL(STATUS_INVALID,
                    "%s: its header announces %d tokens, so %lld bytes; the file has %zu: cut off "
                    "or damaged",
                    tokens->path, header[2], (long long)expected, tokens->size);
    }
    tokens->format = narrow ? TOKENS_U16 : TOKENS_U32;
    tokens->data = tokens->map + TOKENS_HEADER;
    tokens->count = header[2];
    return STATUS_OK;
}

static status_t tokens_map(int fd, struct tokens *tokens)
{
    struct stat info;

    if (fstat(fd, &info) != 0) {
        return FAIL(STATUS_IO, "cannot look at %s: %s", tokens->path, strerror(errno));
    }
    if (!S_ISREG(info.st_mode) || info.st_size == 0) {
        return FAIL(STATUS_INVALID, "%s: %s", tokens->path,
                    S_ISREG(info.st_mode) ? "the file is empty" : "not a regular file");
    }
    void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) {
        return FAIL(STATUS_IO, "cannot map %s: %s", tokens->path, strerror(errno));
    }
    tokens->map = map;
    tokens->size = (size_t)info.st_size;
    return STATUS_OK;
}

static status_t tokens_load(const char *path, struct tokens *tokens)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not stop us */

    if (fd < 0) {
        return FAIL(STATUS_IO, "cannot open token file %s: %s", path, strerror(errno));
    }
    tokens->path = strdup(path);
    status_t status = tokens->path != NULL ? tokens_map(fd, tokens)
                                           : FAIL(STATUS_NOMEM, "no memory to open %s", path);
    close(fd);
    TRY(status);
    TRY(tokens_set_format(tokens));
    return (int64_t)tokens->size < scan_limit ? tokens_check(tokens, 0, tokens->count) : STATUS_OK;
}

status_t tokens_open(const char *path, int64_t vocab, struct tokens **out)
{
    struct tokens *tokens = calloc(1, sizeof *tokens);

    if (tokens == NULL) {
        return FAIL(STATUS_NOMEM, "no memory to open %s", path);
    }
    tokens->vocab = vocab;
    status_t status = tokens_load(path, tokens);
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
    if (tokens->map != NULL) {
        munmap(tokens->map, tokens->size);
    }
    free(tokens->path);
    free(tokens);
}

/* ---- windows ---- */

enum { ROUNDS = 4 };

/* A permutation of [0, 4^half_bits): a Feistel network whose round keys follow from seed, epoch. */
static uint64_t feistel(uint64_t x, unsigned half_bits, uint64_t seed, uint64_t epoch)
{
    uint64_t mask = ((uint64_t)1 << half_bits) - 1;
    uint64_t left = x >> half_bits, right = x & mask;
    uint64_t stream = rng_stream("windows") + ROUNDS * epoch;

    for (uint64_t round = 0; round < ROUNDS; round++) {
        uint64_t next = left ^ (rng_bits(seed, stream + round, right) & mask);
        left = right;
        right = next;
    }
    return left << half_bits | right;
}

/* A permutation of [0, n): walks on until it lands inside, at most four steps on average. */
static uint64_t permute(uint64_t x, uint64_t n, uint64_t seed, uint64_t epoch)
{
    unsigned half_bits = 1;

    while ((uint64_t)1 << 2 * half_bits < n) {
        half_bits++;
    }
    do {
        x = feistel(x, half_bits, seed, epoch);
    } while (x >= n);
    return x;
}

status_t tokens_windows(const struct tokens *tokens, int64_t T, int64_t *out)
{
    CHECK(T > 0, "windows of %lld tokens", (long long)T);
    if (tokens->count <= T) {
        return FAIL(STATUS_INVALID,
                    "%s: its %lld tokens are too few for one sequence of %lld and the token after "
                    "it; set a smaller data.seq_len or give more text",
                    tokens->path, (long long)tokens->count, (long long)T);
    }
    *out = (tokens->count - 1) / T;
    return STATUS_OK;
}

int64_t tokens_window(const struct tokens *tokens, int64_t T, uint64_t seed, int64_t s)
{
    int64_t windows = (tokens->count - 1) / T;

    CHECK(windows > 0 && s >= 0, "sequence %lld of %lld windows", (long long)s, (long long)windows);
    return T * (int64_t)permute((uint64_t)(s % windows), (uint64_t)windows, seed,
                                (uint64_t)(s / windows));
}
