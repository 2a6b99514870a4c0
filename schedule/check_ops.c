/* check_ops.c - the lists of operations as they are written.
 *
 * Who an operation is (kind, microbatch and unit, shipment or key) fixes all its other fields, so
 * each operation is compared with the one that it should be and ticked off; then nothing may be
 * left. The additions of a gradient have one lawful order, and so have the messages of a shipment.
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "schedule/plan_internal.h"

/* ---- fields: the operation that this one should be ---- */

static bool in_range(int value, int count)
{
    return value >= 0 && value < count;
}

static bool op_is_receive(enum op_kind kind)
{
    return kind == OP_POST || kind == OP_WAIT;
}

static bool op_is_send(enum op_kind kind)
{
    return kind == OP_PUT || kind == OP_SENT;
}

/* What replicas do together. */
static bool op_is_shared(enum op_kind kind)
{
    return kind == OP_REDUCE || kind == OP_REDUCED || kind == OP_GATHER || kind == OP_GATHERED;
}

static bool op_is_unit(enum op_kind kind)
{
    return kind == OP_F || kind == OP_B || kind == OP_W;
}

/* Does B of some unit form the key's gradient? */
static bool is_formed(const struct graph *graph, int key)
{
    for (int i = 0; i < graph->reads; i++) {
        if (graph->read[i].key == key && graph->read[i].kind == READ_FORMS) {
            return true;
        }
    }
    return false;
}

/* A gradient that B forms is only handed over where it arrives. */
static bool grad_lawful(const struct checker *checker, int stage, int key)
{
    bool formed = is_formed(checker->plan->graph, key) && check_adds_to(checker, stage, key);
    return check_sums(checker, stage, key) && !formed;
}

/* Can an operation with this identity exist at all (fields that decide about the others)? */
static bool op_lawful(const struct checker *checker, int rank, const struct op *op)
{
    const struct plan *plan = checker->plan;
    if (op->kind == OP_NORM || op->kind == OP_STEP) {
        return plan->training;
    }
    if (op_is_shared(op->kind)) {
        return plan->training && plan->replicas > 1 && in_range(op->unit, plan->graph->units) &&
               checker->host[op->unit] == op->stage && plan->stage[op->stage].rank == rank;
    }
    if (!in_range(op->stage, plan->stages) || plan->stage[op->stage].rank != rank ||
        !in_range(op->microbatch, plan->microbatches)) {
        return false;
    }
    if (op_is_unit(op->kind)) {
        return in_range(op->unit, plan->graph->units) && checker->host[op->unit] == op->stage &&
               (plan->training || op->kind == OP_F);
    }
    if (op->kind == OP_GRAD) {
        return in_range(op->key, plan->graph->keys) && grad_lawful(checker, op->stage, op->key);
    }
    if (!in_range(op->shipment, plan->shipments)) {
        return false;
    }
    const struct shipment *s = &plan->shipment[op->shipment];
    return op_is_receive(op->kind) ? s->to == op->stage
                                   : op_is_send(op->kind) && s->from == op->stage;
}

/* The key whose gradient B of this unit forms, or -1. */
static int op_formed(const struct plan *plan, const struct op *op)
{
    const struct graph *graph = plan->graph;
    for (int i = graph->first_read[op->unit]; i < graph->first_read[op->unit + 1]; i++) {
        if (op->kind == OP_B && graph->read[i].kind == READ_FORMS) {
            return graph->read[i].key;
        }
    }
    return -1;
}

static int sum_slot(const struct plan *plan, int sum, const struct op *op)
{
    return op->microbatch % plan->sum[sum].slots;
}

