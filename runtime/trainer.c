/* trainer.c - model, plans and workers of this rank; a step, an evaluation. */
#include "runtime/trainer.h"
#include "runtime/replicas.h"
#include "runtime/resume.h"
#include "runtime/save.h"
#include "runtime/step_audit.h"
#include "runtime/tp_group.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

/* Each pipeline for itself. */
static status_t choose_links(struct trainer *trainer)
{
    const struct run_config *config = &trainer->config;
    struct device *device = trainer->place.device, *own = NULL;
    trainer->links =
        (struct wire_links){.by_order = config->parallel.link_order == LINK_ORDER_DEADLINE,
                            .shared = config->parallel.link_of == LINK_OF_HOST ||
                                      (config->parallel.link_of == LINK_OF_AUTO && !device),
                            .all = config->parallel.links == LINKS_ALL};
    if (config->parallel.link_order == LINK_ORDER_SHARED) {
        return STATUS_OK;
    }
    TRY(group_agree(trainer->mesh.pipeline,
                    device ? STATUS_OK : device_open(DEVICE_HOST, 0, &own)));
    status_t status = wire_links_choose(trainer->mesh.pipeline, trainer->transport,
                                        device ? device : own, trainer->place.stream,
                                        config->parallel.link_window * 1024, &trainer->links);
    device_close(own);
    return status;
}

static status_t choose_transport(struct trainer *trainer)
{
    trainer->transport = trainer->config.parallel.transport;
    if (group_size(trainer->group) == 1 && !trainer->place.device &&
        transport_needs_gpus(trainer->transport)) {
        log_warn(
            "parallel.transport=%s has no use: one rank sends nothing, and more of them on the "
            "host could not, for it carries memory of GPUs",
            trainer->transport);
    }
    return strcmp(trainer->transport, "auto") != 0
               ? STATUS_OK
               : transport_choose(trainer->group, trainer->place.device, trainer->place.stream,
                                  &trainer->transport);
}

/* With full recomputation W follows B at once, in memory that units take turns in, unless the schedule
 * puts it off. */
static bool weights_at_once(const struct run_config *config)
{
    return config->parallel.recompute == RECOMPUTE_FULL &&
           !schedule_delays_weights(config->parallel.schedule) && !config->parallel.replay[0];
}

struct plan_options plan_options_of(const struct run_config *config, int ranks, int microbatches,
                                    bool training)
{
    const char *schedule = config->parallel.schedule;
    return (struct plan_options){
        .ranks = ranks,
        .microbatches = microbatches,
        .replicas = (int)config->parallel.dp,
        .chunks = (int)config->parallel.virtual_stages,
        .schedule = training ? schedule : "forward",
        .beside = schedule,
        .replay = config->parallel.replay[0] ? config->parallel.replay : NULL,
        .partition = config->parallel.partition,
        .prefetch = (int)config->parallel.prefetch,
        .in_flight = (int)config->parallel.in_flight,
        .weights_at_once = weights_at_once(config),
        .sum_order = config->parallel.sum_order == SUM_ORDER_PER_RANK ? SUM_PER_RANK : SUM_SERIAL};
}

struct model_use model_use_of(const struct run_config *config, int64_t B, int64_t T)
{
    return (struct model_use){.B = B,
                              .T = T,
                              .dtype = config->precision == PRECISION_BF16 ? DTYPE_BF16 : DTYPE_F32,
                              .recompute = (enum recompute_choice)config->parallel.recompute,
                              .weights_at_once = weights_at_once(config),
                              .tp = (int)config->parallel.tp,
                              .tp_replicate = config->parallel.tp_keys == TP_KEYS_REPLICATED,
                              .shares = (int)config->parallel.dp};
}

