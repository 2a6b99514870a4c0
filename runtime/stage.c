/* stage.c - a stage's memory, allocated once from the plan, and its wire. */
#include "runtime/stage.h"

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

static bool receives(const struct stage *stage, int shipment)
{
    return plan_rank_of(stage->plan, stage->plan->shipment[shipment].to) == stage->rank;
}

static void lay_arrivals(struct stage *stage, struct arena *arena)
{
    for (int s = 0; s < stage->plan->shipments; s++) {
        const struct shipment *shipment = &stage->plan->shipment[s];
        for (int slot = 0; receives(stage, s) && slot < shipment->slots; slot++) {
            stage->arrival[s][slot] = arena_alloc(arena, (size_t)shipment->bytes);
        }
    }
}

static void lay_sums(struct stage *stage, struct arena *arena)
{
    const struct plan *plan = stage->plan;
    for (int i = 0; i < plan->sums; i++) {
        const struct sum *sum = &plan->sum[i];
        size_t bytes = (size_t)plan->graph->key[sum->key].bytes;
        for (int slot = 0; sum->rank == stage->rank && slot < sum->slots; slot++) {
            stage->sum[i][slot] = sum->shipment >= 0 ? stage->arrival[sum->shipment][slot]
                                                     : arena_alloc(arena, bytes);
        }
    }
}

static int64_t batch_tokens(const struct stage *stage)
{
    return stage->plan->microbatches * stage->model->B * stage->model->T;
}

/* What a GPU needs beside it; the host uses the caller's batch. */
static void lay_batch(struct stage *stage, struct arena *arena)
{
    size_t bytes = (size_t)batch_tokens(stage) * sizeof(int32_t);
    if (!stage->device) {
        return;
    }
    stage->inputs = arena_alloc(arena, bytes);
    stage->targets = arena_alloc(arena, bytes);
    stage->first = arena_alloc(arena, bytes);
    stage->position = arena_alloc(arena, bytes);
    stage->loss_there =
        arena_alloc(arena, (size_t)stage->plan->microbatches * sizeof *stage->loss_there);
}

/* To this rank in a walk. */
static size_t count_puts(const struct stage *stage)
{
    size_t shipments = 0;
    for (int s = 0; s < stage->plan->shipments; s++) {
        shipments += receives(stage, s);
    }
    return shipments * (size_t)stage->plan->microbatches;
}

static status_t create_tables(struct stage *stage)
{
    int shipments = stage->plan->shipments, sums = stage->plan->sums, own = 0;
    stage->arrival = calloc((size_t)shipments + 1, sizeof *stage->arrival);
    stage->sum = calloc((size_t)sums + 1, sizeof *stage->sum);
    stage->local = calloc((size_t)stage->plan->stages, sizeof *stage->local);
    stage->arrives = calloc((size_t)stage->plan->graph->keys, sizeof *stage->arrives);
    stage->loss = calloc((size_t)stage->plan->microbatches, sizeof *stage->loss);
    stage->shorter = calloc((size_t)stage->plan->microbatches, sizeof *stage->shorter);
    stage->positions = calloc((size_t)batch_tokens(stage), sizeof *stage->positions);
    stage->puts = calloc(count_puts(stage) + 1, sizeof *stage->puts);
    bool made = stage->arrival && stage->sum && stage->local && stage->arrives && stage->loss &&
                stage->shorter && stage->positions && stage->puts;
    for (int s = 0; made && s < shipments; s++) {
        stage->arrival[s] = calloc((size_t)stage->plan->shipment[s].slots + 1, sizeof(void *));
        made = stage->arrival[s] != NULL;
    }
    for (int i = 0; made && i < sums; i++) {
        stage->sum[i] = calloc((size_t)stage->plan->sum[i].slots + 1, sizeof(void *));
        made = stage->sum[i] != NULL;
    }
    for (int s = 0; made && s < stage->plan->stages; s++) {
        stage->local[s] = plan_rank_of(stage->plan, s) == stage->rank ? own++ : -1;
    }
    for (int key = 0; made && key < stage->plan->graph->keys; key++) {
        stage->arrives[key] = -1;
    }
    for (int s = 0; made && s < shipments; s++) {
        const struct shipment *shipment = &stage->plan->shipment[s];
        if (!shipment->backward && receives(stage, s)) {
            stage->arrives[shipment->key] = s;
        }
    }
    return made ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for the tables of a stage");
}

