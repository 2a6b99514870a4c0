/* worker.c - a worker's memory, allocated once from its plan, and its wire. */
#include "runtime/replicas.h"
#include "runtime/step_audit.h"
#include "runtime/tp_group.h"

#include <stdlib.h>

int part_stages_of(const struct plan *plan, int rank, struct part_stage *out)
{
    int count = 0;
    for (int s = 0; s < plan->stages; s++) {
        const struct stage_plan *stage = &plan->stage[s];
        if (stage->rank == rank) {
            out[count++] = (struct part_stage){.unit = stage->unit,
                                               .units = stage->units,
                                               .frames = stage->frames,
                                               .backwards = stage->backwards};
        }
    }
    return count;
}

static bool receives(const struct worker *worker, int shipment)
{
    return plan_rank_of(worker->plan, worker->plan->shipment[shipment].to) == worker->rank;
}

static void lay_arrivals(struct worker *worker, struct arena *arena)
{
    for (int s = 0; s < worker->plan->shipments; s++) {
        const struct shipment *shipment = &worker->plan->shipment[s];
        for (int slot = 0; receives(worker, s) && slot < shipment->slots; slot++) {
            worker->tables.arrival[s][slot] = arena_alloc(arena, (size_t)shipment->bytes);
        }
    }
}

static void lay_sums(struct worker *worker, struct arena *arena)
{
    const struct plan *plan = worker->plan;
    for (int i = 0; i < plan->sums; i++) {
        const struct sum *sum = &plan->sum[i];
        size_t bytes = (size_t)plan->graph->key[sum->key].bytes;
        for (int slot = 0; sum->rank == worker->rank && slot < sum->slots; slot++) {
            worker->tables.sum[i][slot] = sum->shipment >= 0
                                              ? worker->tables.arrival[sum->shipment][slot]
                                              : arena_alloc(arena, bytes);
        }
    }
}

static int64_t batch_tokens(const struct worker *worker)
{
    return worker->plan->microbatches * worker->model->B * worker->model->T;
}

/* What a GPU needs beside it; the host uses the caller's batch. */
static void lay_batch(struct worker *worker, struct arena *arena)
{
    size_t bytes = (size_t)batch_tokens(worker) * sizeof(int32_t);
    if (!worker->device) {
        return;
    }
    worker->tokens.inputs = arena_alloc(arena, bytes);
    worker->tokens.targets = arena_alloc(arena, bytes);
    worker->tokens.first = arena_alloc(arena, bytes);
    worker->tokens.position = arena_alloc(arena, bytes);
    worker->head.loss_on_device = arena_alloc(arena, (size_t)worker->plan->microbatches *
                                                         sizeof *worker->head.loss_on_device);
}

/* To this rank in a walk. */
static size_t count_puts(const struct worker *worker)
{
    size_t shipments = 0;
    for (int s = 0; s < worker->plan->shipments; s++) {
        shipments += receives(worker, s);
    }
    return shipments * (size_t)worker->plan->microbatches;
}

static status_t create_tables(struct worker *worker)
{
    int shipments = worker->plan->shipments, sums = worker->plan->sums, own = 0;
    worker->tables.arrival = calloc((size_t)shipments + 1, sizeof *worker->tables.arrival);
    worker->tables.sum = calloc((size_t)sums + 1, sizeof *worker->tables.sum);
    worker->tables.local = calloc((size_t)worker->plan->stages, sizeof *worker->tables.local);
    worker->tables.arrives =
        calloc((size_t)worker->plan->graph->keys, sizeof *worker->tables.arrives);
    worker->head.loss = calloc((size_t)worker->plan->microbatches, sizeof *worker->head.loss);
    worker->shorter = calloc((size_t)worker->plan->microbatches, sizeof *worker->shorter);
    worker->tokens.positions =
        calloc((size_t)batch_tokens(worker), sizeof *worker->tokens.positions);
    worker->puts = calloc(count_puts(worker) + 1, sizeof *worker->puts);
    bool made = worker->tables.arrival && worker->tables.sum && worker->tables.local &&
                worker->tables.arrives && worker->head.loss && worker->shorter &&
                worker->tokens.positions && worker->puts;
    for (int s = 0; made && s < shipments; s++) {
        worker->tables.arrival[s] =
            calloc((size_t)worker->plan->shipment[s].slots + 1, sizeof(void *));
        made = worker->tables.arrival[s] != NULL;
    }
    for (int i = 0; made && i < sums; i++) {
        worker->tables.sum[i] = calloc((size_t)worker->plan->sum[i].slots + 1, sizeof(void *));
        made = worker->tables.sum[i] != NULL;
    }
    for (int s = 0; made && s < worker->plan->stages; s++) {
        worker->tables.local[s] = plan_rank_of(worker->plan, s) == worker->rank ? own++ : -1;
    }
    for (int key = 0; made && key < worker->plan->graph->keys; key++) {
        worker->tables.arrives[key] = -1;
    }
    for (int s = 0; made && s < shipments; s++) {
        const struct shipment *shipment = &worker->plan->shipment[s];
        if (!shipment->backward && receives(worker, s)) {
            worker->tables.arrives[shipment->key] = s;
        }
    }
    return made ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for a worker's tables");
}

