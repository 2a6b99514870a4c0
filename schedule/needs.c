/* needs.c - keys, reads and a placement -> shipments, and where the sums of gradients are formed.
 *
 * Forward, one shipment from a key's producer to every other rank that reads it, to the lowest of the
 * rank's stages that do. Backward, the stages with a part in the key's gradient hand the sum on until it
 * is at the producer's: to the next lower one (SUM_SERIAL); or first to the next lower one of the same
 * rank, and the lowest of a rank to the lowest of the next rank (SUM_PER_RANK).
 *
 *     stages that read X, on ranks 0 1 0 1; X is made by stage 0
 *     serial     3 -> 2 -> 1 -> 0        three messages
 *     per rank   3 -> 1, 2 -> 0 here,  1 -> 0    one
 *
 * Between two stages of one rank there is no message: the lower one goes on in the same slot, unless it
 * also receives a sum; then it forms its own in the arrival slot, and the other is a partial sum.
 */
#include <stdlib.h>

#include "schedule/plan_internal.h"

static size_t at(const struct plan *plan, int row, int key)
{
    return (size_t)row * (size_t)plan->graph->keys + (size_t)key;
}

static int *needs_table(int rows, int keys)
{
    size_t count = (size_t)rows * (size_t)keys;
    int *table = malloc((count + 1) * sizeof *table);
    for (size_t i = 0; table != NULL && i < count; i++) {
        table[i] = -1;
    }
    return table;
}

void needs_destroy(struct needs *needs)
{
    if (needs == NULL) {
        return;
    }
    free(needs->graded);
    free(needs->low);
    free(needs->high);
    free(needs->formed);
    free(needs->arrives);
    free(needs->last_reader);
    free(needs->rereads);
    free(needs->backward_in);
    free(needs->backward_out);
    free(needs->local_in);
    free(needs->partial_in);
    free(needs->urgent);
    free(needs);
}

static status_t needs_alloc(struct plan *plan, struct needs *needs)
{
    int stages = plan->stages, keys = plan->graph->keys;
    int **const by_stage[] = {&needs->low,         &needs->high,         &needs->formed,
                              &needs->backward_in, &needs->backward_out, &needs->local_in,
                              &needs->partial_in,  &needs->urgent};
    size_t pairs = (size_t)stages * (size_t)keys + (size_t)plan->ranks * (size_t)keys;
    needs->graded = calloc((size_t)keys + 1, sizeof *needs->graded);
    needs->arrives = needs_table(plan->ranks, keys);
    needs->last_reader = needs_table(plan->ranks, keys);
    needs->rereads = calloc((size_t)plan->ranks * (size_t)keys + 1, sizeof *needs->rereads);
    plan->shipment = calloc(pairs + 1, sizeof *plan->shipment);
    plan->sum = calloc((size_t)stages * (size_t)keys + 1, sizeof *plan->sum);
    bool made = needs->graded && needs->arrives && needs->last_reader && needs->rereads &&
                plan->shipment && plan->sum;
    for (size_t i = 0; i < sizeof by_stage / sizeof by_stage[0]; i++) {
        *by_stage[i] = needs_table(stages, keys);
        made = made && *by_stage[i];
    }
    return made ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for the shipments of a plan");
}

/* ---- who reads, who adds ---- */

bool needs_adds(const struct needs *needs, const struct read *read)
{
    return read->kind != READ_MAKES || needs->graded[read->made];
}

static void needs_find_readers(const struct plan *plan, struct needs *needs)
{
    for (int r = 0; r < plan->graph->reads; r++) { /* units ascending */
        const struct read *read = &plan->graph->read[r];
        int stage = plan->stage_of[read->unit];
        size_t i = at(plan, stage, read->key);
        needs->low[i] = needs->low[i] < 0 ? read->unit : needs->low[i];
        needs->high[i] = read->unit;
        needs->formed[i] = read->kind == READ_FORMS ? 1 : needs->formed[i];
        size_t here = at(plan, plan->stage[stage].rank, read->key);
        needs->last_reader[here] = read->unit;
        needs->rereads[here] = needs->rereads[here] || read->rereads;
    }
}

