/* check.c - the proof that a plan is right: first what is written down, then (check_machine.c) what
 * happens when all ranks run it.
 *
 * Everything expected is derived here from the graph and the partition alone. Who an operation is
 * (kind, microbatch and unit, shipment or key) fixes all its other fields, so each operation is
 * compared with the one it should be and ticked off; then nothing may be left.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "schedule/plan_internal.h"

bool check_refuse(const struct checker *checker, int rank, int index, const char *fmt, ...) {
    char what[160] = "";
    int used = 0;
    if (index >= 0) {
        op_print(checker->plan, &checker->plan->rank[rank].op[index], what, sizeof what);
        used = snprintf(checker->why, checker->size, "rank %d, operation %d (%s): ", rank, index,
                        what);
    } else if (rank >= 0) {
        used = snprintf(checker->why, checker->size, "rank %d: ", rank);
    }
    if (used >= 0 && (size_t)used < checker->size) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(checker->why + used, checker->size - (size_t)used, fmt, args);
        va_end(args);
    }
    return false;
}

/* ---- stages and shipments ---- */

static bool stage_reads(const struct plan *plan, int stage, int key) {
    const struct stage_plan *s = &plan->stage[stage];
    for (int unit = s->first_unit; unit < s->first_unit + s->units; unit++) {
        if (graph_reads(plan->graph, unit, key)) {
            return true;
        }
    }
    return false;
}

static int home_of(const struct plan *plan, int key) {
    int stage = 0;
    while (plan->graph->key[key].producer >=
           plan->stage[stage].first_unit + plan->stage[stage].units) {
        stage++;
    }
    return stage;
}

static bool check_stages(const struct checker *checker) {
    const struct plan *plan = checker->plan;
    if (plan->ranks < 1 || plan->stages != plan->ranks || plan->microbatches < 1) {
        return check_refuse(checker, -1, -1, "%d ranks, %d stages and %d microbatches", plan->ranks,
                            plan->stages, plan->microbatches);
    }
    int next = 0;
    for (int stage = 0; stage < plan->stages; stage++) {
        const struct stage_plan *s = &plan->stage[stage];
        bool cut = next == 0 || (next < plan->graph->units && plan->graph->unit[next].may_start);
        if (s->first_unit != next || s->units < 1 || !cut) {
            return check_refuse(checker, -1, -1, "stage %d may not begin with unit %d", stage,
                                s->first_unit);
        }
        if (s->frames < 1) {
            return check_refuse(checker, -1, -1, "stage %d has no frames", stage);
        }
        next += s->units;
    }
    if (next != plan->graph->units) {
        return check_refuse(checker, -1, -1, "the stages hold %d of %d units", next,
                            plan->graph->units);
    }
    return true;
}

/* Where the sum that reaches `to` comes from: the next reading stage after it; -1 if none. */
static int sum_sender(const struct plan *plan, int to, int key) {
    for (int stage = to + 1; stage < plan->stages; stage++) {
        if (stage_reads(plan, stage, key)) {
            return stage;
        }
    }
    return -1;
}

/* Is there to be a shipment of `key` from -> to in this direction? */
static bool shipment_lawful(const struct plan *plan, const struct shipment *s) {
    int home = home_of(plan, s->key);
    if (!s->backward) {
        return s->from == home && s->to != home && stage_reads(plan, s->to, s->key);
    }
    bool holds = s->to == home || (s->to > home && stage_reads(plan, s->to, s->key));
    return plan->training && holds && s->from == sum_sender(plan, s->to, s->key);
}

