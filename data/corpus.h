/* corpus.h - token files one after another as one text of N tokens, and the order in which it is read.
 *
 * A sequence is a window of T + 1 tokens: the first T are inputs, the last T targets. Sequence
 * s = 0, 1, 2, ... over all epochs follows from seed and s alone, by permutations without a table, so
 * any rank of any layout finds it without reading what came before.
 *
 * Windows: the text has W = (N - 1) / T windows T apart; epoch e visits each once in an order of its
 * own. What is left behind the last window is not read.
 *
 * Documents: epoch e puts all documents into an order of its own. The epochs laid one after another
 * are an endless text in which windows stand T apart, also over the seams, so every document is read
 * exactly once an epoch, whole; the windows that begin in an epoch are visited in an order of their
 * own, so that the parts of a long document are not neighbours in a step.
 */
#ifndef RUNTIME_CORPUS_H
#define RUNTIME_CORPUS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct corpus;

struct corpus_options {
    int64_t vocab;  /* as for tokens_open */
    int64_t T;      /* 0: to be read as it stands; there are no windows and sequences */
    int64_t eod;    /* documents end behind this token; -1: where the files' indexes say */
    bool documents; /* order over documents; windows otherwise */
    bool starts;    /* `first` is wanted */
    uint64_t seed;
    int source; /* sources of one run have orders of their own */
};

/* Refused: fewer than T + 1 tokens; documents or starts wanted but unknown. With eod the text is read
 * through: for an order over documents to its end, for starts to the first of them. */
MUST_USE status_t corpus_open(const char *const *paths, int files,
                              const struct corpus_options *options, struct corpus **out);
void corpus_close(struct corpus *corpus);

int64_t corpus_count(const struct corpus *corpus);     /* N */
int64_t corpus_windows(const struct corpus *corpus);   /* W */
int64_t corpus_documents(const struct corpus *corpus); /* -1: unknown, or not asked for */
/* First token of a document; of corpus_documents: N. */
int64_t corpus_document(const struct corpus *corpus, int64_t document);
/* Tells apart texts that ranks, or two runs, should see alike: sizes, documents and the 4096 tokens at each
 * of 64 places, which is all of a text up to 262144 tokens. */
uint64_t corpus_fingerprint(const struct corpus *corpus);

/* Tokens [start, start + count) of the text. */
MUST_USE status_t corpus_read(const struct corpus *corpus, int64_t start, int64_t count,
                              int32_t *out);
/* Window `window` in the order of the text. out [T + 1]; first [T] or NULL: the place in the window of
 * the first token of each token's document, 0 if that lies before the window. */
MUST_USE status_t corpus_window(const struct corpus *corpus, int64_t window, int32_t *out,
                                int32_t *first);
/* Sequence s of a run. */
MUST_USE status_t corpus_sequence(struct corpus *corpus, int64_t s, int32_t *out, int32_t *first);

#endif
