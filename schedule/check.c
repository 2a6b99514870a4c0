/* check.c - the proof that a plan is right: stages and shipments here, what is written in the lists
 * in check_ops.c, what happens when all ranks run them in check_machine.c. Everything expected is
 * derived from the graph and the partition alone.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "schedule/plan_internal.h"

bool check_refuse(const struct checker *checker, int rank, int index, const char *fmt, ...)
{
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

bool check_reads(const struct plan *plan, int stage, int key)
{
    const struct stage_plan *s = &plan->stage[stage];
    for (int unit = s->first_unit; unit < s->first_unit + s->units; unit++) {
        if (graph_reads(plan->graph, unit, key)) {
            return true;
        }
    }
    return false;
}

bool check_adds_read(const struct checker *checker, const struct read *read)
{
    return read->kind == READ_MAKES ? checker->graded[read->made] : true;
}

bool check_adds_to(const struct checker *checker, int stage, int key)
{
    const struct graph *graph = checker->plan->graph;
    const struct stage_plan *s = &checker->plan->stage[stage];
    int end = graph->first_read[s->first_unit + s->units];
    for (int i = graph->first_read[s->first_unit]; i < end; i++) {
        if (graph->read[i].key == key && check_adds_read(checker, &graph->read[i])) {
            return true;
        }
    }
    return false;
}

/* Gradients spread from what is read for good to what it is made of, until none is new. */
static void check_graded(const struct checker *checker)
{
    const struct graph *graph = checker->plan->graph;
    bool more = true;
    while (more) {
        more = false;
        for (int i = 0; i < graph->reads; i++) {
            const struct read *read = &graph->read[i];
            if (!checker->graded[read->key] && check_adds_read(checker, read)) {
                checker->graded[read->key] = true;
                more = true;
            }
        }
    }
}

int check_home(const struct plan *plan, int key)
{
    int stage = 0;
    while (plan->graph->key[key].producer >=
           plan->stage[stage].first_unit + plan->stage[stage].units) {
        stage++;
    }
    return stage;
}

static bool check_stages(const struct checker *checker)
{
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

int check_sum_sender(const struct checker *checker, int to, int key)
{
    for (int stage = to + 1; stage < checker->plan->stages; stage++) {
        if (check_adds_to(checker, stage, key)) {
            return stage;
        }
    }
    return -1;
}

/* Is there to be a shipment of `key` from -> to in this direction? */
static bool shipment_lawful(const struct checker *checker, const struct shipment *s)
{
    const struct plan *plan = checker->plan;
    int home = check_home(plan, s->key);
    if (!s->backward) {
        return s->from == home && s->to != home && check_reads(plan, s->to, s->key);
    }
    bool holds = s->to == home || (s->to > home && check_adds_to(checker, s->to, s->key));
    return plan->training && holds && s->from == check_sum_sender(checker, s->to, s->key);
}

static bool check_shipment(const struct checker *checker, int index)
{
    const struct plan *plan = checker->plan;
    const struct shipment *s = &plan->shipment[index];
    if (s->key < 0 || s->key >= plan->graph->keys || s->from < 0 || s->from >= plan->stages ||
        s->to < 0 || s->to >= plan->stages || !shipment_lawful(checker, s)) {
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
    bool plain = high == low + 1 && key->producer == plan->stage[high].first_unit - 1 && key->plain;
    if (s->plain != plain || s->bytes != key->bytes) {
        return check_refuse(checker, -1, -1, "shipment %d has wrong bytes or colour", index);
    }
    int grad_slots = plan->stage[s->to].grad_slots[s->key];
    if (s->slots < 1 || (s->backward && s->slots != grad_slots)) {
        return check_refuse(checker, -1, -1, "shipment %d has %d slots", index, s->slots);
    }
    return true;
}

static bool check_shipments(const struct checker *checker)
{
    const struct plan *plan = checker->plan;
    int expected = 0;
    for (int stage = 0; stage < plan->stages; stage++) {
        for (int key = 0; key < plan->graph->keys; key++) {
            int home = check_home(plan, key);
            bool adds = plan->training && check_adds_to(checker, stage, key);
            expected += stage != home ? check_reads(plan, stage, key) + adds : 0;
            int slots = plan->stage[stage].grad_slots[key];
            bool holds = adds || (plan->training && stage == home && checker->graded[key]);
            if (slots < 0 || (slots > 0) != holds) {
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

status_t plan_check(const struct plan *plan, char *why, size_t size)
{
    const struct checker checker = {plan, why, size,
                                    calloc((size_t)plan->graph->keys + 1, sizeof(bool))};
    if (checker.graded == NULL) {
        return STATUS_NOMEM;
    }
    check_graded(&checker);
    status_t status =
        check_stages(&checker) && check_shipments(&checker) ? STATUS_OK : STATUS_INTERNAL;
    if (status == STATUS_OK) {
        status = check_ops(&checker);
    }
    if (status == STATUS_OK) {
        status = check_machine(&checker);
    }
    free(checker.graded);
    return status;
}