static struct op op_expected(const struct plan *plan, const struct op *op)
{
    struct op e = {.kind = op->kind,
                   .stage = op->stage,
                   .microbatch = op->microbatch,
                   .unit = -1,
                   .key = -1,
                   .shipment = -1,
                   .frame = -1,
                   .backward_slot = -1,
                   .slot = -1,
                   .source = -1,
                   .order = op->order,        /* check_orders */
                   .together = op->together}; /* check_together */
    if (op->kind == OP_NORM || op->kind == OP_STEP) {
        e.stage = e.microbatch = -1;
        return e;
    }
    if (op_is_shared(op->kind)) {
        e.microbatch = -1;
        e.unit = op->unit;
        return e;
    }
    const struct stage_plan *stage = &plan->stage[op->stage];
    int frame = op->microbatch % stage->frames;
    if (op_is_unit(op->kind)) {
        int formed = op_formed(plan, op);
        e.unit = op->unit;
        e.frame = frame;
        e.backward_slot = op->kind == OP_F ? -1 : op->microbatch % stage->backwards;
        e.slot = formed >= 0 ? sum_slot(plan, stage->sum[formed], op) : -1;
    } else if (op->kind == OP_GRAD) {
        e.key = op->key;
        e.frame = frame;
        e.backward_slot = op->microbatch % stage->backwards;
        e.slot = sum_slot(plan, stage->sum[op->key], op);
        e.source = stage->partial[op->key] >= 0 ? sum_slot(plan, stage->partial[op->key], op) : -1;
        e.first_add = op->first_add;
        e.adds = op->adds;
    } else {
        const struct shipment *s = &plan->shipment[op->shipment];
        e.shipment = op->shipment;
        e.key = s->key;
        e.slot = op->kind == OP_SENT ? -1 : op->microbatch % s->slots;
        if (op_is_send(op->kind)) {
            e.frame = s->backward ? -1 : frame;
            e.source = s->backward ? sum_slot(plan, stage->sum[s->key], op) : -1;
        }
    }
    return e;
}

static bool check_fields(const struct checker *checker, int rank, int index)
{
    static const char *const name[] = {
        "kind",          "stage", "microbatch", "unit",  "key",       "shipment", "frame",
        "backward slot", "slot",  "source",     "order", "first_add", "adds",     "together"};
    const struct op *op = &checker->plan->rank[rank].op[index];
    if ((int)op->kind < 0 || op->kind >= OP_KINDS || !op_lawful(checker, rank, op)) {
        return check_refuse(checker, rank, index, "has no business here");
    }
    struct op expected = op_expected(checker->plan, op);
    int is[sizeof name / sizeof name[0]], should[sizeof name / sizeof name[0]];
    _Static_assert(sizeof is == sizeof expected, "struct op has a field without a name here");
    memcpy(is, op, sizeof is);
    memcpy(should, &expected, sizeof should);
    for (size_t i = 0; i < sizeof name / sizeof name[0]; i++) {
        if (is[i] != should[i]) {
            return check_refuse(checker, rank, index, "%s is %d and must be %d", name[i], is[i],
                                should[i]);
        }
    }
    return true;
}

/* ---- additions ---- */

static bool next_add_is(const struct plan *plan, const struct op *op, int *next, int read)
{
    bool found = *next < op->adds && plan->add[op->first_add + *next].read == read;
    *next += 1;
    return found;
}

/* The unit's reads of the key, by their order, whatever their place in the table. */
static bool adds_of_unit(const struct checker *checker, const struct op *op, int *next, int unit)
{
    const struct plan *plan = checker->plan;
    const struct graph *graph = plan->graph;
    int before = INT_MIN, least = -1;
    do {
        least = -1;
        for (int i = graph->first_read[unit]; i < graph->first_read[unit + 1]; i++) {
            const struct read *read = &graph->read[i];
            if (read->key == op->key && read->order > before && check_adds_read(checker, read) &&
                (least < 0 || read->order < graph->read[least].order)) {
                least = i;
            }
        }
        if (least >= 0) {
            before = graph->read[least].order;
            if (!next_add_is(plan, op, next, least)) {
                return false;
            }
        }
    } while (least >= 0);
    return true;
}

