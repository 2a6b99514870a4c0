/* stage_room.c - is there room on a GPU for what its ranks will ask of it? Before any of them does; and
 * what to say when there was none even so.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "runtime/stage.h"

/* Of one rank, on its card. */
struct claim {
    struct device_info info;
    size_t room, total;
    struct plan_memory need;
    int64_t weights, slots, workspace, bytes; /* bytes: all of it */
};

/* All claims on one card. */
struct claims {
    int ranks;
    int64_t bytes;
};

static void claim_of_plan(const struct stage *stage, struct claim *out)
{
    struct plan_memory *need = &out->need;
    plan_memory(stage->plan, stage->rank, need);
    out->weights = need->parameters + need->gradients + need->optimizer;
    out->slots = need->arrivals + need->gradient_slots;
    out->workspace = stage->workspace;
    out->bytes = out->weights + need->frames + out->slots + need->backward + out->workspace;
}

static status_t claim_make(const struct stage *stage, struct claim *out)
{
    TRY(device_memory(stage->device, &out->room, &out->total));
    device_info(stage->device, &out->info);
    claim_of_plan(stage, out);
    return STATUS_OK;
}

/* Collective, so every rank has seen what is free before one takes of it. */
static status_t claims_add(struct group *group, const struct claim *own, struct claims *out)
{
    struct entry {
        unsigned char card[sizeof own->info.card];
        int64_t bytes;
    } mine = {.bytes = own->bytes};
    int ranks = group_size(group);
    struct entry *entry = calloc((size_t)ranks, sizeof *entry);
    if (!entry) {
        return FAIL(STATUS_NOMEM, "no memory for what %d ranks need", ranks);
    }
    memcpy(mine.card, own->info.card, sizeof mine.card);
    status_t status = group_allgather(group, &mine, sizeof mine, entry);
    *out = (struct claims){0};
    for (int r = 0; status == STATUS_OK && r < ranks; r++) {
        if (memcmp(entry[r].card, mine.card, sizeof mine.card) == 0) {
            out->ranks++;
            out->bytes += entry[r].bytes;
        }
    }
    free(entry);
    return status;
}

static double gib(int64_t bytes)
{
    return (double)bytes / 0x1p30;
}

enum { WORTH_SAYING = 16 << 20 }; /* bytes of a GPU */

static bool transport_matters(const struct stage *stage)
{
    return stage->transport_bytes >= WORTH_SAYING;
}

/* What would need less, of what is not at its least already. */
static void remedies_print(const struct stage *stage, bool shared, char *text, size_t size)
{
    const struct model *model = stage->model;
    enum recompute_choice recompute = model->recompute;
    bool training = stage->plan->training;
    bool one_host = group_local_size(stage->group) == group_size(stage->group);
    snprintf(text, size, "%s%s%s%s%s or data.seq_len",
             shared ? "fewer ranks on a GPU" : "more stages (start more ranks)",
             !transport_matters(stage) ? ""
             : one_host                ? ", parallel.transport=ipc"
                                       : ", parallel.transport=ucx",
             !stage->device || model->dtype == DTYPE_BF16 ? "" : ", precision=bf16",
             !training || recompute == RECOMPUTE_FULL ? ""
             : recompute == RECOMPUTE_NONE            ? ", parallel.recompute"
                                                      : ", parallel.recompute=full",
             model->B > 1 ? ", data.micro_batch" : "");
}

/* "weights 1.0, ..., workspace 0.1", GiB each. */
static void needs_print(const struct stage *stage, const struct claim *own, char *text, size_t size)
{
    int frames = 0; /* the most of a stage */
    for (int s = 0; s < stage->plan->stages; s++) {
        const struct stage_plan *each = &stage->plan->stage[s];
        frames = each->rank == stage->rank && each->frames > frames ? each->frames : frames;
    }
    snprintf(text, size,
             "%s %.1f, activations of %d microbatch%s %.1f, slots for other stages' tensors %.1f, "
             "backward %.1f, workspace %.1f",
             stage->plan->training ? "weights, gradients and optimizer" : "weights",
             gib(own->weights), frames, frames == 1 ? "" : "es", gib(own->need.frames),
             gib(own->slots), gib(own->need.backward), gib(own->workspace));
}

static status_t no_room(const struct stage *stage, const struct claim *own,
                        const struct claims *claims)
{
    char shared[96] = "", transport[96] = "", needs[256], remedies[256];
    if (claims->ranks > 1) {
        snprintf(shared, sizeof shared, ", the %d ranks that share its GPU %.1f GiB together,",
                 claims->ranks, gib(claims->bytes));
    }
    if (transport_matters(stage)) {
        snprintf(transport, sizeof transport, " beside %.1f that transport %s has taken",
                 gib(stage->transport_bytes), stage->transport);
    }
    needs_print(stage, own, needs, sizeof needs);
    remedies_print(stage, claims->ranks > 1, remedies, sizeof remedies);
    return FAIL(STATUS_NOMEM,
                "rank %d needs %.1f GiB%s and %s has %.1f of %.1f GiB free%s: %s; %s need less",
                stage->rank, gib(own->bytes), shared, own->info.name, gib((int64_t)own->room),
                gib((int64_t)own->total), transport, needs, remedies);
}

status_t stage_check_room(struct stage *stage)
{
    struct claim own;
    struct claims claims;
    if (!stage->device) {
        return STATUS_OK;
    }
    TRY(group_agree(stage->group, claim_make(stage, &own)));
    TRY(claims_add(stage->group, &own, &claims));
    stage->refused = claims.bytes > (int64_t)own.room;
    return stage->refused ? no_room(stage, &own, &claims) : STATUS_OK;
}

void stage_explain_memory(const struct stage *stage)
{
    struct claim own = {0};
    char needs[256], remedies[256], room[64] = "";
    if (stage->refused || stage->lender) {
        return;
    }
    claim_of_plan(stage, &own);
    if (stage->device && device_memory(stage->device, &own.room, &own.total) == STATUS_OK) {
        snprintf(room, sizeof room, ", where %.1f of %.1f GiB are free now", gib((int64_t)own.room),
                 gib((int64_t)own.total));
    }
    needs_print(stage, &own, needs, sizeof needs);
    remedies_print(stage, false, remedies, sizeof remedies);
    log_error("rank %d was predicted to take %.1f GiB of %s%s: %s; %s need less", stage->rank,
              gib(own.bytes), stage->device ? "the GPU" : "the host's memory", room, needs,
              remedies);
}
