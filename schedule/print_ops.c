/* print_ops.c - operations as text: a sentence each (messages), or a table (reading, golden files).
 * op_print is called with operations that are wrong, so it trusts no number. */
#include <stdio.h>

#include "schedule/plan_internal.h"

enum { NAME = 32 };

static const char *const op_names[OP_KINDS] = {
    [OP_POST] = "post",     [OP_WAIT] = "wait",
    [OP_F] = "F",           [OP_PUT] = "put",
    [OP_SENT] = "sent",     [OP_B] = "B",
    [OP_GRAD] = "grad",     [OP_W] = "W",
    [OP_NORM] = "norm",     [OP_STEP] = "step",
    [OP_REDUCE] = "reduce", [OP_REDUCED] = "reduced",
    [OP_GATHER] = "gather", [OP_GATHERED] = "gathered",
};

const char *op_kind_name(enum op_kind kind)
{
    return (int)kind >= 0 && kind < OP_KINDS ? op_names[kind] : "?";
}

static const struct shipment *op_shipment(const struct plan *plan, const struct op *op)
{
    bool known = op->shipment >= 0 && op->shipment < plan->shipments;
    return known ? &plan->shipment[op->shipment] : NULL;
}

/* "X_3", or "dX_3" for a gradient. */
static const char *op_key_print(const struct plan *plan, const struct op *op, char *buffer)
{
    const struct shipment *s = op_shipment(plan, op);
    bool gradient = op->kind == OP_GRAD || (s != NULL && s->backward);
    bool known = op->key >= 0 && op->key < plan->graph->keys;
    snprintf(buffer, NAME, "%s%s", gradient ? "d" : "",
             known ? plan->graph->key[op->key].name : "?");
    return buffer;
}

static const char *op_unit_name(const struct plan *plan, const struct op *op)
{
    bool known = op->unit >= 0 && op->unit < plan->graph->units;
    return known ? plan->graph->unit[op->unit].name : "?";
}

const char *op_print(const struct plan *plan, const struct op *op, char *buffer, size_t size)
{
    char name[NAME];
    const struct shipment *s = op_shipment(plan, op);
    int from = s != NULL ? s->from : -1, to = s != NULL ? s->to : -1, m = op->microbatch;
    switch (op->kind) {
    case OP_POST:
        snprintf(buffer, size, "post slot %d for %s of microbatch %d from stage %d", op->slot,
                 op_key_print(plan, op, name), m, from);
        break;
    case OP_WAIT:
        snprintf(buffer, size, "wait for %s of microbatch %d from stage %d",
                 op_key_print(plan, op, name), m, from);
        break;
    case OP_PUT:
        snprintf(buffer, size, "put %s of microbatch %d to stage %d", op_key_print(plan, op, name),
                 m, to);
        break;
    case OP_SENT:
        snprintf(buffer, size, "wait until %s of microbatch %d is sent to stage %d",
                 op_key_print(plan, op, name), m, to);
        break;
    case OP_F:
    case OP_B:
    case OP_W:
        snprintf(buffer, size, "%s of %s, microbatch %d", op_kind_name(op->kind),
                 op_unit_name(plan, op), m);
        break;
    case OP_GRAD:
        snprintf(buffer, size, "form %s of microbatch %d", op_key_print(plan, op, name), m);
        break;
    case OP_REDUCE:
        snprintf(buffer, size, "start the sum over replicas of the gradients of %s",
                 op_unit_name(plan, op));
        break;
    case OP_REDUCED:
        snprintf(buffer, size, "wait for the sum over replicas of the gradients of %s",
                 op_unit_name(plan, op));
        break;
    case OP_GATHER:
        snprintf(buffer, size, "start gathering the weights of %s from the replicas",
                 op_unit_name(plan, op));
        break;
    case OP_GATHERED:
        snprintf(buffer, size, "wait for the weights of %s from the replicas",
                 op_unit_name(plan, op));
        break;
    default:
        snprintf(buffer, size, "%s", op_kind_name(op->kind));
        break;
    }
    return buffer;
}

/* ---- table ---- */

/* "= received + aggregate of attn 5 + generator of attn 3 + summary S_1" */
static void adds_print(const struct plan *plan, const struct op *op, FILE *out)
{
    for (int i = 0; i < op->adds; i++) {
        int index = plan->add[op->first_add + i].read;
        const char *sign = i == 0 ? "=" : "+";
        if (index < 0) {
            fprintf(out, " %s %s", sign, index == ADD_RECEIVED ? "received" : "partial sum");
            continue;
        }
        const struct read *read = &plan->graph->read[index];
        fprintf(out, " %s %s %s", sign, read->what,
                read->kind == READ_MAKES ? plan->graph->key[read->made].name
                                         : plan->graph->unit[read->unit].name);
    }
}

static void op_line(const struct plan *plan, const struct op *op, FILE *out)
{
    char name[NAME];
    const struct shipment *s = op_shipment(plan, op);
    if (op->microbatch < 0) {
        fprintf(out, op->unit >= 0 ? "%-8s  %s\n" : "%s\n", op_kind_name(op->kind),
                op_unit_name(plan, op));
        return;
    }
    fprintf(out, "%-4s  m%-3d ", op_kind_name(op->kind), op->microbatch);
    switch (op->kind) {
    case OP_POST:
    case OP_WAIT:
        fprintf(out, "%-8s slot %d from stage %d", op_key_print(plan, op, name), op->slot, s->from);
        break;
    case OP_PUT:
        fprintf(out, "%-8s %s %d to slot %d of stage %d", op_key_print(plan, op, name),
                s->backward ? "slot" : "frame", s->backward ? op->source : op->frame, op->slot,
                s->to);
        break;
    case OP_SENT:
        fprintf(out, "%-8s %s %d to stage %d", op_key_print(plan, op, name),
                s->backward ? "slot" : "frame", s->backward ? op->source : op->frame, s->to);
        break;
    case OP_GRAD:
        fprintf(out, "%-8s slot %d", op_key_print(plan, op, name), op->slot);
        adds_print(plan, op, out);
        break;
    default:
        fprintf(out, "%-8s frame %d", op_unit_name(plan, op), op->frame);
        if (op->slot >= 0) {
            fprintf(out, ", gradient slot %d", op->slot);
        }
        break;
    }
    fputc('\n', out);
}

void plan_print_ops(const struct plan *plan, int rank, FILE *out)
{
    const struct rank_plan *list = &plan->rank[rank];
    for (int i = 0; i < list->ops; i++) {
        fprintf(out, "%5d  ", i);
        op_line(plan, &list->op[i], out);
    }
}
