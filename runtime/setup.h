/* setup.h - private to runtime/: from a run configuration to a trainer with data, for train and eval. */
#ifndef RUNTIME_SETUP_H
#define RUNTIME_SETUP_H

#include "data/data.h"
#include "runtime/runtime.h"

struct setup {
    struct job *job;
    struct group *group;
    struct model_config model;
    const char *weights; /* config's model folder if it holds weights, else NULL */
    int64_t B, T;
    int microbatches; /* of a replica */
    int replica, replicas;
    struct dataset *train, *valid; /* NULL if not wanted */
    uint64_t fingerprint[2];       /* theirs; 0 if not wanted */
    struct trainer *trainer;
    /* [microbatches * B * T]; first: NULL unless data.mask_documents */
    int32_t *inputs, *targets, *first;
};

/* Collective; on failure everything is undone. `training` also wants data.train, evaluation data.valid. */
MUST_USE status_t setup_create(struct job *job, struct group *group, bool training,
                               struct setup *out);
void setup_destroy(struct setup *setup);

/* Fills the batch with this replica's rows of a step that begins at sequence `position` of the run: replica r has
 * sequences [position + r * rows, position + (r + 1) * rows). Local; status of this rank only. */
MUST_USE status_t setup_batch(struct setup *setup, int64_t position, int64_t rows);
/* Mean loss per token over the held-out tokens (data.valid_microbatches of them), in file order.
 * A request to stop cuts it short: *out_whole is false and there is no loss. Collective. */
MUST_USE status_t setup_heldout(struct setup *setup, double *out_loss, int64_t *out_tokens,
                                bool *out_whole);
/* "bits per byte" where a token is a byte, else "bits per token". */
const char *setup_bits_name(const struct setup *setup);

#endif
