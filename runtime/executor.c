/* executor.c - walks the plan's operations of this rank: one switch, no decisions. */
#include <string.h>

#include "base/timeline.h"
#include "runtime/replicas.h"
#include "runtime/step_audit.h"
#include "runtime/tp_group.h"

struct walk {
    struct worker *worker;
    struct batch batch;      /* where the part lives */
    const int32_t *position; /* with documents */
    float loss_scale;
    const struct worker_hooks *hooks;
    struct walk_record *record; /* on a device */
};

static int64_t *messages_of(struct worker *worker)
{
    return worker->lender ? worker->lender->messages : worker->messages;
}

static int64_t *puts_of(struct worker *worker)
{
    return worker->lender ? &worker->lender->puts_done : &worker->puts_done;
}

static int64_t message_of(struct worker *worker, const struct op *op)
{
    bool backward = worker->active->shipment[op->shipment].backward;
    return messages_of(worker)[backward] + op->microbatch;
}

static bool is_plain(const struct worker *worker, const struct op *op)
{
    return worker->active->shipment[op->shipment].plain;
}

/* Is it, with those that the plan puts together with it, one operation of the device's stream? */
static bool groups(const struct worker *worker, const struct op *op)
{
    return worker->device && (op->kind == OP_POST || op->kind == OP_WAIT || op->kind == OP_SENT);
}

/* What may hold up the stream is dense if any of it is. */
static bool group_is_dense(const struct worker *worker, const struct op *op, int count)
{
    bool dense = false;
    for (int i = 0; i < count; i++) {
        dense = dense || !is_plain(worker, &op[i]);
    }
    return dense;
}

/* A wait for a message, with the bytes of each kind (KIND_PLAIN, KIND_DENSE) that had landed here at its ends. */
struct wait_books {
    int64_t start, end;
    int64_t before[WIRE_KINDS], after[WIRE_KINDS];
};

/* Books the time of a wait: what passed before both ends were ready is the peer's or the schedule's (the bubble), the
 * rest is bytes on the wire, and of these a message's own and those that it stood behind: dense and plain by what
 * landed meanwhile. What a pipeline of plain layers would hand on in the same message is plain. */
static void book_wait(struct worker *worker, const struct shipment *shipment,
                      const struct wait_books *books, const struct wire_stamp *stamp)
{
    int64_t wire_start = stamp->put > books->start ? stamp->put : books->start;
    if (wire_start >= books->end) {
        return;
    }
    double plain = (double)(books->after[KIND_PLAIN] - books->before[KIND_PLAIN]);
    double dense = (double)(books->after[KIND_DENSE] - books->before[KIND_DENSE]);
    if (plain + dense <= 0) { /* it had landed, and was told late */
        plain = shipment->plain;
        dense = !shipment->plain;
    }
    double share = shipment->plain ? (double)shipment->plain_bytes / (double)shipment->bytes : 1;
    int64_t time = books->end - wire_start;
    int64_t of_plain = (int64_t)((double)time * share * plain / (plain + dense));
    trace_move(worker->trace, TRACE_WAIT, TRACE_EXPOSED_PLAIN, of_plain);
    trace_move(worker->trace, TRACE_WAIT, TRACE_EXPOSED_DENSE, time - of_plain);
}

/* Where the microbatch's keys that other stages make are, or will be when they have been awaited. */
static void find_keys(struct worker *worker, const struct op *op)
{
    const struct plan *plan = worker->active;
    int local = worker->tables.local[op->stage];
    for (int key = 0; key < plan->graph->keys; key++) {
        int home = plan_stage_of(plan, plan->graph->key[key].producer);
        int shipment = worker->tables.arrives[key];
        if (home != op->stage && worker->tables.local[home] >= 0) {
            int frame = op->microbatch % plan->stage[home].frames;
            part_set_key(worker->part, local, op->frame, key,
                         part_key(worker->part, worker->tables.local[home], frame, key));
        } else if (shipment >= 0) {
            int slot = op->microbatch % plan->shipment[shipment].slots;
            part_set_key(worker->part, local, op->frame, key,
                         worker->tables.arrival[shipment][slot]);
        }
    }
}

/* Slot of the sum in which the operation's stage forms the key's gradient. */
static void *sum_of(const struct worker *worker, const struct op *op, int key, int slot)
{
    return worker->tables.sum[worker->active->stage[op->stage].sum[key]][slot];
}

