/* passes.c - from phases (F0 F1 B0 ...) of a stage to the operations of a rank.
 *
 * All buffers are rings in the order of microbatches: microbatch m uses frame m % frames and slot
 * m % slots. So an operation that frees the slot of m may post it for m + slots at once.
 *
 * Where a running sum is received, the gradient is formed in place, in the arrival slot:
 *
 *     local key    WAIT  GRAD  B(producer)  W(producer)  POST   (W: at once, or after K)
 *     relayed key  WAIT  GRAD  PUT ..  SENT  POST (in K of the next microbatch)
 *
 * The gradient of a local key also enters those of the keys that it was made of. Remote ones among these are formed before W at latest,
 * since builders put K before W.
 */
#include <stdlib.h>

#include "schedule/plan_internal.h"

struct op_list {
    struct op *op;
    int ops, capacity;
    bool failed; /* out of memory; nothing is added any more */
};

struct expansion {
    struct plan *plan;
    const struct needs *needs;
    int stage;
    struct op_list list;
    int *formed;           /* [keys] in the order of their formation: by unit, then by order */
    int *first_formed;     /* [units + 1] of each unit in `formed` */
    int *first_add, *adds; /* [stages * keys] */
    int *sent;             /* [shipments] microbatches whose put has been followed by its SENT */
    struct op nowhere;     /* takes what does not fit once memory has run out */
};

static size_t at(const struct plan *plan, int stage, int key)
{
    return (size_t)stage * (size_t)plan->graph->keys + (size_t)key;
}

/* ---- sizes ---- */

static int at_most(int value, int limit)
{
    return value < limit ? value : limit;
}

void plan_size_slots(struct plan *plan, const struct needs *needs, const struct builder *builder,
                     int prefetch)
{
    int most = plan->microbatches;
    prefetch = at_most(prefetch, most);
    for (int stage = 0; stage < plan->stages; stage++) {
        plan->stage[stage].frames = builder->frames(plan->stages, stage, most);
    }
    for (int i = 0; i < plan->shipments; i++) {
        struct shipment *shipment = &plan->shipment[i];
        int in_flight = shipment->backward ? 1 : plan->stage[shipment->to].frames;
        shipment->slots = at_most(in_flight + prefetch, most);
    }
    for (int stage = 0; stage < plan->stages && plan->training; stage++) {
        for (int key = 0; key < plan->graph->keys; key++) {
            size_t i = at(plan, stage, key);
            bool local = plan_stage_of(plan, plan->graph->key[key].producer) == stage;
            int *slots = &plan->stage[stage].grad_slots[key];
            if (needs->backward_in[i] >= 0) {
                *slots = plan->shipment[needs->backward_in[i]].slots;
            } else if (needs->grad[i] >= 0) {
                *slots = local ? 1 : at_most(2, most);
            }
        }
    }
}

/* ---- the order of additions ---- */

static void add_unit(struct expansion *e, int unit, int key)
{
    struct plan *plan = e->plan;
    const struct graph *graph = plan->graph;
    for (int i = graph->first_read[unit]; i < graph->first_read[unit + 1]; i++) {
        if (graph->read[i].key == key && needs_adds(e->needs, &graph->read[i])) {
            plan->add[plan->adds++].read = i;
        }
    }
}

static void expansion_add_gradients(struct expansion *e)
{
    struct plan *plan = e->plan;
    for (int stage = 0; stage < plan->stages; stage++) {
        const struct stage_plan *units = &plan->stage[stage];
        for (int key = 0; key < plan->graph->keys; key++) {
            size_t i = at(plan, stage, key);
            e->first_add[i] = plan->adds;
            if (e->needs->backward_in[i] >= 0) {
                plan->add[plan->adds++].read = ADD_RECEIVED;
            }
            for (int unit = units->first_unit + units->units; unit-- > units->first_unit;) {
                add_unit(e, unit, key);
            }
            e->adds[i] = plan->adds - e->first_add[i];
        }
    }
}

/* ---- single operations ---- */