static bool check_shipment(const struct checker *checker, int index) {
    const struct plan *plan = checker->plan;
    const struct shipment *s = &plan->shipment[index];
    if (s->key < 0 || s->key >= plan->graph->keys || s->from < 0 || s->from >= plan->stages ||
        s->to < 0 || s->to >= plan->stages || !shipment_lawful(plan, s)) {
        return check_refuse(checker, -1, -1, "shipment %d (key %d, stage %d to %d) has no reason",
                            index, s->key, s->from, s->to);
    }
    for (int i = 0; i < index; i++) {
        const struct shipment *t = &plan->shipment[i];
        if (t->backward > s->backward ||
            (t->key == s->key && t->from == s->from && t->to == s->to)) {
            return check_refuse(checker, -1, -1, "shipment %d is out of order or there twice",
                                index);
        }
    }
    const struct key *key = &plan->graph->key[s->key];
    int low = s->backward ? s->to : s->from, high = s->backward ? s->from : s->to;
    bool plain = high == low + 1 && key->producer == plan->stage[high].first_unit - 1;
    if (s->plain != plain || s->bytes != key->bytes) {
        return check_refuse(checker, -1, -1, "shipment %d has wrong bytes or colour", index);
    }
    int grad_slots = plan->stage[s->to].grad_slots[s->key];
    if (s->slots < 1 || (s->backward && s->slots != grad_slots)) {
        return check_refuse(checker, -1, -1, "shipment %d has %d slots", index, s->slots);
    }
    return true;
}

static bool check_shipments(const struct checker *checker) {
    const struct plan *plan = checker->plan;
    int expected = 0;
    for (int stage = 0; stage < plan->stages; stage++) {
        for (int key = 0; key < plan->graph->keys; key++) {
            int home = home_of(plan, key);
            bool reads = stage_reads(plan, stage, key);
            expected += reads && stage != home ? 1 + plan->training : 0;
            int slots = plan->stage[stage].grad_slots[key];
            if ((slots > 0) != (plan->training && (reads || stage == home))) {
                return check_refuse(checker, -1, -1, "stage %d has %d gradient slots of key %d",
                                    stage, slots, key);
            }
        }
    }
    if (plan->shipments != expected) {
        return check_refuse(checker, -1, -1, "%d shipments instead of %d", plan->shipments,
                            expected);
    }
    for (int i = 0; i < plan->shipments; i++) {
        if (!check_shipment(checker, i)) {
            return false;
        }
    }
    return true;
}

/* ---- fields: the operation that this one should be ---- */

static bool in_range(int value, int count) {
    return value >= 0 && value < count;
}

static bool op_is_receive(enum op_kind kind) {
    return kind == OP_POST || kind == OP_WAIT;
}

static bool op_is_send(enum op_kind kind) {
    return kind == OP_PUT || kind == OP_SENT;
}

static bool op_is_unit(enum op_kind kind) {
    return kind == OP_F || kind == OP_B || kind == OP_W;
}

/* Gradients of mid keys are formed by the FFN's B, and only handed over where they arrive. */
static bool grad_lawful(const struct plan *plan, int stage, int key) {
    bool home = home_of(plan, key) == stage;
    bool reads = stage_reads(plan, stage, key);
    bool mid = plan->graph->key[key].kind == KEY_MID;
    return plan->training && (mid ? home && !reads : home || reads);
}

/* Can an operation with this identity exist at all (fields that decide about the others)? */
static bool op_lawful(const struct plan *plan, int rank, const struct op *op) {
    if (op->kind == OP_NORM || op->kind == OP_STEP) {
        return plan->training;
    }
    if (!in_range(op->stage, plan->stages) || op->stage % plan->ranks != rank ||
        !in_range(op->microbatch, plan->microbatches)) {
        return false;
    }
    const struct stage_plan *stage = &plan->stage[op->stage];
    if (op_is_unit(op->kind)) {
        return in_range(op->unit - stage->first_unit, stage->units) &&
               (plan->training || op->kind == OP_F);
    }
    if (op->kind == OP_GRAD) {
        return in_range(op->key, plan->graph->keys) && grad_lawful(plan, op->stage, op->key);
    }
    if (!in_range(op->shipment, plan->shipments)) {
        return false;
    }
    const struct shipment *s = &plan->shipment[op->shipment];
    return op_is_receive(op->kind) ? s->to == op->stage
                                   : op_is_send(op->kind) && s->from == op->stage;
}

