/* deadlines.c - when the messages of a plan can leave, when they are needed, and so in which order.
 *
 * By the graph's costs, over links that take no time: a message is due when the rank that gets it would begin to
 * wait for it. The order of all puts is that of these times; equal ones go by the rank that waits and its list.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "schedule/plan_internal.h"

/* Of one message, by its put. */
struct due {
    double put, wait; /* when each begins */
    int to, place;    /* the wait: its rank, and where it stands there */
    int from, op;     /* the put, in the same way */
};

static int by_time(const void *a, const void *b)
{
    const struct due *x = a, *y = b;
    if (x->wait != y->wait) {
        return x->wait < y->wait ? -1 : 1;
    }
    if (x->to != y->to) {
        return x->to < y->to ? -1 : 1;
    }
    if (x->place != y->place) {
        return x->place < y->place ? -1 : 1;
    }
    return (x->op > y->op) - (x->op < y->op);
}

static void note_times(const struct plan *plan, struct span *const *span, struct due *due)
{
    for (int rank = 0; rank < plan->ranks; rank++) {
        const struct rank_plan *list = &plan->rank[rank];
        for (int i = 0; i < list->ops; i++) {
            const struct op *op = &list->op[i];
            struct due *of = &due[op->shipment * plan->microbatches + op->microbatch];
            if (op->kind == OP_WAIT) {
                of->wait = span[rank][i].start;
                of->to = rank;
                of->place = i;
            } else if (op->kind == OP_PUT) {
                of->put = span[rank][i].start;
            }
        }
    }
}

/* due [shipments * microbatches]; all zero where the plan deadlocks, which plan_check will say. */
static status_t find_times(const struct plan *plan, struct due *due, double *out_makespan)
{
    struct span *span[plan->ranks];
    bool stands_still = false;
    size_t ops = 0;
    for (int rank = 0; rank < plan->ranks; rank++) {
        ops += (size_t)plan->rank[rank].ops;
    }
    struct span *all = malloc((ops + 1) * sizeof *all);
    if (!all) {
        return FAIL(STATUS_NOMEM, "no memory for the times of %zu operations", ops);
    }
    ops = 0;
    for (int rank = 0; rank < plan->ranks; rank++) {
        span[rank] = all + ops;
        ops += (size_t)plan->rank[rank].ops;
    }
    status_t status = simulate_times(plan, span, out_makespan, &stands_still);
    if (status == STATUS_OK && !stands_still) {
        note_times(plan, span, due);
    }
    free(all);
    return status;
}

/* Adds the puts of a rank to `sorted`, in the list's own order; how many there are then. */
static int collect_puts(const struct plan *plan, int rank, const struct due *due,
                        struct due *sorted, int count)
{
    const struct rank_plan *list = &plan->rank[rank];
    for (int i = 0; i < list->ops; i++) {
        const struct op *op = &list->op[i];
        if (op->kind == OP_PUT) {
            sorted[count] = due[op->shipment * plan->microbatches + op->microbatch];
            sorted[count].from = rank;
            sorted[count++].op = i;
        }
    }
    return count;
}

/* Times of all messages, and room to sort as many. */
static status_t make_times(const struct plan *plan, struct due **out_due, struct due **out_sorted,
                           double *out_makespan)
{
    size_t messages = (size_t)plan->shipments * (size_t)plan->microbatches;
    *out_due = calloc(2 * messages + 1, sizeof **out_due);
    if (!*out_due) {
        return FAIL(STATUS_NOMEM, "no memory for the order of %zu messages", messages);
    }
    *out_sorted = *out_due + messages;
    return find_times(plan, *out_due, out_makespan);
}

status_t plan_order_puts(struct plan *plan)
{
    struct due *due, *sorted = NULL;
    double makespan;
    status_t status = make_times(plan, &due, &sorted, &makespan);
    plan->puts = 0;
    for (int rank = 0; rank < plan->ranks && status == STATUS_OK; rank++) {
        plan->puts = collect_puts(plan, rank, due, sorted, plan->puts);
    }
    if (status == STATUS_OK) {
        qsort(sorted, (size_t)plan->puts, sizeof *sorted, by_time);
    }
    for (int i = 0; i < plan->puts; i++) {
        plan->rank[sorted[i].from].op[sorted[i].op].order = i;
    }
    free(due);
    return status;
}

static void print_link(const struct plan *plan, const struct due *due, double scale, FILE *out)
{
    const struct op *op = &plan->rank[due->from].op[due->op];
    const struct shipment *s = &plan->shipment[op->shipment];
    char name[GRAPH_NAME + 1];
    snprintf(name, sizeof name, "%s%s", s->backward ? "d" : "", plan->graph->key[s->key].name);
    fprintf(out, "%5d  %-8s  %10d  %7d  %12" PRId64 "  %7.2f  %7.2f  %7.2f\n", op->order, name,
            op->microbatch, due->to, s->bytes, due->put * scale, due->wait * scale,
            (due->wait - due->put) * scale);
}

status_t plan_print_links(const struct plan *plan, int rank, FILE *out)
{
    struct due *due, *sorted = NULL;
    double makespan = 0;
    status_t status = make_times(plan, &due, &sorted, &makespan);
    int puts = status == STATUS_OK ? collect_puts(plan, rank, due, sorted, 0) : 0;
    if (status == STATUS_OK) {
        qsort(sorted, (size_t)puts, sizeof *sorted, by_time);
        fprintf(
            out,
            "messages of rank %d in the order in which they are needed; times in %% of a step by "
            "the costs of the plan\n"
            "place  message   microbatch  to rank         bytes      put   needed    slack\n",
            rank);
    }
    for (int i = 0; i < puts; i++) {
        print_link(plan, &sorted[i], makespan > 0 ? 100 / makespan : 0, out);
    }
    free(due);
    return status;
}