static struct op *op_push(struct expansion *e, enum op_kind kind, int microbatch)
{
    struct op_list *list = &e->list;
    if (list->ops == list->capacity && !list->failed) {
        int capacity = list->capacity > 0 ? 2 * list->capacity : 256;
        struct op *op = realloc(list->op, (size_t)capacity * sizeof *op);
        list->failed = op == NULL;
        if (op != NULL) {
            list->op = op;
            list->capacity = capacity;
        }
    }
    struct op *op = list->failed ? &e->nowhere : &list->op[list->ops++];
    *op = (struct op){.kind = kind,
                      .stage = e->stage,
                      .microbatch = microbatch,
                      .unit = -1,
                      .key = -1,
                      .shipment = -1,
                      .frame = -1,
                      .slot = -1,
                      .source = -1};
    return op;
}

static struct op *emit_unit(struct expansion *e, enum op_kind kind, int unit, int microbatch)
{
    struct op *op = op_push(e, kind, microbatch);
    op->unit = unit;
    op->frame = microbatch % e->plan->stage[e->stage].frames;
    return op;
}

/* POST and WAIT at the receiving end. */
static void emit_receive(struct expansion *e, enum op_kind kind, int shipment, int microbatch)
{
    const struct shipment *s = &e->plan->shipment[shipment];
    struct op *op = op_push(e, kind, microbatch);
    op->shipment = shipment;
    op->key = s->key;
    op->slot = microbatch % s->slots;
}

/* PUT and SENT at the sending end. */
static void emit_send(struct expansion *e, enum op_kind kind, int shipment, int microbatch)
{
    const struct shipment *s = &e->plan->shipment[shipment];
    const struct stage_plan *from = &e->plan->stage[s->from];
    struct op *op = op_push(e, kind, microbatch);
    op->shipment = shipment;
    op->key = s->key;
    op->slot = kind == OP_PUT ? microbatch % s->slots : -1;
    if (s->backward) {
        op->source = microbatch % from->grad_slots[s->key];
    } else {
        op->frame = microbatch % from->frames;
    }
    e->sent[shipment] += kind == OP_SENT;
}

static void emit_grad(struct expansion *e, int key, int microbatch)
{
    const struct stage_plan *stage = &e->plan->stage[e->stage];
    struct op *op = op_push(e, OP_GRAD, microbatch);
    op->key = key;
    op->frame = microbatch % stage->frames;
    op->slot = microbatch % stage->grad_slots[key];
    op->first_add = e->first_add[at(e->plan, e->stage, key)];
    op->adds = e->adds[at(e->plan, e->stage, key)];
}

/* The slot of `microbatch` is free: post it for the next one that uses it. */
static void emit_next_post(struct expansion *e, int shipment, int microbatch)
{
    int next = microbatch + e->plan->shipment[shipment].slots;
    if (next < e->plan->microbatches) {
        emit_receive(e, OP_POST, shipment, next);
    }
}

/* Arrived keys whose last use here was `unit`. */
static void emit_key_posts(struct expansion *e, const int *last, int unit, int microbatch)
{
    for (int key = 0; key < e->plan->graph->keys; key++) {
        size_t i = at(e->plan, e->stage, key);
        if (e->needs->forward_in[i] >= 0 && last[i] == unit) {
            emit_next_post(e, e->needs->forward_in[i], microbatch);
        }
    }
}

/* PUT of what `unit` made and other stages read: first what the next stage waits for. */
static void emit_forward_puts(struct expansion *e, int unit, int microbatch)
{
    for (int i = 0; i < 2 * e->plan->shipments; i++) { /* by key, then nearest stage first */
        int shipment = i % e->plan->shipments;
        const struct shipment *s = &e->plan->shipment[shipment];
        if (!s->backward && s->from == e->stage && s->plain == (i < e->plan->shipments) &&
            e->plan->graph->key[s->key].producer == unit) {
            emit_send(e, OP_PUT, shipment, microbatch);
        }
    }
}

/* SENT of everything that leaves this stage forward. */
static void emit_forward_sents(struct expansion *e, int microbatch)
{
    for (int i = 0; i < e->plan->shipments; i++) {
        if (!e->plan->shipment[i].backward && e->plan->shipment[i].from == e->stage) {
            emit_send(e, OP_SENT, i, microbatch);
        }
    }
}