/* The key whose gradient B of this unit writes, or -1. */
static int op_mid(const struct plan *plan, const struct op *op) {
    for (int key = 0; op->kind == OP_B && key < plan->graph->keys; key++) {
        if (graph_reads(plan->graph, op->unit, key) & READ_MID) {
            return key;
        }
    }
    return -1;
}

static struct op op_expected(const struct plan *plan, int rank, const struct op *op) {
    struct op e = {.kind = op->kind,
                   .stage = op->stage,
                   .microbatch = op->microbatch,
                   .unit = -1,
                   .key = -1,
                   .shipment = -1,
                   .frame = -1,
                   .slot = -1,
                   .source = -1};
    if (op->kind == OP_NORM || op->kind == OP_STEP) {
        e.stage = rank;
        e.microbatch = -1;
        return e;
    }
    const struct stage_plan *stage = &plan->stage[op->stage];
    int frame = op->microbatch % stage->frames;
    if (op_is_unit(op->kind)) {
        int mid = op_mid(plan, op);
        e.unit = op->unit;
        e.frame = frame;
        e.slot = mid >= 0 ? op->microbatch % stage->grad_slots[mid] : -1;
    } else if (op->kind == OP_GRAD) {
        e.key = op->key;
        e.frame = frame;
        e.slot = op->microbatch % stage->grad_slots[op->key];
        e.first_add = op->first_add;
        e.adds = op->adds;
    } else {
        const struct shipment *s = &plan->shipment[op->shipment];
        e.shipment = op->shipment;
        e.key = s->key;
        e.slot = op->kind == OP_SENT ? -1 : op->microbatch % s->slots;
        if (op_is_send(op->kind)) {
            e.frame = s->backward ? -1 : frame;
            e.source = s->backward ? op->microbatch % stage->grad_slots[s->key] : -1;
        }
    }
    return e;
}

static bool check_fields(const struct checker *checker, int rank, int index) {
    static const char *const name[] = {"kind",   "stage",     "microbatch", "unit",
                                       "key",    "shipment",  "frame",      "slot",
                                       "source", "first_add", "adds"};
    const struct op *op = &checker->plan->rank[rank].op[index];
    if ((int)op->kind < 0 || op->kind >= OP_KINDS || !op_lawful(checker->plan, rank, op)) {
        return check_refuse(checker, rank, index, "has no business here");
    }
    struct op expected = op_expected(checker->plan, rank, op);
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

static bool next_add_is(const struct plan *plan, const struct op *op, int *next, struct add want) {
    bool found = *next < op->adds;
    if (found) {
        const struct add *add = &plan->add[op->first_add + *next];
        found = add->kind == want.kind && add->unit == want.unit && add->key == want.key;
    }
    *next += 1;
    return found;
}

static bool adds_of_unit(const struct plan *plan, const struct op *op, int *next, int unit) {
    static const struct {
        int uses;
        enum add_kind kind;
    } order[] = {{READ_Q | READ_K | READ_V | READ_R, ADD_AGGREGATE},
                 {READ_GENERATOR, ADD_GENERATOR},
                 {READ_DIRECT, ADD_DIRECT}};
    for (size_t i = 0; i < sizeof order / sizeof order[0]; i++) {
        struct add want = {order[i].kind, unit, -1};
        if ((graph_reads(plan->graph, unit, op->key) & order[i].uses) &&
            !next_add_is(plan, op, next, want)) {
            return false;
        }
    }
    return true;
}

static bool check_adds(const struct checker *checker, int rank, int index) {
    const struct plan *plan = checker->plan;
    const struct op *op = &plan->rank[rank].op[index];
    if (op->first_add < 0 || op->adds < 0 || op->adds > plan->adds - op->first_add) {
        return check_refuse(checker, rank, index, "its additions are not in the table");
    }
    int next = 0;
    const struct add received = {ADD_RECEIVED, -1, -1};
    if (sum_sender(plan, op->stage, op->key) >= 0 && !next_add_is(plan, op, &next, received)) {
        return check_refuse(checker, rank, index, "does not begin with the sum received");
    }
    const struct stage_plan *stage = &plan->stage[op->stage];
    for (int unit = stage->first_unit + stage->units - 1; unit >= stage->first_unit; unit--) {
        if (!adds_of_unit(plan, op, &next, unit)) {
            char name[32];
            return check_refuse(checker, rank, index, "the additions of %s are wrong",
                                unit_print(&plan->graph->unit[unit], name, sizeof name));
        }
    }
    if (next != op->adds) {
        return check_refuse(checker, rank, index, "%d additions instead of %d", op->adds, next);
    }
    return true;
}

/* ---- exactly once ---- */

/* A number for every operation that can be, microbatch aside. */
static int op_identity(const struct plan *plan, int rank, const struct op *op) {
    int units = plan->graph->units, keys = plan->graph->keys;
    int base = 3 * units + 4 * plan->shipments;
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
    default:
        return base + plan->stages * keys + 2 * rank + (op->kind == OP_STEP);
    }
}

