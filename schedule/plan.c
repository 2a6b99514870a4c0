/* plan.c - makes plans, and answers what can be counted from one. */
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "schedule/plan_internal.h"

static const struct builder *const builders[] = {&gpipe_builder, &one_f_one_b_builder,
                                                 &forward_builder};

static status_t builder_find(const char *name, const struct builder **out)
{
    for (size_t i = 0; i < sizeof builders / sizeof builders[0]; i++) {
        if (strcmp(builders[i]->name, name) == 0) {
            *out = builders[i];
            return STATUS_OK;
        }
    }
    return FAIL(STATUS_INVALID, "no schedule is called \"%s\"; use gpipe or 1f1b", name);
}

void phase_add(struct phase_list *list, enum phase_kind kind, int microbatch)
{
    list->phase[list->count++] = (struct phase){.kind = kind, .microbatch = microbatch};
}

void phase_add_backward(struct phase_list *list, int microbatch)
{
    phase_add(list, PHASE_B, microbatch);
    phase_add(list, PHASE_K, microbatch);
    phase_add(list, PHASE_W, microbatch);
}

void plan_destroy(struct plan *plan)
{
    if (plan == NULL) {
        return;
    }
    for (int stage = 0; plan->stage != NULL && stage < plan->stages; stage++) {
        free(plan->stage[stage].grad_slots);
    }
    for (int rank = 0; plan->rank != NULL && rank < plan->ranks; rank++) {
        free(plan->rank[rank].op);
    }
    free(plan->stage);
    free(plan->rank);
    free(plan->shipment);
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
    int stage = 0;
    while (stage + 1 < plan->stages && unit >= plan->stage[stage + 1].first_unit) {
        stage++;
    }
    return stage;
}

int plan_rank_of(const struct plan *plan, int stage)
{
    return stage % plan->ranks;
}

static status_t plan_alloc(struct plan *plan)
{
    plan->stage = calloc((size_t)plan->stages, sizeof *plan->stage);
    plan->rank = calloc((size_t)plan->ranks, sizeof *plan->rank);
    bool ok = plan->stage != NULL && plan->rank != NULL;
    for (int stage = 0; ok && stage < plan->stages; stage++) {
        size_t keys = (size_t)plan->graph->keys;
        plan->stage[stage].grad_slots = calloc(keys + 1, sizeof *plan->stage[stage].grad_slots);
        ok = plan->stage[stage].grad_slots != NULL;
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
    if (options->chunks != 1) {
        return FAIL(STATUS_UNSUPPORTED, "%d stages a rank; only 1 can be planned so far",
                    options->chunks);
    }
    if (options->prefetch < 0) {
        return FAIL(STATUS_INVALID, "%d prefetched microbatches; use 0 or more (parallel.prefetch)",
                    options->prefetch);
    }
    return STATUS_OK;
}

static status_t plan_build(struct plan *plan, const struct builder *builder,
                           const struct plan_options *options)
{
    TRY(plan_alloc(plan));
    TRY(partition_make(plan, options->partition));
    struct needs *needs = NULL;
    TRY(needs_create(plan, &needs));
    plan_size_slots(plan, needs, builder, options->prefetch);
    status_t status = plan_expand(plan, needs, builder);
    needs_destroy(needs);
    TRY(status);

    char why[512] = "";
    status = plan_check(plan, why, sizeof why);
    if (status == STATUS_NOMEM) {
        return FAIL(status, "no memory to check the plan");
    }
    CHECK(status == STATUS_OK, "the %s plan is wrong: %s", plan->schedule, why);
    return STATUS_OK;
}

status_t plan_create(const struct graph *graph, const struct plan_options *options,
                     struct plan **out)
{
    const struct builder *builder = NULL;
    TRY(plan_options_check(options));
    TRY(builder_find(options->schedule, &builder));
    TRY(graph_check(graph));
    TRY(partition_check_stages(graph, options->ranks));
    struct plan *plan = calloc(1, sizeof *plan);
    if (plan == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for a plan");
    }
    plan->graph = graph;
    plan->ranks = options->ranks;
    plan->stages = options->ranks * options->chunks;
    plan->microbatches = options->microbatches;
    plan->training = builder->training;
    plan->weights_at_once = builder->training && options->weights_at_once;
    memcpy(plan->schedule, builder->name, strlen(builder->name) + 1);

    status_t status = plan_build(plan, builder, options);
    if (status != STATUS_OK) {
        plan_destroy(plan);
        return status;
    }
    *out = plan;
    return STATUS_OK;
}

/* ---- forwards in a plan's memory ---- */

static bool is_within(const struct shipment *s, const struct shipment *room)
{
    return s->key == room->key && s->from == room->from && s->to == room->to &&
           s->backward == room->backward && s->bytes == room->bytes && s->slots <= room->slots;
}

bool plan_has_room(const struct plan *plan, const struct plan *forwards)
{
    bool room = !forwards->training && forwards->graph == plan->graph &&
                forwards->stages == plan->stages && forwards->ranks == plan->ranks &&
                forwards->microbatches <= plan->microbatches &&
                forwards->shipments <= plan->shipments;
    for (int i = 0; room && i < plan->stages; i++) {
        const struct stage_plan *own = &forwards->stage[i], *theirs = &plan->stage[i];
        room = own->first_unit == theirs->first_unit && own->units == theirs->units &&
               own->frames <= theirs->frames;
    }
    for (int i = 0; room && i < forwards->shipments; i++) {
        room = is_within(&forwards->shipment[i], &plan->shipment[i]);
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
_Static_assert(sizeof(struct op) == 11 * sizeof(int), "struct op has padding");
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
    const int size[] = {graph->units,          graph->keys,        plan->ranks,
                        plan->stages,          plan->microbatches, plan->training,
                        plan->weights_at_once, plan->shipments,    plan->adds};
    uint64_t hash = hash_bytes(size, sizeof size, 0);
    hash = hash_bytes(plan->schedule, strlen(plan->schedule), hash);
    hash = hash_graph(graph, hash);
    for (int stage = 0; stage < plan->stages; stage++) {
        const struct stage_plan *s = &plan->stage[stage];
        const int field[] = {s->first_unit, s->units, s->frames};
        hash = hash_bytes(field, sizeof field, hash);
        hash = hash_bytes(s->grad_slots, (size_t)graph->keys * sizeof *s->grad_slots, hash);
    }
    for (int i = 0; i < plan->shipments; i++) {
        hash = hash_shipment(&plan->shipment[i], hash);
    }
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
    for (int stage = rank; stage < plan->stages; stage += plan->ranks) {
        const struct stage_plan *s = &plan->stage[stage];
        for (int i = 0; i < s->units; i++) {
            const struct unit *unit = &plan->graph->unit[s->first_unit + i];
            const struct unit_bytes *bytes = plan->training ? &unit->training : &unit->evaluation;
            memory.parameters += unit->parameter_bytes + (plan->training ? unit->master_bytes : 0);
            memory.gradients += plan->training ? unit->gradient_bytes : 0;
            memory.frames += bytes->frame * s->frames;
            memory.backward += bytes->backward;
            shared = bytes->shared > shared ? bytes->shared : shared;
        }
        for (int key = 0; key < plan->graph->keys; key++) {
            memory.gradient_slots += plan->graph->key[key].bytes * s->grad_slots[key];
        }
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
