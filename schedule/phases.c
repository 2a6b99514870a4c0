/* phases.c - the phases of all ranks in their order, and where each of them stands. */
#include <stdlib.h>

#include "schedule/plan_internal.h"

void phase_add(struct phase_list *list, enum phase_kind kind, int stage, int microbatch)
{
    CHECK(list->count < list->capacity, "a schedule has more phases than there can be");
    list->phase[list->count++] =
        (struct phase){.kind = kind, .stage = stage, .microbatch = microbatch};
}

void phase_add_backward(struct phase_list *list, int stage, int microbatch)
{
    phase_add(list, PHASE_B, stage, microbatch);
    phase_add(list, PHASE_K, stage, microbatch);
    phase_add(list, PHASE_W, stage, microbatch);
}

int place_round(const struct layout *layout, int stage)
{
    return stage % layout->ranks;
}

int place_vee(const struct layout *layout, int stage)
{
    int turn = stage % (2 * layout->ranks);
    return turn < layout->ranks ? turn : 2 * layout->ranks - 1 - turn;
}

static size_t phases_index(const struct plan *plan, enum phase_kind kind, int stage, int microbatch)
{
    size_t row = (size_t)stage * PHASE_KINDS + kind;
    return row * (size_t)plan->microbatches + (size_t)microbatch;
}

int phases_at(const struct phases *phases, const struct plan *plan, enum phase_kind kind, int stage,
              int microbatch)
{
    return phases->at[phases_index(plan, kind, stage, microbatch)];
}

/* Where every phase stands; what the passes take for granted is the builder's law. */
static void phases_locate(struct phases *phases, const struct plan *plan, int rank)
{
    const struct phase_list *list = &phases->rank[rank];
    for (int i = 0; i < list->count; i++) {
        const struct phase *p = &list->phase[i];
        CHECK(p->stage >= 0 && p->stage < plan->stages && plan->stage[p->stage].rank == rank &&
                  p->microbatch >= 0 && p->microbatch < plan->microbatches,
              "%s: a phase of stage %d and microbatch %d on rank %d", plan->schedule, p->stage,
              p->microbatch, rank);
        int *at = &phases->at[phases_index(plan, p->kind, p->stage, p->microbatch)];
        CHECK(*at < 0 && (p->microbatch == 0 || at[-1] >= 0),
              "%s: microbatch %d of stage %d is out of order", plan->schedule, p->microbatch,
              p->stage);
        *at = i;
    }
}

static void phases_check(const struct phases *phases, const struct plan *plan)
{
    for (int stage = 0; stage < plan->stages; stage++) {
        for (int m = 0; m < plan->microbatches; m++) {
            int before = -1;
            for (int kind = PHASE_F; kind < (plan->training ? PHASE_KINDS : PHASE_B); kind++) {
                int at = phases_at(phases, plan, (enum phase_kind)kind, stage, m);
                CHECK(at > before, "%s: the phases of microbatch %d, stage %d", plan->schedule, m,
                      stage);
                before = at;
            }
        }
    }
}

static void phases_build(struct phases *phases, const struct plan *plan,
                         const struct builder *builder, const struct layout *layout)
{
    size_t places = (size_t)plan->stages * PHASE_KINDS * (size_t)plan->microbatches;
    for (size_t i = 0; i < places; i++) {
        phases->at[i] = -1;
    }
    for (int rank = 0; rank < plan->ranks; rank++) {
        builder->build(layout, rank, &phases->rank[rank]);
        phases_locate(phases, plan, rank);
    }
    phases_check(phases, plan);
}

status_t phases_create(const struct plan *plan, const struct builder *builder,
                       const struct layout *layout, struct phases **out)
{
    size_t most = (size_t)plan->stages * PHASE_KINDS * (size_t)plan->microbatches;
    struct phases *phases = calloc(1, sizeof *phases);
    bool made = phases != NULL;
    if (made) {
        phases->rank = calloc((size_t)plan->ranks, sizeof *phases->rank);
        phases->at = malloc(most * sizeof *phases->at);
        made = phases->rank && phases->at;
    }
    for (int rank = 0; made && rank < plan->ranks; rank++) {
        struct phase_list *list = &phases->rank[rank];
        list->capacity = (int)most;
        list->phase = malloc(most * sizeof *list->phase);
        made = list->phase != NULL;
    }
    if (!made) {
        phases_destroy(phases, plan->ranks);
        return FAIL(STATUS_NOMEM, "no memory for the phases of a plan");
    }
    phases_build(phases, plan, builder, layout);
    *out = phases;
    return STATUS_OK;
}

void phases_destroy(struct phases *phases, int ranks)
{
    if (!phases) {
        return;
    }
    for (int rank = 0; phases->rank && rank < ranks; rank++) {
        free(phases->rank[rank].phase);
    }
    free(phases->rank);
    free(phases->at);
    free(phases);
}