static bool needs_stage_adds(const struct plan *plan, const struct needs *needs, int stage, int key)
{
    const struct stage_plan *s = &plan->stage[stage];
    for (int u = 0; u < s->units; u++) {
        int first = plan->graph->first_read[s->unit[u]];
        for (int r = first; r < plan->graph->first_read[s->unit[u] + 1]; r++) {
            const struct read *read = &plan->graph->read[r];
            if (read->key == key && needs_adds(needs, read)) {
                return true;
            }
        }
    }
    return false;
}

/* ---- shipments ---- */

/* Is the key a plain one, and `stage` the one that a plain pipeline would hand it to? */
static bool needs_is_next(const struct plan *plan, int key, int stage)
{
    const struct key *what = &plan->graph->key[key];
    int next = what->producer + 1;
    return what->plain && next < plan->graph->units && plan->stage_of[next] == stage &&
           plan->stage_of[what->producer] != stage;
}

static int needs_ship(struct plan *plan, int key, int from, int to, bool backward)
{
    struct shipment *out = &plan->shipment[plan->shipments];
    *out = (struct shipment){
        .key = key,
        .from = from,
        .to = to,
        .backward = backward,
        .plain = backward ? plan->stage_of[plan->graph->key[key].producer] == to &&
                                needs_is_next(plan, key, from)
                          : needs_is_next(plan, key, to),
        .bytes = plan->graph->key[key].bytes,
    };
    out->plain_bytes = out->plain ? plan->graph->key[key].plain_bytes : 0;
    return plan->shipments++;
}

static void needs_add_forward(struct plan *plan, struct needs *needs)
{
    for (int from = 0; from < plan->stages; from++) {
        for (int key = 0; key < plan->graph->keys; key++) {
            if (plan->stage_of[plan->graph->key[key].producer] != from) {
                continue;
            }
            for (int to = 0; to < plan->stages; to++) {
                int rank = plan->stage[to].rank;
                if (needs->low[at(plan, to, key)] >= 0 && rank != plan->stage[from].rank &&
                    needs->arrives[at(plan, rank, key)] < 0) {
                    needs->arrives[at(plan, rank, key)] = needs_ship(plan, key, from, to, false);
                }
            }
        }
    }
}

/* ---- the way of a sum ---- */

/* Stages with a part in the key's gradient, from the one that adds first to the producer's. */
static int needs_parts(const struct plan *plan, const struct needs *needs, int key, int *out)
{
    int home = plan->stage_of[plan->graph->key[key].producer], count = 0;
    for (int stage = plan->stages - 1; stage >= 0 && needs->graded[key]; stage--) {
        if (stage == home || needs_stage_adds(plan, needs, stage, key)) {
            out[count++] = stage;
        }
    }
    return count;
}

/* Place in `part` of the stage that gets the sum of the one at place i; `count` if none does. */
static int needs_next_part(const struct plan *plan, const int *part, int count, int i)
{
    if (plan->sum_order == SUM_SERIAL) {
        return i + 1;
    }
    int rank = plan->stage[part[i]].sum_rank, next = i + 1;
    while (next < count && plan->stage[part[next]].sum_rank != rank) { /* of the same rank */
        next++;
    }
    if (next < count) {
        return next;
    }
    for (next = i + 1; next < count; next++) { /* the lowest of another rank */
        bool lowest = true;
        for (int j = next + 1; j < count; j++) {
            lowest = lowest && plan->stage[part[j]].sum_rank != plan->stage[part[next]].sum_rank;
        }
        if (lowest) {
            return next;
        }
    }
    return count;
}

/* The stage at `to` gets the sum of the one at `from` on this rank. If it gets another one too, which the
 * others of its own sum_rank have no part in, it goes on in that one's slot and adds theirs to it. */