static bool check_adds(const struct checker *checker, int rank, int index)
{
    const struct plan *plan = checker->plan;
    const struct op *op = &plan->rank[rank].op[index];
    if (op->first_add < 0 || op->adds < 0 || op->adds > plan->adds - op->first_add) {
        return check_refuse(checker, rank, index, "its additions are not in the table");
    }
    int next = 0, relay, mate;
    check_sum_before(checker, op->stage, op->key, &relay, &mate);
    if ((relay >= 0 || mate >= 0) && !next_add_is(plan, op, &next, ADD_RECEIVED)) {
        return check_refuse(checker, rank, index, "does not begin with the sum received");
    }
    if (relay >= 0 && mate >= 0 && !next_add_is(plan, op, &next, ADD_PARTIAL)) {
        return check_refuse(checker, rank, index, "does not go on with this rank's own sum");
    }
    const struct stage_plan *stage = &plan->stage[op->stage];
    for (int i = stage->units; i-- > 0;) {
        if (!adds_of_unit(checker, op, &next, stage->unit[i])) {
            return check_refuse(checker, rank, index, "the additions of %s are wrong",
                                plan->graph->unit[stage->unit[i]].name);
        }
    }
    if (next != op->adds) {
        return check_refuse(checker, rank, index, "%d additions instead of %d", op->adds, next);
    }
    return true;
}

/* ---- exactly once ---- */

/* A number for every operation that can be, microbatch aside. */
static int op_identity(const struct plan *plan, int rank, const struct op *op)
{
    int units = plan->graph->units, keys = plan->graph->keys;
    int base = 3 * units + 4 * plan->shipments,
        shared = base + plan->stages * keys + 2 * plan->ranks;
    switch (op->kind) {
    case OP_F:
        return op->unit;
    case OP_B:
        return units + op->unit;
    case OP_W:
        return 2 * units + op->unit;
    case OP_POST:
        return 3 * units + op->shipment;
    case OP_WAIT:
        return 3 * units + plan->shipments + op->shipment;
    case OP_PUT:
        return 3 * units + 2 * plan->shipments + op->shipment;
    case OP_SENT:
        return 3 * units + 3 * plan->shipments + op->shipment;
    case OP_GRAD:
        return base + op->stage * keys + op->key;
    case OP_GATHERED:
        return shared + op->unit;
    case OP_REDUCE:
        return shared + units + op->unit;
    case OP_REDUCED:
        return shared + 2 * units + op->unit;
    case OP_GATHER:
        return shared + 3 * units + op->unit;
    default:
        return base + plan->stages * keys + 2 * rank + (op->kind == OP_STEP);
    }
}

static int identities(const struct plan *plan)
{
    return 3 * plan->graph->units + 4 * plan->shipments + plan->stages * plan->graph->keys +
           2 * plan->ranks + 4 * plan->graph->units;
}

/* How many operations of this identity there must be. */
static int expected_count(const struct checker *checker, int identity)
{
    const struct plan *plan = checker->plan;
    int units = plan->graph->units, base = 3 * units + 4 * plan->shipments;
    if (identity < 3 * units) {
        return plan->training || identity < units ? plan->microbatches : 0;
    }
    if (identity < base) {
        return plan->microbatches;
    }
    int pair = identity - base;
    if (pair < plan->stages * plan->graph->keys) {
        int stage = pair / plan->graph->keys, key = pair % plan->graph->keys;
        return grad_lawful(checker, stage, key) ? plan->microbatches : 0;
    }
    if (pair >= plan->stages * plan->graph->keys + 2 * plan->ranks) {
        return plan->training && plan->replicas > 1;
    }
    return plan->training;
}

/* "put of shipment 3"; returns `buffer`. */
static const char *identity_print(const struct plan *plan, int identity, char *buffer, size_t size)
{
    static const char *const of_unit[] = {"F", "B", "W"};
    static const char *const of_shipment[] = {"post", "wait", "put", "sent"};
    static const char *const of_replicas[] = {"gathered", "reduce", "reduced", "gather"};
    int units = plan->graph->units, messages = identity - 3 * units;
    int gradients = messages - 4 * plan->shipments;
    int ends = gradients - plan->stages * plan->graph->keys, shared = ends - 2 * plan->ranks;
    if (messages < 0) {
        snprintf(buffer, size, "%s of unit %d", of_unit[identity / units], identity % units);
    } else if (gradients < 0) {
        snprintf(buffer, size, "%s of shipment %d", of_shipment[messages / plan->shipments],
                 messages % plan->shipments);
    } else if (ends < 0) {
        snprintf(buffer, size, "gradient of key %d", gradients % plan->graph->keys);
    } else if (shared < 0) {
        snprintf(buffer, size, "%s of rank %d", ends % 2 ? "step" : "norm", ends / 2);
    } else {
        snprintf(buffer, size, "%s of unit %d", of_replicas[shared / units], shared % units);
    }
    return buffer;
}

