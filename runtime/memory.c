/* memory.c - what a rank's memory holds, beside what the plan says. Evaluation and samples of a run that
 * trains work in the memory of training, so it is all there is.
 */
#include "runtime/replicas.h"
#include "runtime/tp_group.h"
#include "runtime/trainer.h"

static void memory_of_host(const struct worker *worker, struct trainer_memory *out)
{
    bool staged = worker->wire && wire_staged(worker->wire);
    out->staging_predicted = staged ? out->predicted.staging : 0;
    out->staging_used = worker->wire ? (int64_t)wire_staging_bytes(worker->wire) : 0;
    out->pinned_beside =
        worker->wire ? (int64_t)wire_pinned_bytes(worker->wire) - out->staging_used : 0;
    out->replicas_pinned =
        replicas_pinned_bytes(worker->replicas) + tp_group_pinned_bytes(worker->tp);
}

void trainer_memory(const struct trainer *trainer, struct trainer_memory *out)
{
    const struct worker *worker =
        trainer->workers.train ? trainer->workers.train : trainer->workers.evaluation;
    plan_memory(worker->plan, worker->rank, &out->predicted);
    part_memory(worker->part, &out->used);
    out->arrivals_used = worker->bytes.arrivals;
    out->gradient_slots_used = worker->bytes.gradients;
    memory_of_host(worker, out);
    out->device_used = 0;
    out->transport_used = 0;
    size_t room = trainer->place.room, total;
    if (trainer->place.device && !trainer->place.shares_device &&
        device_memory(trainer->place.device, &room, &total) == STATUS_OK) {
        out->device_used = (int64_t)trainer->place.room - (int64_t)room;
        out->transport_used = worker->bytes.transport > 0 ? worker->bytes.transport : 0;
    }
}

int64_t trainer_memory_used(const struct trainer_memory *memory)
{
    const struct part_memory *used = &memory->used;
    return used->parameters + used->gradients + used->optimizer + used->frames + used->backward +
           memory->arrivals_used + memory->gradient_slots_used;
}

int64_t trainer_memory_predicted(const struct trainer_memory *memory)
{
    const struct plan_memory *plan = &memory->predicted;
    return plan->parameters + plan->gradients + plan->optimizer + plan->frames + plan->arrivals +
           plan->gradient_slots + plan->backward;
}

/* Bytes of weights and both moments, which the optimizer's state is two thirds of. */
static int64_t saved_bytes(const struct plan *plan, int rank)
{
    struct plan_memory memory;
    plan_memory(plan, rank, &memory);
    return memory.optimizer / 2 * 3;
}

void saver_print_plan(const struct run_config *config, const struct plan *plan, FILE *out)
{
    int fullest = 0;
    for (int rank = 1; rank < plan->ranks; rank++) {
        fullest = saved_bytes(plan, rank) > saved_bytes(plan, fullest) ? rank : fullest;
    }
    if (!saver_wanted(config)) {
        return;
    }
    if (config->checkpoint.copy == COPY_PIECES) {
        fprintf(
            out,
            "checkpoints: copied in pieces; the update of the step after a save waits until all of "
            "them have been encoded\n");
    } else {
        fprintf(out,
                "checkpoints: host memory for a copy, on rank %d (the fullest) %.1f MiB; the "
                "update of the "
                "step after a save waits for that copy\n",
                fullest, (double)saved_bytes(plan, fullest) / 0x1p20);
    }
}

status_t memory_workspaces(const struct model *model, const struct plan *plan,
                           const struct kernels *kernels, int threads, int64_t *out)
{
    for (int rank = 0; rank < plan->ranks; rank++) {
        struct part_stage own[plan->stages];
        struct part_options part = {.model = model,
                                    .kernels = kernels,
                                    .stage = own,
                                    .stages = part_stages_of(plan, rank, own),
                                    .training = plan->training,
                                    .threads = threads};
        TRY(part_workspace(&part, &out[rank]));
    }
    return STATUS_OK;
}

status_t trainer_workspaces(const struct trainer *trainer, int64_t *out)
{
    return memory_workspaces(trainer->model, trainer_plan(trainer), trainer->place.kernels,
                             trainer->place.threads, out);
}
