/* executor.c - walks the plan's operations of this rank: one switch, no decisions. */
#include <string.h>

#include "base/timeline.h"
#include "runtime/stage.h"

struct walk {
    struct stage *stage;
    struct batch batch;      /* where the part lives */
    const int32_t *position; /* with documents */
    float loss_scale;
    const struct stage_hooks *hooks;
    struct walked *walked; /* on a device */
};

enum { GROUP_MOST = 64 }; /* messages handled at once */

static int64_t *messages_of(struct stage *stage)
{
    return stage->lender ? stage->lender->messages : stage->messages;
}

static int64_t message_of(struct stage *stage, const struct op *op)
{
    bool backward = stage->active->shipment[op->shipment].backward;
    return messages_of(stage)[backward] + op->microbatch;
}

static bool is_plain(const struct stage *stage, const struct op *op)
{
    return stage->active->shipment[op->shipment].plain;
}

static bool groups(const struct stage *stage, const struct op *op)
{
    return stage->device && (op->kind == OP_POST || op->kind == OP_WAIT || op->kind == OP_SENT);
}

/* How many operations from `op` on are one for a stream: posts, waits of one class, or sents. */
static int group_count(const struct stage *stage, const struct op *op, const struct op *end)
{
    int count = 1;
    if (!groups(stage, op)) {
        return count;
    }
    while (count < GROUP_MOST && op + count < end && op[count].kind == op->kind &&
           (op->kind != OP_WAIT || is_plain(stage, &op[count]) == is_plain(stage, op))) {
        count++;
    }
    return count;
}