static status_t create_slots(struct stage *stage)
{
    struct arena measure;
    TRY(create_tables(stage));
    arena_init_measure(&measure);
    lay_arrivals(stage, &measure);
    stage->arrival_bytes = (int64_t)measure.used;
    lay_sums(stage, &measure);
    stage->gradient_bytes = (int64_t)measure.used - stage->arrival_bytes;
    lay_batch(stage, &measure);
    TRY(arena_create_on(&stage->memory, stage->device, MEMORY_DEVICE, stage->stream, measure.used,
                        "arrival and gradient slots"));
    lay_arrivals(stage, &stage->memory);
    lay_sums(stage, &stage->memory);
    lay_batch(stage, &stage->memory);
    return STATUS_OK;
}

/* What another stage lends, so that no memory of a device is taken. */
static status_t borrow_slots(struct stage *stage)
{
    struct stage *lender = stage->lender;
    CHECK(plan_has_room(lender->plan, stage->plan), "no room for %s in another stage's memory",
          stage->purpose);
    TRY(create_tables(stage));
    for (int s = 0; s < stage->plan->shipments; s++) {
        for (int slot = 0; slot < stage->plan->shipment[s].slots; slot++) {
            stage->arrival[s][slot] = lender->arrival[s][slot];
        }
    }
    stage->inputs = lender->inputs;
    stage->targets = lender->targets;
    stage->first = lender->first;
    stage->position = lender->position;
    stage->loss_there = lender->loss_there;
    stage->wire = lender->wire;
    return STATUS_OK;
}

/* Tells the wire in which order the other ranks put what comes here. */
static status_t expect_puts(struct stage *stage)
{
    const struct plan *plan = stage->active;
    for (int from = 0; stage->wire && from < plan->ranks; from++) {
        const struct rank_plan *sender = &plan->rank[from];
        int count = 0;
        for (int i = 0; from != stage->rank && i < sender->ops; i++) {
            if (sender->op[i].kind == OP_PUT && receives(stage, sender->op[i].shipment)) {
                stage->puts[count++] = sender->op[i].shipment;
            }
        }
        TRY(wire_expect(stage->wire, from, stage->puts, count));
    }
    return STATUS_OK;
}

status_t stage_prepare(struct stage *stage)
{
    struct stage *owner = stage->lender ? stage->lender : stage;
    part_forward_only(stage->part, !stage->plan->training);
    if (owner->expected == stage->active) {
        return STATUS_OK;
    }
    owner->expected = stage->active;
    return expect_puts(stage);
}

/* Bytes free on the GPU; 0 on the host. */
static int64_t room_of(const struct stage *stage)
{
    size_t room = 0, total;
    return stage->device && device_memory(stage->device, &room, &total) == STATUS_OK ? (int64_t)room
                                                                                     : 0;
}

/* Its channels, as wire_connect and wire_place want them, with addresses once there are slots. Freed by the
 * caller; NULL when out of memory. */
static struct wire_channel *channels_of(const struct stage *stage)
{
    int shipments = stage->plan->shipments;
    struct wire_channel *channel = calloc((size_t)shipments + 1, sizeof *channel);
    for (int s = 0; channel && s < shipments; s++) {
        const struct shipment *shipment = &stage->plan->shipment[s];
        channel[s] = (struct wire_channel){
            .from = plan_rank_of(stage->plan, shipment->from),
            .to = plan_rank_of(stage->plan, shipment->to),
            .bytes = (size_t)shipment->bytes,
            .slots = shipment->slots,
            .slot = stage->arrival && receives(stage, s) ? stage->arrival[s] : NULL};
    }
    return channel;
}