static status_t make_worker(struct trainer *trainer, bool training, int microbatches,
                            const int *sizes, int size_count, const char *purpose,
                            struct worker **out)
{
    static const char *const carriers[] = {
        [COLLECTIVES_AUTO] = "auto", [COLLECTIVES_NCCL] = "nccl", [COLLECTIVES_HOST] = "host"};
    const struct run_config *config = &trainer->config;
    struct worker_options options = {
        .model = trainer->model,
        .kernels = trainer->place.kernels,
        .job = trainer->group,
        .group = trainer->mesh.pipeline,
        .replicas = trainer->mesh.replicas,
        .tensor = trainer->mesh.tensor,
        .carrier = carriers[config->parallel.collectives],
        .transport = trainer->transport,
        .links = trainer->links,
        .purpose = purpose,
        .plan = plan_options_of(config, trainer->mesh.pp, microbatches, training),
        .training = training,
        .threads = trainer->place.threads,
        .share = trainer->mesh.replica,
        .tp_rank = trainer->mesh.tp_rank,
        .trace = &trainer->trace,
        .device = trainer->place.device,
        .stream = trainer->place.stream,
        .lender = trainer->workers.train ? trainer->workers.train : trainer->workers.evaluation};
    options.plan.sizes = sizes;
    options.plan.size_count = size_count;
    options.plan.room = options.lender ? options.lender->plan : NULL;
    return group_agree(trainer->group, worker_create(&options, out));
}

status_t trainer_load_weights(struct trainer *trainer, const char *path)
{
    struct tensor_file *file;
    if (!path) {
        return part_init_weights(trainer_part(trainer), (uint64_t)trainer->config.seed);
    }
    if (checkpoint_here(path)) {
        return resume_weights(trainer->model, trainer_part(trainer), path);
    }
    TRY(tensor_file_open(path, &file));
    status_t status = part_import(trainer_part(trainer), file);
    tensor_file_close(file);
    return status;
}

static const char evaluation_purpose[] = "held-out evaluation";

/* The one with the memory and the wire; NULL while there is none. */
static struct worker *first_worker(const struct trainer *trainer)
{
    return trainer->workers.train ? trainer->workers.train : trainer->workers.evaluation;
}

static void say_staged(const struct worker *worker)
{
    const char *why = worker->wire ? wire_staged(worker->wire) : NULL;
    if (why && group_named(worker->group, worker->rank) == 0) {
        log_info("%s: tensors pass through host memory, %.1f MiB of it pinned on rank 0", why,
                 (double)wire_staging_bytes(worker->wire) / 0x1p20);
    }
}

/* What this rank is doing, for the liveness thread: atomics and constants only. */
static void describe(void *argument, char *buffer, size_t size)
{
    struct trainer *trainer = argument;
    const struct worker *worker =
        atomic_load_explicit(&trainer->workers.walking, memory_order_acquire);
    const char *purpose = worker ? worker->purpose : "";
    const struct plan *plan = NULL;
    const struct op *op = worker ? worker_doing(worker, &plan) : NULL;
    char operation[160];
    snprintf(operation, sizeof operation, "between %s", purpose[0] ? "walks" : "steps");
    if (op) {
        op_print(plan, op, operation, sizeof operation);
    }
    snprintf(buffer, size, "step %lld: %s%s%s", (long long)atomic_load(&trainer->step), purpose,
             purpose[0] ? ": " : "", operation);
}

/* What worker_rehearse leaves out: the squares, and an update that is refused. */
static status_t rehearse_update(struct trainer *trainer)
{
    struct adamw_args args = {.beta1 = 0.9f,
                              .beta2 = 0.9f,
                              .eps = 1,
                              .gradient_scale_at = norm_exchange_scale(trainer, 0),
                              .step = 1};
    CHECK(*args.gradient_scale_at < 0, "an update before the first step");
    part_zero_gradients(trainer->workers.train->part);
    TRY(norm_exchange_fill(trainer, trainer->exchange.own[0]));
    part_adamw(trainer->workers.train->part, &args);
    return worker_settle(trainer->workers.train);
}

