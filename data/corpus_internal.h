/* corpus_internal.h - private to data/corpus*.c. */
#ifndef RUNTIME_CORPUS_INTERNAL_H
#define RUNTIME_CORPUS_INTERNAL_H

#include "data/corpus.h"
#include "data/tokens.h"

struct shard {
    struct tokens *tokens;
    int64_t start;    /* its first token in the text */
    int64_t document; /* its first document, by the files' indexes */
};

/* Where every MARK_STEP-th document of an epoch's order begins; a walk finds those between. */
enum { MARK_STEP = 64 };
struct epoch {
    int64_t number; /* -1: not made yet */
    int64_t *mark;  /* [documents / MARK_STEP + 1] */
};

struct corpus {
    struct corpus_options options;
    struct shard *shard; /* [files + 1]; the last holds the totals */
    int files;
    int64_t count;
    int64_t documents;     /* -1: unknown */
    int64_t *start;        /* [documents + 1] with eod and order over documents; else NULL */
    struct epoch epoch[2]; /* by parity: a window may begin in one and end in the next */
};

/* A permutation of [0, n) that follows from seed, name, source and epoch. */
uint64_t corpus_permute(const struct corpus *corpus, const char *name, int64_t epoch, uint64_t x,
                        uint64_t n);
/* corpus_sequence where the order is over documents. */
MUST_USE status_t corpus_document_sequence(struct corpus *corpus, int64_t s, int32_t *out,
                                           int32_t *first);

#endif
