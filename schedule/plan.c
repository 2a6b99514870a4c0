/* plan.c - makes plans, and answers what can be counted from one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "schedule/plan_internal.h"

/* A schedule is a file and a row here. */
static const struct builder *const builders[] = {&gpipe_builder, &one_f_one_b_builder,
                                                 &zb_h1_builder, &interleaved_builder,
                                                 &zb_v_builder,  &forward_builder};

static const struct builder *builder_of(const char *name)
{
    for (size_t i = 0; i < sizeof builders / sizeof builders[0]; i++) {
        if (strcmp(builders[i]->name, name) == 0) {
            return builders[i];
        }
    }
    return NULL;
}

bool schedule_delays_weights(const char *schedule)
{
    const struct builder *builder = builder_of(schedule);
    return builder ? builder->delays_weights : schedule_is_file(schedule);
}

static status_t builder_find(const char *name, const struct builder **out)
{
    char names[128] = "";
    *out = builder_of(name);
    if (*out) {
        return STATUS_OK;
    }
    for (size_t i = 0, used = 0; i < sizeof builders / sizeof builders[0]; i++) {
        if (builders[i]->training) {
            used += (size_t)snprintf(names + used, sizeof names - used, "%s%s",
                                     used > 0 ? ", " : "", builders[i]->name);
        }
    }
    return FAIL(STATUS_INVALID, "no schedule is called \"%s\"; there are %s (parallel.schedule)",
                name, names);
}

void plan_destroy(struct plan *plan)
{
    if (plan == NULL) {
        return;
    }
    for (int stage = 0; plan->stage != NULL && stage < plan->stages; stage++) {
        free(plan->stage[stage].unit);
        free(plan->stage[stage].sum);
        free(plan->stage[stage].partial);
    }
    for (int rank = 0; plan->rank != NULL && rank < plan->ranks; rank++) {
        free(plan->rank[rank].op);
        free(plan->rank[rank].phase);
    }
    free(plan->stage);
    free(plan->rank);
    free(plan->stage_of);
    free(plan->shipment);
    free(plan->sum);
    free(plan->add);
    free(plan);
}

static bool puts_to(const struct plan *plan, const struct op *op, int rank)
{
    return op->kind == OP_PUT && plan_rank_of(plan, plan->shipment[op->shipment].to) == rank;
}

void plan_keep_rank(struct plan *plan, int rank)
{
    for (int r = 0; r < plan->ranks; r++) {
        struct rank_plan *list = &plan->rank[r];
        int kept = 0;
        for (int i = 0; i < list->ops; i++) {
            if (r == rank || puts_to(plan, &list->op[i], rank)) {
                list->op[kept++] = list->op[i];
            }
        }
        struct op *smaller = realloc(list->op, ((size_t)kept + 1) * sizeof *list->op);
        list->op = smaller != NULL ? smaller : list->op;
        list->ops = kept;
    }
}

int plan_stage_of(const struct plan *plan, int unit)
{
    return plan->stage_of[unit];
}

int plan_rank_of(const struct plan *plan, int stage)
{
    return plan->stage[stage].rank;
}

/* Keys without a sum. */
static int *keys_table(int keys)
{
    int *table = malloc(((size_t)keys + 1) * sizeof *table);
    for (int key = 0; table && key < keys; key++) {
        table[key] = -1;
    }
    return table;
}

