/* needs.c - keys, reads and a partition -> shipments.
 *
 * Forward, one shipment from a key's producer to every other stage that reads it. Backward, with
 * s1 < .. < sm of them adding to the gradient, its running sum goes sm -> .. -> s1 -> producer.
 */
#include <stdlib.h>

#include "schedule/plan_internal.h"

static size_t at(const struct plan *plan, int stage, int key)
{
    return (size_t)stage * (size_t)plan->graph->keys + (size_t)key;
}

static int *needs_table(const struct plan *plan)
{
    size_t count = (size_t)plan->stages * (size_t)plan->graph->keys;
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
    free(needs->grad);
    free(needs->formed);
    free(needs->forward_in);
    free(needs->backward_in);
    free(needs->backward_out);
    free(needs);
}

bool needs_adds(const struct needs *needs, const struct read *read)
{
    return read->kind != READ_MAKES || needs->graded[read->made];
}

static void needs_find_readers(const struct plan *plan, struct needs *needs)
{
    for (int stage = 0; stage < plan->stages; stage++) {
        int first = plan->stage[stage].first_unit, end = first + plan->stage[stage].units;
        for (int r = plan->graph->first_read[first]; r < plan->graph->first_read[end]; r++) {
            const struct read *read = &plan->graph->read[r];
            size_t i = at(plan, stage, read->key);
            needs->low[i] = needs->low[i] < 0 ? read->unit : needs->low[i];
            needs->high[i] = read->unit;
            needs->grad[i] = needs_adds(needs, read) ? 1 : needs->grad[i];
            needs->formed[i] = read->kind == READ_FORMS ? 1 : needs->formed[i];
        }
    }
}

static int shipment_add(struct plan *plan, int key, int from, int to, bool backward)
{
    const struct key *what = &plan->graph->key[key];
    int home = plan_stage_of(plan, what->producer);
    const struct stage_plan *made = &plan->stage[home];
    bool newest = what->producer == made->first_unit + made->units - 1 && what->plain;
    plan->shipment[plan->shipments] = (struct shipment){
        .key = key,
        .from = from,
        .to = to,
        .backward = backward,
        .plain = newest && (backward ? to == home && from == home + 1 : to == home + 1),
        .bytes = what->bytes,
    };
    return plan->shipments++;
}

static void needs_add_forward(struct plan *plan, struct needs *needs)
{
    for (int from = 0; from < plan->stages; from++) {
        for (int key = 0; key < plan->graph->keys; key++) {
            if (plan_stage_of(plan, plan->graph->key[key].producer) != from) {
                continue;
            }
            for (int to = 0; to < plan->stages; to++) {
                if (to != from && needs->low[at(plan, to, key)] >= 0) {
                    needs->forward_in[at(plan, to, key)] = shipment_add(plan, key, from, to, false);
                }
            }
        }
    }
}

static void needs_add_backward(struct plan *plan, struct needs *needs)
{
    for (int from = 0; from < plan->stages; from++) {
        for (int key = 0; key < plan->graph->keys; key++) {
            int home = plan_stage_of(plan, plan->graph->key[key].producer);
            if (from == home || needs->grad[at(plan, from, key)] < 0) {
                continue;
            }
            int to = from - 1;
            while (to > home && needs->grad[at(plan, to, key)] < 0) {
                to--;
            }
            int shipment = shipment_add(plan, key, from, to, true);
            needs->backward_out[at(plan, from, key)] = shipment;
            needs->backward_in[at(plan, to, key)] = shipment;
        }
    }
}

status_t needs_create(struct plan *plan, struct needs **out)
{
    struct needs *needs = calloc(1, sizeof *needs);
    if (needs == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for the shipments of a plan");
    }
    needs->low = needs_table(plan);
    needs->high = needs_table(plan);
    needs->grad = needs_table(plan);
    needs->formed = needs_table(plan);
    needs->graded = calloc((size_t)plan->graph->keys + 1, sizeof *needs->graded);
    needs->forward_in = needs_table(plan);
    needs->backward_in = needs_table(plan);
    needs->backward_out = needs_table(plan);
    size_t most = 2 * (size_t)plan->stages * (size_t)plan->graph->keys;
    plan->shipment = calloc(most + 1, sizeof *plan->shipment);
    if (needs->low == NULL || needs->high == NULL || needs->grad == NULL ||
        needs->forward_in == NULL || needs->backward_in == NULL || needs->backward_out == NULL ||
        needs->formed == NULL || needs->graded == NULL || plan->shipment == NULL) {
        needs_destroy(needs);
        return FAIL(STATUS_NOMEM, "no memory for the shipments of a plan");
    }
    for (int key = 0; key < plan->graph->keys; key++) {
        needs->graded[key] = graph_has_grad(plan->graph, key);
    }
    needs_find_readers(plan, needs);
    needs_add_forward(plan, needs);
    if (plan->training) {
        needs_add_backward(plan, needs);
    }
    *out = needs;
    return STATUS_OK;
}
