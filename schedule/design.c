/* design.c - from options to a plan: which schedule, whose placement, and every pass in its turn. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "schedule/plan_internal.h"

#define BUILDER_ROW(row) &row##_builder,
static const struct builder *const builders[] = {SCHEDULES(BUILDER_ROW)};

static const struct builder *builder_of(const char *name)
{
    for (size_t i = 0; i < sizeof builders / sizeof builders[0]; i++) {
        if (strcmp(builders[i]->name, name) == 0) {
            return builders[i];
        }
    }
    return NULL;
}

/* Those that train, with `between` them. */
static void builder_names(const char *between, char *buffer, size_t size)
{
    size_t used = 0;
    buffer[0] = '\0';
    for (size_t i = 0; i < sizeof builders / sizeof builders[0]; i++) {
        if (builders[i]->training) {
            used += (size_t)snprintf(buffer + used, size - used, "%s%s", used > 0 ? between : "",
                                     builders[i]->name);
            CHECK(used < size, "the names of all schedules take more than %zu bytes", size);
        }
    }
}

const char *schedule_names(void)
{
    static _Thread_local char names[256];
    builder_names("|", names, sizeof names);
    return names;
}

bool schedule_delays_weights(const char *schedule)
{
    const struct builder *builder = builder_of(schedule);
    return builder ? builder->delays_weights : schedule_is_file(schedule);
}

static status_t builder_find(const char *name, const struct builder **out)
{
    char names[256];
    *out = builder_of(name);
    if (*out) {
        return STATUS_OK;
    }
    builder_names(", ", names, sizeof names);
    return FAIL(STATUS_INVALID, "no schedule is called \"%s\"; there are %s (parallel.schedule)",
                name, names);
}

static status_t plan_options_check(const struct plan_options *options)
{
    if (options->ranks < 1) {
        return FAIL(STATUS_INVALID, "a plan for %d pipeline ranks; use 1 or more (parallel.pp)",
                    options->ranks);
    }
    if (options->microbatches < 1) {
        return FAIL(STATUS_INVALID, "%d microbatches a step; use 1 or more (parallel.microbatches)",
                    options->microbatches);
    }
    if (options->in_flight < 0) {
        return FAIL(STATUS_INVALID,
                    "%d more microbatches in flight; use 0 or more "
                    "(parallel.in_flight)",
                    options->in_flight);
    }
    if (options->replicas < 0) {
        return FAIL(STATUS_INVALID, "%d replicas; use 1 or more (parallel.dp)", options->replicas);
    }
    if (options->prefetch < 0) {
        return FAIL(STATUS_INVALID, "%d prefetched microbatches; use 0 or more (parallel.prefetch)",
                    options->prefetch);
    }
    return STATUS_OK;
}

static status_t plan_chunks(const struct builder *builder, int asked, int *out)
{
    int fixed = builder->chunks;
    *out = asked > 0 ? asked : fixed;
    if (*out == fixed ||
        (builder->most_chunks > fixed && *out >= 1 && *out <= builder->most_chunks)) {
        return STATUS_OK;
    }
    if (builder->most_chunks == fixed) {
        return FAIL(STATUS_INVALID,
                    "schedule %s has %d stage%s a rank, not %d; use parallel.virtual_stages=0, or "
                    "another parallel.schedule (interleaved takes any number)",
                    builder->name, fixed, fixed == 1 ? "" : "s", asked);
    }
    return FAIL(STATUS_INVALID, "%d stages a rank; use 1 to %d (parallel.virtual_stages)", asked,
                builder->most_chunks);
}

/* How a plan is built: its schedule, and whose placement that has. */
struct design {
    const struct builder *builder;
    struct layout layout;
    const char *partition;
    enum sum_order sum_order;
    const struct plan_options *options;
};

static status_t plan_keep_phases(struct plan *plan, const struct phases *phases)
{
    for (int rank = 0; rank < plan->ranks; rank++) {
        const struct phase_list *list = &phases->rank[rank];
        struct rank_plan *own = &plan->rank[rank];
        own->phase = malloc(((size_t)list->count + 1) * sizeof *own->phase);
        if (!own->phase) {
            return FAIL(STATUS_NOMEM, "no memory for the phases of a plan");
        }
        memcpy(own->phase, list->phase, (size_t)list->count * sizeof *own->phase);
        own->phases = list->count;
    }
    return STATUS_OK;
}

static int larger(int a, int b)
{
    return a > b ? a : b;
}

/* Room for a smaller plan of the same stages: a shorter list may keep more under way somewhere. */
static void plan_raise(struct plan *plan, const struct plan *small)
{
    for (int i = 0; i < plan->stages; i++) {
        plan->stage[i].frames = larger(plan->stage[i].frames, small->stage[i].frames);
        plan->stage[i].backwards = larger(plan->stage[i].backwards, small->stage[i].backwards);
    }
    for (int i = 0; i < plan->shipments; i++) {
        plan->shipment[i].slots = larger(plan->shipment[i].slots, small->shipment[i].slots);
    }
    for (int i = 0; i < plan->sums; i++) {
        plan->sum[i].slots = larger(plan->sum[i].slots, small->sum[i].slots);
    }
}

