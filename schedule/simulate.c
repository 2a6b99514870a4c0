/* simulate.c - when everything would happen if only compute took time.
 *
 * Event-driven over the lists themselves: a rank runs until it needs a message that has not been
 * put or posted, then the next rank goes on. A message lands at the later of its put and its post.
 */
#include <stdlib.h>

#include "schedule/plan_internal.h"

struct simulation {
    const struct plan *plan;
    struct span *const *span; /* [ranks][ops] or NULL */
    int *next;                /* [ranks] */
    double *clock, *busy;     /* [ranks] */
    double *put, *post;       /* [shipments][microbatches] when; -1 = not yet */
    const int *more;          /* [shipments] slots beside the plan's, or NULL */
    bool *held_up;            /* [shipments] out: a rank waited for a slot there; or NULL */
    bool *stands_still;       /* out: a deadlock, which is no error then; or NULL */
};

static double op_cost(const struct plan *plan, const struct op *op)
{
    switch (op->kind) {
    case OP_F:
        return plan->graph->unit[op->unit].forward_cost;
    case OP_B:
        return plan->graph->unit[op->unit].backward_cost;
    case OP_W:
        return plan->graph->unit[op->unit].weight_cost;
    default:
        return 0;
    }
}

/* All ranks leave the norm together; negative while one is missing. */
static double norm_time(const struct simulation *sim)
{
    double time = 0;
    for (int rank = 0; rank < sim->plan->ranks; rank++) {
        const struct rank_plan *list = &sim->plan->rank[rank];
        int next = sim->next[rank];
        if (next < list->ops && list->op[next].kind < OP_NORM) { /* the others end a step */
            return -1;
        }
        time = sim->clock[rank] > time ? sim->clock[rank] : time;
    }
    return time;
}

/* With more slots a message may land as early as that many messages before it. */
static double post_time(const struct simulation *sim, const struct op *op)
{
    size_t row = (size_t)op->shipment * (size_t)sim->plan->microbatches;
    int m = op->microbatch - (sim->more ? sim->more[op->shipment] : 0);
    return m < 0 ? 0 : sim->post[row + (size_t)m];
}

/* When the operation can begin, its own rank aside; negative = not known yet. */
static double op_ready(const struct simulation *sim, const struct op *op)
{
    if (op->kind == OP_NORM) {
        return norm_time(sim);
    }
    if (op->kind != OP_WAIT && op->kind != OP_SENT) {
        return 0;
    }
    size_t row = (size_t)op->shipment * (size_t)sim->plan->microbatches;
    double put = sim->put[row + (size_t)op->microbatch], post = post_time(sim, op);
    return put < 0 || post < 0 ? -1 : put > post ? put : post;
}

static bool simulate_op(struct simulation *sim, int rank)
{
    int index = sim->next[rank];
    const struct op *op = &sim->plan->rank[rank].op[index];
    double ready = op_ready(sim, op);
    if (ready < 0) {
        return false;
    }
    double start = sim->clock[rank] > ready ? sim->clock[rank] : ready;
    if (op->kind == OP_SENT && sim->held_up && ready > sim->clock[rank]) {
        size_t row = (size_t)op->shipment * (size_t)sim->plan->microbatches;
        bool by_slot = ready > sim->put[row + (size_t)op->microbatch];
        sim->held_up[op->shipment] = sim->held_up[op->shipment] || by_slot;
    }
    double cost = op_cost(sim->plan, op);
    if (op->kind == OP_PUT || op->kind == OP_POST) {
        size_t row = (size_t)op->shipment * (size_t)sim->plan->microbatches;
        (op->kind == OP_PUT ? sim->put : sim->post)[row + (size_t)op->microbatch] = start;
    }
    sim->clock[rank] = start + cost;
    sim->busy[rank] += cost;
    if (sim->span != NULL) {
        sim->span[rank][index] = (struct span){start, start + cost};
    }
    sim->next[rank]++;
    return true;
}

static bool simulate_all(struct simulation *sim)
{
    bool moved = true, done = false;
    while (moved && !done) {
        moved = false;
        done = true;
        for (int rank = 0; rank < sim->plan->ranks; rank++) {
            while (sim->next[rank] < sim->plan->rank[rank].ops && simulate_op(sim, rank)) {
                moved = true;
            }
            done = done && sim->next[rank] == sim->plan->rank[rank].ops;
        }
    }
    return done;
}

static bool simulation_init(struct simulation *sim)
{
    size_t ranks = (size_t)sim->plan->ranks;
    size_t messages = (size_t)sim->plan->shipments * (size_t)sim->plan->microbatches;
    sim->next = calloc(ranks, sizeof *sim->next);
    sim->clock = calloc(ranks, sizeof *sim->clock);
    sim->busy = calloc(ranks, sizeof *sim->busy);
    sim->put = malloc((messages + 1) * sizeof *sim->put);
    sim->post = malloc((messages + 1) * sizeof *sim->post);
    if (sim->next == NULL || sim->clock == NULL || sim->busy == NULL || sim->put == NULL ||
        sim->post == NULL) {
        return false;
    }
    for (size_t i = 0; i < messages; i++) {
        sim->put[i] = sim->post[i] = -1;
    }
    return true;
}

static void simulation_fini(struct simulation *sim)
{
    free(sim->next);
    free(sim->clock);
    free(sim->busy);
    free(sim->put);
    free(sim->post);
}

static status_t simulation_run(struct simulation *sim, double *out_busy, double *out_makespan)
{
    const struct plan *plan = sim->plan;
    status_t status = STATUS_OK;
    if (!simulation_init(sim)) {
        status = FAIL(STATUS_NOMEM, "no memory to simulate a plan");
    } else if (!simulate_all(sim)) {
        if (sim->stands_still) {
            *sim->stands_still = true;
        } else {
            status = FAIL(STATUS_INTERNAL, "the plan deadlocks in simulation");
        }
    } else {
        double makespan = 0;
        for (int rank = 0; rank < plan->ranks; rank++) {
            out_busy[rank] = sim->busy[rank];
            makespan = sim->clock[rank] > makespan ? sim->clock[rank] : makespan;
        }
        *out_makespan = makespan;
    }
    simulation_fini(sim);
    return status;
}

status_t simulate_run(const struct plan *plan, struct span *const *span, double *out_busy,
                      double *out_makespan)
{
    struct simulation sim = {.plan = plan, .span = span};
    return simulation_run(&sim, out_busy, out_makespan);
}

status_t simulate_times(const struct plan *plan, struct span *const *span, double *out_makespan,
                        bool *out_stands_still)
{
    double busy[plan->ranks];
    struct simulation sim = {.plan = plan, .span = span, .stands_still = out_stands_still};
    *out_stands_still = false;
    return simulation_run(&sim, busy, out_makespan);
}

status_t simulate_slots(const struct plan *plan, const int *more, bool *out_held_up)
{
    double busy[plan->ranks], makespan;
    struct simulation sim = {.plan = plan, .more = more, .held_up = out_held_up};
    return simulation_run(&sim, busy, &makespan);
}

status_t plan_simulate(const struct plan *plan, double *out_busy, double *out_makespan)
{
    return simulate_run(plan, NULL, out_busy, out_makespan);
}