/* ---- phases ---- */

/* WAIT for what `unit` is the first of its stage to read: the newest first, so that a stall at another
 * is what that one costs beyond it; the others in the order in which a stage sends them. */
static void emit_forward_waits(struct expansion *e, int unit, int microbatch)
{
    const struct plan *plan = e->plan;
    int keys = plan->graph->keys, remote = plan->stage[e->stage].first_unit * keys;
    for (int i = 0; i < 2 * remote; i++) { /* plain, then dense; by producer, then by key */
        int key = i % keys, producer = i % remote / keys;
        int in = e->needs->forward_in[at(plan, e->stage, key)];
        if (in >= 0 && plan->graph->key[key].producer == producer &&
            plan->shipment[in].plain == (i < remote) &&
            e->needs->low[at(plan, e->stage, key)] == unit) {
            emit_receive(e, OP_WAIT, in, microbatch);
        }
    }
}

static void expand_forward(struct expansion *e, int microbatch)
{
    const struct plan *plan = e->plan;
    const struct stage_plan *stage = &plan->stage[e->stage];
    int last = stage->first_unit + stage->units;
    for (int unit = stage->first_unit; unit < last; unit++) {
        emit_forward_waits(e, unit, microbatch);
        if (!plan->training && unit == stage->first_unit && microbatch >= stage->frames) {
            emit_forward_sents(e, microbatch - stage->frames);
        }
        emit_unit(e, OP_F, unit, microbatch);
        emit_forward_puts(e, unit, microbatch);
        if (!plan->training) {
            emit_key_posts(e, e->needs->high, unit, microbatch);
        }
    }
}

/* The key's gradient, in a slot that is free. A plain sum has been awaited already. */
static void expand_grad(struct expansion *e, int key, int microbatch)
{
    size_t i = at(e->plan, e->stage, key);
    int in = e->needs->backward_in[i];
    if (in >= 0 && !e->plan->shipment[in].plain) {
        emit_receive(e, OP_WAIT, in, microbatch);
    }
    emit_grad(e, key, microbatch);
}

/* B of a unit may form the gradient of a key that it reads. */
static void expand_backward_unit(struct expansion *e, int unit, int microbatch)
{
    int formed = graph_formed_by(e->plan->graph, unit);
    if (formed >= 0) {
        int out = e->needs->backward_out[at(e->plan, e->stage, formed)];
        int slots = e->plan->stage[e->stage].grad_slots[formed];
        if (out >= 0 && microbatch >= slots) {
            emit_send(e, OP_SENT, out, microbatch - slots);
        }
        emit_unit(e, OP_B, unit, microbatch)->slot = microbatch % slots;
    } else {
        emit_unit(e, OP_B, unit, microbatch);
    }
    emit_key_posts(e, e->needs->low, unit, microbatch);
}

/* For every remote key of this stage whose gradient leaves it, newest first: the urgent ones if
 * `urgent`, else all the others. */
typedef void (*remote_fn)(struct expansion *e, int key, int microbatch);
static void for_remote(struct expansion *e, bool urgent, int microbatch, remote_fn fn)
{
    for (int i = e->first_formed[e->plan->stage[e->stage].first_unit]; i-- > 0;) {
        int key = e->formed[i], out = e->needs->backward_out[at(e->plan, e->stage, key)];
        if (out >= 0 && e->plan->shipment[out].plain == urgent) {
            fn(e, key, microbatch);
        }
    }
}

/* The microbatch whose gradient the slot holds so far: where a sum is received, the one before. */
static int remote_holds(const struct expansion *e, int key, int microbatch)
{
    bool received = e->needs->backward_in[at(e->plan, e->stage, key)] >= 0;
    return microbatch - (received ? 1 : e->plan->stage[e->stage].grad_slots[key]);
}