static status_t create_slots(struct worker *worker)
{
    struct arena measure;
    TRY(create_tables(worker));
    arena_init_measure(&measure);
    lay_arrivals(worker, &measure);
    worker->bytes.arrivals = (int64_t)measure.used;
    lay_sums(worker, &measure);
    worker->bytes.gradients = (int64_t)measure.used - worker->bytes.arrivals;
    lay_batch(worker, &measure);
    TRY(arena_create_on(&worker->memory, worker->device, MEMORY_DEVICE, worker->stream,
                        measure.used, "arrival and gradient slots"));
    lay_arrivals(worker, &worker->memory);
    lay_sums(worker, &worker->memory);
    lay_batch(worker, &worker->memory);
    return STATUS_OK;
}

/* What another worker lends, so that no memory of a device is taken. */
static status_t borrow_slots(struct worker *worker)
{
    struct worker *lender = worker->lender;
    CHECK(plan_has_room(lender->plan, worker->plan), "no room for %s in another worker's memory",
          worker->purpose);
    TRY(create_tables(worker));
    for (int s = 0; s < worker->plan->shipments; s++) {
        for (int slot = 0; slot < worker->plan->shipment[s].slots; slot++) {
            worker->tables.arrival[s][slot] = lender->tables.arrival[s][slot];
        }
    }
    worker->tokens.inputs = lender->tokens.inputs;
    worker->tokens.targets = lender->tokens.targets;
    worker->tokens.first = lender->tokens.first;
    worker->tokens.position = lender->tokens.position;
    worker->head.loss_on_device = lender->head.loss_on_device;
    worker->wire = lender->wire;
    return STATUS_OK;
}

/* Tells the wire in which order the other ranks put what comes here. */
static status_t expect_puts(struct worker *worker)
{
    const struct plan *plan = worker->active;
    for (int from = 0; worker->wire && from < plan->ranks; from++) {
        const struct rank_plan *sender = &plan->rank[from];
        int count = 0;
        for (int i = 0; from != worker->rank && i < sender->ops; i++) {
            if (sender->op[i].kind == OP_PUT && receives(worker, sender->op[i].shipment)) {
                worker->puts[count++] = sender->op[i].shipment;
            }
        }
        TRY(wire_expect(worker->wire, from, worker->puts, count));
    }
    return STATUS_OK;
}

status_t worker_prepare(struct worker *worker)
{
    struct worker *owner = worker->lender ? worker->lender : worker;
    part_forward_only(worker->part, !worker->plan->training);
    if (owner->expected == worker->active) {
        return STATUS_OK;
    }
    owner->expected = worker->active;
    return expect_puts(worker);
}

/* Bytes free on the GPU; 0 on the host. */
static int64_t room_of(const struct worker *worker)
{
    size_t room = 0, total;
    return worker->device && device_memory(worker->device, &room, &total) == STATUS_OK
               ? (int64_t)room
               : 0;
}

/* Its channels, as wire_connect and wire_place want them, with addresses once there are slots. Freed by the
 * caller; NULL when out of memory. */
static struct wire_channel *channels_of(const struct worker *worker)
{
    int shipments = worker->plan->shipments;
    struct wire_channel *channel = calloc((size_t)shipments + 1, sizeof *channel);
    for (int s = 0; channel && s < shipments; s++) {
        const struct shipment *shipment = &worker->plan->shipment[s];
        channel[s] = (struct wire_channel){.from = plan_rank_of(worker->plan, shipment->from),
                                           .to = plan_rank_of(worker->plan, shipment->to),
                                           .bytes = (size_t)shipment->bytes,
                                           .slots = shipment->slots,
                                           .kind = shipment->plain ? KIND_PLAIN : KIND_DENSE,
                                           .slot = worker->tables.arrival && receives(worker, s)
                                                       ? worker->tables.arrival[s]
                                                       : NULL};
    }
    return channel;
}

/* Of a channel: a walk puts one for each microbatch, and asks for all to have been sent. */
static int messages_ahead(const struct worker *worker)
{
    return worker->plan->microbatches * (worker->device ? WALKS_IN_FLIGHT : 1);
}

