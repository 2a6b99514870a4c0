/* rings.c - how many slots everything needs, from the order of a rank's phases.
 *
 * All buffers are rings in the order of microbatches: microbatch m has place m mod n. A place is taken in
 * one phase of its microbatch and let go in another, so the order of the phases tells the least n.
 *
 *     frame            from F to W
 *     backward memory  from B to K and W
 *     arrived key      from F to B of the lowest stage there that reads it, or to its K where additions to
 *                      the key's gradient read the key
 *     sum              from B of the first stage that adds to it, to the W of the producer's stage or until
 *                      the last stage there has sent it
 */
#include <stdlib.h>

#include "schedule/plan_internal.h"

/* For each microbatch the places in the rank's list where something is taken and let go. */
struct lifetime {
    const struct plan *plan;
    const struct phases *phases;
    int *taken, *freed; /* [microbatches] */
};

static int at_most(int value, int limit)
{
    return value < limit ? value : limit;
}

static void lifetime_set(struct lifetime *life, int *places, enum phase_kind kind, int stage)
{
    for (int m = 0; m < life->plan->microbatches; m++) {
        places[m] = phases_at(life->phases, life->plan, kind, stage, m);
    }
}

/* The least ring between what was set. */
static int lifetime_ring(const struct lifetime *life)
{
    int ring = 1, gone = 0;
    for (int m = 0; m < life->plan->microbatches; m++) {
        while (gone < m && life->freed[gone] < life->taken[m]) {
            gone++;
        }
        ring = m - gone + 1 > ring ? m - gone + 1 : ring;
    }
    return ring;
}

static int lifetime_between(struct lifetime *life, enum phase_kind from, int from_stage,
                            enum phase_kind to, int to_stage)
{
    lifetime_set(life, life->taken, from, from_stage);
    lifetime_set(life, life->freed, to, to_stage);
    return lifetime_ring(life);
}

/* Highest stage of the rank that reads a key of this stage in its frame. */
static int last_local_reader(const struct plan *plan, const struct needs *needs, int stage)
{
    int last = stage;
    for (int key = 0; key < plan->graph->keys; key++) {
        size_t i = (size_t)plan->stage[stage].rank * (size_t)plan->graph->keys + (size_t)key;
        if (plan->stage_of[plan->graph->key[key].producer] == stage && needs->last_reader[i] >= 0) {
            int reader = plan->stage_of[needs->last_reader[i]];
            last = reader > last ? reader : last;
        }
    }
    return last;
}

static bool sends_forward(const struct plan *plan, int stage)
{
    for (int i = 0; i < plan->shipments; i++) {
        if (!plan->shipment[i].backward && plan->shipment[i].from == stage) {
            return true;
        }
    }
    return false;
}

/* Without a backward a frame is let go at the last forward that reads it, and a second one lets the next
 * microbatch be made while this one is sent. */
static void size_stage(struct plan *plan, const struct needs *needs, struct lifetime *life,
                       int stage)
{
    struct stage_plan *s = &plan->stage[stage];
    s->backwards = 0;
    if (!plan->training) {
        int last = last_local_reader(plan, needs, stage);
        int ring = lifetime_between(life, PHASE_F, stage, PHASE_F, last);
        s->frames = at_most(ring + sends_forward(plan, stage), plan->microbatches);
        return;
    }
    s->frames = lifetime_between(life, PHASE_F, stage, PHASE_W, stage);
    s->backwards = lifetime_between(life, PHASE_B, stage, PHASE_W, stage);
}

static void size_arrivals(struct plan *plan, const struct needs *needs, struct lifetime *life,
                          int prefetch)
{
    for (int i = 0; i < plan->shipments; i++) {
        struct shipment *s = &plan->shipment[i];
        if (s->backward) {
            continue;
        }
        int in_flight;
        size_t at = (size_t)plan->stage[s->to].rank * (size_t)plan->graph->keys + (size_t)s->key;
        if (plan->training) {
            enum phase_kind end = needs->rereads[at] ? PHASE_K : PHASE_B;
            in_flight = lifetime_between(life, PHASE_F, s->to, end, s->to);
        } else {
            int last = plan->stage_of[needs->last_reader[at]];
            in_flight = lifetime_between(life, PHASE_F, s->to, PHASE_F, last);
            in_flight =
                plan->stage[s->to].frames > in_flight ? plan->stage[s->to].frames : in_flight;
        }
        s->slots = at_most(in_flight + prefetch, plan->microbatches);
    }
}

/* First and last stage that form the sum, and the one that adds it to another (-1: none does). */
static void sum_ends(const struct plan *plan, int sum, int *out_first, int *out_last, int *out_by)
{
    int key = plan->sum[sum].key;
    *out_first = *out_last = *out_by = -1;
    for (int stage = plan->stages - 1; stage >= 0; stage--) {
        if (plan->stage[stage].sum[key] == sum) {
            *out_first = *out_first < 0 ? stage : *out_first;
            *out_last = stage;
        }
        *out_by = plan->stage[stage].partial[key] == sum ? stage : *out_by;
    }
}

/* A sum that is sent on waits for that until the next one is sent, or until its slot is needed. */
static int sum_ring(struct plan *plan, struct lifetime *life, int sum)
{
    int first, last, by, M = plan->microbatches;
    const struct sum *what = &plan->sum[sum];
    sum_ends(plan, sum, &first, &last, &by);
    if (by >= 0) {
        return lifetime_between(life, PHASE_B, first, PHASE_K, by);
    }
    if (plan->stage_of[plan->graph->key[what->key].producer] == last) {
        return lifetime_between(life, PHASE_B, first, PHASE_W, last);
    }
    if (what->shipment < 0) {
        return at_most(
            1 + (first == last ? 1 : lifetime_between(life, PHASE_B, first, PHASE_K, last)), M);
    }
    if (first == last) {
        return 1;
    }
    lifetime_set(life, life->taken, PHASE_B, first);
    for (int m = 0; m < M; m++) {
        life->freed[m] = m + 1 < M ? phases_at(life->phases, plan, PHASE_K, last, m + 1) : 0;
    }
    return lifetime_ring(life);
}

static void size_sums(struct plan *plan, struct lifetime *life, int prefetch)
{
    for (int i = 0; i < plan->sums; i++) {
        struct sum *sum = &plan->sum[i];
        int ring = sum_ring(plan, life, i);
        sum->slots = sum->shipment >= 0 ? at_most(ring + prefetch, plan->microbatches) : ring;
        if (sum->shipment >= 0) {
            plan->shipment[sum->shipment].slots = sum->slots;
        }
    }
}

status_t plan_size_rings(struct plan *plan, const struct needs *needs, const struct phases *phases,
                         int prefetch)
{
    size_t M = (size_t)plan->microbatches;
    struct lifetime life = {.plan = plan, .phases = phases};
    life.taken = malloc(2 * M * sizeof *life.taken);
    if (!life.taken) {
        return FAIL(STATUS_NOMEM, "no memory for the sizes of a plan");
    }
    life.freed = life.taken + M;
    prefetch = at_most(prefetch, plan->microbatches);
    for (int stage = 0; stage < plan->stages; stage++) {
        size_stage(plan, needs, &life, stage);
    }
    size_arrivals(plan, needs, &life, prefetch);
    size_sums(plan, &life, prefetch);
    free(life.taken);
    return STATUS_OK;
}