static status_t make_forward_worker(struct trainer *trainer, int microbatches, struct worker **slot)
{
    const char *purpose = slot == &trainer->workers.sampling ? "sample" : evaluation_purpose;
    return make_worker(trainer, false, microbatches, NULL, 0, purpose, slot);
}

/* Numbers of microbatches of the smaller steps with which a run begins; returns how many. out [most]. */
static int smaller_sizes(const struct trainer *trainer, int *out)
{
    const struct run_config *config = &trainer->config;
    int64_t steps = config->optimizer.steps;
    int full = trainer->microbatches, count = 0, size = 0;
    for (int64_t step = 1; step <= steps && size < full; step++) {
        int next = microbatches_at(step, steps, (int)config->optimizer.ramp_from, full,
                                   config->optimizer.ramp);
        if (next < full && next != size) {
            out[count++] = next;
        }
        size = next;
    }
    return count;
}

static status_t make_training(struct trainer *trainer, int microbatches)
{
    int *sizes = calloc((size_t)microbatches + 1, sizeof *sizes), count = 0;
    status_t status = sizes ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for the sizes of steps");
    TRY(group_agree(trainer->group, status));
    count = smaller_sizes(trainer, sizes);
    status = make_worker(trainer, true, microbatches, sizes, count, "", &trainer->workers.train);
    for (int i = 0; i < count && status == STATUS_OK; i++) {
        status = worker_add_size(trainer->workers.train, sizes[i]);
    }
    free(sizes);
    return group_agree(trainer->group, status);
}

static status_t make_workers(struct trainer *trainer, const struct trainer_options *options)
{
    TRY(options->training ? make_training(trainer, options->microbatches) : STATUS_OK);
    if (!options->training || options->evaluates) {
        TRY(make_forward_worker(trainer, options->microbatches, &trainer->workers.evaluation));
    }
    return options->samples ? make_forward_worker(trainer, 1, &trainer->workers.sampling)
                            : STATUS_OK;
}

/* What only this rank can do or fail at, once its workers are there. */
static status_t fill_workers(struct trainer *trainer, const struct trainer_options *options)
{
    TRY(options->weights_later ? STATUS_OK : trainer_load_weights(trainer, options->weights));
    if (!trainer->training) {
        return STATUS_OK;
    }
    TRY(norm_exchange_create(trainer));
    TRY(step_audit_create(trainer));
    return trainer->place.device ? rehearse_update(trainer) : STATUS_OK;
}

static status_t make_place_and_model(struct trainer *trainer, const struct trainer_options *options)
{
    TRY(place_choose(trainer));
    struct model_use use = model_use_of(&trainer->config, options->B, options->T);
    return model_create(options->model, &use, &trainer->model);
}

/* Every step of it is collective, or agreed upon afterwards. */
static status_t make_all(struct trainer *trainer, const struct trainer_options *options)
{
    bool first = group_rank(trainer->group) == 0;
    TRY(group_agree(trainer->group, first ? step_audit_allowed(&trainer->config) : STATUS_OK));
    TRY(group_agree(trainer->group, first ? algorithms_check(&trainer->config) : STATUS_OK));
    TRY(mesh_create(&trainer->config, trainer->group, &trainer->mesh));
    TRY(group_agree(trainer->group, make_place_and_model(trainer, options)));
    TRY(mesh_tell(&trainer->mesh));
    TRY(choose_transport(trainer));
    TRY(group_agree(trainer->group, choose_links(trainer)));
    TRY(make_workers(trainer, options));
    say_staged(first_worker(trainer));
    TRY(algorithms_prepare(trainer));
    TRY(group_agree(trainer->group, fill_workers(trainer, options)));
    return trainer->training ? norm_exchange_rehearse(trainer) : STATUS_OK;
}

