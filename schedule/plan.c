/* plan.c - what a plan is made of, and what can be counted from one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "schedule/plan_internal.h"

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

status_t plan_alloc(struct plan *plan)
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

/* ---- a plan in another's memory ---- */

static bool is_within(const struct shipment *s, const struct shipment *room)
{
    return s->key == room->key && s->from == room->from && s->to == room->to &&
           s->backward == room->backward && s->bytes == room->bytes && s->slots <= room->slots;
}

bool plan_has_room(const struct plan *plan, const struct plan *other)
{
    bool room = other->graph == plan->graph && other->stages == plan->stages &&
                other->ranks == plan->ranks && other->replicas == plan->replicas &&
                other->training <= plan->training && other->microbatches <= plan->microbatches &&
                other->shipments <= plan->shipments && other->sums <= plan->sums;
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
    const int64_t field[] = {s->key,   s->from,  s->to,          s->backward,
                             s->plain, s->bytes, s->plain_bytes, s->slots};
    return hash_bytes(field, sizeof field, hash);
}

/* Structures of ints alone have no padding and are hashed as they are. */
_Static_assert(sizeof(struct op) == 14 * sizeof(int), "struct op has padding");
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
        const int64_t field[] = {k->producer, k->order, k->plain, k->bytes, k->plain_bytes};
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
                        plan->adds,         plan->sums,     (int)plan->sum_order,  plan->replicas,
                        plan->puts};
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
        int64_t *link[] = {&plain[from * plan->ranks + to], &dense[from * plan->ranks + to]};
        *link[0] += s->plain_bytes * plan->microbatches;
        *link[1] += (s->bytes - s->plain_bytes) * plan->microbatches;
    }
}

void plan_memory(const struct plan *plan, int rank, struct plan_memory *out)
{
    struct plan_memory memory = {0};
    int64_t shared = 0, moments = 0;
    for (int stage = 0; stage < plan->stages; stage++) {
        const struct stage_plan *s = &plan->stage[stage];
        for (int i = 0; i < s->units && s->rank == rank; i++) {
            const struct unit *unit = &plan->graph->unit[s->unit[i]];
            const struct unit_bytes *bytes = plan->training ? &unit->training : &unit->evaluation;
            memory.parameters += unit->parameter_bytes + (plan->training ? unit->master_bytes : 0);
            memory.gradients += plan->training ? unit->gradient_bytes : 0;
            moments += plan->training ? unit->moment_bytes : 0;
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
    memory.optimizer = 2 * moments;
    *(plan->training ? &memory.backward : &memory.frames) += shared;
    *out = memory;
}
