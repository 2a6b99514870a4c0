/* exchange.c - the one exchange of a step: squares of the gradients, losses, and what the step before
 * cost. Every rank gets everything and adds it up in the order of the parameter table, so that norm
 * and loss are the same bits on every rank and for any number of ranks.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/trainer.h"

enum { REPORT = sizeof(struct report) / sizeof(double) };

static int rank_params(const struct trainer *trainer, int rank)
{
    const struct stage_plan *stage = &trainer->train->plan->stage[rank];
    const int *first = trainer->model->unit_param;
    return first[stage->first_unit + stage->units] - first[stage->first_unit];
}

static int head_rank(const struct trainer *trainer)
{
    const struct plan *plan = trainer->train->plan;
    return plan_rank_of(plan, plan_stage_of(plan, trainer->model->graph.units - 1));
}

status_t exchange_create(struct trainer *trainer)
{
    struct exchange *exchange = &trainer->exchange;
    int ranks = trainer->train->plan->ranks;
    exchange->counts = calloc((size_t)ranks, sizeof *exchange->counts);
    if (!exchange->counts) {
        return FAIL(STATUS_NOMEM, "no memory for the exchange of %d ranks", ranks);
    }
    for (int rank = 0; rank < ranks; rank++) {
        size_t count = (size_t)rank_params(trainer, rank) + REPORT;
        if (rank == head_rank(trainer)) {
            count += (size_t)trainer->microbatches;
        }
        exchange->counts[rank] = count * sizeof(double);
        exchange->all_count += count;
        if (rank == group_rank(trainer->group)) {
            exchange->own_count = count;
        }
    }
    exchange->own = calloc(exchange->own_count, sizeof(double));
    exchange->all = calloc(exchange->all_count, sizeof(double));
    if (!exchange->own || !exchange->all) {
        return FAIL(STATUS_NOMEM, "no memory for an exchange of %zu values", exchange->all_count);
    }
    return STATUS_OK;
}

void exchange_destroy(struct exchange *exchange)
{
    free(exchange->counts);
    free(exchange->own);
    free(exchange->all);
}

/* [squares of the parameters][losses, head only][report] */
static status_t exchange_fill(struct trainer *trainer)
{
    int rank = group_rank(trainer->group);
    double *own = trainer->exchange.own;
    TRY(part_gradient_squares(trainer->train->part, own));
    TRY(stage_read_loss(trainer->train));
    own += rank_params(trainer, rank);
    if (rank == head_rank(trainer)) {
        memcpy(own, trainer->train->loss, (size_t)trainer->microbatches * sizeof(double));
        own += trainer->microbatches;
    }
    trainer->last.stop = job_stop_requested() ? 1 : 0;
    trainer->last.failed = (double)trainer->failed;
    memcpy(own, &trainer->last, sizeof trainer->last);
    return STATUS_OK;
}

static void add_report(struct trainer *trainer, const struct report *report)
{
    struct step_cost *cost = &trainer->cost;
    double ranks = group_size(trainer->group);
    cost->seconds += report->seconds / ranks;
    for (int c = 0; c < TRACE_CATEGORIES; c++) {
        double share = report->seconds > 0 ? report->ns[c] * 1e-9 / report->seconds : 0;
        cost->share[c] += share / ranks;
    }
    cost->bytes_plain += (int64_t)report->bytes_plain;
    cost->bytes_dense += (int64_t)report->bytes_dense;
    trainer->result.stop |= report->stop > 0;
}

/* Without the sign, which means nothing. */
static double unsigned_nan(double value)
{
    return isnan(value) ? (double)NAN : value;
}

/* The first rank that reported a failure ends all; it said itself why. */
static status_t end_with(const struct trainer *trainer, int rank, status_t failed)
{
    if (trainer->failed != STATUS_OK) {
        return trainer->failed;
    }
    return FAIL(STATUS_PEER,
                "step %lld: rank %d failed (%s), so this run ends before this step's update; the "
                "message of rank %d says why",
                (long long)atomic_load(&trainer->step), rank, status_name(failed), rank);
}