status_t trainer_create(const struct trainer_options *options, struct trainer **out)
{
    struct trainer *trainer = calloc(1, sizeof *trainer);
    if (!trainer) {
        return FAIL(STATUS_NOMEM, "no memory for a trainer");
    }
    trainer->config = *options->config;
    trainer->group = options->group;
    trainer->training = options->training;
    trainer->microbatches = options->microbatches;
    trace_reset(&trainer->trace);
    status_t status = make_all(trainer, options);
    if (status != STATUS_OK) {
        trainer_destroy(trainer);
        return status;
    }
    group_watch(trainer->group, describe, trainer);
    watch_start(trainer);
    card_open(trainer);
    *out = trainer;
    return STATUS_OK;
}

void trainer_destroy(struct trainer *trainer)
{
    if (!trainer) {
        return;
    }
    struct worker *worker = first_worker(trainer);
    watch_stop(trainer);
    bool idle = !worker || worker_drain(worker);
    group_watch(trainer->group, NULL, NULL);
    if (!idle) {
        log_warn("the stream of rank %d does not end: its memory goes with the process",
                 group_rank(trainer->group));
        return;
    }
    saver_destroy(trainer);
    norm_exchange_destroy(trainer);
    profile_destroy(trainer);
    card_close(trainer);
    worker_destroy(trainer->workers.sampling);
    worker_destroy(trainer->workers.evaluation);
    worker_destroy(trainer->workers.train);
    model_destroy(trainer->model);
    if (trainer->place.device) {
        device_stream_destroy(trainer->place.device, trainer->place.stream);
        device_close(trainer->place.device);
    }
    mesh_destroy(&trainer->mesh);
    free(trainer->algorithms);
    free(trainer);
}

const struct model *trainer_model(const struct trainer *trainer)
{
    return trainer->model;
}

const struct plan *trainer_plan(const struct trainer *trainer)
{
    return first_worker(trainer)->plan;
}

struct part *trainer_part(const struct trainer *trainer)
{
    return first_worker(trainer)->part;
}

struct group *trainer_pipeline(const struct trainer *trainer)
{
    return trainer->mesh.pipeline;
}

struct group *trainer_replicas(const struct trainer *trainer)
{
    return trainer->mesh.replicas;
}

struct group *trainer_tensor(const struct trainer *trainer)
{
    return trainer->mesh.tensor;
}

const char *trainer_carrier(const struct trainer *trainer)
{
    return trainer->training ? replicas_carrier(trainer->workers.train->replicas) : "";
}

const char *trainer_tp_carrier(const struct trainer *trainer)
{
    return tp_group_carrier(first_worker(trainer)->tp);
}

status_t trainer_share_gradients(struct trainer *trainer)
{
    struct worker *worker = trainer->workers.train;
    for (int u = 0; u < trainer->model->graph.units && worker->replicas; u++) {
        TRY(worker_hosts(worker, u) ? replicas_share_gradients(worker->replicas, u) : STATUS_OK);
    }
    return STATUS_OK;
}

bool trainer_on_device(const struct trainer *trainer)
{
    return trainer->place.device != NULL;
}

void trainer_on_head(struct trainer *trainer, trainer_head_fn fn, void *arg)
{
    struct worker *worker = first_worker(trainer);
    worker->head.fn = fn;
    worker->head.arg = arg;
}

void trainer_on_known(struct trainer *trainer, trainer_known_fn fn, void *arg)
{
    trainer->on_known = fn;
    trainer->known_arg = arg;
}

void trainer_fail(struct trainer *trainer, status_t status)
{
    trainer->failed = status;
}

status_t trainer_walk(struct trainer *trainer, struct worker *worker, const struct batch *batch,
                      float loss_scale, const struct worker_hooks *hooks)
{
    atomic_store_explicit(&trainer->workers.walking, worker, memory_order_release);
    if (worker == trainer->workers.train) {
        return worker_walk(worker, batch, loss_scale, hooks);
    }
    profile_pause(trainer);
    status_t status = worker_walk(worker, batch, loss_scale, hooks);
    profile_go_on(trainer);
    return status;
}

/* ---- a step ---- */