/* Stops this thread. */
static status_t walk_wait(struct walk *walk, const struct op *op)
{
    struct worker *worker = walk->worker;
    struct wire_stamp stamp;
    struct wait_books books = {.start = trace_now()};
    wire_arrived(worker->wire, books.before);
    enum trace_category before = trace_switch(worker->trace, TRACE_WAIT);
    status_t status =
        wire_wait(worker->wire, op->shipment, op->slot, message_of(worker, op), &stamp);
    trace_switch(worker->trace, before);
    TRY(status);
    books.end = trace_now();
    wire_arrived(worker->wire, books.after);
    book_wait(worker, &worker->active->shipment[op->shipment], &books, &stamp);
    return STATUS_OK;
}

const void *worker_put_source(const struct worker *worker, const struct op *op)
{
    return op->source >= 0
               ? sum_of(worker, op, op->key, op->source)
               : part_key(worker->part, worker->tables.local[op->stage], op->frame, op->key);
}

static status_t walk_put(struct walk *walk, const struct op *op)
{
    struct worker *worker = walk->worker;
    return wire_put(worker->wire, op->shipment, op->slot, message_of(worker, op),
                    *puts_of(worker) + op->order, worker_put_source(worker, op));
}

static status_t walk_sent(struct walk *walk, const struct op *op)
{
    struct worker *worker = walk->worker;
    enum trace_category before = trace_switch(worker->trace, TRACE_WAIT);
    status_t status = wire_sent(worker->wire, op->shipment, message_of(worker, op));
    trace_switch(worker->trace, before);
    return status;
}

/* Of a device's stream. */
static status_t walk_group(struct walk *walk, const struct op *op, int count)
{
    struct worker *worker = walk->worker;
    struct wire_message message[PLAN_TOGETHER];
    for (int i = 0; i < count; i++) {
        message[i] = (struct wire_message){op[i].shipment, op[i].slot, message_of(worker, &op[i])};
    }
    if (op->kind == OP_POST) {
        return wire_post_all(worker->wire, message, count);
    }
    TRY(in_flight_wait_begin(worker, walk->record, op,
                             group_is_dense(worker, op, count) ? STALL_DENSE : STALL_PLAIN));
    TRY(op->kind == OP_WAIT ? wire_wait_all(worker->wire, message, count)
                            : wire_sent_all(worker->wire, message, count));
    return in_flight_wait_end(worker, walk->record);
}

/* After the operation that made the logits. */
static void show_head(struct worker *worker, const struct op *op)
{
    if (op->unit == worker->model->graph.units - 1 && worker->head.fn) {
        worker->head.fn(worker->head.arg, worker->part, op->frame, op->microbatch);
    }
}

static void walk_forward(struct walk *walk, const struct op *op)
{
    struct worker *worker = walk->worker;
    const struct model *model = worker->model;
    int local = worker->tables.local[op->stage];
    int64_t offset = (int64_t)op->microbatch * model->B * model->T;
    const struct batch *batch = &walk->batch;
    double *loss = worker->device ? worker->head.loss_on_device : worker->head.loss;
    if (op->unit == worker->active->stage[op->stage].unit[0]) {
        find_keys(worker, op);
        part_set_documents(worker->part, local, op->frame,
                           batch->first ? batch->first + offset : NULL,
                           batch->first ? walk->position + offset : NULL);
        part_set_tokens(worker->part, local, op->frame,
                        batch->inputs ? batch->inputs + offset : NULL,
                        batch->targets ? batch->targets + offset : NULL);
        part_set_loss(worker->part, local, op->frame, walk->loss_scale, &loss[op->microbatch]);
    }
    part_forward(worker->part, op->unit, op->frame);
    if (!worker->active->training) {
        show_head(worker, op);
    }
}

/* The backward of some units forms the gradient of a key that they read, in the slot of the plan. */
static void walk_backward(struct walk *walk, const struct op *op)
{
    struct worker *worker = walk->worker;
    int key = graph_formed_by(&worker->model->graph, op->unit);
    if (key >= 0) {
        part_set_key_gradient(worker->part, worker->tables.local[op->stage], op->backward_slot, key,
                              sum_of(worker, op, key, op->slot));
    }
    part_backward(worker->part, op->unit, op->frame, op->backward_slot);
    show_head(worker, op);
}

