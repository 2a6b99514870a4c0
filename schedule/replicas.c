/* replicas.c - what data parallelism adds to the list of a rank.
 *
 *     gathered u   before the first F of unit u: its weights, from the step before
 *     reduce u     after the last W of u: starts adding up its gradients over the replicas
 *     reduced u    before the norm, in the order in which they were started
 *     gather u     after the step, in the order in which the next step wants them
 *
 * So the sums move beside the rest of the last backward, and the weights beside the next step's first forwards.
 */
#include <stdlib.h>

#include "schedule/plan_internal.h"

static void put(struct rank_plan *list, enum op_kind kind, int stage, int unit)
{
    list->op[list->ops++] = (struct op){.kind = kind,
                                        .stage = stage,
                                        .microbatch = -1,
                                        .unit = unit,
                                        .key = -1,
                                        .shipment = -1,
                                        .frame = -1,
                                        .backward_slot = -1,
                                        .slot = -1,
                                        .source = -1,
                                        .order = -1,
                                        .together = 1};
}

/* For every operation of `from` that has this kind and microbatch, one of kind `as` of its unit. */
static void put_all(struct rank_plan *list, const struct rank_plan *from, enum op_kind kind,
                    int microbatch, enum op_kind as)
{
    for (int i = 0; i < from->ops; i++) {
        const struct op *op = &from->op[i];
        if (op->kind == kind && op->microbatch == microbatch) {
            put(list, as, op->stage, op->unit);
        }
    }
}

static void fill(const struct plan *plan, const struct rank_plan *from, struct rank_plan *list)
{
    int last = plan->microbatches - 1;
    for (int i = 0; i < from->ops; i++) {
        const struct op *op = &from->op[i];
        if (op->kind == OP_F && op->microbatch == 0) {
            put(list, OP_GATHERED, op->stage, op->unit);
        } else if (op->kind == OP_NORM) {
            put_all(list, from, OP_W, last, OP_REDUCED);
        }
        list->op[list->ops++] = *op;
        if (op->kind == OP_W && op->microbatch == last) {
            put(list, OP_REDUCE, op->stage, op->unit);
        } else if (op->kind == OP_STEP) {
            put_all(list, from, OP_F, 0, OP_GATHER);
        }
    }
}

status_t plan_add_replicas(const struct plan *plan, struct rank_plan *list)
{
    struct rank_plan longer = *list;
    if (plan->replicas == 1 || !plan->training) {
        return STATUS_OK;
    }
    longer.ops = 0;
    longer.op = malloc(((size_t)list->ops + 4 * (size_t)plan->graph->units) * sizeof *longer.op);
    if (longer.op == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for the operations of %d replicas", plan->replicas);
    }
    fill(plan, list, &longer);
    free(list->op);
    *list = longer;
    return STATUS_OK;
}

int64_t plan_collective_bytes(const struct plan *plan, int rank)
{
    int64_t bytes = 0;
    for (int u = 0; u < plan->graph->units && plan->training; u++) {
        const struct unit *unit = &plan->graph->unit[u];
        if (plan_rank_of(plan, plan_stage_of(plan, u)) == rank) {
            bytes += unit->gradient_bytes + unit->parameter_bytes;
        }
    }
    return bytes * (plan->replicas - 1);
}