static void remote_sent(struct expansion *e, int key, int microbatch)
{
    int out = e->needs->backward_out[at(e->plan, e->stage, key)];
    int before = remote_holds(e, key, microbatch);
    if (before >= 0 && e->needs->formed[at(e->plan, e->stage, key)] < 0) {
        emit_send(e, OP_SENT, out, before);
    }
}

static void remote_post(struct expansion *e, int key, int microbatch)
{
    int in = e->needs->backward_in[at(e->plan, e->stage, key)];
    if (in >= 0 && microbatch > 0) {
        emit_next_post(e, in, microbatch - 1);
    }
}

static void remote_put(struct expansion *e, int key, int microbatch)
{
    if (e->needs->formed[at(e->plan, e->stage, key)] < 0) { /* else B has formed it */
        expand_grad(e, key, microbatch);
    }
    emit_send(e, OP_PUT, e->needs->backward_out[at(e->plan, e->stage, key)], microbatch);
}

/* What frees slots first and together, since it costs streams less than one by one. */
static void expand_remote(struct expansion *e, bool urgent, int microbatch)
{
    for_remote(e, urgent, microbatch, remote_sent);
    for_remote(e, urgent, microbatch, remote_post);
    for_remote(e, urgent, microbatch, remote_put);
}

/* WAIT for the newest keys' sums that B of `unit` needs, before any other. */
static void emit_plain_waits(struct expansion *e, int unit, int microbatch)
{
    for (int i = e->first_formed[unit + 1]; i-- > e->first_formed[unit];) {
        int in = e->needs->backward_in[at(e->plan, e->stage, e->formed[i])];
        if (in >= 0 && e->plan->shipment[in].plain) {
            emit_receive(e, OP_WAIT, in, microbatch);
        }
    }
}

/* The gradient of a key that a unit of this stage made, if it has one, unless B of a unit here has
 * formed it. */
static void expand_local_key(struct expansion *e, int key, int microbatch)
{
    if (e->plan->stage[e->stage].grad_slots[key] > 0 &&
        e->needs->formed[at(e->plan, e->stage, key)] < 0) {
        expand_grad(e, key, microbatch);
    }
}

static void expand_backward(struct expansion *e, int microbatch)
{
    const struct stage_plan *stage = &e->plan->stage[e->stage];
    for (int unit = stage->first_unit + stage->units; unit-- > stage->first_unit;) {
        emit_plain_waits(e, unit, microbatch);
        for (int i = e->first_formed[unit + 1]; i-- > e->first_formed[unit];) {
            expand_local_key(e, e->formed[i], microbatch);
        }
        expand_backward_unit(e, unit, microbatch);
        if (e->plan->weights_at_once) {
            emit_unit(e, OP_W, unit, microbatch);
        }
    }
    expand_remote(e, true, microbatch);
}

static void expand_weights(struct expansion *e, int microbatch)
{
    const struct stage_plan *stage = &e->plan->stage[e->stage];
    for (int unit = stage->first_unit + stage->units; unit-- > stage->first_unit;) {
        if (!e->plan->weights_at_once) {
            emit_unit(e, OP_W, unit, microbatch);
        }
        for (int i = e->first_formed[unit + 1]; i-- > e->first_formed[unit];) {
            int in = e->needs->backward_in[at(e->plan, e->stage, e->formed[i])];
            if (in >= 0) {
                emit_next_post(e, in, microbatch);
            }
        }
    }
    emit_forward_sents(e, microbatch);
}

static void expand_phase(struct expansion *e, const struct phase *phase)
{
    switch (phase->kind) {
    case PHASE_F:
        expand_forward(e, phase->microbatch);
        break;
    case PHASE_B:
        expand_backward(e, phase->microbatch);
        break;
    case PHASE_K:
        expand_remote(e, false, phase->microbatch);
        break;
    case PHASE_W:
        expand_weights(e, phase->microbatch);
        break;
    }
}

/* ---- a rank's whole list ---- */