/* Of a channel: a walk puts one for each microbatch, and asks for all to have been sent. */
static int messages_ahead(const struct stage *stage)
{
    return stage->plan->microbatches * (stage->device ? WALKS_AHEAD : 1);
}

/* `place`: the second part, once there are slots. What the transport takes of the GPU is measured. */
static status_t create_wire(struct stage *stage, bool place)
{
    if (stage->plan->ranks == 1) {
        return STATUS_OK;
    }
    struct wire_channel *channel = channels_of(stage);
    if (!channel) {
        return FAIL(STATUS_NOMEM, "no memory for %d channels", stage->plan->shipments);
    }
    wire_use_device(stage->group, stage->device, stage->stream);
    wire_make_room(stage->group, messages_ahead(stage));
    int64_t before = room_of(stage);
    status_t status = place ? wire_place(stage->wire, channel)
                            : wire_connect(stage->group, stage->transport, channel,
                                           stage->plan->shipments, &stage->wire);
    stage->transport_bytes += before - room_of(stage);
    free(channel);
    return status;
}

static status_t create_part(struct stage *stage, const struct stage_options *options)
{
    struct part_stage own[stage->plan->stages];
    struct part_options part = {.model = options->model,
                                .kernels = options->kernels,
                                .stage = own,
                                .stages = part_stages_of(stage->plan, stage->rank, own),
                                .training = options->training,
                                .threads = options->threads,
                                .trace = options->trace,
                                .device = options->device,
                                .stream = options->stream};
    TRY(group_agree(stage->group, part_workspace(&part, &stage->workspace)));
    TRY(stage_check_room(stage));
    return part_create(&part, &stage->part);
}

/* All that is this rank's own; the lender's where there is one. */
static status_t create_memory(struct stage *stage, const struct stage_options *options)
{
    TRY(stage->lender ? STATUS_OK : create_part(stage, options));
    TRY(stage->lender ? borrow_slots(stage) : create_slots(stage));
    if (!stage->device) {
        return STATUS_OK;
    }
    TRY(ahead_create(stage));
    return stage_rehearse(stage);
}

/* The wire's connections come before memory is taken: what they take for themselves is no longer free
 * when stage_check_room looks. */
static status_t create_all(struct stage *stage, const struct stage_options *options)
{
    TRY(group_agree(stage->group,
                    plan_create(&options->model->graph, &options->plan, &stage->plan)));
    stage->active = stage->plan;
    TRY(group_same(stage->group, plan_hash(stage->plan), "the plan"));
    TRY(stage->lender ? STATUS_OK : create_wire(stage, false));
    status_t status = create_memory(stage, options);
    if (status == STATUS_NOMEM) {
        stage_explain_memory(stage);
    }
    TRY(group_agree(stage->group, status));
    return stage->lender ? STATUS_OK : create_wire(stage, true);
}

status_t stage_create(const struct stage_options *options, struct stage **out)
{
    struct stage *stage = calloc(1, sizeof *stage);
    if (!stage) {
        return FAIL(STATUS_NOMEM, "no memory for a stage");
    }
    stage->model = options->model;
    stage->group = options->group;
    stage->rank = group_rank(options->group);
    stage->trace = options->trace;
    stage->purpose = options->purpose;
    stage->plan_options = options->plan;
    stage->plan_options.size_count = 0;
    stage->device = options->device;
    stage->stream = options->stream;
    stage->lender = options->lender;
    stage->part = stage->lender ? stage->lender->part : NULL;
    stage->transport = options->transport;
    status_t status = create_all(stage, options);
    if (status != STATUS_OK) {
        (void)stage_drain(stage);
        stage_destroy(stage);
        return status;
    }
    *out = stage;
    return STATUS_OK;
}

