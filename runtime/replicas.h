/* replicas.h - private to runtime/: what a rank does together with those at its place of the other replicas.
 *
 * The plan says when (OP_REDUCE, OP_REDUCED, OP_GATHER, OP_GATHERED); here is what. A unit's gradients are added up
 * over the replicas in their order, and each replica gets the sum of its share, in its place. AdamW changes the
 * weights of the share, which are then given to all.
 */
#ifndef RUNTIME_REPLICAS_H
#define RUNTIME_REPLICAS_H

#include "comm/comm.h"
#include "model/model.h"
#include "schedule/schedule.h"

struct replicas;

struct replicas_options {
    struct group *group; /* NULL: one replica */
    const struct model *model;
    struct part *part;
    struct device *device; /* as the part's: what follows only enqueues there; NULL = the host */
    void *stream;
    const char *carrier; /* collective_options */
};

/* NULL where there is one replica. Collective. */
MUST_USE status_t replicas_create(const struct replicas_options *options, struct replicas **out);
void replicas_destroy(struct replicas *replicas);

/* One of the plan's four operations. */
MUST_USE status_t replicas_walk(struct replicas *replicas, const struct op *op);
/* Until all weights are there that were changed last: before they are read outside of a step. */
MUST_USE status_t replicas_settle(struct replicas *replicas);
/* After a step whose sums have not been taken further: the whole sum of a unit's gradients in each replica. All
 * replicas, unit after unit. */
MUST_USE status_t replicas_share_gradients(struct replicas *replicas, int unit);
/* collective_carrier; "" with one replica. */
const char *replicas_carrier(const struct replicas *replicas);
/* Of the host's memory, beside a GPU. */
int64_t replicas_pinned_bytes(const struct replicas *replicas);
/* Payload received in steps so far. */
int64_t replicas_bytes(const struct replicas *replicas);
/* What this rank receives in a step of `plan`. */
int64_t replicas_step_bytes(const struct replicas *replicas, const struct plan *plan, int rank);

#endif
