/* check_replicas.c - gradients are whole before they are added up over the replicas, sums are there before the
 * norm, weights before they are read; and what is started first is awaited first.
 *
 * All replicas walk the same lists, so they start the same sums and gathers in the same order. That none of them
 * waits for ever follows from the proof for one: if all replicas do the operations of a plan in one order in which
 * a single pipeline can do them, every sum and gather finds its partners.
 */
#include <stdlib.h>

#include "schedule/plan_internal.h"

struct walk {
    const struct checker *checker;
    int rank, index;
    int *added;        /* [units] microbatches whose weight gradients are there */
    bool *read, *sent; /* [units] F may read the weights; the sum of the gradients has begun */
    int *order;        /* [units] in which sums, or gathers, have begun */
    int begun, ended;
    bool normed, stepped;
};

static bool refuse(const struct walk *walk, const char *why)
{
    return check_refuse(walk->checker, walk->rank, walk->index, "%s", why);
}

static bool walk_reduced(struct walk *walk, const struct op *op)
{
    if (walk->ended >= walk->begun || walk->order[walk->ended] != op->unit) {
        return refuse(walk, "is not the sum that was started first of those under way");
    }
    walk->ended++;
    return !walk->normed || refuse(walk, "comes after the norm");
}

/* Weights are gathered in the order in which they were awaited in this list, as the next step will be. */
static bool walk_gather(struct walk *walk, const struct op *op, int *next)
{
    const struct rank_plan *list = &walk->checker->plan->rank[walk->rank];
    while (*next < list->ops && list->op[*next].kind != OP_GATHERED) {
        (*next)++;
    }
    if (*next >= list->ops || list->op[*next].unit != op->unit) {
        return refuse(walk, "is not in the order in which weights are awaited");
    }
    (*next)++;
    return walk->stepped || refuse(walk, "comes before the step");
}

static bool walk_op(struct walk *walk, const struct op *op, int *next)
{
    switch (op->kind) {
    case OP_GATHERED:
        walk->read[op->unit] = true;
        return walk->begun == 0 || refuse(walk, "comes after a sum, which was started later");
    case OP_F:
        return walk->read[op->unit] || refuse(walk, "reads weights that have not been gathered");
    case OP_W:
        walk->added[op->unit]++;
        return !walk->sent[op->unit] || refuse(walk, "changes gradients that are being added up");
    case OP_REDUCE:
        walk->sent[op->unit] = true;
        walk->order[walk->begun++] = op->unit;
        return walk->added[op->unit] == walk->checker->plan->microbatches ||
               refuse(walk, "adds up gradients that are not complete");
    case OP_REDUCED:
        return walk_reduced(walk, op);
    case OP_NORM:
        walk->normed = true;
        return walk->ended == walk->begun || refuse(walk, "comes before all sums are there");
    case OP_STEP:
        walk->stepped = true;
        return true;
    case OP_GATHER:
        return walk_gather(walk, op, next);
    default:
        return true;
    }
}

static bool walk_rank(struct walk *walk)
{
    const struct rank_plan *list = &walk->checker->plan->rank[walk->rank];
    int next = 0;
    for (walk->index = 0; walk->index < list->ops; walk->index++) {
        if (!walk_op(walk, &list->op[walk->index], &next)) {
            return false;
        }
    }
    return true;
}

static status_t check_rank(struct walk *walk)
{
    size_t units = (size_t)walk->checker->plan->graph->units;
    walk->added = calloc(units, sizeof *walk->added);
    walk->read = calloc(units, sizeof *walk->read);
    walk->sent = calloc(units, sizeof *walk->sent);
    walk->order = calloc(units, sizeof *walk->order);
    status_t status = STATUS_NOMEM;
    if (walk->added && walk->read && walk->sent && walk->order) {
        status = walk_rank(walk) ? STATUS_OK : STATUS_INTERNAL;
    }
    free(walk->added);
    free(walk->read);
    free(walk->sent);
    free(walk->order);
    return status;
}

status_t check_replicas(const struct checker *checker)
{
    const struct plan *plan = checker->plan;
    for (int rank = 0; rank < plan->ranks && plan->training && plan->replicas > 1; rank++) {
        struct walk walk = {.checker = checker, .rank = rank};
        TRY(check_rank(&walk));
    }
    return STATUS_OK;
}
