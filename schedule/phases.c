/* phases.c - the phases of all ranks in their order, and where each of them stands. */
#include <stdarg.h>
#include <stdio.h>
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

/* Says what is wrong with the phases: in the file's own terms where they are a user's. */
__attribute__((format(printf, 4, 5))) static status_t phases_refuse(const struct plan *plan,
                                                                    const struct layout *layout,
                                                                    int rank, const char *format,
                                                                    ...)
{
    char what[160];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    CHECK(layout->text, "%s: rank %d: %s", plan->schedule, rank, what);
    return FAIL(STATUS_INVALID, "%s:%d: rank %d: %s", layout->text->path, layout->text->line[rank],
                rank, what);
}

static const char phase_letter[PHASE_KINDS + 1] = "FBKW";

/* Where every phase stands. */
static status_t phases_locate(struct phases *phases, const struct plan *plan,
                              const struct layout *layout, int rank)
{
    const struct phase_list *list = &phases->rank[rank];
    for (int i = 0; i < list->count; i++) {
        const struct phase *p = &list->phase[i];
        char kind = phase_letter[p->kind];
        if (p->stage < 0 || p->stage >= plan->stages || plan->stage[p->stage].rank != rank) {
            return phases_refuse(plan, layout, rank, "%c%d.%d is of another rank's stage", kind,
                                 p->stage, p->microbatch);
        }
        if (p->microbatch < 0 || p->microbatch >= plan->microbatches) {
            return phases_refuse(plan, layout, rank, "%c%d.%d: the microbatches are 0 to %d", kind,
                                 p->stage, p->microbatch, plan->microbatches - 1);
        }
        int *at = &phases->at[phases_index(plan, p->kind, p->stage, p->microbatch)];
        if (*at >= 0) {
            return phases_refuse(plan, layout, rank, "%c%d.%d is there twice", kind, p->stage,
                                 p->microbatch);
        }
        if (p->microbatch > 0 && at[-1] < 0) {
            return phases_refuse(plan, layout, rank,
                                 "%c%d.%d comes before %c%d.%d; microbatches ascend in each kind "
                                 "of phase",
                                 kind, p->stage, p->microbatch, kind, p->stage, p->microbatch - 1);
        }
        *at = i;
    }
    return STATUS_OK;
}

/* All of them are there, and of a microbatch in the order F, B, K, W. */
static status_t phases_check(const struct phases *phases, const struct plan *plan,
                             const struct layout *layout)
{
    for (int stage = 0; stage < plan->stages; stage++) {
        for (int m = 0; m < plan->microbatches; m++) {
            int before = -1, rank = plan->stage[stage].rank;
            for (int kind = PHASE_F; kind < (plan->training ? PHASE_KINDS : PHASE_B); kind++) {
                int at = phases_at(phases, plan, (enum phase_kind)kind, stage, m);
                if (at < 0) {
                    return phases_refuse(plan, layout, rank, "%c%d.%d is missing",
                                         phase_letter[kind], stage, m);
                }
                if (at < before) {
                    return phases_refuse(plan, layout, rank, "%c%d.%d comes before %c%d.%d",
                                         phase_letter[kind], stage, m, phase_letter[kind - 1],
                                         stage, m);
                }
                before = at;
            }
        }
    }
    return STATUS_OK;
}

static status_t phases_build(struct phases *phases, const struct plan *plan,
                             const struct builder *builder, const struct layout *layout)
{
    size_t places = (size_t)plan->stages * PHASE_KINDS * (size_t)plan->microbatches;
    for (size_t i = 0; i < places; i++) {
        phases->at[i] = -1;
    }
    for (int rank = 0; rank < plan->ranks; rank++) {
        builder->build(layout, rank, &phases->rank[rank]);
        TRY(phases_locate(phases, plan, layout, rank));
    }
    return phases_check(phases, plan, layout);
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
        list->capacity = (int)most + 1; /* one too many is seen as there twice */
        list->phase = malloc((most + 1) * sizeof *list->phase);
        made = list->phase != NULL;
    }
    if (!made) {
        phases_destroy(phases, plan->ranks);
        return FAIL(STATUS_NOMEM, "no memory for the phases of a plan");
    }
    status_t status = phases_build(phases, plan, builder, layout);
    if (status != STATUS_OK) {
        phases_destroy(phases, plan->ranks);
        return status;
    }
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

/* ---- as a text ---- */

void plan_print_schedule(const struct plan *plan, FILE *out)
{
    fprintf(out, "# schedule %s: %d stage%s on %d rank%s\n", plan->schedule, plan->stages,
            plan->stages == 1 ? "" : "s", plan->ranks, plan->ranks == 1 ? "" : "s");
    fprintf(out, "microbatches %d\nranks", plan->microbatches);
    for (int stage = 0; stage < plan->stages; stage++) {
        fprintf(out, " %d", plan->stage[stage].rank);
    }
    fprintf(out, "\npartition ");
    for (int stage = 0; stage < plan->stages; stage++) {
        fprintf(out, "%s%d", stage > 0 ? "," : "", plan->stage[stage].units);
    }
    fprintf(out, "\nsum_order %s\n", plan->sum_order == SUM_SERIAL ? "serial" : "per_rank");
    for (int rank = 0; rank < plan->ranks; rank++) {
        fprintf(out, "rank %d:", rank);
        for (int i = 0; i < plan->rank[rank].phases; i++) {
            const struct phase *p = &plan->rank[rank].phase[i];
            fprintf(out, " %c%d.%d", phase_letter[p->kind], p->stage, p->microbatch);
        }
        fprintf(out, "\n");
    }
}
