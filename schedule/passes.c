/* passes.c - from the phases (F0 F1 B0 ...) of a rank to its operations.
 *
 * All buffers are rings in the order of microbatches: microbatch m uses frame m % frames and slot
 * m % slots. So an operation that frees the slot of m may post it for m + slots at once.
 *
 * Where a running sum is received, the gradient is formed in place, in the arrival slot:
 *
 *     local key    WAIT  GRAD  B(producer)  W(producer)  POST   (W: at once, or in its own phase)
 *     relayed key  WAIT  GRAD  PUT ..  SENT  POST (in K of the next microbatch)
 *
 * A stage that gets a sum from another one of its rank goes on in that one's slot.
 *
 * The gradient of a local key also enters those of the keys that it was made of. Remote ones among these
 * are formed before W at latest, since K comes before W.
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
    int stage; /* of the phase */
    struct op_list list;
    int *formed;           /* [keys] in the order of their formation: by unit, then by order */
    int *first_formed;     /* [units + 1] of each unit in `formed` */
    int *by_producer;      /* [keys] by unit, then by number */
    int *first_add, *adds; /* [stages * keys] */
    int *sum_out;          /* [sums] shipment that takes it to another rank; -1 */
    int *sent;             /* [shipments] microbatches whose put has been followed by its SENT */
    struct op nowhere;     /* takes what does not fit once memory has run out */
};

