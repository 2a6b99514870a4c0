/* corpus_order.c - permutations without a table, and the order over documents. */
#include <stddef.h>

#include "base/rng.h"
#include "data/corpus_internal.h"

/* ---- permutations ---- */

enum { ROUNDS = 4, SOURCE_SHIFT = 40 };

/* A permutation of [0, 4^half_bits): a Feistel network whose round keys follow from the stream. */
static uint64_t feistel(uint64_t x, unsigned half_bits, uint64_t seed, uint64_t stream)
{
    uint64_t mask = ((uint64_t)1 << half_bits) - 1;
    uint64_t left = x >> half_bits, right = x & mask;

    for (uint64_t round = 0; round < ROUNDS; round++) {
        uint64_t next = left ^ (rng_bits(seed, stream + round, right) & mask);
        left = right;
        right = next;
    }
    return left << half_bits | right;
}

/* Walks on until it lands inside, at most four steps on average. */
uint64_t corpus_permute(const struct corpus *corpus, const char *name, int64_t epoch, uint64_t x,
                        uint64_t n)
{
    uint64_t stream = rng_stream(name) + ROUNDS * (uint64_t)epoch +
                      ((uint64_t)corpus->options.source << SOURCE_SHIFT);
    unsigned half_bits = 1;

    while ((uint64_t)1 << 2 * half_bits < n) {
        half_bits++;
    }
    do {
        x = feistel(x, half_bits, corpus->options.seed, stream);
    } while (x >= n);
    return x;
}

/* ---- documents ---- */

/* The `rank`-th document of an epoch: its first token, and how many there are. */
static int64_t ranked_document(const struct corpus *corpus, int64_t epoch, int64_t rank,
                               int64_t *out_length)
{
    int64_t document = (int64_t)corpus_permute(corpus, "documents", epoch, (uint64_t)rank,
                                               (uint64_t)corpus->documents);
    int64_t start = corpus_document(corpus, document);

    *out_length = corpus_document(corpus, document + 1) - start;
    return start;
}

static void make_epoch(struct corpus *corpus, int64_t number)
{
    struct epoch *epoch = &corpus->epoch[number % 2];
    int64_t at = 0, length;

    if (epoch->number == number) {
        return;
    }
    for (int64_t rank = 0; rank < corpus->documents; rank++) {
        if (rank % MARK_STEP == 0) {
            epoch->mark[rank / MARK_STEP] = at;
        }
        ranked_document(corpus, number, rank, &length);
        at += length;
    }
    epoch->number = number;
}

/* Which document of the epoch's order token `offset` of the epoch is in, and where that begins. */
static int64_t find_rank(const struct corpus *corpus, int64_t number, int64_t offset,
                         int64_t *out_start)
{
    const int64_t *mark = corpus->epoch[number % 2].mark;
    int64_t low = 0, high = (corpus->documents - 1) / MARK_STEP + 1, length;

    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (mark[middle] <= offset) {
            low = middle;
        } else {
            high = middle;
        }
    }
    int64_t rank = low * MARK_STEP, start = mark[low];
    for (;; rank++, start += length) {
        ranked_document(corpus, number, rank, &length);
        if (start + length > offset) {
            *out_start = start;
            return rank;
        }
    }
}

/* `count` tokens from `offset` of an epoch on, at most as many as it has left; *out_count says how
 * many. out and first as of a window whose token `t` comes now. */
static status_t read_epoch(struct corpus *corpus, int64_t number, int64_t offset, int64_t t,
                           int64_t count, int32_t *out, int32_t *first, int64_t *out_count)
{
    int64_t start, length, done = 0, T = corpus->options.T;

    make_epoch(corpus, number);
    count = count < corpus->count - offset ? count : corpus->count - offset;
    for (int64_t rank = find_rank(corpus, number, offset, &start); done < count; rank++) {
        int64_t text = ranked_document(corpus, number, rank, &length);
        int64_t skip = offset + done - start, part = length - skip;
        part = part < count - done ? part : count - done;
        TRY(corpus_read(corpus, text + skip, part, out + t + done));
        for (int64_t i = t + done; first != NULL && i < t + done + part && i < T; i++) {
            first[i] = (int32_t)(t + done);
        }
        done += part;
        start += length;
    }
    *out_count = count;
    return STATUS_OK;
}

status_t corpus_document_sequence(struct corpus *corpus, int64_t s, int32_t *out, int32_t *first)
{
    int64_t T = corpus->options.T, N = corpus->count;
    int64_t epoch = s * T / N; /* of the window that begins at token s T of the endless text */
    int64_t from = (epoch * N + T - 1) / T, to = ((epoch + 1) * N + T - 1) / T;
    int64_t window = from + (int64_t)corpus_permute(corpus, "windows", epoch, (uint64_t)(s - from),
                                                    (uint64_t)(to - from));
    int64_t offset = window * T - epoch * N, read = 0;

    TRY(read_epoch(corpus, epoch, offset, 0, T + 1, out, first, &read));
    if (read <= T) { /* N > T: one more epoch is enough */
        TRY(read_epoch(corpus, epoch + 1, 0, read, T + 1 - read, out, first, &read));
    }
    return STATUS_OK;
}
