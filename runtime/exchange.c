/* exchange.c - the one exchange of a step: squares of the gradients, losses, and what an earlier step
 * cost. Every rank gets everything and adds it up in the order of the parameter table, so that norm
 * and loss are the same bits on every rank and for any number of ranks.
 *
 * On the host it happens where the plan says, and costs are those of the step before. On a device the
 * stream leaves the squares and goes on when the clipping factor is there (exchanger.c has the thread
 * between them); costs are those of the step before the one before.
 */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/trainer.h"

enum { REPORT = sizeof(struct report) / sizeof(double) };

static int stage_params(const struct trainer *trainer, int stage)
{
    const struct stage_plan *own = &trainer->train->plan->stage[stage];
    const int *first = trainer->model->unit_param;
    int params = 0;
    for (int u = 0; u < own->units; u++) {
        params += first[own->unit[u] + 1] - first[own->unit[u]];
    }
    return params;
}

static int rank_params(const struct trainer *trainer, int rank)
{
    const struct plan *plan = trainer->train->plan;
    int params = 0;
    for (int stage = 0; stage < plan->stages; stage++) {
        params += plan_rank_of(plan, stage) == rank ? stage_params(trainer, stage) : 0;
    }
    return params;
}

static int head_rank(const struct trainer *trainer)
{
    const struct plan *plan = trainer->train->plan;
    return plan_rank_of(plan, plan_stage_of(plan, trainer->model->graph.units - 1));
}

/* The ranks' shares: [squares of the parameters][losses, head only][report]. */
static status_t count_shares(struct trainer *trainer)
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
    return STATUS_OK;
}

status_t exchange_create(struct trainer *trainer)
{
    struct exchange *exchange = &trainer->exchange;
    TRY(count_shares(trainer));
    exchange->all = calloc(exchange->all_count, sizeof(double));
    if (!exchange->all) {
        return FAIL(STATUS_NOMEM, "no memory for an exchange of %zu values", exchange->all_count);
    }
    if (trainer->device) {
        return exchanger_create(trainer);
    }
    exchange->own[0] = calloc(exchange->own_count, sizeof(double));
    if (!exchange->own[0]) {
        return FAIL(STATUS_NOMEM, "no memory for an exchange of %zu values", exchange->own_count);
    }
    return STATUS_OK;
}

void exchange_destroy(struct trainer *trainer)
{
    struct exchange *exchange = &trainer->exchange;
    if (trainer->device) {
        exchanger_destroy(trainer);
    } else {
        free(exchange->own[0]);
    }
    free(exchange->counts);
    free(exchange->all);
}

status_t exchange_rehearse(struct trainer *trainer)
{
    struct exchange *exchange = &trainer->exchange;
    memset(exchange->own[0], 0, exchange->own_count * sizeof(double));
    return group_allgatherv(trainer->group, exchange->own[0], exchange->counts, exchange->all);
}

/* Squares and losses of the walk just made, to `own`; on a device the stream does it. */
status_t exchange_fill(struct trainer *trainer, double *own)
{
    struct worker *worker = trainer->train;
    int rank = group_rank(trainer->group);
    size_t bytes = (size_t)trainer->microbatches * sizeof(double);
    TRY(part_gradient_squares(worker->part, own));
    own += rank_params(trainer, rank);
    if (rank != head_rank(trainer)) {
        return STATUS_OK;
    }
    if (worker->device) {
        return device_copy(worker->device, own, worker->loss_there, bytes, worker->stream);
    }
    memcpy(own, worker->loss, bytes);
    return STATUS_OK;
}

static void add_report(const struct trainer *trainer, const struct report *report,
                       struct exchanged *out)
{
    struct step_cost *cost = &out->cost;
    double ranks = group_size(trainer->group);
    cost->seconds += report->seconds / ranks;
    for (int c = 0; c < TRACE_CATEGORIES; c++) {
        double share = report->seconds > 0 ? report->ns[c] * 1e-9 / report->seconds : 0;
        cost->share[c] += share / ranks;
    }
    cost->bytes_plain += (int64_t)report->bytes_plain;
    cost->bytes_dense += (int64_t)report->bytes_dense;
    card_add(report, cost);
    out->result.stop |= report->stop > 0;
}

/* Without the sign, which means nothing. */
static double unsigned_nan(double value)
{
    return isnan(value) ? (double)NAN : value;
}

/* What the walk through all shares finds. */
struct sums {
    double squares, loss;
    int bad; /* first microbatch whose loss is not finite, or -1 */
    double bad_loss;
    int failed_rank; /* -1 = none */
    status_t failed;
};