static bool check_missing(const struct checker *checker, const int *count)
{
    char what[64];
    for (int i = 0; i < identities(checker->plan); i++) {
        if (count[i] != expected_count(checker, i)) {
            return check_refuse(checker, -1, -1, "%s is there %d times and must be %d times",
                                identity_print(checker->plan, i, what, sizeof what), count[i],
                                expected_count(checker, i));
        }
    }
    return true;
}

/* What a stream does at once is of one kind, and every operation is part of one such group. */
static bool check_together(const struct checker *checker, int rank, int index)
{
    const struct rank_plan *list = &checker->plan->rank[rank];
    const struct op *op = &list->op[index];
    int most =
        op->kind == OP_POST || op->kind == OP_WAIT || op->kind == OP_SENT ? PLAN_TOGETHER : 1;
    bool lawful = op->together >= 0 && op->together <= most && index + op->together <= list->ops;
    for (int i = 1; i < op->together && lawful; i++) {
        const struct op *other = &op[i];
        lawful = other->together == 0 && other->kind == op->kind &&
                 (op->kind != OP_WAIT || checker->plan->shipment[other->shipment].plain ==
                                             checker->plan->shipment[op->shipment].plain);
    }
    if (op->together == 0) { /* the last one that begins an operation reaches as far as this */
        int first = index;
        while (first > 0 && list->op[first].together == 0) {
            first--;
        }
        lawful = lawful && first + list->op[first].together > index;
    }
    return lawful ||
           check_refuse(checker, rank, index, "is together with %d operations", op->together);
}

/* Ticks off every operation in `seen` [identities][microbatches], then looks for what is left. */
static bool check_once(const struct checker *checker, unsigned char *seen, int *count)
{
    const struct plan *plan = checker->plan;
    for (int rank = 0; rank < plan->ranks; rank++) {
        for (int index = 0; index < plan->rank[rank].ops; index++) {
            const struct op *op = &plan->rank[rank].op[index];
            if (!check_fields(checker, rank, index) || !check_together(checker, rank, index) ||
                (op->kind == OP_GRAD && !check_adds(checker, rank, index))) {
                return false;
            }
            int identity = op_identity(plan, rank, op);
            int m = op->microbatch < 0 ? 0 : op->microbatch;
            unsigned char *tick = &seen[(size_t)identity * (size_t)plan->microbatches + (size_t)m];
            if (*tick) {
                return check_refuse(checker, rank, index, "is there a second time");
            }
            *tick = 1;
            count[identity]++;
        }
    }
    return check_missing(checker, count);
}

/* ---- the same order on both ends ---- */

/* The n-th put of a shipment must be the n-th post and the n-th wait. `order` [3][shipments][m]. */
static bool check_order(const struct checker *checker, int *order, int *count)
{
    const struct plan *plan = checker->plan;
    size_t each = (size_t)plan->shipments * (size_t)plan->microbatches;
    for (int rank = 0; rank < plan->ranks; rank++) {
        for (int index = 0; index < plan->rank[rank].ops; index++) {
            const struct op *op = &plan->rank[rank].op[index];
            if (!op_is_receive(op->kind) && op->kind != OP_PUT) {
                continue;
            }
            size_t list = op->kind == OP_POST ? 0 : op->kind == OP_WAIT ? 1 : 2;
            int *n = &count[list * (size_t)plan->shipments + (size_t)op->shipment];
            size_t first = list * each + (size_t)op->shipment * (size_t)plan->microbatches;
            order[first + (size_t)(*n)++] = op->microbatch;
        }
    }
    for (size_t i = 0; i < each; i++) {
        if (order[i] != order[each + i] || order[i] != order[2 * each + i]) {
            return check_refuse(checker, -1, -1,
                                "shipment %d: microbatch %d is posted, %d awaited and %d put in "
                                "the same place",
                                (int)(i / (size_t)plan->microbatches), order[i], order[each + i],
                                order[2 * each + i]);
        }
    }
    return true;
}

