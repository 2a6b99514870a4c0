/* stage_room.c - is there room on a GPU for what its ranks will ask of it? Before any of them does.
 */
#include <stdlib.h>
#include <string.h>

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

static status_t claim_make(const struct stage *stage, int64_t workspace, struct claim *out)
{
    struct plan_memory *need = &out->need;
    TRY(device_memory(stage->device, &out->room, &out->total));
    device_info(stage->device, &out->info);
    plan_memory(stage->plan, stage->rank, need);
    out->weights = need->parameters + need->gradients + need->optimizer;
    out->slots = need->arrivals + need->gradient_slots;
    out->workspace = workspace;
    out->bytes = out->weights + need->frames + out->slots + need->backward + workspace;
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

/* What would need less, of what is not at its least already. */
static void remedies_print(const struct model *model, bool shared, char *text, size_t size)
{
    enum recompute_choice recompute = model->recompute;
    snprintf(text, size, "%s%s%s%s or data.seq_len",
             shared ? "fewer ranks on a GPU" : "more stages (start more ranks)",
             model->dtype == DTYPE_BF16 ? "" : ", precision=bf16",
             recompute == RECOMPUTE_NONE        ? ", parallel.recompute"
             : recompute == RECOMPUTE_SELECTIVE ? ", parallel.recompute=full"
                                                : "",
             model->B > 1 ? ", data.micro_batch" : "");
}

static double gib(int64_t bytes)
{
    return (double)bytes / 0x1p30;
}

static status_t no_room(const struct stage *stage, const struct claim *own,
                        const struct claims *claims)
{
    char shared[96] = "", remedies[256];
    int frames = stage->plan->stage[stage->rank].frames;
    if (claims->ranks > 1) {
        snprintf(shared, sizeof shared, ", the %d ranks that share its GPU %.1f GiB together,",
                 claims->ranks, gib(claims->bytes));
    }
    remedies_print(stage->model, claims->ranks > 1, remedies, sizeof remedies);
    return FAIL(STATUS_NOMEM,
                "rank %d needs %.1f GiB%s and %s has %.1f of %.1f GiB free: weights, gradients and "
                "optimizer %.1f, activations of %d microbatch%s %.1f, slots for other stages' "
                "tensors %.1f, backward %.1f, workspace %.1f; %s need less",
                stage->rank, gib(own->bytes), shared, own->info.name, gib((int64_t)own->room),
                gib((int64_t)own->total), gib(own->weights), frames, frames == 1 ? "" : "es",
                gib(own->need.frames), gib(own->slots), gib(own->need.backward),
                gib(own->workspace), remedies);
}

status_t stage_check_room(const struct stage *stage, int64_t workspace)
{
    struct claim own;
    struct claims claims;
    if (!stage->device) {
        return STATUS_OK;
    }
    TRY(claim_make(stage, workspace, &own));
    TRY(claims_add(stage->group, &own, &claims));
    return claims.bytes <= (int64_t)own.room ? STATUS_OK : no_room(stage, &own, &claims);
}
