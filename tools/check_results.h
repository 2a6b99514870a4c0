/* check_results.h - private to `muddpipe check`: what a case left, each tensor on the rank that has it. */
#ifndef TOOLS_CHECK_RESULTS_H
#define TOOLS_CHECK_RESULTS_H

#include "runtime/runtime.h"

struct check_results {
    struct group *group;
    const struct model *model;
    struct trainer *trainer;
    const struct part *part;
    const float *logits; /* [batch * T, V]; NULL: they and the loss are another rank's */
    float loss;
    bool silent; /* the first replica has the same and tells */
    int count;
    struct tensor_entry *entries; /* [count]: logits, loss, grad.NAME of every trained parameter */
};

/* Borrows trainer and logits, [batch * T, V]. */
MUST_USE status_t check_results_create(struct group *group, struct trainer *trainer, int64_t batch,
                                       int64_t T, struct check_results *out);
void check_results_free(struct check_results *results);

/* Calls `fn` with the tensors of this rank, one after the other; the first failure ends it. */
typedef status_t (*check_result_fn)(void *arg, int item, const float *values, int64_t count);
MUST_USE status_t check_results_each(const struct check_results *results, check_result_fn fn,
                                     void *arg);

/* Writes them all as safetensors. Collective. */
MUST_USE status_t check_results_save(const struct check_results *results, const char *path);
/* Are they, byte for byte, what check_results_save wrote? STATUS_MISMATCH on every rank if not; rank 0
 * says so, or which tensor is the first that differs. `folder` is named then. Collective. */
MUST_USE status_t check_results_same(const struct check_results *results, const char *path,
                                     const char *folder);

#endif
