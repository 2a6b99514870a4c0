/* norm_exchange.c - what the ranks tell each other in a step (norm_exchange.h), and what follows from it. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "runtime/save.h"
#include "runtime/straggler.h"
#include "runtime/trainer.h"

enum { REPORT = sizeof(struct report) / sizeof(double) };

static int stage_params(const struct trainer *trainer, int stage)
{
    const struct stage_plan *own = &trainer->workers.train->plan->stage[stage];
    const int *first = trainer->model->unit_param;
    int params = 0;
    for (int u = 0; u < own->units; u++) {
        params += first[own->unit[u] + 1] - first[own->unit[u]];
    }
    return params;
}

/* Of a place of the pipeline. */
static int place_params(const struct trainer *trainer, int place)
{
    const struct plan *plan = trainer->workers.train->plan;
    int params = 0;
    for (int stage = 0; stage < plan->stages; stage++) {
        params += plan_rank_of(plan, stage) == place ? stage_params(trainer, stage) : 0;
    }
    return params;
}

static int head_place(const struct trainer *trainer)
{
    const struct plan *plan = trainer->workers.train->plan;
    return plan_rank_of(plan, plan_stage_of(plan, trainer->model->graph.units - 1));
}

/* The ranks' shares: [squares of the parameters][losses, head only][report]. */
static status_t count_shares(struct trainer *trainer)
{
    struct norm_exchange *exchange = &trainer->exchange;
    int ranks = group_size(trainer->group);
    exchange->counts = calloc((size_t)ranks, sizeof *exchange->counts);
    if (!exchange->counts) {
        return FAIL(STATUS_NOMEM, "no memory for the exchange of %d ranks", ranks);
    }
    for (int rank = 0; rank < ranks; rank++) {
        int place = mesh_place_of(&trainer->mesh, rank);
        size_t count = (size_t)place_params(trainer, place) + REPORT;
        if (place == head_place(trainer)) {
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

/* The stream's words first, on lines of their own. */
static void lay_memory(struct norm_exchange *exchange, struct arena *memory)
{
    exchange->ready = arena_alloc(memory, sizeof *exchange->ready);
    exchange->go = arena_alloc(memory, sizeof *exchange->go);
    exchange->scale = arena_alloc(memory, (size_t)exchange->depth * sizeof *exchange->scale);
    for (int i = 0; i < exchange->depth; i++) {
        exchange->own[i] = arena_alloc(memory, exchange->own_count * sizeof(double));
    }
}

static status_t create_memory(struct trainer *trainer)
{
    struct norm_exchange *exchange = &trainer->exchange;
    struct device *device = trainer->place.device;
    struct arena measure;
    arena_init_measure(&measure);
    lay_memory(exchange, &measure);
    TRY(arena_create_on(&exchange->memory, device, MEMORY_PINNED, trainer->place.stream,
                        measure.used, "the exchange of a step"));
    lay_memory(exchange, &exchange->memory);
    TRY(device ? device_stream_sync(device, trainer->place.stream) : STATUS_OK);
    for (int i = 0; i < exchange->depth; i++) {
        exchange->scale[i] = -1;
    }
    return STATUS_OK;
}

status_t norm_exchange_create(struct trainer *trainer)
{
    struct norm_exchange *exchange = &trainer->exchange;
    exchange->depth = trainer->place.device ? WALKS_IN_FLIGHT : 1;
    TRY(count_shares(trainer));
    exchange->all = calloc(exchange->all_count, sizeof(double));
    if (!exchange->all) {
        return FAIL(STATUS_NOMEM, "no memory for an exchange of %zu values", exchange->all_count);
    }
    TRY(create_memory(trainer));
    TRY(straggler_create(group_size(trainer->group), trainer->config.health.straggler,
                         &exchange->straggler));
    return trainer->place.device ? norm_thread_create(trainer) : STATUS_OK;
}

void norm_exchange_destroy(struct trainer *trainer)
{
    struct norm_exchange *exchange = &trainer->exchange;
    norm_thread_destroy(trainer);
    straggler_destroy(exchange->straggler);
    if (exchange->memory.base) {
        arena_destroy(&exchange->memory);
    }
    free(exchange->counts);
    free(exchange->all);
}

void norm_exchange_resume(struct trainer *trainer, int64_t step)
{
    trainer->exchange.collected = step;
    if (trainer->exchange.thread) {
        norm_thread_resume(trainer, step);
    }
}

const float *norm_exchange_scale(const struct trainer *trainer, int64_t step)
{
    return &trainer->exchange.scale[step % trainer->exchange.depth];
}

status_t norm_exchange_rehearse(struct trainer *trainer)
{
    struct norm_exchange *exchange = &trainer->exchange;
    memset(exchange->own[0], 0, exchange->own_count * sizeof(double));
    return group_allgatherv(trainer->group, exchange->own[0], exchange->counts, exchange->all);
}

status_t norm_exchange_fill(struct trainer *trainer, double *own)
{
    struct worker *worker = trainer->workers.train;
    int place = trainer->mesh.place;
    size_t bytes = (size_t)trainer->microbatches * sizeof(double);
    TRY(part_gradient_squares(worker->part, own));
    own += place_params(trainer, place);
    if (place != head_place(trainer)) {
        return STATUS_OK;
    }
    if (worker->device) {
        return device_copy(worker->device, own, worker->head.loss_on_device, bytes, worker->stream);
    }
    memcpy(own, worker->head.loss, bytes);
    return STATUS_OK;
}

static void add_report(const struct trainer *trainer, const struct report *report,
                       struct norm_outcome *out)
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
    cost->bytes_collective += (int64_t)report->bytes_collective;
    cost->bytes_tensor += (int64_t)report->bytes_tensor;
    card_add(report, cost);
    out->result.stop |= report->stop > 0;
    out->result.save_due |= report->due > 0;
}

/* Seconds of the step in which the rank waited for nobody. */
static double worked(const struct report *report)
{
    return report->seconds - (report->ns[TRACE_WAIT] + report->ns[TRACE_EXPOSED_PLAIN] +
                              report->ns[TRACE_EXPOSED_DENSE] + report->ns[TRACE_COLLECTIVE] +
                              report->ns[TRACE_TENSOR]) *
                                 1e-9;
}

/* Saves follow each other: when the rank that is furthest behind has come to a step, all have. */
static void add_saved(const struct report *report, bool first, struct step_result *result)
{
    int64_t reached = (int64_t)fabs(report->saved);
    bool failed = report->saved < 0;
    if (first || reached < result->saved) {
        result->saved = reached;
        result->save_failed = failed;
    } else if (reached == result->saved) {
        result->save_failed |= failed;
    }
}

/* Without the sign, which means nothing. */
static double unsigned_nan(double value)
{
    return isnan(value) ? (double)NAN : value;
}

/* What the walk through all shares finds. */
struct sums {
    double squares, loss;
    int microbatches; /* whose losses are in `loss` */
    int bad;          /* first microbatch whose loss is not finite, or -1 */
    double bad_loss;
    int failed_rank; /* -1 = none */
    status_t failed;
};

/* A reason to end, told when it is delivered: after the lines of the steps before. */
__attribute__((format(printf, 3, 4))) static status_t refuse(struct norm_outcome *out,
                                                             status_t status, const char *format,
                                                             ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(out->why, sizeof out->why, format, arguments);
    va_end(arguments);
    return status;
}

/* The first rank that reported a failure ends all; it said itself why. */
static status_t end_with(const struct norm_request *request, const struct sums *sums,
                         struct norm_outcome *out)
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
            sums->bad = sums->microbatches + m;
            sums->bad_loss = losses[m];
        }
        sums->loss += losses[m];
    }
    sums->microbatches += count;
}

