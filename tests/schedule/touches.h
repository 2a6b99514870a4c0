/* touches.h - what each operation of a plan reads and writes, and which two may not change places. */
#ifndef TESTS_SCHEDULE_TOUCHES_H
#define TESTS_SCHEDULE_TOUCHES_H

#include "tests/test.h"

#include "schedule/schedule.h"

enum resource { FRAME, SLOT, GRADIENT, LEFTOVER, WEIGHTS, VALUES, MESSAGE, QUEUE, EVERYTHING };

struct touch {
    enum resource what;
    int a, b, c; /* which one */
    bool write;
};
struct touches {
    struct touch touch[64];
    int count;
};

static inline void touch(struct touches *out, bool write, enum resource what, int a, int b, int c)
{
    assert_true(out->count < 64);
    out->touch[out->count++] = (struct touch){what, a, b, c, write};
}

/* Slot of a sum. */
static inline void touch_sum(struct touches *out, const struct plan *plan, int sum, int m,
                             bool write)
{
    touch(out, write, GRADIENT, sum, m % plan->sum[sum].slots, 0);
}

/* Slot of a key's gradient on a stage. */
static inline void touch_gradient(struct touches *out, const struct plan *plan, int stage, int key,
                                  int m, bool write)
{
    touch_sum(out, plan, plan->stage[stage].sum[key], m, write);
}

static inline void touch_slot(struct touches *out, const struct plan *plan, const struct op *op)
{
    const struct shipment *s = &plan->shipment[op->shipment];
    if (s->backward) {
        touch_gradient(out, plan, s->to, s->key, op->microbatch, true);
    } else {
        touch(out, true, SLOT, plan_rank_of(plan, s->to), s->key, op->microbatch % s->slots);
    }
}

/* A key that is read: in a frame of this rank or in an arrival slot. */
static inline void touch_key_read(struct touches *out, const struct plan *plan, const struct op *op,
                                  int key)
{
    int producer = plan->graph->key[key].producer;
    int home = plan_stage_of(plan, producer), rank = plan_rank_of(plan, op->stage);
    if (plan_rank_of(plan, home) == rank) {
        touch(out, false, FRAME, home, producer, op->microbatch % plan->stage[home].frames);
    }
    for (int i = 0; i < plan->shipments; i++) {
        const struct shipment *s = &plan->shipment[i];
        if (!s->backward && s->key == key && plan_rank_of(plan, s->to) == rank) {
            touch(out, false, SLOT, rank, key, op->microbatch % s->slots);
        }
    }
}

static inline void touch_keys_read(struct touches *out, const struct plan *plan,
                                   const struct op *op)
{
    for (int key = 0; key < plan->graph->keys; key++) {
        if (!graph_reads(plan->graph, op->unit, key)) {
            continue;
        }
        touch_key_read(out, plan, op, key);
        if (op->kind == OP_B && graph_formed_by(plan->graph, op->unit) == key) {
            touch_gradient(out, plan, op->stage, key, op->microbatch, true);
        }
    }
}

static inline void touch_unit(struct touches *out, const struct plan *plan, const struct op *op)
{
    touch(out, op->kind == OP_F, FRAME, op->stage, op->unit, op->frame);
    if (op->kind == OP_F) {
        touch(out, false, VALUES, op->unit, 0, 0);
    }
    if (op->kind != OP_W) {
        touch_keys_read(out, plan, op);
    } else {
        touch(out, true, WEIGHTS, op->unit, 0, 0);
    }
    if (op->kind == OP_F) {
        return;
    }
    touch(out, op->kind == OP_B, LEFTOVER, op->unit, op->backward_slot, 0);
    for (int key = 0; key < plan->graph->keys; key++) {
        if (plan->graph->key[key].producer == op->unit && plan->stage[op->stage].sum[key] >= 0) {
            touch_gradient(out, plan, op->stage, key, op->microbatch, false);
        }
    }
}