static status_t plan_alloc(struct plan *plan)
{
    size_t units = (size_t)plan->graph->units;
    plan->stage = calloc((size_t)plan->stages, sizeof *plan->stage);
    plan->rank = calloc((size_t)plan->ranks, sizeof *plan->rank);
    plan->stage_of = calloc(units, sizeof *plan->stage_of);
    bool ok = plan->stage && plan->rank && plan->stage_of;
    for (int stage = 0; ok && stage < plan->stages; stage++) {
        struct stage_plan *s = &plan->stage[stage];
        s->unit = calloc(units, sizeof *s->unit);
        s->sum = keys_table(plan->graph->keys);
        s->partial = keys_table(plan->graph->keys);
        ok = s->unit && s->sum && s->partial;
    }
    return ok ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for a plan of %d stages", plan->stages);
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
    bool grown = true;
    for (int tries = 0; status == STATUS_OK && grown; tries++) {
        CHECK(tries < 100, "the slots of the %s plan grow for ever", plan->schedule);
        status = plan_expand(plan, needs, phases);
        if (status == STATUS_OK) {
            status = plan_grow_slots(plan, &grown);
        }
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
    TRY(graph_check(graph));
    TRY(partition_check_stages(graph, design->layout.stages));
    return forward ? plan_make_forward(graph, design, out) : plan_make(graph, design, out);
}

status_t plan_create(const struct graph *graph, const struct plan_options *options,
                     struct plan **out)
{
    struct schedule_text *text = NULL;
    struct design design = {
        .options = options,
        .partition = options->partition,
        .sum_order = options->sum_order,
        .layout = {.ranks = options->ranks, .microbatches = options->microbatches}};
    TRY(plan_options_check(options));
    status_t status = plan_design(graph, &design, &text, out);
    schedule_text_free(text);
    return status;
}

/* ---- a plan in another's memory ---- */

static bool is_within(const struct shipment *s, const struct shipment *room)
{
    return s->key == room->key && s->from == room->from && s->to == room->to &&
           s->backward == room->backward && s->bytes == room->bytes && s->slots <= room->slots;
}

bool plan_has_room(const struct plan *plan, const struct plan *other)
{
    bool room = other->graph == plan->graph && other->stages == plan->stages &&
                other->ranks == plan->ranks && other->training <= plan->training &&
                other->microbatches <= plan->microbatches && other->shipments <= plan->shipments &&
                other->sums <= plan->sums;
    for (int i = 0; room && i < plan->stages; i++) {
        const struct stage_plan *own = &other->stage[i], *theirs = &plan->stage[i];
        room = own->units == theirs->units && own->unit[0] == theirs->unit[0] &&
               own->rank == theirs->rank && own->frames <= theirs->frames &&
               own->backwards <= theirs->backwards;
    }
    for (int i = 0; room && i < other->shipments; i++) {
        room = is_within(&other->shipment[i], &plan->shipment[i]);
    }
    for (int i = 0; room && i < other->sums; i++) {
        const struct sum *own = &other->sum[i], *theirs = &plan->sum[i];
        room = own->key == theirs->key && own->rank == theirs->rank &&
               own->shipment == theirs->shipment && own->slots <= theirs->slots;
    }
    return room;
}

/* ---- hash ---- */

static uint64_t hash_shipment(const struct shipment *s, uint64_t hash)
{
    const int64_t field[] = {s->key, s->from, s->to, s->backward, s->plain, s->bytes, s->slots};
    return hash_bytes(field, sizeof field, hash);
}

/* Structures of ints alone have no padding and are hashed as they are. */
_Static_assert(sizeof(struct op) == 12 * sizeof(int), "struct op has padding");
_Static_assert(sizeof(struct sum) == 4 * sizeof(int), "struct sum has padding");
_Static_assert(sizeof(struct add) == sizeof(int), "struct add has padding");

static uint64_t hash_graph(const struct graph *graph, uint64_t hash)
{
    for (int i = 0; i < graph->reads; i++) {
        const struct read *r = &graph->read[i];
        const int field[] = {r->unit, r->key, r->order, (int)r->kind, r->made, r->tag};
        hash = hash_bytes(field, sizeof field, hash);
    }
    for (int key = 0; key < graph->keys; key++) {
        const struct key *k = &graph->key[key];
        const int64_t field[] = {k->producer, k->order, k->plain, k->bytes};
        hash = hash_bytes(k->name, strlen(k->name), hash);
        hash = hash_bytes(field, sizeof field, hash);
    }
    return hash;
}

uint64_t plan_hash(const struct plan *plan)
{
    const struct graph *graph = plan->graph;
    const int size[] = {graph->units,       graph->keys,    plan->ranks,           plan->stages,
                        plan->microbatches, plan->training, plan->weights_at_once, plan->shipments,
                        plan->adds,         plan->sums,     (int)plan->sum_order};
    uint64_t hash = hash_bytes(size, sizeof size, 0);
    hash = hash_graph(graph, hash);
    for (int stage = 0; stage < plan->stages; stage++) {
        const struct stage_plan *s = &plan->stage[stage];
        const int field[] = {s->units, s->rank, s->sum_rank, s->frames, s->backwards};
        hash = hash_bytes(field, sizeof field, hash);
        hash = hash_bytes(s->unit, (size_t)s->units * sizeof *s->unit, hash);
        hash = hash_bytes(s->sum, (size_t)graph->keys * sizeof *s->sum, hash);
        hash = hash_bytes(s->partial, (size_t)graph->keys * sizeof *s->partial, hash);
    }
    for (int i = 0; i < plan->shipments; i++) {
        hash = hash_shipment(&plan->shipment[i], hash);
    }
    hash = hash_bytes(plan->sum, (size_t)plan->sums * sizeof *plan->sum, hash);
    for (int rank = 0; rank < plan->ranks; rank++) {
        const struct rank_plan *r = &plan->rank[rank];
        hash = hash_bytes(&r->ops, sizeof r->ops, hash);
        hash = hash_bytes(r->op, (size_t)r->ops * sizeof *r->op, hash);
    }
    return hash_bytes(plan->add, (size_t)plan->adds * sizeof *plan->add, hash);
}

/* ---- bytes ---- */

void plan_traffic(const struct plan *plan, int64_t *plain, int64_t *dense)
{
    size_t pairs = (size_t)plan->ranks * (size_t)plan->ranks;
    memset(plain, 0, pairs * sizeof *plain);
    memset(dense, 0, pairs * sizeof *dense);
    for (int i = 0; i < plan->shipments; i++) {
        const struct shipment *s = &plan->shipment[i];
        int from = plan_rank_of(plan, s->from), to = plan_rank_of(plan, s->to);
        (s->plain ? plain : dense)[from * plan->ranks + to] += s->bytes * plan->microbatches;
    }
}

void plan_memory(const struct plan *plan, int rank, struct plan_memory *out)
{
    struct plan_memory memory = {0};
    int64_t shared = 0;
    for (int stage = 0; stage < plan->stages; stage++) {
        const struct stage_plan *s = &plan->stage[stage];
        for (int i = 0; i < s->units && s->rank == rank; i++) {
            const struct unit *unit = &plan->graph->unit[s->unit[i]];
            const struct unit_bytes *bytes = plan->training ? &unit->training : &unit->evaluation;
            memory.parameters += unit->parameter_bytes + (plan->training ? unit->master_bytes : 0);
            memory.gradients += plan->training ? unit->gradient_bytes : 0;
            memory.frames += bytes->frame * s->frames;
            memory.backward += bytes->backward * s->backwards;
            shared = bytes->shared > shared ? bytes->shared : shared;
        }
    }
    for (int i = 0; i < plan->sums; i++) {
        const struct sum *sum = &plan->sum[i];
        memory.gradient_slots +=
            sum->rank == rank ? plan->graph->key[sum->key].bytes * sum->slots : 0;
    }
    for (int i = 0; i < plan->shipments; i++) {
        const struct shipment *s = &plan->shipment[i];
        bool arrives = plan_rank_of(plan, s->to) == rank;
        if (!s->backward && arrives) {
            memory.arrivals += s->bytes * s->slots;
        }
        if (arrives || plan_rank_of(plan, s->from) == rank) {
            memory.staging += s->bytes * s->slots;
        }
    }
    memory.optimizer = 2 * memory.gradients;
    *(plan->training ? &memory.backward : &memory.frames) += shared;
    *out = memory;
}