static status_t optimizer_step(void *argument)
{
    struct trainer *trainer = argument;
    const struct optimizer_args *optimizer = trainer->optimizer;
    if (!optimizer) {
        return STATUS_OK;
    }
    int64_t step = atomic_load(&trainer->step);
    TRY(saver_before_update(trainer));
    struct adamw_args args = {.lr = (float)optimizer->lr,
                              .beta1 = (float)optimizer->beta1,
                              .beta2 = (float)optimizer->beta2,
                              .eps = (float)optimizer->eps,
                              .weight_decay = (float)optimizer->weight_decay,
                              .gradient_scale_at = norm_exchange_scale(trainer, step),
                              .step = step};
    part_adamw(trainer->workers.train->part, &args);
    return STATUS_OK;
}

/* Payload that this rank has put so far. */
static void count_bytes(const struct worker *worker, int64_t *out_plain, int64_t *out_dense)
{
    *out_plain = *out_dense = 0;
    for (int s = 0; worker->wire && s < worker->plan->shipments; s++) {
        const struct shipment *shipment = &worker->plan->shipment[s];
        if (plan_rank_of(worker->plan, shipment->from) == worker->rank) {
            struct wire_count count;
            wire_counts(worker->wire, s, &count);
            int64_t messages = count.bytes / shipment->bytes;
            *out_plain += messages * shipment->plain_bytes;
            *out_dense += count.bytes - messages * shipment->plain_bytes;
        }
    }
}

/* On a device what is missing then comes when the step is over. */
static void close_step(struct trainer *trainer)
{
    struct report *cost = &trainer->costs.step[atomic_load(&trainer->step) % WALKS_IN_FLIGHT];
    const struct worker *worker = trainer->workers.train;
    int64_t plain, dense, now = trace_now();
    *cost = (struct report){0};
    count_bytes(worker, &plain, &dense);
    cost->bytes_collective =
        (double)replicas_step_bytes(worker->replicas, worker->plan, worker->rank);
    cost->bytes_tensor = (double)tp_group_step_bytes(worker->tp, worker->part, worker->model,
                                                     worker->active->microbatches);
    cost->bytes_plain = (double)(plain - trainer->costs.plain);
    cost->bytes_dense = (double)(dense - trainer->costs.dense);
    if (trainer->place.device) {
        return;
    }
    trace_switch(&trainer->trace, TRACE_OTHER);
    cost->seconds = (double)(now - trainer->costs.begun) * 1e-9;
    for (int c = 0; c < TRACE_CATEGORIES; c++) {
        cost->ns[c] = (double)trainer->trace.ns[c];
    }
}

status_t trainer_cost_of(struct trainer *trainer, int64_t step)
{
    struct report *last = &trainer->costs.last;
    *last = (struct report){0};
    if (step <= trainer->before) {
        return STATUS_OK;
    }
    *last = trainer->costs.step[step % WALKS_IN_FLIGHT];
    if (!trainer->place.device) {
        return STATUS_OK;
    }
    int64_t stalls[STALLS];
    TRY(in_flight_stalls(trainer->workers.train, step - trainer->before - 1, stalls));
    last->ns[TRACE_WAIT] = (double)stalls[STALL_PLAIN];
    last->ns[TRACE_EXPOSED_DENSE] = (double)stalls[STALL_DENSE];
    last->ns[TRACE_COLLECTIVE] = (double)stalls[STALL_REPLICAS];
    last->ns[TRACE_TENSOR] = (double)stalls[STALL_TENSOR];
    double rest = last->seconds * 1e9;
    for (int stall = 0; stall < STALLS; stall++) {
        rest -= (double)stalls[stall];
    }
    last->ns[TRACE_OTHER] = rest > 0 ? rest : 0;
    return STATUS_OK;
}

/* Ranks and streams that wait for us must not hold up the end. What all ranks saw leaves them in order. */
static status_t step_end(struct trainer *trainer, status_t status)
{
    if (status != STATUS_OK && status != STATUS_PEER && status != STATUS_NUMERIC) {
        group_give_up(trainer->group, "this rank failed in a step");
    }
    return status;
}