/* Puts still without their SENT, in the order in which they were put. */
static void expand_rest(struct expansion *e)
{
    int ops = e->list.ops;
    for (int i = 0; i < ops && !e->list.failed; i++) {
        struct op op = e->list.op[i];
        if (op.kind == OP_PUT && op.microbatch >= e->sent[op.shipment]) {
            /* `sent` counts a prefix of the microbatches, so this keeps the order. */
            emit_send(e, OP_SENT, op.shipment, op.microbatch);
        }
    }
    if (e->plan->training) {
        op_push(e, OP_NORM, -1);
        op_push(e, OP_STEP, -1);
    }
}

/* The posts of slots that are free from the start, in the order of their waits, then the rest. */
static bool expand_first_posts(struct expansion *e, struct rank_plan *out)
{
    struct op_list body = e->list;
    e->list = (struct op_list){.failed = body.failed};
    for (int i = 0; i < body.ops; i++) {
        const struct op *op = &body.op[i];
        if (op->kind == OP_WAIT && op->microbatch < e->plan->shipment[op->shipment].slots) {
            emit_receive(e, OP_POST, op->shipment, op->microbatch);
        }
    }
    for (int i = 0; i < body.ops; i++) {
        *op_push(e, OP_F, 0) = body.op[i];
    }
    free(body.op);
    out->op = e->list.op;
    out->ops = e->list.ops;
    return !e->list.failed;
}

/* Keys in the order of their formation. */
static void expansion_sort_keys(struct expansion *e)
{
    const struct graph *graph = e->plan->graph;
    int count = 0;
    for (int unit = 0; unit < graph->units; unit++) {
        e->first_formed[unit] = count;
        for (int key = 0; key < graph->keys; key++) {
            if (graph->key[key].producer != unit) {
                continue;
            }
            int at = count++;
            for (; at > e->first_formed[unit] &&
                   graph->key[e->formed[at - 1]].order > graph->key[key].order;
                 at--) {
                e->formed[at] = e->formed[at - 1];
            }
            e->formed[at] = key;
        }
    }
    e->first_formed[graph->units] = count;
}

static status_t expansion_run(struct expansion *e, const struct builder *builder,
                              struct phase_list *phases)
{
    struct plan *plan = e->plan;
    expansion_sort_keys(e);
    expansion_add_gradients(e);
    for (int rank = 0; rank < plan->ranks; rank++) {
        e->stage = rank; /* one stage a rank */
        e->list = (struct op_list){0};
        phases->count = 0;
        builder->build(plan->stages, e->stage, plan->microbatches, phases);
        for (int i = 0; i < phases->count; i++) {
            expand_phase(e, &phases->phase[i]);
        }
        expand_rest(e);
        if (!expand_first_posts(e, &plan->rank[rank])) {
            return FAIL(STATUS_NOMEM, "no memory for the operations of rank %d", rank);
        }
    }
    return STATUS_OK;
}

status_t plan_expand(struct plan *plan, const struct needs *needs, const struct builder *builder)
{
    size_t pairs = (size_t)plan->stages * (size_t)plan->graph->keys;
    size_t most = pairs + (size_t)plan->graph->reads;
    struct phase_list phases = {.phase =
                                    calloc(4 * (size_t)plan->microbatches, sizeof *phases.phase)};
    struct expansion e = {.plan = plan, .needs = needs};
    e.formed = calloc((size_t)plan->graph->keys + 1, sizeof *e.formed);
    e.first_formed = calloc((size_t)plan->graph->units + 1, sizeof *e.first_formed);
    e.first_add = calloc(pairs + 1, sizeof *e.first_add);
    e.adds = calloc(pairs + 1, sizeof *e.adds);
    e.sent = calloc((size_t)plan->shipments + 1, sizeof *e.sent);
    plan->add = calloc(most + 1, sizeof *plan->add);
    status_t status = STATUS_OK;
    if (phases.phase == NULL || e.formed == NULL || e.first_formed == NULL || e.first_add == NULL ||
        e.adds == NULL || e.sent == NULL || plan->add == NULL) {
        status = FAIL(STATUS_NOMEM, "no memory for the operations of a plan");
    } else {
        status = expansion_run(&e, builder, &phases);
    }
    free(phases.phase);
    free(e.formed);
    free(e.first_formed);
    free(e.first_add);
    free(e.adds);
    free(e.sent);
    return status;
}