/* The squares of all parameters in the order of their table, those of their shares in order, of each the parts': those of a rank lie in
 * the order of its stages at the beginning of what it sent. */
static void add_squares(const struct trainer *trainer, const double *const *sent, struct sums *sums)
{
    const struct plan *plan = trainer->workers.train->plan;
    const struct mesh *mesh = &trainer->mesh;
    int done[plan->ranks];
    memset(done, 0, sizeof done);
    for (int stage = 0; stage < plan->stages; stage++) {
        int place = plan_rank_of(plan, stage);
        for (int p = stage_params(trainer, stage); p > 0; p--, done[place]++) {
            double squares = 0;
            for (int i = 0; i < mesh->dp * mesh->tp; i++) {
                int rank = mesh_rank_at(mesh, place, i / mesh->tp, i % mesh->tp);
                squares += sent[rank][done[place]];
            }
            sums->squares += squares;
        }
    }
}

/* Of all replicas' microbatches, the first replica's first; all parts of tensor parallelism have the same. */
static void add_all_losses(const struct trainer *trainer, const double *const *sent,
                           int microbatches, struct sums *sums)
{
    int head = head_place(trainer), params = place_params(trainer, head);
    for (int replica = 0; replica < trainer->mesh.dp; replica++) {
        int rank = mesh_rank_at(&trainer->mesh, head, replica, 0);
        add_losses(sums, sent[rank] + params, microbatches);
    }
}