status_t trainer_step(struct trainer *trainer, const struct batch *batch,
                      const struct optimizer_args *optimizer, struct step_result *out)
{
    const struct model *model = trainer->model;
    int microbatches = batch->microbatches > 0 ? batch->microbatches : trainer->microbatches;
    double tokens =
        (double)trainer->mesh.dp * (double)microbatches * (double)model->B * (double)model->T;
    struct worker_hooks hooks = {norm_exchange_step, optimizer_step, trainer};
    int64_t known = atomic_load(&trainer->step) + 1 - trainer->exchange.depth;
    TRY(norm_exchange_collect(trainer, known));
    TRY(trainer_cost_of(trainer, known));
    card_report(trainer, atomic_load(&trainer->step) + 1);
    trainer->optimizer = optimizer;
    TRY(profile_before(trainer, atomic_fetch_add(&trainer->step, 1) + 1));
    TRY(worker_set_microbatches(trainer->workers.train, microbatches));
    count_bytes(trainer->workers.train, &trainer->costs.plain, &trainer->costs.dense);
    trainer->costs.begun = trace_now();
    trace_reset(&trainer->trace);
    part_zero_gradients(trainer->workers.train->part);
    step_audit_begin(trainer, atomic_load(&trainer->step));
    TRY(step_end(trainer, trainer_walk(trainer, trainer->workers.train, batch,
                                       (float)(1.0 / tokens), &hooks)));
    close_step(trainer);
    TRY(step_audit_end(trainer, atomic_load(&trainer->step)));
    TRY(profile_after(trainer, atomic_load(&trainer->step)));
    *out = trainer->known;
    return STATUS_OK;
}

status_t trainer_settle(struct trainer *trainer, struct step_result *out)
{
    if (trainer->workers.train) {
        TRY(norm_exchange_collect(trainer, atomic_load(&trainer->step)));
        TRY(replicas_settle(trainer->workers.train->replicas));
        TRY(worker_settle(trainer->workers.train));
    }
    if (out) {
        *out = trainer->known;
    }
    return STATUS_OK;
}

status_t trainer_flush(struct trainer *trainer)
{
    return norm_exchange_flush(trainer);
}

status_t trainer_check_traffic(struct trainer *trainer)
{
    TRY(trainer->training ? replicas_settle(trainer->workers.train->replicas) : STATUS_OK);
    return worker_check_traffic(first_worker(trainer));
}

void trainer_resume(struct trainer *trainer, int64_t step)
{
    atomic_store(&trainer->step, step);
    trainer->before = step;
    trainer->known.step = step;
    norm_exchange_resume(trainer, step);
}

/* ---- evaluation ---- */

status_t trainer_forward_worker(struct trainer *trainer, int microbatches, struct worker **slot)
{
    TRY(trainer_settle(trainer, NULL));
    return *slot ? STATUS_OK : make_forward_worker(trainer, microbatches, slot);
}

status_t trainer_evaluate(struct trainer *trainer, const struct batch *batch, double *out_loss)
{
    TRY(trainer_forward_worker(trainer, trainer->microbatches, &trainer->workers.evaluation));
    struct worker *worker = trainer->workers.evaluation;
    TRY(trainer_walk(trainer, worker, batch, 1.0f, NULL));
    TRY(worker_read_loss(worker));
    double loss = 0, all[group_size(trainer->group)];
    int last = trainer->model->graph.units - 1;
    int head = plan_rank_of(worker->plan, plan_stage_of(worker->plan, last));
    for (int m = 0; m < worker->plan->microbatches; m++) {
        loss += worker->head.loss[m];
    }
    TRY(group_allgather(trainer->group, &loss, sizeof loss, all));
    *out_loss = 0;
    for (int replica = 0; replica < trainer->mesh.dp; replica++) {
        *out_loss += all[mesh_rank_at(&trainer->mesh, head, replica, 0)];
    }
    return STATUS_OK;
}