/* Walks what all ranks sent; *out_squares in the order of the parameter table. */
static status_t exchange_read(struct trainer *trainer, double *out_squares, double *out_loss)
{
    const double *all = trainer->exchange.all;
    double squares = 0, loss = 0, bad_loss = 0;
    int bad = -1; /* first microbatch whose loss is not finite */
    int failed_rank = -1;
    status_t failed = STATUS_OK;
    trainer->cost = (struct step_cost){.step = atomic_load(&trainer->step) - 1};
    for (int rank = 0; rank < group_size(trainer->group); rank++) {
        for (int p = rank_params(trainer, rank); p > 0; p--) {
            squares += *all++;
        }
        if (rank == head_rank(trainer)) {
            for (int m = 0; m < trainer->microbatches; m++, all++) {
                if (m >= trainer->train->active->microbatches) {
                    continue; /* of a larger step before */
                }
                if (!isfinite(*all) && bad < 0) {
                    bad = m;
                    bad_loss = *all;
                }
                loss += *all;
            }
        }
        struct report report;
        memcpy(&report, all, sizeof report);
        add_report(trainer, &report);
        if (report.failed != 0 && failed_rank < 0) {
            failed_rank = rank;
            failed = (status_t)report.failed;
        }
        all += REPORT;
    }
    trainer->has_cost = trainer->cost.step > 0;
    if (failed_rank >= 0) {
        return end_with(trainer, failed_rank, failed);
    }
    if (trainer->has_cost && trainer->on_cost) {
        trainer->on_cost(trainer->cost_arg);
    }
    if (bad >= 0) {
        return FAIL(
            STATUS_NUMERIC,
            "step %lld: the loss of microbatch %d is %g; the weights were left as they were "
            "before this step and nothing was exported (lower optimizer.lr, or look at the "
            "data of this step)",
            (long long)atomic_load(&trainer->step), bad, unsigned_nan(bad_loss));
    }
    *out_squares = squares;
    *out_loss = loss;
    return STATUS_OK;
}

static status_t exchange_run(struct trainer *trainer)
{
    struct exchange *exchange = &trainer->exchange;
    enum trace_category before = trace_switch(&trainer->trace, TRACE_WAIT);
    status_t status =
        group_allgatherv(trainer->group, exchange->own, exchange->counts, exchange->all);
    trace_switch(&trainer->trace, before);
    return status;
}

status_t exchange_norm(void *argument)
{
    struct trainer *trainer = argument;
    double squares, loss;
    TRY(exchange_fill(trainer));
    TRY(exchange_run(trainer));
    TRY(exchange_read(trainer, &squares, &loss));
    double tokens = (double)trainer->train->active->microbatches * (double)trainer->model->B *
                    (double)trainer->model->T;
    trainer->result.loss = loss / tokens;
    trainer->result.grad_norm = sqrt(squares);
    if (!isfinite(trainer->result.grad_norm)) {
        return FAIL(STATUS_NUMERIC,
                    "step %lld: the gradient norm is %g although the loss (%g) is finite; the "
                    "weights were left as they were before this step and nothing was exported",
                    (long long)atomic_load(&trainer->step), unsigned_nan(trainer->result.grad_norm),
                    trainer->result.loss);
    }
    return STATUS_OK;
}

status_t exchange_flush(struct trainer *trainer)
{
    double squares, loss;
    atomic_fetch_add(&trainer->step, 1);
    status_t status = exchange_fill(trainer);
    if (status == STATUS_OK) {
        status = exchange_run(trainer);
    }
    if (status == STATUS_OK) {
        status = exchange_read(trainer, &squares, &loss);
    }
    atomic_fetch_sub(&trainer->step, 1);
    return status;
}
