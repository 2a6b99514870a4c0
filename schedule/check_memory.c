/* check_memory.c - sizes and first state of the abstract machine's memory. */
#include <stdlib.h>

#include "schedule/check_machine.h"

/* Numbers all slots and frames; returns the slots in all. */
static size_t machine_number(struct machine *machine, size_t *out_frames)
{
    const struct plan *plan = machine->plan;
    size_t slots = 0, frames = 0;
    for (int stage = 0; stage < plan->stages; stage++) {
        machine->frame_first[stage] = frames;
        frames += (size_t)plan->stage[stage].frames;
        for (int key = 0; key < plan->graph->keys; key++) {
            machine->grad_slot[machine_pair(plan, stage, key)] = slots;
            slots += (size_t)plan->stage[stage].grad_slots[key];
        }
        machine->frame_uses[stage] = plan->stage[stage].units * (plan->training ? 3 : 1);
    }
    for (int i = 0; i < plan->shipments; i++) {
        const struct shipment *s = &plan->shipment[i];
        machine->shipment_slot[i] =
            s->backward ? machine->grad_slot[machine_pair(plan, s->to, s->key)] : slots;
        slots += s->backward ? 0 : (size_t)s->slots;
        if (!s->backward) {
            machine->frame_uses[s->from]++;
            machine->arrival[machine_pair(plan, s->to, s->key)] = i;
        }
    }
    for (int rank = 0; rank < plan->ranks; rank++) { /* GRADs use the frame of their microbatch */
        for (int i = 0; i < plan->rank[rank].ops; i++) {
            const struct op *op = &plan->rank[rank].op[i];
            machine->frame_uses[op->stage] += op->kind == OP_GRAD && op->microbatch == 0;
        }
    }
    *out_frames = frames;
    return slots;
}

bool machine_init(struct machine *machine)
{
    const struct plan *plan = machine->plan;
    size_t stages = (size_t)plan->stages, units = (size_t)plan->graph->units;
    size_t shipments = (size_t)plan->shipments, m = (size_t)plan->microbatches;
    machine->next = calloc((size_t)plan->ranks, sizeof *machine->next);
    machine->at_norm = calloc((size_t)plan->ranks, sizeof *machine->at_norm);
    machine->shipment_slot = calloc(shipments + 1, sizeof *machine->shipment_slot);
    machine->grad_slot = calloc(stages * (size_t)plan->graph->keys + 1, sizeof *machine->grad_slot);
    machine->arrival = calloc(stages * (size_t)plan->graph->keys + 1, sizeof *machine->arrival);
    machine->frame_first = calloc(stages, sizeof *machine->frame_first);
    machine->frame_uses = calloc(stages, sizeof *machine->frame_uses);
    machine->backward = calloc(units, sizeof *machine->backward);
    machine->open = calloc(stages, sizeof *machine->open);
    machine->made = calloc(units * m, sizeof *machine->made);
    machine->weights = calloc(units, sizeof *machine->weights);
    machine->message = calloc(shipments * m + 1, sizeof *machine->message);
    machine->queue = calloc((size_t)plan->ranks * (size_t)plan->ranks, sizeof *machine->queue);
    if (machine->queue == NULL || machine->next == NULL || machine->at_norm == NULL ||
        machine->shipment_slot == NULL || machine->grad_slot == NULL || machine->arrival == NULL ||
        machine->frame_first == NULL || machine->frame_uses == NULL || machine->backward == NULL ||
        machine->open == NULL || machine->made == NULL || machine->weights == NULL ||
        machine->message == NULL) {
        return false;
    }
    size_t frames = 0, slots = machine_number(machine, &frames);
    machine->slot = calloc(slots + 1, sizeof *machine->slot);
    machine->frame = calloc(frames, sizeof *machine->frame);
    for (size_t i = 0; machine->frame != NULL && i < frames; i++) {
        machine->frame[i].microbatch = -1;
    }
    for (size_t i = 0; i < stages; i++) {
        machine->open[i] = -1;
    }
    for (size_t i = 0; i < units; i++) {
        machine->backward[i].microbatch = -1;
    }
    return machine->slot != NULL && machine->frame != NULL;
}

void machine_fini(struct machine *machine)
{
    free(machine->next);
    free(machine->at_norm);
    free(machine->slot);
    free(machine->shipment_slot);
    free(machine->grad_slot);
    free(machine->arrival);
    free(machine->frame);
    free(machine->frame_first);
    free(machine->frame_uses);
    free(machine->backward);
    free(machine->open);
    free(machine->made);
    free(machine->weights);
    free(machine->message);
    free(machine->queue);
}