static void free_table(void ***table, int rows)
{
    for (int i = 0; table && i < rows; i++) {
        free(table[i]);
    }
    free(table);
}

void stage_destroy(struct stage *stage)
{
    if (!stage) {
        return;
    }
    if (!stage->lender) {
        wire_destroy(stage->wire);
    }
    ahead_destroy(stage);
    if (!stage->lender) {
        part_destroy(stage->part);
    }
    if (stage->plan) {
        free_table(stage->arrival, stage->plan->shipments);
        free_table(stage->sum, stage->plan->sums);
    }
    for (int m = 0; stage->shorter && m < stage->plan->microbatches; m++) {
        plan_destroy(stage->shorter[m]);
    }
    free(stage->shorter);
    arena_destroy(&stage->memory);
    free(stage->local);
    free(stage->arrives);
    free(stage->loss);
    free(stage->positions);
    free(stage->puts);
    plan_destroy(stage->plan);
    free(stage);
}

bool stage_hosts(const struct stage *stage, int unit)
{
    return plan_rank_of(stage->plan, plan_stage_of(stage->plan, unit)) == stage->rank;
}

status_t stage_check_traffic(const struct stage *stage)
{
    const struct plan *plan = stage->plan;
    for (int s = 0; stage->wire && s < plan->shipments; s++) {
        const struct shipment *shipment = &plan->shipment[s];
        bool sends = plan_rank_of(plan, shipment->from) == stage->rank;
        if (!sends && !receives(stage, s)) {
            continue;
        }
        struct wire_count count;
        wire_counts(stage->wire, s, &count);
        int64_t predicted = shipment->bytes * stage->messages[shipment->backward];
        if (count.bytes != predicted) {
            return FAIL(STATUS_INTERNAL,
                        "%s from stage %d to %d: %lld bytes %s where the plan says %lld",
                        plan->graph->key[shipment->key].name, shipment->from, shipment->to,
                        (long long)count.bytes, sends ? "sent" : "received", (long long)predicted);
        }
    }
    return STATUS_OK;
}

/* A plan with fewer microbatches is walked in the memory of the whole one. */
status_t stage_add_size(struct stage *stage, int microbatches)
{
    struct plan_options options = stage->plan_options;
    CHECK(microbatches > 0 && microbatches <= stage->plan->microbatches,
          "%d microbatches in a stage made for %d", microbatches, stage->plan->microbatches);
    if (microbatches == stage->plan->microbatches || stage->shorter[microbatches]) {
        return STATUS_OK;
    }
    options.microbatches = microbatches;
    TRY(plan_create(stage->plan->graph, &options, &stage->shorter[microbatches]));
    if (!plan_has_room(stage->plan, stage->shorter[microbatches])) {
        return FAIL(STATUS_UNSUPPORTED,
                    "a step of %d microbatches needs other slots than one of %d under schedule %s; "
                    "use another optimizer.ramp_from, or parallel.schedule=1f1b",
                    microbatches, stage->plan->microbatches, stage->plan->schedule);
    }
    plan_keep_rank(stage->shorter[microbatches], stage->rank);
    return STATUS_OK;
}

status_t stage_set_microbatches(struct stage *stage, int microbatches)
{
    TRY(stage_add_size(stage, microbatches));
    stage->active =
        microbatches < stage->plan->microbatches ? stage->shorter[microbatches] : stage->plan;
    return STATUS_OK;
}

status_t stage_read_loss(struct stage *stage)
{
    size_t bytes = (size_t)stage->plan->microbatches * sizeof *stage->loss;
    if (!stage->device) {
        return STATUS_OK;
    }
    TRY(stage_settle(stage));
    TRY(device_copy(stage->device, stage->loss, stage->loss_there, bytes, stage->stream));
    return device_stream_sync(stage->device, stage->stream);
}