/* A reason to end, told when it is delivered: after the lines of the steps before. */
__attribute__((format(printf, 3, 4))) static status_t refuse(struct exchanged *out, status_t status,
                                                             const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(out->why, sizeof out->why, format, arguments);
    va_end(arguments);
    return status;
}

/* The first rank that reported a failure ends all; it said itself why. */
static status_t end_with(const struct exchange_request *request, const struct sums *sums,
                         struct exchanged *out)
{
    if (request->report.failed != 0) {
        return (status_t)request->report.failed;
    }
    return refuse(out, STATUS_PEER,
                  "step %lld: rank %d failed (%s), so this run ends before this step's update; the "
                  "message of rank %d says why",
                  (long long)request->step, sums->failed_rank, status_name(sums->failed),
                  sums->failed_rank);
}

static void add_losses(struct sums *sums, const double *losses, int count)
{
    for (int m = 0; m < count; m++) {
        if (!isfinite(losses[m]) && sums->bad < 0) {
            sums->bad = m;
            sums->bad_loss = losses[m];
        }
        sums->loss += losses[m];
    }
}

/* The squares of all parameters in the order of their table: those of a rank lie in the order of its stages
 * at the beginning of its share. */
static void add_squares(const struct trainer *trainer, struct sums *sums)
{
    const struct plan *plan = trainer->train->plan;
    const struct exchange *exchange = &trainer->exchange;
    const double *share = exchange->all, *next[plan->ranks];
    for (int rank = 0; rank < plan->ranks; rank++) {
        next[rank] = share;
        share += exchange->counts[rank] / sizeof *share;
    }
    for (int stage = 0; stage < plan->stages; stage++) {
        const double **own = &next[plan_rank_of(plan, stage)];
        for (int p = stage_params(trainer, stage); p > 0; p--) {
            sums->squares += *(*own)++;
        }
    }
}

/* Walks what all ranks sent. */
static void add_shares(const struct trainer *trainer, const struct exchange_request *request,
                       struct sums *sums, struct exchanged *out)
{
    const double *all = trainer->exchange.all;
    add_squares(trainer, sums);
    for (int rank = 0; rank < group_size(trainer->group); rank++) {
        all += rank_params(trainer, rank);
        if (rank == head_rank(trainer)) { /* room is for the largest step */
            add_losses(sums, all, request->microbatches);
            all += trainer->microbatches;
        }
        struct report report;
        memcpy(&report, all, sizeof report);
        add_report(trainer, &report, out);
        if (report.failed != 0 && sums->failed_rank < 0) {
            sums->failed_rank = rank;
            sums->failed = (status_t)report.failed;
        }
        all += REPORT;
    }
}

static status_t judge(const struct trainer *trainer, const struct exchange_request *request,
                      const struct sums *sums, struct exchanged *out)
{
    struct step_result *result = &out->result;
    if (sums->failed_rank >= 0) {
        out->has_cost = false;
        return end_with(request, sums, out);
    }
    if (sums->bad >= 0) {
        return refuse(
            out, STATUS_NUMERIC,
            "step %lld: the loss of microbatch %d is %g; the weights were left as they were "
            "before this step and nothing was exported (lower optimizer.lr, or look at the "
            "data of this step)",
            (long long)request->step, sums->bad, unsigned_nan(sums->bad_loss));
    }
    double tokens =
        (double)request->microbatches * (double)trainer->model->B * (double)trainer->model->T;
    result->loss = sums->loss / tokens;
    result->grad_norm = sqrt(sums->squares);
    if (!request->flush && !isfinite(result->grad_norm)) {
        return refuse(out, STATUS_NUMERIC,
                      "step %lld: the gradient norm is %g although the loss (%g) is finite; the "
                      "weights were left as they were before this step and nothing was exported",
                      (long long)request->step, unsigned_nan(result->grad_norm), result->loss);
    }
    return STATUS_OK;
}

void exchange_resolve(struct trainer *trainer, double *own, const struct exchange_request *request,
                      struct exchanged *out)
{
    struct exchange *exchange = &trainer->exchange;
    struct report report = request->report;
    struct sums sums = {.bad = -1, .failed_rank = -1};
    int64_t cost_step = request->step - (trainer->device ? WALKS_AHEAD : 1);
    *out = (struct exchanged){.step = request->step,
                              .result.step = request->step,
                              .cost.step = cost_step,
                              .has_cost = cost_step > 0,
                              .scale = -1};
    report.stop = job_stop_requested() ? 1 : 0;
    memcpy(own + exchange->own_count - REPORT, &report, sizeof report);
    out->status = group_allgatherv(trainer->group, own, exchange->counts, exchange->all);
    if (out->status != STATUS_OK) {
        out->has_cost = false;
        return;
    }
    add_shares(trainer, request, &sums, out);
    out->status = judge(trainer, request, &sums, out);
    if (out->status == STATUS_OK) {
        double scale = request->clip > 0 ? request->clip / (out->result.grad_norm + 1e-6) : 1;
        out->scale = (float)(scale < 1 ? scale : 1);
    }
}