/* `place`: the second part, once there are slots. What the transport takes of the GPU is measured. */
static status_t create_wire(struct worker *worker, bool place)
{
    if (worker->plan->ranks == 1) {
        return STATUS_OK;
    }
    struct wire_channel *channel = channels_of(worker);
    if (!channel) {
        return FAIL(STATUS_NOMEM, "no memory for %d channels", worker->plan->shipments);
    }
    const struct wire_options options = {.transport = worker->transport,
                                         .device = worker->device,
                                         .stream = worker->stream,
                                         .under_way = messages_ahead(worker),
                                         .links = worker->links};
    int64_t before = room_of(worker);
    status_t status = place ? wire_place(worker->wire, channel)
                            : wire_connect(worker->group, &options, channel,
                                           worker->plan->shipments, &worker->wire);
    worker->bytes.transport += before - room_of(worker);
    free(channel);
    return status;
}

static status_t create_part(struct worker *worker, const struct worker_options *options)
{
    struct part_stage own[worker->plan->stages];
    struct part_options part = {.model = options->model,
                                .kernels = options->kernels,
                                .stage = own,
                                .stages = part_stages_of(worker->plan, worker->rank, own),
                                .training = options->training,
                                .threads = options->threads,
                                .share = options->share,
                                .tp_rank = options->tp_rank,
                                .tp = tp_group_exchange(worker->tp),
                                .trace = options->trace,
                                .device = options->device,
                                .stream = options->stream};
    TRY(group_agree(worker->group, part_workspace(&part, &worker->bytes.workspace)));
    TRY(worker_check_room(worker));
    return part_create(&part, &worker->part);
}

/* All that is this rank's own; the lender's where there is one. */
static status_t create_memory(struct worker *worker, const struct worker_options *options)
{
    TRY(worker->lender ? STATUS_OK : create_part(worker, options));
    TRY(worker->lender ? borrow_slots(worker) : create_slots(worker));
    if (!worker->device) {
        return STATUS_OK;
    }
    TRY(in_flight_create(worker));
    return worker_rehearse(worker);
}

static status_t create_tp(struct worker *worker, const struct worker_options *options)
{
    const struct tp_group_options tp = {.group = options->tensor,
                                        .device = worker->device,
                                        .stream = worker->stream,
                                        .carrier = options->carrier,
                                        .trace = options->trace};
    return group_agree(worker->job, tp_group_create(&tp, &worker->tp));
}

/* The wire's connections come before memory is taken: what they take for themselves is no longer free
 * when worker_check_room looks. */
static status_t create_all(struct worker *worker, const struct worker_options *options)
{
    TRY(group_agree(worker->job,
                    plan_create(&options->model->graph, &options->plan, &worker->plan)));
    worker->active = worker->plan;
    TRY(group_same(worker->group, plan_hash(worker->plan), "the plan"));
    TRY(worker->lender ? STATUS_OK : create_tp(worker, options));
    TRY(worker->lender ? STATUS_OK : create_wire(worker, false));
    status_t status = create_memory(worker, options);
    if (status == STATUS_NOMEM) {
        worker_explain_memory(worker);
    }
    TRY(group_agree(worker->job, status));
    TRY(worker->lender ? STATUS_OK : create_wire(worker, true));
    const struct replicas_options replicas = {.group = options->replicas,
                                              .model = worker->model,
                                              .part = worker->part,
                                              .device = worker->device,
                                              .stream = worker->stream,
                                              .carrier = options->carrier};
    return options->training ? replicas_create(&replicas, &worker->replicas) : STATUS_OK;
}

status_t worker_create(const struct worker_options *options, struct worker **out)
{
    struct worker *worker = calloc(1, sizeof *worker);
    if (!worker) {
        return FAIL(STATUS_NOMEM, "no memory for a worker");
    }
    worker->model = options->model;
    worker->job = options->job;
    worker->group = options->group;
    worker->rank = group_rank(options->group);
    worker->trace = options->trace;
    worker->purpose = options->purpose;
    worker->plan_options = options->plan;
    worker->plan_options.size_count = 0;
    worker->device = options->device;
    worker->stream = options->stream;
    worker->lender = options->lender;
    worker->part = worker->lender ? worker->lender->part : NULL;
    worker->tp = worker->lender ? worker->lender->tp : NULL;
    worker->transport = options->transport;
    worker->links = options->links;
    status_t status = create_all(worker, options);
    if (status != STATUS_OK) {
        (void)worker_drain(worker);
        worker_destroy(worker);
        return status;
    }
    *out = worker;
    return STATUS_OK;
}

static void free_table(void ***table, int rows)
{
    for (int i = 0; table && i < rows; i++) {
        free(table[i]);
    }
    free(table);
}