static void walk_gradient(struct walk *walk, const struct op *op)
{
    struct worker *worker = walk->worker;
    int local = worker->tables.local[op->stage];
    int partial = worker->active->stage[op->stage].partial[op->key];
    struct key_sum sum = {.stage = local,
                          .frame = op->frame,
                          .slot = op->backward_slot,
                          .key = op->key,
                          .adds = worker->active->add + op->first_add,
                          .count = op->adds,
                          .partial = partial >= 0 ? worker->tables.sum[partial][op->source] : NULL};
    part_set_key_gradient(worker->part, local, op->backward_slot, op->key,
                          sum_of(worker, op, op->key, op->slot));
    part_key_gradient(worker->part, &sum);
}

/* Time until something is there is the exchange's; to start it takes none. */
static status_t walk_replicas(struct walk *walk, const struct op *op)
{
    struct worker *worker = walk->worker;
    if (worker->device && (op->kind == OP_REDUCED || op->kind == OP_GATHERED)) {
        TRY(in_flight_wait_begin(worker, walk->record, op, STALL_REPLICAS));
        TRY(replicas_walk(worker->replicas, op));
        return in_flight_wait_end(worker, walk->record);
    }
    enum trace_category before = trace_switch(worker->trace, TRACE_COLLECTIVE);
    status_t status = replicas_walk(worker->replicas, op);
    trace_switch(worker->trace, before);
    return status;
}

static const char *category_of(const struct worker *worker, const struct op *op, int count)
{
    switch (op->kind) {
    case OP_WAIT:
    case OP_SENT:
        return group_is_dense(worker, op, count) ? "wait dense" : "wait plain";
    case OP_POST:
    case OP_PUT:
        return "messages";
    case OP_REDUCED:
    case OP_GATHERED:
        return "wait for replicas";
    case OP_NORM:
        return "norm exchange";
    default:
        return "between kernels";
    }
}

static void record_begin(const struct worker *worker, const struct op *op, int count)
{
    char what[160], last[160];
    if (!worker->timeline) {
        return;
    }
    timeline_begin(worker->timeline, worker->stream, op_kind_name(op->kind),
                   category_of(worker, op, count));
    op_print(worker->active, op, what, sizeof what);
    if (count > 1) {
        timeline_note(worker->timeline, "%s .. %s (%d)", what,
                      op_print(worker->active, &op[count - 1], last, sizeof last), count);
    } else {
        timeline_note(worker->timeline, "%s", what);
    }
}

/* Gradients of what the parts of tensor parallelism all have are added up first. */
static status_t walk_norm(struct walk *walk)
{
    part_sum_gradients(walk->worker->part);
    TRY(tp_group_status(walk->worker->tp));
    return walk->hooks->norm(walk->hooks->arg);
}

/* `count` operations: one, or a group. */
static status_t walk_op(struct walk *walk, const struct op *op, int count)
{
    struct worker *worker = walk->worker;
    if (groups(worker, op)) {
        return walk_group(walk, op, count);
    }
    switch (op->kind) {
    case OP_POST:
        return wire_post(worker->wire, op->shipment, op->slot, message_of(worker, op));
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
        part_weight_gradient(worker->part, op->unit, op->frame, op->backward_slot);
        return STATUS_OK;
    case OP_REDUCE:
    case OP_REDUCED:
    case OP_GATHER:
    case OP_GATHERED:
        return walk_replicas(walk, op);
    case OP_NORM:
        return walk_norm(walk);
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
    struct worker *worker = walk->worker;
    size_t most = (size_t)(worker->plan->microbatches * worker->model->B * worker->model->T);
    size_t count = most / (size_t)worker->plan->microbatches * (size_t)worker->active->microbatches;
    *out = here;
    if (!here || !worker->device) {
        return STATUS_OK;
    }
    int32_t *pinned = walk->record->tokens + (size_t)which * most;
    memcpy(pinned, here, count * sizeof *pinned);
    *out = there;
    return device_copy(worker->device, there, pinned, count * sizeof *pinned, worker->stream);
}

/* The batch to where the part lives, with positions inside documents. */
static status_t bring_batch(struct walk *walk, const struct batch *batch)
{
    struct worker *worker = walk->worker;
    int64_t T = worker->model->T, count = worker->active->microbatches * worker->model->B * T;
    for (int64_t i = 0; batch->first && i < count; i++) {
        worker->tokens.positions[i] = (int32_t)(i % T) - batch->first[i];
    }
    TRY(bring(walk, 0, batch->inputs, worker->tokens.inputs, &walk->batch.inputs));
    TRY(bring(walk, 1, batch->targets, worker->tokens.targets, &walk->batch.targets));
    TRY(bring(walk, 2, batch->first, worker->tokens.first, &walk->batch.first));
    return bring(walk, 3, batch->first ? worker->tokens.positions : NULL, worker->tokens.position,
                 &walk->position);
}

/* What microbatch 0 computes here, over whatever lies in memory. */
static void rehearse(struct walk *walk)
{
    struct worker *worker = walk->worker;
    const struct rank_plan *list = &worker->active->rank[worker->rank];
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
            part_weight_gradient(worker->part, op->unit, op->frame, op->backward_slot);
        }
    }
}