static status_t plan_raise_all(struct plan *plan, const struct plan_options *options)
{
    for (int i = 0; i < options->size_count; i++) {
        struct plan_options smaller = *options;
        struct plan *small = NULL;
        smaller.microbatches = options->sizes[i];
        smaller.size_count = 0;
        if (smaller.microbatches < options->microbatches) {
            TRY(plan_create(plan->graph, &smaller, &small));
            plan_raise(plan, small);
            plan_destroy(small);
        }
    }
    return STATUS_OK;
}

/* Until the slots do: no queue stands still, and where a rank has several stages none waits for a slot. (With
 * one stage a rank parallel.prefetch decides alone.) */
static status_t plan_expand_all(struct plan *plan, const struct needs *needs,
                                const struct phases *phases)
{
    bool grown = true, quickened = plan->stages == plan->ranks;
    for (int tries = 0; grown; tries++) {
        CHECK(tries < 100, "the slots of the %s plan grow for ever", plan->schedule);
        TRY(plan_expand(plan, needs, phases));
        TRY(plan_grow_slots(plan, &grown));
        if (!grown && !quickened) {
            TRY(plan_quicken_slots(plan, &grown));
            quickened = true;
        }
    }
    return STATUS_OK;
}

static status_t plan_fill(struct plan *plan, const struct design *design)
{
    struct needs *needs = NULL;
    struct phases *phases = NULL;
    status_t status = needs_create(plan, &needs);
    if (status == STATUS_OK) {
        status = phases_create(plan, design->builder, &design->layout, &phases);
    }
    if (status == STATUS_OK) {
        status = plan_keep_phases(plan, phases);
    }
    if (status == STATUS_OK) {
        status = plan_size_rings(plan, needs, phases, design->options->prefetch);
    }
    if (status == STATUS_OK) {
        status = plan_raise_all(plan, design->options);
    }
    if (status == STATUS_OK) {
        status = plan_expand_all(plan, needs, phases);
    }
    if (status == STATUS_OK) {
        status = plan_order_puts(plan);
    }
    phases_destroy(phases, plan->ranks);
    needs_destroy(needs);
    return status;
}

/* A user's schedule cannot work. The line is of the rank that plan_check names first. */
static status_t plan_refuse_text(const struct schedule_text *text, const char *why)
{
    int rank = -1;
    bool named = sscanf(why, "rank %d", &rank) == 1 || sscanf(why, "deadlock: rank %d", &rank) == 1;
    return FAIL(STATUS_INVALID, "%s:%d: this schedule cannot work: %s", text->path,
                named && rank >= 0 && rank < text->ranks ? text->line[rank] : 1, why);
}

static status_t plan_build(struct plan *plan, const struct design *design)
{
    char why[512] = "";
    TRY(plan_alloc(plan));
    for (int stage = 0; stage < plan->stages; stage++) {
        struct stage_plan *s = &plan->stage[stage];
        s->rank = design->layout.rank_of(&design->layout, stage);
        s->sum_rank =
            design->builder == &replay_builder ? design->layout.text->rank_of[stage] : s->rank;
    }
    TRY(partition_make(plan, design->partition));
    TRY(plan_fill(plan, design));
    status_t status = plan_check(plan, why, sizeof why);
    if (status == STATUS_NOMEM) {
        return FAIL(status, "no memory to check the plan");
    }
    if (status != STATUS_OK && design->builder == &text_builder) {
        return plan_refuse_text(design->layout.text, why);
    }
    CHECK(status == STATUS_OK, "the %s plan is wrong: %s", plan->schedule, why);
    return STATUS_OK;
}

/* A replay and forwards alone take no notice of what the schedule has in flight. */
static status_t check_in_flight(const struct design *design)
{
    const struct builder *builder = design->builder;
    if (design->options->in_flight == 0 || builder->in_flight || !builder->training ||
        design->options->replay) {
        return STATUS_OK;
    }
    return FAIL(STATUS_INVALID,
                "%s has as many microbatches in flight as it says itself; use "
                "parallel.in_flight=0, or parallel.schedule 1f1b or zb-h1",
                builder == &text_builder ? "a schedule of a file" : builder->name);
}

static status_t plan_make(const struct graph *graph, const struct design *design, struct plan **out)
{
    const struct plan_options *options = design->options;
    const struct builder *builder = design->builder;
    struct plan *plan = calloc(1, sizeof *plan);
    if (plan == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for a plan");
    }
    plan->graph = graph;
    plan->ranks = options->ranks;
    plan->stages = design->layout.stages;
    plan->microbatches = options->microbatches;
    plan->replicas = options->replicas > 0 ? options->replicas : 1;
    plan->sum_order = design->sum_order;
    plan->training = builder->training;
    plan->weights_at_once = builder->training && options->weights_at_once;
    memcpy(plan->schedule, builder->name, strlen(builder->name) + 1);
    status_t status = plan_build(plan, design);
    if (status != STATUS_OK) {
        plan_destroy(plan);
        return status;
    }
    *out = plan;
    return STATUS_OK;
}