void worker_destroy(struct worker *worker)
{
    if (!worker) {
        return;
    }
    if (!worker->lender) {
        wire_destroy(worker->wire);
    }
    replicas_destroy(worker->replicas);
    step_audit_destroy(worker);
    in_flight_destroy(worker);
    if (!worker->lender) {
        part_destroy(worker->part);
        tp_group_destroy(worker->tp);
    }
    if (worker->plan) {
        free_table(worker->tables.arrival, worker->plan->shipments);
        free_table(worker->tables.sum, worker->plan->sums);
    }
    for (int m = 0; worker->shorter && m < worker->plan->microbatches; m++) {
        plan_destroy(worker->shorter[m]);
    }
    free(worker->shorter);
    arena_destroy(&worker->memory);
    free(worker->tables.local);
    free(worker->tables.arrives);
    free(worker->head.loss);
    free(worker->tokens.positions);
    free(worker->puts);
    plan_destroy(worker->plan);
    free(worker);
}

bool worker_hosts(const struct worker *worker, int unit)
{
    return plan_rank_of(worker->plan, plan_stage_of(worker->plan, unit)) == worker->rank;
}

/* Steps may have had fewer microbatches than the plan: those of all steps, and the sums at the end of each. */
static status_t check_tp_traffic(const struct worker *worker)
{
    int64_t sums = tp_group_step_bytes(worker->tp, worker->part, worker->model, 0);
    int64_t each = tp_group_step_bytes(worker->tp, worker->part, worker->model, 1) - sums;
    int64_t predicted = worker->steps * sums + worker->messages[true] * each;
    if (worker->tp_bytes == predicted) {
        return STATUS_OK;
    }
    return FAIL(STATUS_INTERNAL,
                "%lld bytes received from the other ranks of parallel.tp in %lld steps, where the "
                "model's tables say %lld",
                (long long)worker->tp_bytes, (long long)worker->steps, (long long)predicted);
}

status_t worker_check_traffic(const struct worker *worker)
{
    const struct plan *plan = worker->plan;
    for (int s = 0; worker->wire && s < plan->shipments; s++) {
        const struct shipment *shipment = &plan->shipment[s];
        bool sends = plan_rank_of(plan, shipment->from) == worker->rank;
        if (!sends && !receives(worker, s)) {
            continue;
        }
        struct wire_count count;
        wire_counts(worker->wire, s, &count);
        int64_t predicted = shipment->bytes * worker->messages[shipment->backward];
        if (count.bytes != predicted) {
            return FAIL(STATUS_INTERNAL,
                        "%s from stage %d to %d: %lld bytes %s where the plan says %lld",
                        plan->graph->key[shipment->key].name, shipment->from, shipment->to,
                        (long long)count.bytes, sends ? "sent" : "received", (long long)predicted);
        }
    }
    TRY(check_tp_traffic(worker));
    int64_t received = replicas_bytes(worker->replicas);
    int64_t predicted = worker->steps * replicas_step_bytes(worker->replicas, plan, worker->rank);
    if (received != predicted) {
        return FAIL(
            STATUS_INTERNAL,
            "%lld bytes received from the other replicas in %lld steps, where the plan says "
            "%lld",
            (long long)received, (long long)worker->steps, (long long)predicted);
    }
    return STATUS_OK;
}

/* A plan with fewer microbatches is walked in the memory of the whole one. */
status_t worker_add_size(struct worker *worker, int microbatches)
{
    struct plan_options options = worker->plan_options;
    CHECK(microbatches > 0 && microbatches <= worker->plan->microbatches,
          "%d microbatches in a worker made for %d", microbatches, worker->plan->microbatches);
    if (microbatches == worker->plan->microbatches || worker->shorter[microbatches]) {
        return STATUS_OK;
    }
    options.microbatches = microbatches;
    TRY(plan_create(worker->plan->graph, &options, &worker->shorter[microbatches]));
    if (!plan_has_room(worker->plan, worker->shorter[microbatches])) {
        return FAIL(STATUS_UNSUPPORTED,
                    "a step of %d microbatches needs other slots than one of %d under schedule %s; "
                    "use another optimizer.ramp_from, or parallel.schedule=1f1b",
                    microbatches, worker->plan->microbatches, worker->plan->schedule);
    }
    plan_keep_rank(worker->shorter[microbatches], worker->rank);
    return STATUS_OK;
}

status_t worker_set_microbatches(struct worker *worker, int microbatches)
{
    TRY(worker_add_size(worker, microbatches));
    worker->active =
        microbatches < worker->plan->microbatches ? worker->shorter[microbatches] : worker->plan;
    return STATUS_OK;
}

status_t worker_read_loss(struct worker *worker)
{
    size_t bytes = (size_t)worker->plan->microbatches * sizeof *worker->head.loss;
    if (!worker->device) {
        return STATUS_OK;
    }
    TRY(worker_settle(worker));
    TRY(device_copy(worker->device, worker->head.loss, worker->head.loss_on_device, bytes,
                    worker->stream));
    return device_stream_sync(worker->device, worker->stream);
}