status_t worker_rehearse(struct worker *worker)
{
    size_t bytes = (size_t)(worker->plan->microbatches * worker->model->B * worker->model->T) *
                   sizeof(int32_t);
    int32_t *const list[] = {worker->tokens.inputs, worker->tokens.targets, worker->tokens.first,
                             worker->tokens.position};
    struct walk walk = {
        .worker = worker,
        .batch = {.inputs = worker->tokens.inputs, .targets = worker->tokens.targets},
        .position = worker->tokens.position,
        .loss_scale = 1};
    part_forward_only(worker->part, !worker->plan->training);
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        TRY(device_fill(worker->device, list[i], 0, bytes, worker->stream));
    }
    rehearse(&walk);
    walk.batch.first = worker->tokens.first; /* masks have kernels of their own */
    rehearse(&walk);
    TRY(tp_group_status(worker->tp));
    return device_stream_sync(worker->device, worker->stream);
}

/* Around what the stream waits for of ranks that compute a stage with it. */
static status_t tensor_wait_begin(void *arg)
{
    struct walk *walk = arg;
    const struct op *op = atomic_load_explicit(&walk->worker->now, memory_order_relaxed);
    return in_flight_wait_begin(walk->worker, walk->record, op, STALL_TENSOR);
}

static status_t tensor_wait_end(void *arg)
{
    struct walk *walk = arg;
    return in_flight_wait_end(walk->worker, walk->record);
}

static status_t walk_ops(struct walk *walk)
{
    struct worker *worker = walk->worker;
    const struct rank_plan *plan = &worker->active->rank[worker->rank];
    const struct op *op = plan->op, *end = plan->op + plan->ops;
    status_t status = STATUS_OK;
    for (int count; op < end && status == STATUS_OK; op += count) {
        count = groups(worker, op) ? op->together : 1;
        atomic_store_explicit(&worker->now, op, memory_order_release);
        record_begin(worker, op, count);
        status = step_audit_before(worker, op, count);
        if (status == STATUS_OK) {
            status = walk_op(walk, op, count);
        }
        if (status == STATUS_OK) {
            status = tp_group_status(worker->tp);
        }
        timeline_end(worker->timeline);
        if (status == STATUS_OK) {
            status = step_audit_after(worker, op, count);
        }
    }
    return status;
}

status_t worker_walk(struct worker *worker, const struct batch *batch, float loss_scale,
                     const struct worker_hooks *hooks)
{
    struct walk walk = {.worker = worker, .loss_scale = loss_scale, .hooks = hooks};
    const struct tp_watch watch = {tensor_wait_begin, tensor_wait_end, &walk};
    int64_t tp_before = tp_group_bytes(worker->tp);
    TRY(worker_prepare(worker));
    if (worker->device) {
        TRY(in_flight_begin(worker, &walk.record));
    }
    timeline_begin(worker->timeline, worker->stream, "batch", "copies");
    status_t status = bring_batch(&walk, batch);
    timeline_end(worker->timeline);
    tp_group_watch(worker->tp, worker->device ? &watch : NULL);
    if (status == STATUS_OK) {
        status = walk_ops(&walk);
    }
    tp_group_watch(worker->tp, NULL);
    TRY(status);
    atomic_store_explicit(&worker->now, NULL, memory_order_release);
    messages_of(worker)[false] += worker->active->microbatches;
    messages_of(worker)[true] += worker->plan->training ? worker->active->microbatches : 0;
    *puts_of(worker) += worker->active->puts;
    worker->steps += worker->plan->training;
    worker->tp_bytes += worker->plan->training ? tp_group_bytes(worker->tp) - tp_before : 0;
    return worker->device ? in_flight_end(worker, walk.record) : STATUS_OK;
}