/* All puts have the places 0, 1, .. of an order, each one, in which those of a shipment ascend. `taken` [puts], `last`
 * [shipments]. */
static bool check_places(const struct checker *checker, int rank, bool *taken, int *last)
{
    const struct plan *plan = checker->plan;
    for (int index = 0; index < plan->rank[rank].ops; index++) {
        const struct op *op = &plan->rank[rank].op[index];
        if (op->kind != OP_PUT) {
            if (op->order != -1) {
                return check_refuse(checker, rank, index, "is no put and has the order %d",
                                    op->order);
            }
            continue;
        }
        bool exists = in_range(op->order, plan->puts);
        if (!exists || taken[op->order]) {
            return check_refuse(checker, rank, index, "has the order %d, which is %s", op->order,
                                exists ? "another one's" : "none of a put");
        }
        if (op->order < last[op->shipment]) {
            return check_refuse(checker, rank, index,
                                "has the order %d, after %d of the same shipment", op->order,
                                last[op->shipment]);
        }
        taken[op->order] = true;
        last[op->shipment] = op->order;
    }
    return true;
}

/* The lists are proved: there are as many puts as shipments and microbatches say. */
static status_t check_orders(const struct checker *checker)
{
    const struct plan *plan = checker->plan;
    if (plan->puts != plan->shipments * plan->microbatches) {
        (void)check_refuse(checker, -1, -1, "%d puts are counted and there are %d", plan->puts,
                           plan->shipments * plan->microbatches);
        return STATUS_INTERNAL;
    }
    bool *taken = calloc((size_t)plan->puts + 1, sizeof *taken);
    int *last = calloc((size_t)plan->shipments + 1, sizeof *last);
    status_t status = taken && last ? STATUS_OK : STATUS_NOMEM;
    for (int rank = 0; rank < plan->ranks && status == STATUS_OK; rank++) {
        status = check_places(checker, rank, taken, last) ? STATUS_OK : STATUS_INTERNAL;
    }
    free(taken);
    free(last);
    return status;
}

/* The step ends with the norm and the optimizer. */
static bool check_ends(const struct checker *checker)
{
    const struct plan *plan = checker->plan;
    for (int rank = 0; rank < plan->ranks && plan->training; rank++) {
        const struct rank_plan *r = &plan->rank[rank];
        int end = r->ops;
        while (end > 2 && r->op[end - 1].kind == OP_GATHER) {
            end--;
        }
        if (r->op[end - 2].kind != OP_NORM || r->op[end - 1].kind != OP_STEP) {
            return check_refuse(checker, rank, -1, "does not end with norm and step");
        }
    }
    return true;
}

status_t check_ops(const struct checker *checker)
{
    const struct plan *plan = checker->plan;
    size_t kinds = (size_t)identities(plan), m = (size_t)plan->microbatches;
    unsigned char *seen = calloc(kinds * m, 1);
    int *count = calloc(kinds, sizeof *count);
    int *order = calloc(3 * (size_t)plan->shipments * m + 1, sizeof *order);
    int *ordered = calloc(3 * (size_t)plan->shipments + 1, sizeof *ordered);
    status_t status = STATUS_NOMEM;
    if (seen != NULL && count != NULL && order != NULL && ordered != NULL) {
        bool good = check_once(checker, seen, count) && check_order(checker, order, ordered) &&
                    check_ends(checker);
        status = good ? STATUS_OK : STATUS_INTERNAL;
    }
    free(seen);
    free(count);
    free(order);
    free(ordered);
    return status == STATUS_OK ? check_orders(checker) : status;
}