static int identities(const struct plan *plan) {
    return 3 * plan->graph->units + 4 * plan->shipments + plan->stages * plan->graph->keys +
           2 * plan->ranks;
}

/* How many operations of this identity there must be. */
static int expected_count(const struct plan *plan, int identity) {
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
        return grad_lawful(plan, stage, key) ? plan->microbatches : 0;
    }
    return plan->training;
}

static bool check_missing(const struct checker *checker, const int *count) {
    static const char *const what[] = {"F", "B", "W", "post", "wait", "put", "sent", "gradient"};
    const struct plan *plan = checker->plan;
    int units = plan->graph->units, base = 3 * units + 4 * plan->shipments;
    for (int i = 0; i < identities(plan); i++) {
        if (count[i] == expected_count(plan, i)) {
            continue;
        }
        const char *kind = "norm or step";
        int which = 0;
        if (i < 3 * units) {
            kind = what[i / units];
            which = i % units;
        } else if (i < base) {
            kind = what[3 + (i - 3 * units) / plan->shipments];
            which = (i - 3 * units) % plan->shipments;
        } else if (i < base + plan->stages * plan->graph->keys) {
            kind = what[7];
            which = (i - base) % plan->graph->keys;
        }
        return check_refuse(checker, -1, -1, "%s of %s %d is there %d times and must be %d times",
                            kind,
                            i < 3 * units ? "unit"
                            : i < base    ? "shipment"
                                          : "key",
                            which, count[i], expected_count(plan, i));
    }
    return true;
}

/* Ticks off every operation in `seen` [identities][microbatches], then looks for what is left. */
static bool check_once(const struct checker *checker, unsigned char *seen, int *count) {
    const struct plan *plan = checker->plan;
    for (int rank = 0; rank < plan->ranks; rank++) {
        for (int index = 0; index < plan->rank[rank].ops; index++) {
            const struct op *op = &plan->rank[rank].op[index];
            if (!check_fields(checker, rank, index) ||
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
static bool check_order(const struct checker *checker, int *order, int *count) {
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

/* The step ends with the norm and the optimizer. */
static bool check_ends(const struct checker *checker) {
    const struct plan *plan = checker->plan;
    for (int rank = 0; rank < plan->ranks && plan->training; rank++) {
        const struct rank_plan *r = &plan->rank[rank];
        if (r->op[r->ops - 2].kind != OP_NORM || r->op[r->ops - 1].kind != OP_STEP) {
            return check_refuse(checker, rank, -1, "does not end with norm and step");
        }
    }
    return true;
}

static status_t check_lists(const struct checker *checker) {
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
    return status;
}

status_t plan_check(const struct plan *plan, char *why, size_t size) {
    const struct checker checker = {plan, why, size};
    if (!check_stages(&checker) || !check_shipments(&checker)) {
        return STATUS_INTERNAL;
    }
    TRY(check_lists(&checker));
    return check_machine(&checker);
}