/* What may hold up the stream is dense if any of it is. */
static bool group_is_dense(const struct stage *stage, const struct op *op, int count)
{
    bool dense = false;
    for (int i = 0; i < count; i++) {
        dense = dense || !is_plain(stage, &op[i]);
    }
    return dense;
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

/* Where the microbatch's keys that other stages make are, or will be when they have been awaited. */
static void find_keys(struct stage *stage, const struct op *op)
{
    const struct plan *plan = stage->active;
    int local = stage->local[op->stage];
    for (int key = 0; key < plan->graph->keys; key++) {
        int home = plan_stage_of(plan, plan->graph->key[key].producer);
        int shipment = stage->arrives[key];
        if (home != op->stage && stage->local[home] >= 0) {
            int frame = op->microbatch % plan->stage[home].frames;
            part_set_key(stage->part, local, op->frame, key,
                         part_key(stage->part, stage->local[home], frame, key));
        } else if (shipment >= 0) {
            int slot = op->microbatch % plan->shipment[shipment].slots;
            part_set_key(stage->part, local, op->frame, key, stage->arrival[shipment][slot]);
        }
    }
}

/* Slot of the sum in which the operation's stage forms the key's gradient. */
static void *sum_of(const struct stage *stage, const struct op *op, int key, int slot)
{
    return stage->sum[stage->active->stage[op->stage].sum[key]][slot];
}

/* Stops this thread. */
static status_t walk_wait(struct walk *walk, const struct op *op)
{
    struct stage *stage = walk->stage;
    struct wire_stamp stamp;
    int64_t start = trace_now();
    enum trace_category before = trace_switch(stage->trace, TRACE_WAIT);
    status_t status = wire_wait(stage->wire, op->shipment, op->slot, message_of(stage, op), &stamp);
    trace_switch(stage->trace, before);
    TRY(status);
    book_wait(stage, &stage->active->shipment[op->shipment], start, trace_now(), &stamp);
    return STATUS_OK;
}

static status_t walk_put(struct walk *walk, const struct op *op)
{
    struct stage *stage = walk->stage;
    const void *source = op->source >= 0
                             ? sum_of(stage, op, op->key, op->source)
                             : part_key(stage->part, stage->local[op->stage], op->frame, op->key);
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

/* Of a device's stream: adjacent operations of one kind, waits for arrivals of one class too, as one. */
static status_t walk_group(struct walk *walk, const struct op *op, int count)
{
    struct stage *stage = walk->stage;
    struct wire_message message[GROUP_MOST];
    for (int i = 0; i < count; i++) {
        message[i] = (struct wire_message){op[i].shipment, op[i].slot, message_of(stage, &op[i])};
    }
    if (op->kind == OP_POST) {
        return wire_post_all(stage->wire, message, count);
    }
    TRY(ahead_wait_begin(stage, walk->walked, op, group_is_dense(stage, op, count)));
    TRY(op->kind == OP_WAIT ? wire_wait_all(stage->wire, message, count)
                            : wire_sent_all(stage->wire, message, count));
    return ahead_wait_end(stage, walk->walked);
}

static void walk_forward(struct walk *walk, const struct op *op)
{
    struct stage *stage = walk->stage;
    const struct model *model = stage->model;
    int last = model->graph.units - 1, local = stage->local[op->stage];
    int64_t offset = (int64_t)op->microbatch * model->B * model->T;
    const struct batch *batch = &walk->batch;
    double *loss = stage->device ? stage->loss_there : stage->loss;
    if (op->unit == stage->active->stage[op->stage].unit[0]) {
        find_keys(stage, op);
        part_set_documents(stage->part, local, op->frame,
                           batch->first ? batch->first + offset : NULL,
                           batch->first ? walk->position + offset : NULL);
        part_set_tokens(stage->part, local, op->frame,
                        batch->inputs ? batch->inputs + offset : NULL,
                        batch->targets ? batch->targets + offset : NULL);
    }
    part_forward(stage->part, op->unit, op->frame, walk->loss_scale,
                 op->unit == last ? &loss[op->microbatch] : NULL);
    if (op->unit == last && stage->on_head) {
        stage->on_head(stage->head_arg, stage->part, op->frame, op->microbatch);
    }
}

/* The backward of some units forms the gradient of a key that they read, in the slot of the plan. */
static void walk_backward(struct walk *walk, const struct op *op)
{
    struct stage *stage = walk->stage;
    int key = graph_formed_by(&stage->model->graph, op->unit);
    if (key >= 0) {
        part_set_key_gradient(stage->part, stage->local[op->stage], op->back, key,
                              sum_of(stage, op, key, op->slot));
    }
    part_backward(stage->part, op->unit, op->frame, op->back);
}

static void walk_gradient(struct walk *walk, const struct op *op)
{
    struct stage *stage = walk->stage;
    int local = stage->local[op->stage];
    int partial = stage->active->stage[op->stage].partial[op->key];
    struct key_sum sum = {.stage = local,
                          .frame = op->frame,
                          .back = op->back,
                          .key = op->key,
                          .adds = stage->active->add + op->first_add,
                          .count = op->adds,
                          .partial = partial >= 0 ? stage->sum[partial][op->source] : NULL};
    part_set_key_gradient(stage->part, local, op->back, op->key,
                          sum_of(stage, op, op->key, op->slot));
    part_key_gradient(stage->part, &sum);
}

static const char *category_of(const struct stage *stage, const struct op *op, int count)
{
    switch (op->kind) {
    case OP_WAIT:
    case OP_SENT:
        return group_is_dense(stage, op, count) ? "wait dense" : "wait plain";
    case OP_POST:
    case OP_PUT:
        return "messages";
    case OP_NORM:
        return "norm exchange";
    default:
        return "between kernels";
    }
}

static void record_begin(const struct stage *stage, const struct op *op, int count)
{
    char what[160], last[160];
    if (!stage->timeline) {
        return;
    }
    timeline_begin(stage->timeline, stage->stream, op_kind_name(op->kind),
                   category_of(stage, op, count));
    op_print(stage->active, op, what, sizeof what);
    if (count > 1) {
        timeline_note(stage->timeline, "%s .. %s (%d)", what,
                      op_print(stage->active, &op[count - 1], last, sizeof last), count);
    } else {
        timeline_note(stage->timeline, "%s", what);
    }
}

/* `count` operations: one, or a group. */
static status_t walk_op(struct walk *walk, const struct op *op, int count)
{
    struct stage *stage = walk->stage;
    if (groups(stage, op)) {
        return walk_group(walk, op, count);
    }
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
        part_weight_gradient(stage->part, op->unit, op->frame, op->back);
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

/* One list of tokens, by way of pinned memory; NULL stays NULL. */
static status_t bring(struct walk *walk, int which, const int32_t *here, int32_t *there,
                      const int32_t **out)
{
    struct stage *stage = walk->stage;
    size_t most = (size_t)(stage->plan->microbatches * stage->model->B * stage->model->T);
    size_t count = most / (size_t)stage->plan->microbatches * (size_t)stage->active->microbatches;
    *out = here;
    if (!here || !stage->device) {
        return STATUS_OK;
    }
    int32_t *pinned = walk->walked->tokens + (size_t)which * most;
    memcpy(pinned, here, count * sizeof *pinned);
    *out = there;
    return device_copy(stage->device, there, pinned, count * sizeof *pinned, stage->stream);
}

/* The batch to where the part lives, with positions inside documents. */
static status_t bring_batch(struct walk *walk, const struct batch *batch)
{
    struct stage *stage = walk->stage;
    int64_t T = stage->model->T, count = stage->active->microbatches * stage->model->B * T;
    for (int64_t i = 0; batch->first && i < count; i++) {
        stage->positions[i] = (int32_t)(i % T) - batch->first[i];
    }
    TRY(bring(walk, 0, batch->inputs, stage->inputs, &walk->batch.inputs));
    TRY(bring(walk, 1, batch->targets, stage->targets, &walk->batch.targets));
    TRY(bring(walk, 2, batch->first, stage->first, &walk->batch.first));
    return bring(walk, 3, batch->first ? stage->positions : NULL, stage->position, &walk->position);
}

/* What microbatch 0 computes here, over whatever lies in memory. */
static void rehearse(struct walk *walk)
{
    struct stage *stage = walk->stage;
    const struct rank_plan *list = &stage->active->rank[stage->rank];
    for (int i = 0; i < list->ops; i++) {
        const struct op *op = &list->op[i];
        if (op->microbatch != 0) {
            continue;
        }
        if (op->kind == OP_F) {
            walk_forward(walk, op);
        } else if (op->kind == OP_B) {
            walk_backward(walk, op);
        } else if (op->kind == OP_GRAD) {
            walk_gradient(walk, op);
        } else if (op->kind == OP_W) {
            part_weight_gradient(stage->part, op->unit, op->frame, op->back);
        }
    }
}

status_t stage_rehearse(struct stage *stage)
{
    size_t bytes =
        (size_t)(stage->plan->microbatches * stage->model->B * stage->model->T) * sizeof(int32_t);
    int32_t *const list[] = {stage->inputs, stage->targets, stage->first, stage->position};
    struct walk walk = {.stage = stage,
                        .batch = {.inputs = stage->inputs, .targets = stage->targets},
                        .position = stage->position,
                        .loss_scale = 1};
    part_forward_only(stage->part, !stage->plan->training);
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        TRY(device_fill(stage->device, list[i], 0, bytes, stage->stream));
    }
    rehearse(&walk);
    walk.batch.first = stage->first; /* masks have kernels of their own */
    rehearse(&walk);
    return device_stream_sync(stage->device, stage->stream);
}

status_t stage_walk(struct stage *stage, const struct batch *batch, float loss_scale,
                    const struct stage_hooks *hooks)
{
    struct walk walk = {.stage = stage, .loss_scale = loss_scale, .hooks = hooks};
    TRY(stage_prepare(stage));
    if (stage->device) {
        TRY(ahead_begin(stage, &walk.walked));
    }
    timeline_begin(stage->timeline, stage->stream, "batch", "copies");
    status_t status = bring_batch(&walk, batch);
    timeline_end(stage->timeline);
    const struct rank_plan *plan = &stage->active->rank[stage->rank];
    const struct op *op = plan->op, *end = plan->op + plan->ops;
    for (int count; op < end && status == STATUS_OK; op += count) {
        count = group_count(stage, op, end);
        atomic_store_explicit(&stage->now, op, memory_order_release);
        record_begin(stage, op, count);
        status = walk_op(&walk, op, count);
        timeline_end(stage->timeline);
    }
    TRY(status);
    atomic_store_explicit(&stage->now, NULL, memory_order_release);
    messages_of(stage)[false] += stage->active->microbatches;
    messages_of(stage)[true] += stage->plan->training ? stage->active->microbatches : 0;
    return stage->device ? ahead_end(stage, walk.walked) : STATUS_OK;
}
