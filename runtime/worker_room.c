/* worker_room.c - is there room on a GPU for what its ranks will ask of it? Before any of them does; and
 * what to say when there was none even so.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "runtime/worker.h"

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

static void claim_of_plan(const struct worker *worker, struct claim *out)
{
    struct plan_memory *need = &out->need;
    plan_memory(worker->plan, worker->rank, need);
    out->weights = need->parameters + need->gradients + need->optimizer;
    out->slots = need->arrivals + need->gradient_slots;
    out->workspace = worker->bytes.workspace;
    out->bytes = out->weights + need->frames + out->slots + need->backward + out->workspace;
}

static status_t claim_make(const struct worker *worker, struct claim *out)
{
    TRY(device_memory(worker->device, &out->room, &out->total));
    device_info(worker->device, &out->info);
    claim_of_plan(worker, out);
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

static bool transport_matters(const struct worker *worker)
{
    return worker->bytes.transport >= WORTH_SAYING;
}

/* What would need less, of what is not at its least already. */
static void remedies_print(const struct worker *worker, bool shared, char *text, size_t size)
{
    const struct model *model = worker->model;
    enum recompute_choice recompute = model->recompute;
    bool training = worker->plan->training;
    bool one_host = group_local_size(worker->group) == group_size(worker->group);
    snprintf(text, size, "%s%s%s%s%s or data.seq_len",
             shared ? "fewer ranks on a GPU" : "more stages (start more ranks)",
             !transport_matters(worker) ? ""
             : one_host                 ? ", parallel.transport=ipc"
                                        : ", parallel.transport=ucx",
             !worker->device || model->dtype == DTYPE_BF16 ? "" : ", precision=bf16",
             !training || recompute == RECOMPUTE_FULL ? ""
             : recompute == RECOMPUTE_NONE            ? ", parallel.recompute"
                                                      : ", parallel.recompute=full",
             model->B > 1 ? ", data.micro_batch" : "");
}

/* "weights 1.0, ..., workspace 0.1", GiB each. */
static void needs_print(const struct worker *worker, const struct claim *own, char *text,
                        size_t size)
{
    int frames = 0; /* the most of a stage */
    for (int s = 0; s < worker->plan->stages; s++) {
        const struct stage_plan *each = &worker->plan->stage[s];
        frames = each->rank == worker->rank && each->frames > frames ? each->frames : frames;
    }
    snprintf(text, size,
             "%s %.1f, activations of %d microbatch%s %.1f, slots for other stages' tensors %.1f, "
             "backward %.1f, workspace %.1f",
             worker->plan->training ? "weights, gradients and optimizer" : "weights",
             gib(own->weights), frames, frames == 1 ? "" : "es", gib(own->need.frames),
             gib(own->slots), gib(own->need.backward), gib(own->workspace));
}

static status_t no_room(const struct worker *worker, const struct claim *own,
                        const struct claims *claims)
{
    char shared[96] = "", transport[96] = "", needs[256], remedies[256];
    if (claims->ranks > 1) {
        snprintf(shared, sizeof shared, ", the %d ranks that share its GPU %.1f GiB together,",
                 claims->ranks, gib(claims->bytes));
    }
    if (transport_matters(worker)) {
        snprintf(transport, sizeof transport, " beside %.1f that transport %s has taken",
                 gib(worker->bytes.transport), worker->transport);
    }
    needs_print(worker, own, needs, sizeof needs);
    remedies_print(worker, claims->ranks > 1, remedies, sizeof remedies);
    return FAIL(STATUS_NOMEM,
                "rank %d needs %.1f GiB%s and %s has %.1f of %.1f GiB free%s: %s; %s need less",
                group_named(worker->group, worker->rank), gib(own->bytes), shared, own->info.name,
                gib((int64_t)own->room), gib((int64_t)own->total), transport, needs, remedies);
}

status_t worker_check_room(struct worker *worker)
{
    struct claim own;
    struct claims claims;
    if (!worker->device) {
        return STATUS_OK;
    }
    TRY(group_agree(worker->group, claim_make(worker, &own)));
    TRY(claims_add(worker->group, &own, &claims));
    worker->refused = claims.bytes > (int64_t)own.room;
    return worker->refused ? no_room(worker, &own, &claims) : STATUS_OK;
}

void worker_explain_memory(const struct worker *worker)
{
    struct claim own = {0};
    char needs[256], remedies[256], room[64] = "";
    if (worker->refused || worker->lender) {
        return;
    }
    claim_of_plan(worker, &own);
    if (worker->device && device_memory(worker->device, &own.room, &own.total) == STATUS_OK) {
        snprintf(room, sizeof room, ", where %.1f of %.1f GiB are free now", gib((int64_t)own.room),
                 gib((int64_t)own.total));
    }
    needs_print(worker, &own, needs, sizeof needs);
    remedies_print(worker, false, remedies, sizeof remedies);
    log_error("rank %d was predicted to take %.1f GiB of %s%s: %s; %s need less",
              group_named(worker->group, worker->rank), gib(own.bytes),
              worker->device ? "the GPU" : "the host's memory", room, needs, remedies);
}
