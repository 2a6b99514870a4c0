/* replicas.c - gradients added up over replicas, weights given back to them (replicas.h). */
#include "runtime/replicas.h"

#include <stdlib.h>

struct replicas {
    struct group *group;
    const struct model *model;
    struct part *part;
    struct collective *collective;
    size_t *counts;  /* [replicas] scratch */
    int64_t *number; /* [units] of the collective under way */
    int *gathering;  /* [units] whose weights are on their way, in the order of their gathers */
    int first, last; /* of them */
    int64_t beside;  /* bytes that belong to no step */
};

status_t replicas_create(const struct replicas_options *from, struct replicas **out)
{
    struct group *group = from->group;
    *out = NULL;
    if (!group) {
        return STATUS_OK;
    }
    size_t units = (size_t)from->model->graph.units;
    const struct collective_options options = {.under_way = 2 * (int)units,
                                               .device = from->device,
                                               .stream = from->stream,
                                               .carrier = from->carrier,
                                               .whose = "replicas"};
    struct replicas *replicas = calloc(1, sizeof *replicas);
    if (replicas) {
        *replicas = (struct replicas){.group = group, .model = from->model, .part = from->part};
        replicas->counts = calloc((size_t)group_size(group), sizeof *replicas->counts);
        replicas->number = calloc(units, sizeof *replicas->number);
        replicas->gathering = calloc(units, sizeof *replicas->gathering);
    }
    bool made = replicas && replicas->counts && replicas->number && replicas->gathering;
    status_t status =
        group_agree(group, made ? STATUS_OK
                                : FAIL(STATUS_NOMEM, "no memory for the exchanges of %d replicas",
                                       group_size(group)));
    if (status == STATUS_OK) {
        status = collective_create(group, &options, &replicas->collective);
    }
    if (status != STATUS_OK) {
        replicas_destroy(replicas);
        return status;
    }
    *out = replicas;
    return STATUS_OK;
}

void replicas_destroy(struct replicas *replicas)
{
    if (!replicas) {
        return;
    }
    collective_destroy(replicas->collective);
    free(replicas->counts);
    free(replicas->number);
    free(replicas->gathering);
    free(replicas);
}

/* Elements of the shares before this replica's. */
static size_t elements_before(const struct replicas *replicas)
{
    size_t before = 0;
    for (int r = 0; r < group_rank(replicas->group); r++) {
        before += replicas->counts[r];
    }
    return before;
}

static struct collective_call call_of(const struct replicas *replicas, int unit,
                                      enum collective_kind kind, bool gradients)
{
    struct part_bucket bucket;
    part_bucket(replicas->part, unit, &bucket);
    model_share_counts(replicas->model, unit, replicas->counts);
    struct collective_call call = {.kind = kind, .counts = replicas->counts};
    call.element = gradients ? sizeof *bucket.gradients : bucket.element;
    call.out = gradients ? (void *)bucket.gradients : bucket.weights;
    if (kind == COLLECTIVE_REDUCE_SCATTER) {
        call.out = bucket.gradients + elements_before(replicas);
    }
    return call;
}

static status_t begin(struct replicas *replicas, int unit, enum collective_kind kind)
{
    bool gradients = kind == COLLECTIVE_REDUCE_SCATTER;
    struct collective_call call = call_of(replicas, unit, kind, gradients);
    return collective_start(replicas->collective, &call, &replicas->number[unit]);
}

/* In the order in which they were begun; before the first step there is none. */
static status_t gathered(struct replicas *replicas, int unit)
{
    if (replicas->first == replicas->last) {
        return STATUS_OK;
    }
    CHECK(replicas->gathering[replicas->first] == unit, "the weights of unit %d before those of %d",
          unit, replicas->gathering[replicas->first]);
    replicas->first++;
    return collective_wait(replicas->collective, replicas->number[unit]);
}

status_t replicas_walk(struct replicas *replicas, const struct op *op)
{
    switch (op->kind) {
    case OP_REDUCE:
        return begin(replicas, op->unit, COLLECTIVE_REDUCE_SCATTER);
    case OP_REDUCED:
        return collective_wait(replicas->collective, replicas->number[op->unit]);
    case OP_GATHER:
        if (replicas->first == replicas->last) {
            replicas->first = replicas->last = 0;
        }
        replicas->gathering[replicas->last++] = op->unit;
        return begin(replicas, op->unit, COLLECTIVE_ALL_GATHER);
    case OP_GATHERED:
        return gathered(replicas, op->unit);
    default:
        return FAIL(STATUS_INTERNAL, "operation %d is not of replicas", (int)op->kind);
    }
}

status_t replicas_settle(struct replicas *replicas)
{
    while (replicas && replicas->first < replicas->last) {
        TRY(gathered(replicas, replicas->gathering[replicas->first]));
    }
    return STATUS_OK;
}

status_t replicas_share_gradients(struct replicas *replicas, int unit)
{
    TRY(replicas_settle(replicas));
    int64_t before = collective_bytes(replicas->collective);
    struct collective_call call = call_of(replicas, unit, COLLECTIVE_ALL_GATHER, true);
    TRY(collective_run(replicas->collective, &call));
    replicas->beside += collective_bytes(replicas->collective) - before;
    return STATUS_OK;
}

const char *replicas_carrier(const struct replicas *replicas)
{
    return replicas ? collective_carrier(replicas->collective) : "";
}

int64_t replicas_pinned_bytes(const struct replicas *replicas)
{
    return replicas ? (int64_t)collective_pinned_bytes(replicas->collective) : 0;
}

int64_t replicas_bytes(const struct replicas *replicas)
{
    return replicas ? collective_bytes(replicas->collective) - replicas->beside : 0;
}

int64_t replicas_step_bytes(const struct replicas *replicas, const struct plan *plan, int rank)
{
    int64_t bytes = 0;
    int own = replicas ? group_rank(replicas->group) : 0;
    for (int u = 0; replicas && u < plan->graph->units; u++) {
        if (plan_rank_of(plan, plan_stage_of(plan, u)) == rank) {
            struct collective_call sum = call_of(replicas, u, COLLECTIVE_REDUCE_SCATTER, true);
            bytes += collective_call_bytes(&sum, own, group_size(replicas->group));
            struct collective_call copy = call_of(replicas, u, COLLECTIVE_ALL_GATHER, false);
            bytes += collective_call_bytes(&copy, own, group_size(replicas->group));
        }
    }
    return bytes;
}