static size_t at(const struct plan *plan, int row, int key)
{
    return (size_t)row * (size_t)plan->graph->keys + (size_t)key;
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
        const struct stage_plan *s = &plan->stage[stage];
        for (int key = 0; key < plan->graph->keys; key++) {
            size_t i = at(plan, stage, key);
            e->first_add[i] = plan->adds;
            if (e->needs->backward_in[i] >= 0 || e->needs->local_in[i] >= 0) {
                plan->add[plan->adds++].read = ADD_RECEIVED;
            }
            if (s->partial[key] >= 0) {
                plan->add[plan->adds++].read = ADD_PARTIAL;
            }
            for (int u = s->units; u-- > 0;) {
                add_unit(e, s->unit[u], key);
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
                      .backward_slot = -1,
                      .slot = -1,
                      .source = -1,
                      .order = -1};
    return op;
}

static struct op *emit_unit(struct expansion *e, enum op_kind kind, int unit, int microbatch)
{
    struct op *op = op_push(e, kind, microbatch);
    op->unit = unit;
    op->frame = microbatch % e->plan->stage[e->stage].frames;
    op->backward_slot = kind == OP_F ? -1 : microbatch % e->plan->stage[e->stage].backwards;
    return op;
}

/* POST and WAIT at the receiving end. */
static void emit_receive(struct expansion *e, enum op_kind kind, int shipment, int microbatch)
{
    const struct shipment *s = &e->plan->shipment[shipment];
    struct op *op = op_push(e, kind, microbatch);
    op->stage = s->to;
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
    op->stage = s->from;
    op->shipment = shipment;
    op->key = s->key;
    op->slot = kind == OP_PUT ? microbatch % s->slots : -1;
    if (s->backward) {
        op->source = microbatch % e->plan->sum[from->sum[s->key]].slots;
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
    op->backward_slot = microbatch % stage->backwards;
    op->slot = microbatch % e->plan->sum[stage->sum[key]].slots;
    if (stage->partial[key] >= 0) {
        op->source = microbatch % e->plan->sum[stage->partial[key]].slots;
    }
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

/* Does the arrived key stay until the lowest stage here has added to its gradient? */
static bool stays_for_grad(const struct expansion *e, int shipment)
{
    const struct plan *plan = e->plan;
    const struct shipment *s = &plan->shipment[shipment];
    return plan->training && e->needs->rereads[at(plan, plan->stage[s->to].rank, s->key)];
}

/* Arrived keys whose last use on this rank was `unit`: the lowest reader's B, or without a backward the
 * highest reader's F. */
static void emit_key_posts(struct expansion *e, int unit, int microbatch)
{
    const struct plan *plan = e->plan;
    int rank = plan->stage[e->stage].rank;
    for (int key = 0; key < plan->graph->keys; key++) {
        int shipment = e->needs->arrives[at(plan, rank, key)];
        if (shipment < 0 || stays_for_grad(e, shipment)) {
            continue;
        }
        int low = e->needs->low[at(plan, plan->shipment[shipment].to, key)];
        if ((plan->training ? low : e->needs->last_reader[at(plan, rank, key)]) == unit) {
            emit_next_post(e, shipment, microbatch);
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

/* WAIT for what `unit` is the first of its rank to read: the newest first, so that a stall at another
 * is what that one costs beyond it; the others in the order in which a stage sends them. */
static void emit_forward_waits(struct expansion *e, int unit, int microbatch)
{
    const struct plan *plan = e->plan;
    int keys = plan->graph->keys, rank = plan->stage[e->stage].rank;
    for (int i = 0; i < 2 * keys; i++) { /* plain, then dense; by producer, then by key */
        int key = e->by_producer[i % keys], in = e->needs->arrives[at(plan, rank, key)];
        if (in >= 0 && plan->shipment[in].plain == (i < keys) &&
            e->needs->low[at(plan, plan->shipment[in].to, key)] == unit) {
            emit_receive(e, OP_WAIT, in, microbatch);
        }
    }
}

static void expand_forward(struct expansion *e, int microbatch)
{
    const struct plan *plan = e->plan;
    const struct stage_plan *stage = &plan->stage[e->stage];
    for (int u = 0; u < stage->units; u++) {
        int unit = stage->unit[u];
        emit_forward_waits(e, unit, microbatch);
        if (!plan->training && u == 0 && microbatch >= stage->frames) {
            emit_forward_sents(e, microbatch - stage->frames);
        }
        emit_unit(e, OP_F, unit, microbatch);
        emit_forward_puts(e, unit, microbatch);
        if (!plan->training) {
            emit_key_posts(e, unit, microbatch);
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
    int arrival = e->needs->arrives[at(e->plan, e->plan->stage[e->stage].rank, key)];
    if (arrival >= 0 && e->plan->shipment[arrival].to == e->stage && stays_for_grad(e, arrival)) {
        emit_next_post(e, arrival, microbatch);
    }
}

/* A sum is to be formed from here on for `microbatch`: what its slot held has left by then. */
static void emit_sum_sent(struct expansion *e, int sum, int microbatch)
{
    int out = e->sum_out[sum], before = microbatch - e->plan->sum[sum].slots;
    if (out >= 0 && before >= 0) {
        emit_send(e, OP_SENT, out, before);
    }
}

/* B of a unit may form the gradient of a key that it reads. */
static void expand_backward_unit(struct expansion *e, int unit, int microbatch)
{
    int formed = graph_formed_by(e->plan->graph, unit);
    if (formed >= 0) {
        int sum = e->plan->stage[e->stage].sum[formed];
        emit_sum_sent(e, sum, microbatch);
        emit_unit(e, OP_B, unit, microbatch)->slot = microbatch % e->plan->sum[sum].slots;
    } else {
        emit_unit(e, OP_B, unit, microbatch);
    }
    emit_key_posts(e, unit, microbatch);
}

/* For every key of another stage to whose gradient this one adds, newest first: the urgent ones if
 * `urgent`, else all the others. */
typedef void (*remote_fn)(struct expansion *e, int key, int microbatch);
static void for_remote(struct expansion *e, bool urgent, int microbatch, remote_fn fn)
{
    const struct plan *plan = e->plan;
    for (int i = plan->graph->keys; i-- > 0;) {
        int key = e->formed[i];
        bool remote = plan->stage[e->stage].sum[key] >= 0 &&
                      plan->stage_of[plan->graph->key[key].producer] != e->stage;
        if (remote && (e->needs->urgent[at(plan, e->stage, key)] > 0) == urgent) {
            fn(e, key, microbatch);
        }
    }
}

/* Does the stage begin the sum, or go on in another's slot? */
static bool sum_begins(const struct expansion *e, int key)
{
    size_t i = at(e->plan, e->stage, key);
    return e->needs->local_in[i] < 0;
}

/* Of a received sum the one before leaves here, where it was sent; of one of its own, what the slot held. */
static void remote_sent(struct expansion *e, int key, int microbatch)
{
    int sum = e->plan->stage[e->stage].sum[key];
    int out = e->needs->backward_out[at(e->plan, e->stage, key)];
    if (e->needs->formed[at(e->plan, e->stage, key)] >= 0) {
        return; /* expand_backward_unit */
    }
    if (e->plan->sum[sum].shipment < 0 && sum_begins(e, key)) {
        emit_sum_sent(e, sum, microbatch);
    } else if (e->plan->sum[sum].shipment >= 0 && out >= 0 && microbatch > 0) {
        emit_send(e, OP_SENT, out, microbatch - 1);
    }
}

static void remote_post(struct expansion *e, int key, int microbatch)
{
    int in = e->plan->sum[e->plan->stage[e->stage].sum[key]].shipment;
    int out = e->needs->backward_out[at(e->plan, e->stage, key)];
    if (in >= 0 && out >= 0 && microbatch > 0) {
        emit_next_post(e, in, microbatch - 1);
    }
}

static void remote_put(struct expansion *e, int key, int microbatch)
{
    int out = e->needs->backward_out[at(e->plan, e->stage, key)];
    if (e->needs->formed[at(e->plan, e->stage, key)] < 0) { /* else B has formed it */
        expand_grad(e, key, microbatch);
    }
    if (out >= 0) {
        emit_send(e, OP_PUT, out, microbatch);
    }
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
    if (e->plan->stage[e->stage].sum[key] >= 0 &&
        e->needs->formed[at(e->plan, e->stage, key)] < 0) {
        expand_grad(e, key, microbatch);
    }
}

static void expand_backward(struct expansion *e, int microbatch)
{
    const struct stage_plan *stage = &e->plan->stage[e->stage];
    for (int u = stage->units; u-- > 0;) {
        int unit = stage->unit[u];
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
    const struct plan *plan = e->plan;
    const struct stage_plan *stage = &plan->stage[e->stage];
    for (int u = stage->units; u-- > 0;) {
        int unit = stage->unit[u];
        if (!plan->weights_at_once) {
            emit_unit(e, OP_W, unit, microbatch);
        }
        for (int i = e->first_formed[unit + 1]; i-- > e->first_formed[unit];) {
            int sum = stage->sum[e->formed[i]];
            if (sum >= 0 && plan->sum[sum].shipment >= 0) {
                emit_next_post(e, plan->sum[sum].shipment, microbatch);
            }
        }
    }
    emit_forward_sents(e, microbatch);
}

static void expand_phase(struct expansion *e, const struct phase *phase)
{
    e->stage = phase->stage;
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
    case PHASE_KINDS:
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
        op_push(e, OP_NORM, -1)->stage = -1;
        op_push(e, OP_STEP, -1)->stage = -1;
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

/* Keys by their producers: in the order of their formation, and by number. */
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
            int place = count++;
            e->by_producer[place] = key;
            for (; place > e->first_formed[unit] &&
                   graph->key[e->formed[place - 1]].order > graph->key[key].order;
                 place--) {
                e->formed[place] = e->formed[place - 1];
            }
            e->formed[place] = key;
        }
    }
    e->first_formed[graph->units] = count;
}

static void expansion_find_sums(struct expansion *e)
{
    const struct plan *plan = e->plan;
    for (int i = 0; i < plan->sums; i++) {
        e->sum_out[i] = -1;
    }
    for (int i = 0; i < plan->shipments; i++) {
        const struct shipment *s = &plan->shipment[i];
        if (s->backward) {
            e->sum_out[plan->stage[s->from].sum[s->key]] = i;
        }
    }
}

/* ---- what a stream does at once ---- */

static bool goes_with(const struct plan *plan, const struct op *op, const struct op *before)
{
    bool message = op->kind == OP_POST || op->kind == OP_WAIT || op->kind == OP_SENT;
    return message && op->kind == before->kind &&
           (op->kind != OP_WAIT ||
            plan->shipment[op->shipment].plain == plan->shipment[before->shipment].plain);
}

void plan_group(const struct plan *plan, struct rank_plan *list)
{
    for (int i = 0, first = 0; i < list->ops; i++) {
        struct op *op = &list->op[i];
        op->together = 1;
        if (i > first && i - first < PLAN_TOGETHER && goes_with(plan, op, &list->op[first])) {
            list->op[first].together++;
            op->together = 0;
        } else {
            first = i;
        }
    }
}

static status_t expansion_run(struct expansion *e, const struct phases *phases)
{
    struct plan *plan = e->plan;
    expansion_sort_keys(e);
    expansion_find_sums(e);
    expansion_add_gradients(e);
    for (int rank = 0; rank < plan->ranks; rank++) {
        e->list = (struct op_list){0};
        for (int i = 0; i < phases->rank[rank].count; i++) {
            expand_phase(e, &phases->rank[rank].phase[i]);
        }
        expand_rest(e);
        if (!expand_first_posts(e, &plan->rank[rank])) {
            return FAIL(STATUS_NOMEM, "no memory for the operations of rank %d", rank);
        }
        TRY(plan_add_replicas(plan, &plan->rank[rank]));
        plan_group(plan, &plan->rank[rank]);
    }
    return STATUS_OK;
}

status_t plan_expand(struct plan *plan, const struct needs *needs, const struct phases *phases)
{
    size_t pairs = (size_t)plan->stages * (size_t)plan->graph->keys;
    size_t keys = (size_t)plan->graph->keys, units = (size_t)plan->graph->units;
    struct expansion e = {.plan = plan, .needs = needs};
    int **const table[] = {&e.formed, &e.by_producer, &e.first_formed, &e.first_add,
                           &e.adds,   &e.sum_out,     &e.sent};
    const size_t count[] = {
        keys, keys, units + 1, pairs, pairs, (size_t)plan->sums, (size_t)plan->shipments};
    enum { TABLES = sizeof table / sizeof table[0] };
    for (int rank = 0; rank < plan->ranks; rank++) {
        free(plan->rank[rank].op);
        plan->rank[rank].op = NULL;
        plan->rank[rank].ops = 0;
    }
    free(plan->add);
    plan->adds = 0;
    plan->add = calloc(2 * pairs + (size_t)plan->graph->reads + 1, sizeof *plan->add);
    bool made = plan->add != NULL;
    for (int i = 0; i < TABLES; i++) {
        *table[i] = calloc(count[i] + 1, sizeof **table[i]);
        made = made && *table[i];
    }
    status_t status = made ? expansion_run(&e, phases)
                           : FAIL(STATUS_NOMEM, "no memory for the operations of a plan");
    for (int i = 0; i < TABLES; i++) {
        free(*table[i]);
    }
    return status;
}