/* The more microbatches pass a stage before the rank turns to its next one, the less it waits, and the
 * more are in flight: as many as there is room for. */
static status_t plan_make_forward(const struct graph *graph, struct design *design,
                                  struct plan **out)
{
    const struct plan *room = design->options->room;
    int most = design->options->microbatches;
    most = most < design->layout.ranks ? most : design->layout.ranks;
    for (design->layout.in_group = most;; design->layout.in_group--) {
        struct plan *plan = NULL;
        TRY(plan_make(graph, design, &plan));
        if (room == NULL || design->layout.in_group == 1 || plan_has_room(room, plan)) {
            *out = plan;
            return STATUS_OK;
        }
        plan_destroy(plan);
    }
}

/* By one of the schedules here. */
static status_t design_named(const char *placed_by, struct design *design)
{
    const struct plan_options *options = design->options;
    const struct builder *placed = NULL;
    int chunks = 0;
    TRY(builder_find(placed_by, &placed));
    TRY(plan_chunks(placed, options->chunks, &chunks));
    design->layout.chunks = chunks;
    design->layout.stages = options->ranks * chunks;
    design->layout.rank_of = placed->rank_of;
    return STATUS_OK;
}

/* By a file: placement, and what it does not leave to the options. */
static status_t design_text(const struct schedule_text *text, struct design *design)
{
    const struct plan_options *options = design->options;
    bool replays = options->replay != NULL;
    int ranks = replays ? 1 : text->ranks;
    if (options->ranks != ranks) {
        return FAIL(STATUS_INVALID,
                    "%s is a schedule for %d rank%s, and there %s %d (parallel.pp)%s", text->path,
                    text->ranks, text->ranks == 1 ? "" : "s", options->ranks == 1 ? "is" : "are",
                    options->ranks, replays ? "; one rank replays it" : "");
    }
    if (design->builder->training && options->microbatches != text->microbatches) {
        return FAIL(STATUS_INVALID,
                    "%s is a schedule for %d microbatches, not for %d (parallel.microbatches); a "
                    "batch that grows needs a schedule with a name",
                    text->path, text->microbatches, options->microbatches);
    }
    if (options->chunks > 0 && options->chunks * text->ranks != text->stages) {
        return FAIL(STATUS_INVALID,
                    "%s has %d stages on %d ranks, not %d a rank; use "
                    "parallel.virtual_stages=0",
                    text->path, text->stages, text->ranks, options->chunks);
    }
    design->layout.stages = text->stages;
    design->layout.rank_of = replays ? replay_builder.rank_of : text_builder.rank_of;
    design->layout.text = text;
    design->partition = strcmp(text->partition, "auto") == 0 ? options->partition : text->partition;
    design->sum_order = text->has_sum_order ? text->sum_order : options->sum_order;
    return STATUS_OK;
}

static status_t plan_design(const struct graph *graph, struct design *design,
                            struct schedule_text **text, struct plan **out)
{
    const struct plan_options *options = design->options;
    bool forward = strcmp(options->schedule, forward_builder.name) == 0;
    const char *placed_by = !forward          ? options->schedule
                            : options->beside ? options->beside
                                              : "1f1b";
    const char *path = options->replay               ? options->replay
                       : schedule_is_file(placed_by) ? placed_by
                                                     : NULL;
    if (path) {
        TRY(schedule_text_read(path, text));
        design->builder = forward           ? &forward_builder
                          : options->replay ? &replay_builder
                                            : &text_builder;
        TRY(design_text(*text, design));
        design->layout.rank_of = options->replay ? replay_builder.rank_of : design->layout.rank_of;
    } else {
        TRY(builder_find(options->schedule, &design->builder));
        TRY(design_named(placed_by, design));
    }
    TRY(check_in_flight(design));
    TRY(graph_check(graph));
    TRY(partition_check_stages(graph, design->layout.stages, options->ranks));
    return forward ? plan_make_forward(graph, design, out) : plan_make(graph, design, out);
}

status_t plan_create(const struct graph *graph, const struct plan_options *options,
                     struct plan **out)
{
    struct schedule_text *text = NULL;
    struct design design = {.options = options,
                            .partition = options->partition,
                            .sum_order = options->sum_order,
                            .layout = {.ranks = options->ranks,
                                       .microbatches = options->microbatches,
                                       .in_flight = options->in_flight}};
    TRY(plan_options_check(options));
    status_t status = plan_design(graph, &design, &text, out);
    schedule_text_free(text);
    return status;
}
