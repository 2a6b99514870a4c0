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

/* ---- who has a part in what ---- */

static size_t pair(const struct plan *plan, int stage, int key)
{
    return (size_t)stage * (size_t)plan->graph->keys + (size_t)key;
}

bool check_reads(const struct plan *plan, int stage, int key)
{
    const struct stage_plan *s = &plan->stage[stage];
    for (int i = 0; i < s->units; i++) {
        if (graph_reads(plan->graph, s->unit[i], key)) {
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
    return checker->high[pair(checker->plan, stage, key)] >= 0;
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

static void check_adders(const struct checker *checker)
{
    const struct graph *graph = checker->plan->graph;
    for (int i = 0; i < graph->reads; i++) {
        const struct read *read = &graph->read[i];
        size_t at = pair(checker->plan, checker->host[read->unit], read->key);
        if (check_adds_read(checker, read)) {
            bool first = checker->high[at] < 0;
            checker->low[at] =
                first || read->unit < checker->low[at] ? read->unit : checker->low[at];
            checker->high[at] = read->unit > checker->high[at] ? read->unit : checker->high[at];
        }
    }
}

int check_home(const struct checker *checker, int key)
{
    return checker->host[checker->plan->graph->key[key].producer];
}

bool check_sums(const struct checker *checker, int stage, int key)
{
    bool home = check_home(checker, key) == stage && checker->graded[key];
    return checker->plan->training && (home || check_adds_to(checker, stage, key));
}

/* Of two stages with a part in the key's gradient: does `a` add its reads before `b`? The producer is the
 * last; the others come by their units, descending. */
static bool check_before(const struct checker *checker, int a, int b, int key)
{
    int home = check_home(checker, key);
    if (a == home || b == home) {
        return b == home && a != home;
    }
    return checker->low[pair(checker->plan, a, key)] > checker->high[pair(checker->plan, b, key)];
}

/* The next one after `stage` among the stages with a part that `which` lets by: with `mate`, those of its
 * rank; else the last ones of other ranks, or with SUM_SERIAL all. */
static int check_next(const struct checker *checker, int stage, int key, bool mate)
{
    const struct plan *plan = checker->plan;
    int next = -1;
    for (int other = 0; other < plan->stages; other++) {
        bool same = plan->stage[other].sum_rank == plan->stage[stage].sum_rank;
        bool fits = other != stage && check_sums(checker, other, key) &&
                    check_before(checker, stage, other, key);
        if (plan->sum_order == SUM_PER_RANK) {
            fits = fits && same == mate;
            for (int third = 0; third < plan->stages && fits && !mate; third++) {
                fits = third == other ||
                       plan->stage[third].sum_rank != plan->stage[other].sum_rank ||
                       !check_sums(checker, third, key) || check_before(checker, third, other, key);
            }
        }
        if (fits && (next < 0 || check_before(checker, other, next, key))) {
            next = other;
        }
    }
    return next;
}

static int check_sum_next(const struct checker *checker, int stage, int key)
{
    if (!check_sums(checker, stage, key) || check_home(checker, key) == stage) {
        return -1;
    }
    int mate =
        checker->plan->sum_order == SUM_PER_RANK ? check_next(checker, stage, key, true) : -1;
    return mate >= 0 ? mate : check_next(checker, stage, key, false);
}

void check_sum_before(const struct checker *checker, int stage, int key, int *out_relay,
                      int *out_mate)
{
    const struct plan *plan = checker->plan;
    *out_relay = *out_mate = -1;
    for (int other = 0; other < plan->stages; other++) {
        if (checker->next[pair(plan, other, key)] == stage) {
            bool mate = plan->sum_order == SUM_PER_RANK &&
                        plan->stage[other].sum_rank == plan->stage[stage].sum_rank;
            *(mate ? out_mate : out_relay) = other;
        }
    }
}

/* ---- stages ---- */

static bool check_units(const struct checker *checker)
{
    const struct plan *plan = checker->plan;
    for (int unit = 0; unit < plan->graph->units; unit++) {
        checker->host[unit] = -1;
    }
    for (int stage = 0; stage < plan->stages; stage++) {
        const struct stage_plan *s = &plan->stage[stage];
        for (int i = 0; i < s->units; i++) {
            int unit = s->unit[i];
            bool lawful = unit >= 0 && unit < plan->graph->units && checker->host[unit] < 0 &&
                          (i == 0 || s->unit[i - 1] < unit);
            bool begins = i == 0 || s->unit[i - 1] != unit - 1;
            if (!lawful || (begins && unit > 0 && !plan->graph->unit[unit].may_start)) {
                return check_refuse(checker, -1, -1, "stage %d may not hold unit %d there", stage,
                                    unit);
            }
            checker->host[unit] = stage;
        }
    }
    for (int unit = 0; unit < plan->graph->units; unit++) {
        if (checker->host[unit] < 0 || plan->stage_of[unit] != checker->host[unit]) {
            return check_refuse(checker, -1, -1, "unit %d is on no stage, or on another", unit);
        }
    }
    return true;
}

static bool check_stages(const struct checker *checker)
{
    const struct plan *plan = checker->plan;
    if (plan->ranks < 1 || plan->stages < plan->ranks || plan->microbatches < 1) {
        return check_refuse(checker, -1, -1, "%d ranks, %d stages and %d microbatches", plan->ranks,
                            plan->stages, plan->microbatches);
    }
    for (int stage = 0; stage < plan->stages; stage++) {
        const struct stage_plan *s = &plan->stage[stage];
        if (s->units < 1 || s->units > plan->graph->units || s->rank < 0 ||
            s->rank >= plan->ranks) {
            return check_refuse(checker, -1, -1, "stage %d of %d units is on rank %d", stage,
                                s->units, s->rank);
        }
        if (s->sum_rank != s->rank && plan->ranks > 1) { /* one rank may replay the order of more */
            return check_refuse(checker, -1, -1, "stage %d on rank %d adds up with rank %d", stage,
                                s->rank, s->sum_rank);
        }
        bool backwards = plan->training ? s->backwards >= 1 : s->backwards == 0;
        if (s->frames < 1 || !backwards) {
            return check_refuse(checker, -1, -1, "stage %d has %d frames and %d backward memories",
                                stage, s->frames, s->backwards);
        }
    }
    return check_units(checker);
}

/* ---- shipments ---- */

/* The stage to which a rank's copy of the key comes: the lowest that reads it. */
static int check_receiver(const struct plan *plan, int rank, int key)
{
    for (int stage = 0; stage < plan->stages; stage++) {
        if (plan->stage[stage].rank == rank && check_reads(plan, stage, key)) {
            return stage;
        }
    }
    return -1;
}

/* Is there to be a shipment of `key` from -> to in this direction? */
static bool shipment_lawful(const struct checker *checker, const struct shipment *s)
{
    const struct plan *plan = checker->plan;
    int from = plan->stage[s->from].rank, to = plan->stage[s->to].rank;
    if (from == to) {
        return false;
    }
    if (!s->backward) {
        return s->from == check_home(checker, s->key) && s->to == check_receiver(plan, to, s->key);
    }
    return plan->training && checker->next[pair(plan, s->from, s->key)] == s->to;
}

/* A plain key to the stage that holds the unit after its producer, or back from there. */
static bool shipment_plain(const struct checker *checker, const struct shipment *s)
{
    const struct graph *graph = checker->plan->graph;
    const struct key *key = &graph->key[s->key];
    int home = check_home(checker, s->key), other = s->backward ? s->from : s->to;
    bool at_home = (s->backward ? s->to : s->from) == home;
    return key->plain && at_home && key->producer + 1 < graph->units &&
           checker->host[key->producer + 1] == other;
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
    if (s->plain != shipment_plain(checker, s) || s->bytes != key->bytes ||
        s->plain_bytes != (s->plain ? key->plain_bytes : 0)) {
        return check_refuse(checker, -1, -1, "shipment %d has wrong bytes or colour", index);
    }
    int sum = s->backward ? plan->stage[s->to].sum[s->key] : -1;
    if (s->slots < 1 ||
        (s->backward && (sum < 0 || sum >= plan->sums || plan->sum[sum].shipment != index ||
                         plan->sum[sum].slots != s->slots))) {
        return check_refuse(checker, -1, -1, "shipment %d has %d slots", index, s->slots);
    }
    return true;
}

static bool check_shipments(const struct checker *checker)
{
    const struct plan *plan = checker->plan;
    int expected = 0;
    for (int key = 0; key < plan->graph->keys; key++) {
        int home = check_home(checker, key);
        for (int rank = 0; rank < plan->ranks; rank++) {
            expected += rank != plan->stage[home].rank && check_receiver(plan, rank, key) >= 0;
        }
        for (int stage = 0; stage < plan->stages; stage++) {
            int next = checker->next[pair(plan, stage, key)];
            expected += next >= 0 && plan->stage[next].rank != plan->stage[stage].rank;
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

/* ---- sums ---- */

/* A stage has a sum of its own if it has a part in the gradient; it goes on in the one of another stage of
 * its rank exactly if that hands its sum on and nothing is received. */
static bool check_sum_of(const struct checker *checker, int stage, int key, int *owner)
{
    const struct plan *plan = checker->plan;
    const struct stage_plan *s = &plan->stage[stage];
    int sum = s->sum[key], relay, mate;
    check_sum_before(checker, stage, key, &relay, &mate);
    if ((sum >= 0) != check_sums(checker, stage, key) || sum < -1 || sum >= plan->sums) {
        return check_refuse(checker, -1, -1, "stage %d has sum %d of key %d", stage, sum, key);
    }
    int partial = relay >= 0 && mate >= 0 ? plan->stage[mate].sum[key] : -1;
    if (s->partial[key] != partial) {
        return check_refuse(checker, -1, -1, "stage %d adds sum %d to that of key %d", stage,
                            s->partial[key], key);
    }
    if (sum < 0) {
        return true;
    }
    const struct sum *own = &plan->sum[sum];
    int before = relay >= 0 ? relay : mate;
    bool received = before >= 0 && plan->stage[before].rank != s->rank;
    bool goes_on = before >= 0 && !received;
    bool right = own->key == key && own->rank == s->rank && own->slots >= 1 &&
                 (goes_on ? sum == plan->stage[before].sum[key]
                          : owner[sum] < 0 && (own->shipment >= 0) == received);
    if (!right) {
        return check_refuse(checker, -1, -1,
                            "stage %d cannot form the gradient of key %d in sum %d", stage, key,
                            sum);
    }
    owner[sum] = goes_on ? owner[sum] : stage;
    return true;
}

static bool check_all_sums(const struct checker *checker, int *owner)
{
    const struct plan *plan = checker->plan;
    for (int i = 0; i < plan->sums; i++) {
        owner[i] = -1;
        const struct sum *sum = &plan->sum[i];
        if (sum->shipment >= plan->shipments ||
            (sum->shipment >= 0 && (!plan->shipment[sum->shipment].backward ||
                                    plan->shipment[sum->shipment].key != sum->key))) {
            return check_refuse(checker, -1, -1, "sum %d is received by shipment %d", i,
                                sum->shipment);
        }
    }
    for (int key = 0; key < plan->graph->keys; key++) {
        for (int stage = plan->stages; stage-- > 0;) {
            if (!check_sum_of(checker, stage, key, owner)) {
                return false;
            }
        }
    }
    for (int i = 0; i < plan->sums; i++) {
        if (owner[i] < 0) {
            return check_refuse(checker, -1, -1, "no stage forms sum %d", i);
        }
    }
    return true;
}

/* ---- everything ---- */

static bool check_ways(const struct checker *checker)
{
    const struct plan *plan = checker->plan;
    size_t pairs = (size_t)plan->stages * (size_t)plan->graph->keys;
    for (size_t i = 0; i < pairs; i++) {
        checker->low[i] = checker->high[i] = -1;
    }
    check_graded(checker);
    check_adders(checker);
    for (int key = 0; key < plan->graph->keys; key++) {
        for (int stage = 0; stage < plan->stages; stage++) {
            checker->next[pair(plan, stage, key)] = check_sum_next(checker, stage, key);
        }
    }
    return true;
}

static status_t check_all(const struct checker *checker, int *owner)
{
    if (!check_stages(checker) || !check_ways(checker) || !check_shipments(checker) ||
        !check_all_sums(checker, owner)) {
        return STATUS_INTERNAL;
    }
    TRY(check_ops(checker));
    TRY(check_replicas(checker));
    return check_machine(checker);
}

status_t plan_check(const struct plan *plan, char *why, size_t size)
{
    size_t pairs = (size_t)plan->stages * (size_t)plan->graph->keys;
    int *table =
        calloc(3 * pairs + (size_t)plan->graph->units + (size_t)plan->sums + 1, sizeof *table);
    const struct checker checker = {.plan = plan,
                                    .why = why,
                                    .size = size,
                                    .graded = calloc((size_t)plan->graph->keys + 1, sizeof(bool)),
                                    .low = table,
                                    .high = table + pairs,
                                    .next = table + 2 * pairs,
                                    .host = table + 3 * pairs};
    status_t status = STATUS_NOMEM;
    if (table && checker.graded) {
        status = check_all(&checker, checker.host + plan->graph->units);
    }
    free(table);
    free(checker.graded);
    return status;
}
