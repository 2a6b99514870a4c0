/* deadlines.c - when the messages of a plan can leave, when they are needed, and so in which order.
 *
 * By the graph's costs, over links that take no time: a message is due when the rank that gets it would begin to
 * wait for it. The order of a rank's puts is that of these times; equal ones go by the lists of the ranks that wait.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "schedule/plan_internal.h"

/* Of one message, by its put. */
struct due {
    double put, wait; /* when each begins */
    int place;        /* of the wait in its list */
    int op;           /* sorted: of the put in its own */
};

static int by_time(const void *a, const void *b)
{
    const struct due *x = a, *y = b;
    if (x->wait != y->wait) {
        return x->wait < y->wait ? -1 : 1;
    }
    return x->place != y->place ? (x->place < y->place ? -1 : 1)
                                : (x->op > y->op) - (x->op < y->op);
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

/* The puts of a rank as they are needed; the number of them. sorted: as many as there are messages, and as long as
 * no times are known the list's own order. */
static int sort_puts(const struct plan *plan, int rank, const struct due *due, struct due *sorted)
{
    const struct rank_plan *list = &plan->rank[rank];
    int puts = 0;
    for (int i = 0; i < list->ops; i++) {
        const struct op *op = &list->op[i];
        if (op->kind == OP_PUT) {
            sorted[puts] = due[op->shipment * plan->microbatches + op->microbatch];
            sorted[puts++].op = i;
        }
    }
    qsort(sorted, (size_t)puts, sizeof *sorted, by_time);
    return puts;
}

/* Room for the times of all messages, and as many to sort. */
static struct due *alloc_due(const struct plan *plan, struct due **out_sorted)
{
    size_t messages = (size_t)plan->shipments * (size_t)plan->microbatches;
    struct due *due = calloc(2 * messages + 1, sizeof *due);
    *out_sorted = due ? due + messages : NULL;
    return due;
}

status_t plan_order_puts(struct plan *plan)
{
    struct due *sorted, *due = alloc_due(plan, &sorted);
    double makespan;
    status_t status = due ? find_times(plan, due, &makespan)
                          : FAIL(STATUS_NOMEM, "no memory for the order of a plan's messages");
    for (int rank = 0; rank < plan->ranks && status == STATUS_OK; rank++) {
        int puts = sort_puts(plan, rank, due, sorted);
        for (int i = 0; i < puts; i++) {
            plan->rank[rank].op[sorted[i].op].order = i;
        }
    }
    free(due);
    return status;
}

status_t plan_print_links(const struct plan *plan, int rank, FILE *out)
{
    struct due *sorted, *due = alloc_due(plan, &sorted);
    double makespan = 0;
    status_t status = due ? find_times(plan, due, &makespan)
                          : FAIL(STATUS_NOMEM, "no memory for the order of a plan's messages");
    int puts = status == STATUS_OK ? sort_puts(plan, rank, due, sorted) : 0;
    double scale = makespan > 0 ? 100 / makespan : 0;
    if (status == STATUS_OK) {
        fprintf(out,
                "messages of rank %d in the order in which they are needed; times in %% of a step "
                "by the costs of the plan\n"
                "place  message   microbatch  to rank         bytes      put   needed    slack\n",
                rank);
    }
    for (int i = 0; i < puts; i++) {
        const struct op *op = &plan->rank[rank].op[sorted[i].op];
        const struct shipment *s = &plan->shipment[op->shipment];
        char name[GRAPH_NAME + 1];
        snprintf(name, sizeof name, "%s%s", s->backward ? "d" : "", plan->graph->key[s->key].name);
        fprintf(out, "%5d  %-8s  %10d  %7d  %12" PRId64 "  %7.2f  %7.2f  %7.2f\n", op->order, name,
                op->microbatch, plan_rank_of(plan, s->to), s->bytes, sorted[i].put * scale,
                sorted[i].wait * scale, (sorted[i].wait - sorted[i].put) * scale);
    }
    free(due);
    return status;
}