/* Walks what all ranks sent. */
static void add_shares(const struct trainer *trainer, const struct norm_request *request,
                       struct sums *sums, struct norm_outcome *out)
{
    const struct norm_exchange *exchange = &trainer->exchange;
    int ranks = group_size(trainer->group);
    const double *sent[ranks], *end = exchange->all;
    for (int rank = 0; rank < ranks; rank++) {
        sent[rank] = end;
        end += exchange->counts[rank] / sizeof *end;
        struct report report;
        memcpy(&report, end - REPORT, sizeof report);
        add_report(trainer, &report, out);
        straggler_add(exchange->straggler, rank, worked(&report));
        add_saved(&report, rank == 0, &out->result);
        if (report.failed != 0 && sums->failed_rank < 0) {
            sums->failed_rank = rank;
            sums->failed = (status_t)report.failed;
        }
    }
    add_squares(trainer, sent, sums);
    add_all_losses(trainer, sent, request->microbatches, sums);
}

/* A loss or norm that is not finite, and may be passed over once more. */
static bool may_skip(const struct trainer *trainer, struct norm_outcome *out)
{
    out->result.skipped = trainer->config.optimizer.on_nan == ON_NAN_SKIP &&
                          trainer->exchange.skipped < trainer->config.optimizer.on_nan_most;
    return out->result.skipped;
}

/* "; 10 steps before it were skipped". */
static const char *skipped_before(const struct trainer *trainer, char *buffer, size_t size)
{
    buffer[0] = '\0';
    if (trainer->exchange.skipped > 0) {
        snprintf(buffer, size,
                 "; %d steps before it were skipped for the like (optimizer.on_nan_most)",
                 trainer->exchange.skipped);
    }
    return buffer;
}

static status_t judge(const struct trainer *trainer, const struct norm_request *request,
                      const struct sums *sums, struct norm_outcome *out)
{
    struct step_result *result = &out->result;
    char before[128];
    if (sums->failed_rank >= 0) {
        out->has_cost = false;
        return end_with(request, sums, out);
    }
    double tokens =
        (double)sums->microbatches * (double)trainer->model->B * (double)trainer->model->T;
    result->loss = sums->bad >= 0 ? unsigned_nan(sums->bad_loss) : sums->loss / tokens;
    result->grad_norm = unsigned_nan(sqrt(sums->squares));
    if (sums->bad >= 0 && !may_skip(trainer, out)) {
        return refuse(
            out, STATUS_NUMERIC,
            "step %lld: the loss of microbatch %d is %g; the weights were left as they were "
            "before this step and nothing was exported (lower optimizer.lr, or look at the "
            "data of this step)%s",
            (long long)request->step, sums->bad, unsigned_nan(sums->bad_loss),
            skipped_before(trainer, before, sizeof before));
    }
    if (sums->bad < 0 && !request->flush && !isfinite(result->grad_norm) &&
        !may_skip(trainer, out)) {
        return refuse(out, STATUS_NUMERIC,
                      "step %lld: the gradient norm is %g although the loss (%g) is finite; the "
                      "weights were left as they were before this step and nothing was exported%s",
                      (long long)request->step, result->grad_norm, result->loss,
                      skipped_before(trainer, before, sizeof before));
    }
    return STATUS_OK;
}