static void tell_last_cost(struct trainer *trainer, int64_t refused);

/* What an exchange told, to whoever follows the run; then its status. */
static status_t deliver(struct trainer *trainer, const struct exchanged *exchanged, bool flush)
{
    bool good = exchanged->status == STATUS_OK && !flush;
    if (good) {
        trainer->known = exchanged->result;
    }
    if (trainer->on_known && (good || exchanged->has_cost)) {
        trainer->on_known(trainer->known_arg, good ? &exchanged->result : NULL,
                          exchanged->has_cost ? &exchanged->cost : NULL);
    }
    if (trainer->device && exchanged->status == STATUS_NUMERIC) {
        tell_last_cost(trainer, exchanged->step);
    }
    return exchanged->why[0] ? FAIL(exchanged->status, "%s", exchanged->why) : exchanged->status;
}

/* A step that all ranks refused ends the run, and the cost of the one before has not been told: by a round
 * of its own, which the exchanger leaves to us, since it refuses all that follow. */
static void tell_last_cost(struct trainer *trainer, int64_t refused)
{
    struct exchange *exchange = &trainer->exchange;
    double *own = exchange->own[refused % WALKS_AHEAD];
    struct exchanged exchanged;
    if (atomic_load(&trainer->step) == refused && /* else it was to ride on the step after */
        trainer_cost_of(trainer, refused - 1) != STATUS_OK) {
        return;
    }
    struct exchange_request request = {.step = refused - 1 + WALKS_AHEAD,
                                       .microbatches = 1,
                                       .report = trainer->last,
                                       .flush = true};
    memset(own, 0, exchange->own_count * sizeof *own);
    exchange_resolve(trainer, own, &request, &exchanged);
    (void)deliver(trainer, &exchanged, true);
}

status_t exchange_collect(struct trainer *trainer, int64_t step)
{
    struct exchanged exchanged;
    if (!trainer->device) {
        return STATUS_OK;
    }
    for (; trainer->collected < step; trainer->collected++) {
        TRY(exchanger_wait(trainer, trainer->collected + 1, &exchanged));
        TRY(deliver(trainer, &exchanged, false));
    }
    return STATUS_OK;
}

status_t exchange_norm(void *argument)
{
    struct trainer *trainer = argument;
    int64_t step = atomic_load(&trainer->step);
    struct exchange_request request = {.step = step,
                                       .microbatches = trainer->train->active->microbatches,
                                       .clip = trainer->optimizer ? trainer->optimizer->clip : 0,
                                       .report = trainer->last};
    request.report.failed = (double)trainer->failed;
    if (trainer->device) {
        return exchanger_request(trainer, &request);
    }
    struct exchanged exchanged;
    double *own = trainer->exchange.own[0];
    TRY(exchange_fill(trainer, own));
    enum trace_category before = trace_switch(&trainer->trace, TRACE_WAIT);
    exchange_resolve(trainer, own, &request, &exchanged);
    trace_switch(&trainer->trace, before);
    trainer->scale = exchanged.scale;
    trainer->collected = step;
    return deliver(trainer, &exchanged, false);
}

/* The costs that no exchange has told yet: as many rounds as they lag behind. */
status_t exchange_flush(struct trainer *trainer)
{
    int rounds = trainer->device ? WALKS_AHEAD : 1;
    int64_t steps = atomic_load(&trainer->step);
    TRY(exchange_collect(trainer, steps));
    for (int round = 1; round <= rounds; round++) {
        struct exchanged exchanged;
        double *own = trainer->exchange.own[0];
        memset(own, 0, trainer->exchange.own_count * sizeof *own);
        TRY(trainer_cost_of(trainer, steps + round - rounds));
        struct exchange_request request = {
            .step = steps + round, .microbatches = 1, .report = trainer->last, .flush = true};
        request.report.failed = (double)trainer->failed;
        exchange_resolve(trainer, own, &request, &exchanged);
        TRY(deliver(trainer, &exchanged, true));
    }
    return STATUS_OK;
}