static inline void touch_send(struct touches *out, const struct plan *plan, const struct op *op)
{
    touch(out, op->kind == OP_PUT, MESSAGE, op->shipment, op->microbatch, 0);
    if (plan->shipment[op->shipment].backward) {
        touch_gradient(out, plan, op->stage, op->key, op->microbatch, false);
    } else {
        touch(out, false, FRAME, op->stage, plan->graph->key[op->key].producer, op->frame);
    }
}

/* What replicas do together: in one order, before the norm or after the step. */
static inline void touch_shared(struct touches *out, const struct op *op)
{
    bool sum = op->kind == OP_REDUCE || op->kind == OP_REDUCED;
    touch(out, true, sum ? WEIGHTS : VALUES, op->unit, 0, 0);
    touch(out, true, QUEUE, (int)op->kind, 0, 0);
    touch(out, false, EVERYTHING, 0, 0, 0);
}

static inline void touches_of(const struct plan *plan, const struct op *op, struct touches *out)
{
    out->count = 0;
    touch(out, op->kind == OP_NORM || op->kind == OP_STEP, EVERYTHING, 0, 0, 0);
    if (op->kind == OP_REDUCE || op->kind == OP_REDUCED || op->kind == OP_GATHER ||
        op->kind == OP_GATHERED) {
        touch_shared(out, op);
    } else if (op->kind == OP_POST || op->kind == OP_WAIT || op->kind == OP_PUT) {
        touch(out, true, QUEUE, (int)op->kind, op->shipment, 0);
    }
    if (op->kind == OP_POST || op->kind == OP_WAIT) {
        touch_slot(out, plan, op);
    } else if (op->kind == OP_PUT || op->kind == OP_SENT) {
        touch_send(out, plan, op);
    } else if (op->kind == OP_F || op->kind == OP_B || op->kind == OP_W) {
        touch_unit(out, plan, op);
    } else if (op->kind == OP_GRAD) {
        touch_gradient(out, plan, op->stage, op->key, op->microbatch, true);
        for (int i = op->first_add; i < op->first_add + op->adds; i++) {
            int index = plan->add[i].read;
            const struct read *read = index >= 0 ? &plan->graph->read[index] : NULL;
            if (read && read->kind == READ_MAKES) { /* made of this key on this stage */
                touch_gradient(out, plan, op->stage, read->made, op->microbatch, false);
            } else if (read) {
                touch(out, false, LEFTOVER, read->unit, op->backward_slot, 0);
                if (read->rereads) {
                    touch_key_read(out, plan, op, op->key);
                }
            } else if (index == ADD_PARTIAL) {
                touch_sum(out, plan, plan->stage[op->stage].partial[op->key], op->microbatch,
                          false);
            }
        }
    }
}

/* W at once: from its B to its W a unit has the memory that its stage shares; may `y` not go before `x`? */
static inline bool conflict_shared(const struct plan *plan, const struct op *x, const struct op *y)
{
    if (!plan->weights_at_once || x->stage < 0 || y->stage < 0) {
        return false;
    }
    return (y->kind == OP_B && (x->kind == OP_F || x->kind == OP_B || x->kind == OP_W)) ||
           (y->kind == OP_F && x->kind == OP_W);
}

/* `x` comes before `y`. */
static inline bool conflict(const struct plan *plan, const struct op *x, const struct op *y)
{
    struct touches a, b;
    if (conflict_shared(plan, x, y)) {
        return true;
    }
    touches_of(plan, x, &a);
    touches_of(plan, y, &b);
    for (int i = 0; i < a.count; i++) {
        for (int j = 0; j < b.count; j++) {
            const struct touch *s = &a.touch[i], *t = &b.touch[j];
            if (s->what == t->what && s->a == t->a && s->b == t->b && s->c == t->c &&
                (s->write || t->write)) {
                return true;
            }
        }
    }
    return false;
}

#endif