/* The clipping factor; negative where the step changes nothing. */
static double factor_of(const struct norm_request *request, const struct norm_outcome *outcome)
{
    if (outcome->status != STATUS_OK || outcome->result.skipped) {
        return -1;
    }
    double scale = request->clip > 0 ? request->clip / (outcome->result.grad_norm + 1e-6) : 1;
    return (float)(scale < 1 ? scale : 1);
}

void norm_exchange_resolve(struct trainer *trainer, double *own, const struct norm_request *request,
                           struct norm_outcome *out)
{
    struct norm_exchange *exchange = &trainer->exchange;
    struct report report = request->report;
    struct sums sums = {.bad = -1, .failed_rank = -1};
    int64_t cost_step = request->step - trainer->exchange.depth;
    *out = (struct norm_outcome){.step = request->step,
                                 .result.step = request->step,
                                 .cost.step = cost_step,
                                 .has_cost = cost_step > trainer->before,
                                 .scale = -1};
    report.stop = job_stop_requested() ? 1 : 0;
    report.saved = (double)saver_reached(trainer);
    report.due = saver_clock_due(trainer) ? 1 : 0;
    memcpy(own + exchange->own_count - REPORT, &report, sizeof report);
    out->status = group_allgatherv(trainer->group, own, exchange->counts, exchange->all);
    if (out->status != STATUS_OK) {
        out->has_cost = false;
        return;
    }
    add_shares(trainer, request, &sums, out);
    if (out->has_cost && !request->flush) {
        straggler_step(exchange->straggler, cost_step, out->cost.seconds, out->slow,
                       sizeof out->slow);
    }
    out->status = judge(trainer, request, &sums, out);
    out->scale = factor_of(request, out);
    exchange->skipped = out->result.skipped ? exchange->skipped + 1 : 0;
}

static void tell_last_costs(struct trainer *trainer, int64_t refused);

static void tell_skipped(const struct trainer *trainer, const struct step_result *result)
{
    if (result->skipped && group_rank(trainer->group) == 0) {
        log_warn("step %lld is skipped: loss %g, gradient norm %g; the weights are as before",
                 (long long)result->step, result->loss, result->grad_norm);
    }
}

/* A mean over the last ten or so, for the thread that watches. */
static void note_usual(struct trainer *trainer, double seconds)
{
    int64_t usual = atomic_load(&trainer->usual_step), now = (int64_t)(seconds * 1e9);
    atomic_store(&trainer->usual_step, usual > 0 ? usual + (now - usual) / 10 : now);
}

/* What an exchange told, to whoever follows the run; then its status. */
static status_t deliver(struct trainer *trainer, const struct norm_outcome *outcome, bool flush)
{
    bool good = outcome->status == STATUS_OK && !flush;
    if (good) {
        trainer->known = outcome->result;
        saver_note(trainer, &outcome->result);
        tell_skipped(trainer, &outcome->result);
    }
    if (outcome->slow[0] && group_rank(trainer->group) == 0) {
        log_warn("%s", outcome->slow);
    }
    if (outcome->has_cost) {
        note_usual(trainer, outcome->cost.seconds);
    }
    if (trainer->on_known && (good || outcome->has_cost)) {
        trainer->on_known(trainer->known_arg, good ? &outcome->result : NULL,
                          outcome->has_cost ? &outcome->cost : NULL);
    }
    if (outcome->status == STATUS_NUMERIC) {
        tell_last_costs(trainer, outcome->step);
    }
    return outcome->why[0] ? FAIL(outcome->status, "%s", outcome->why) : outcome->status;
}

