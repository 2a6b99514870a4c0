/* executor.c - walks the plan's operations of this rank: one switch, no decisions. */
#include "runtime/stage.h"

struct walk {
    struct stage *stage;
    struct batch batch;      /* where the part lives */
    const int32_t *position; /* with documents */
    float loss_scale;
    const struct stage_hooks *hooks;
};

static int64_t message_of(const struct stage *stage, const struct op *op)
{
    return stage->messages + op->microbatch;
}

/* Books the time of a wait: what passed before both ends were ready is the peer's or the schedule's
 * (the bubble), the rest is bytes on the wire. */
static void book_wait(struct stage *stage, const struct shipment *shipment, int64_t start,
                      int64_t end, const struct wire_stamp *stamp)
{
    int64_t wire_start = stamp->put > start ? stamp->put : start;
    if (wire_start < end) {
        trace_move(stage->trace, TRACE_WAIT,
                   shipment->plain ? TRACE_EXPOSED_PLAIN : TRACE_EXPOSED_DENSE, end - wire_start);
    }
}

static status_t walk_wait(struct walk *walk, const struct op *op)
{
    struct stage *stage = walk->stage;
    const struct plan *plan = stage->active;
    const struct shipment *shipment = &plan->shipment[op->shipment];
    struct wire_stamp stamp;
    int64_t start = trace_now();
    enum trace_category before = trace_switch(stage->trace, TRACE_WAIT);
    status_t status = wire_wait(stage->wire, op->shipment, op->slot, message_of(stage, op), &stamp);
    trace_switch(stage->trace, before);
    if (status != STATUS_OK) {
        return status;
    }
    book_wait(stage, shipment, start, trace_now(), &stamp);
    if (!shipment->backward) {
        int frame = op->microbatch % plan->stage[op->stage].frames;
        part_set_key(stage->part, frame, op->key, stage->arrival[op->shipment][op->slot]);
    }
    return STATUS_OK;
}

static status_t walk_put(struct walk *walk, const struct op *op)
{
    struct stage *stage = walk->stage;
    const void *source = op->source >= 0 ? stage->gradient[op->key][op->source]
                                         : part_key(stage->part, op->frame, op->key);
    return wire_put(stage->wire, op->shipment, op->slot, message_of(stage, op), source);
}

static status_t walk_sent(struct walk *walk, const struct op *op)
{
    struct stage *stage = walk->stage;
    enum trace_category before = trace_switch(stage->trace, TRACE_WAIT);
    status_t status = wire_sent(stage->wire, op->shipment, message_of(stage, op));
    trace_switch(stage->trace, before);
    return status;
}

static void walk_forward(struct walk *walk, const struct op *op)
{
    struct stage *stage = walk->stage;
    const struct model *model = stage->model;
    int last = model->graph.units - 1;
    int64_t offset = (int64_t)op->microbatch * model->B * model->T;
    const struct batch *batch = &walk->batch;
    part_set_documents(stage->part, op->frame, batch->first ? batch->first + offset : NULL,
                       batch->first ? walk->position + offset : NULL);
    if (op->unit == 0 || op->unit == last) {
        part_set_tokens(stage->part, op->frame, batch->inputs ? batch->inputs + offset : NULL,
                        batch->targets ? batch->targets + offset : NULL);
    }
    double *loss = stage->device ? stage->loss_there : stage->loss;
    part_forward(stage->part, op->unit, op->frame, walk->loss_scale,
                 op->unit == last ? &loss[op->microbatch] : NULL);
    if (op->unit == last && stage->on_head) {
        stage->on_head(stage->head_arg, stage->part, op->frame, op->microbatch);
    }
}

/* An FFN's backward writes the gradient of the H_i it reads, into the slot that the plan names. */
static void walk_backward(struct walk *walk, const struct op *op)
{
    struct stage *stage = walk->stage;
    const struct unit *unit = &stage->model->graph.unit[op->unit];
    if (unit->kind == UNIT_FFN) {
        int key = model_mid_key(stage->model, unit->layer);
        part_set_key_gradient(stage->part, key, stage->gradient[key][op->slot]);
    }
    part_backward(stage->part, op->unit, op->frame);
}

static void walk_gradient(struct walk *walk, const struct op *op)
{
    struct stage *stage = walk->stage;
    part_set_key_gradient(stage->part, op->key, stage->gradient[op->key][op->slot]);
    part_key_gradient(stage->part, op->key, op->frame, stage->active->add + op->first_add,
                      op->adds);
}

static status_t walk_op(struct walk *walk, const struct op *op)
{
    struct stage *stage = walk->stage;
    switch (op->kind) {
    case OP_POST:
        return wire_post(stage->wire, op->shipment, op->slot, message_of(stage, op));
    case OP_WAIT:
        return walk_wait(walk, op);
    case OP_F:
        walk_forward(walk, op);
        return STATUS_OK;
    case OP_PUT:
        return walk_put(walk, op);
    case OP_SENT:
        return walk_sent(walk, op);
    case OP_B:
        walk_backward(walk, op);
        return STATUS_OK;
    case OP_GRAD:
        walk_gradient(walk, op);
        return STATUS_OK;
    case OP_W:
        part_weight_gradient(stage->part, op->unit, op->frame);
        return STATUS_OK;
    case OP_NORM:
        return walk->hooks->norm(walk->hooks->arg);
    case OP_STEP:
        return walk->hooks->step(walk->hooks->arg);
    case OP_KINDS:
        break;
    }
    return FAIL(STATUS_INTERNAL, "operation %d is not one", (int)op->kind);
}

static status_t bring(const struct stage *stage, int32_t *there, const int32_t *here,
                      const int32_t **out)
{
    size_t count = (size_t)(stage->active->microbatches * stage->model->B * stage->model->T);
    *out = here && stage->device ? there : here;
    return here && stage->device
               ? device_copy(stage->device, there, here, count * sizeof *here, stage->stream)
               : STATUS_OK;
}

/* The batch to where the part lives, with positions inside documents. */
static status_t bring_batch(struct walk *walk, const struct batch *batch)
{
    struct stage *stage = walk->stage;
    int64_t T = stage->model->T, count = stage->active->microbatches * stage->model->B * T;
    for (int64_t i = 0; batch->first && i < count; i++) {
        stage->positions[i] = (int32_t)(i % T) - batch->first[i];
    }
    TRY(bring(stage, stage->inputs, batch->inputs, &walk->batch.inputs));
    TRY(bring(stage, stage->targets, batch->targets, &walk->batch.targets));
    TRY(bring(stage, stage->first, batch->first, &walk->batch.first));
    return bring(stage, stage->position, batch->first ? stage->positions : NULL, &walk->position);
}

status_t stage_walk(struct stage *stage, const struct batch *batch, float loss_scale,
                    const struct stage_hooks *hooks)
{
    struct walk walk = {.stage = stage, .loss_scale = loss_scale, .hooks = hooks};
    TRY(bring_batch(&walk, batch));
    const struct rank_plan *plan = &stage->active->rank[stage->rank];
    status_t status = STATUS_OK;
    for (int i = 0; i < plan->ops && status == STATUS_OK; i++) {
        atomic_store_explicit(&stage->now, &plan->op[i], memory_order_release);
        status = walk_op(&walk, &plan->op[i]);
    }
    if (status == STATUS_OK) {
        atomic_store_explicit(&stage->now, NULL, memory_order_release);
        stage->messages += stage->active->microbatches;
    }
    return status;
}