static void needs_hand_local(const struct plan *plan, struct needs *needs, int key, int from,
                             int to)
{
    int *in = &needs->local_in[at(plan, to, key)], *partial = &needs->partial_in[at(plan, to, key)];
    bool mate =
        plan->sum_order == SUM_PER_RANK && plan->stage[from].sum_rank == plan->stage[to].sum_rank;
    if (mate && (*in >= 0 || needs->backward_in[at(plan, to, key)] >= 0)) {
        *partial = from;
    } else {
        *partial = *in >= 0 ? *in : *partial;
        *in = from;
    }
}

/* Fills local_in, partial_in, urgent and, of sums between ranks, `to`. */
static void needs_hand_on(const struct plan *plan, struct needs *needs, int key, int *part, int *to)
{
    int count = needs_parts(plan, needs, key, part);
    for (int i = 0; i < count; i++) {
        int next = needs_next_part(plan, part, count, i), from = part[i];
        if (next == count) {
            continue;
        }
        if (plan->stage[from].rank == plan->stage[part[next]].rank) {
            needs_hand_local(plan, needs, key, from, part[next]);
        } else {
            to[at(plan, from, key)] = part[next];
        }
        needs->urgent[at(plan, from, key)] =
            next + 1 == count && needs_is_next(plan, key, from) ? 1 : -1;
    }
    for (int i = 0; i < count; i++) { /* a sum of its own, until needs_place says otherwise */
        plan->stage[part[i]].sum[key] = 0;
    }
}

static void needs_add_backward(struct plan *plan, struct needs *needs, const int *to)
{
    for (int from = 0; from < plan->stages; from++) {
        for (int key = 0; key < plan->graph->keys; key++) {
            int next = to[at(plan, from, key)];
            if (next >= 0) {
                int shipment = needs_ship(plan, key, from, next, true);
                needs->backward_out[at(plan, from, key)] = shipment;
                needs->backward_in[at(plan, next, key)] = shipment;
                needs->partial_in[at(plan, next, key)] = needs->local_in[at(plan, next, key)];
                needs->local_in[at(plan, next, key)] = -1;
            }
        }
    }
}

/* The slots in which each stage forms its sum. A stage's sum comes after those that it goes on from. */
static void needs_place_sums(struct plan *plan, const struct needs *needs)
{
    for (int key = 0; key < plan->graph->keys; key++) {
        for (int stage = plan->stages - 1; stage >= 0; stage--) {
            struct stage_plan *s = &plan->stage[stage];
            size_t i = at(plan, stage, key);
            int above = needs->local_in[i], received = needs->backward_in[i];
            int partial = needs->partial_in[i];
            if (s->sum[key] < 0) {
                continue;
            }
            s->partial[key] = partial >= 0 ? plan->stage[partial].sum[key] : -1;
            if (above >= 0) {
                s->sum[key] = plan->stage[above].sum[key];
                continue;
            }
            s->sum[key] = plan->sums;
            plan->sum[plan->sums++] =
                (struct sum){.key = key, .rank = s->rank, .shipment = received};
        }
    }
}

static status_t needs_fill(struct plan *plan, struct needs *needs)
{
    int *part = malloc((size_t)plan->stages * sizeof *part);
    int *to = needs_table(plan->stages, plan->graph->keys);
    status_t status = needs_alloc(plan, needs);
    if (status == STATUS_OK && (!part || !to)) {
        status = FAIL(STATUS_NOMEM, "no memory for the sums of a plan");
    }
    if (status == STATUS_OK) {
        for (int key = 0; key < plan->graph->keys; key++) {
            needs->graded[key] = graph_has_grad(plan->graph, key);
        }
        needs_find_readers(plan, needs);
        needs_add_forward(plan, needs);
        for (int key = 0; plan->training && key < plan->graph->keys; key++) {
            needs_hand_on(plan, needs, key, part, to);
        }
        needs_add_backward(plan, needs, to);
        needs_place_sums(plan, needs);
    }
    free(part);
    free(to);
    return status;
}

status_t needs_create(struct plan *plan, struct needs **out)
{
    struct needs *needs = calloc(1, sizeof *needs);
    if (needs == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for the shipments of a plan");
    }
    status_t status = needs_fill(plan, needs);
    if (status != STATUS_OK) {
        needs_destroy(needs);
        return status;
    }
    *out = needs;
    return STATUS_OK;
}