/* A step that all ranks refused ends the run, and the costs of steps before that its successors would have
 * carried have not been told: by rounds of their own. A norm thread leaves these to us, since it refuses all
 * that follow. */
static void tell_last_costs(struct trainer *trainer, int64_t refused)
{
    struct norm_exchange *exchange = &trainer->exchange;
    double *own = exchange->own[refused % exchange->depth];
    for (int64_t step = refused - exchange->depth + 1; step < refused; step++) {
        struct norm_outcome outcome;
        if (atomic_load(&trainer->step) == refused && /* else it was to ride on the step after */
            trainer_cost_of(trainer, step) != STATUS_OK) {
            return;
        }
        struct norm_request request = {.step = step + exchange->depth,
                                       .microbatches = 1,
                                       .report = trainer->costs.last,
                                       .flush = true};
        memset(own, 0, exchange->own_count * sizeof *own);
        norm_exchange_resolve(trainer, own, &request, &outcome);
        (void)deliver(trainer, &outcome, true);
    }
}

status_t norm_exchange_collect(struct trainer *trainer, int64_t step)
{
    struct norm_exchange *exchange = &trainer->exchange;
    while (exchange->collected < step) {
        int64_t next = exchange->collected + 1;
        if (exchange->thread) {
            norm_thread_wait(trainer, next);
        }
        struct norm_outcome outcome = exchange->outcome[next % exchange->depth];
        trainer->costs.step[next % WALKS_IN_FLIGHT].seconds = outcome.seconds;
        TRY(deliver(trainer, &outcome, false));
        exchange->collected = next;
    }
    return STATUS_OK;
}

status_t norm_exchange_step(void *argument)
{
    struct trainer *trainer = argument;
    struct norm_exchange *exchange = &trainer->exchange;
    int64_t step = atomic_load(&trainer->step);
    int turn = (int)(step % exchange->depth);
    struct norm_request request = {.step = step,
                                   .microbatches = trainer->workers.train->active->microbatches,
                                   .clip = trainer->optimizer ? trainer->optimizer->clip : 0,
                                   .report = trainer->costs.last,
                                   .begun = trainer->costs.begun};
    request.report.failed = (double)trainer->failed;
    TRY(norm_exchange_fill(trainer, exchange->own[turn]));
    if (exchange->thread) {
        return norm_thread_request(trainer, &request);
    }
    enum trace_category before = trace_switch(&trainer->trace, TRACE_WAIT);
    norm_exchange_resolve(trainer, exchange->own[turn], &request, &exchange->outcome[turn]);
    trace_switch(&trainer->trace, before);
    exchange->scale[turn] = (float)exchange->outcome[turn].scale;
    return norm_exchange_collect(trainer, step);
}

/* The costs that no exchange has told yet: as many rounds as they lag behind. */
status_t norm_exchange_flush(struct trainer *trainer)
{
    struct norm_exchange *exchange = &trainer->exchange;
    int64_t steps = atomic_load(&trainer->step);
    TRY(norm_exchange_collect(trainer, steps));
    for (int64_t step = steps - exchange->depth + 1; step <= steps; step++) {
        struct norm_outcome outcome;
        double *own = exchange->own[0];
        memset(own, 0, exchange->own_count * sizeof *own);
        TRY(trainer_cost_of(trainer, step));
        struct norm_request request = {.step = step + exchange->depth,
                                       .microbatches = 1,
                                       .report = trainer->costs.last,
                                       .flush = true};
        request.report.failed = (double)trainer->failed;
        norm_exchange_resolve(trainer, own, &request, &outcome);
        TRY(deliver(trainer, &outcome, true));
    }
    return STATUS_OK;
}
