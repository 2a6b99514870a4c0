/* check_memory.c - sizes and first state of the abstract machine's memory. */
#include <stdlib.h>

#include "schedule/check_machine.h"

/* Is it the unit's first read of its key? */
static bool is_first(const struct graph *graph, int read)
{
    const struct read *r = &graph->read[read];
    return read == graph->first_read[r->unit] || r[-1].key != r->key;
}

int machine_readers(const struct plan *plan, int stage, int key)
{
    const struct graph *graph = plan->graph;
    const struct stage_plan *s = &plan->stage[stage];
    int readers = 0;
    for (int u = 0; u < s->units; u++) {
        for (int i = graph->first_read[s->unit[u]]; i < graph->first_read[s->unit[u] + 1]; i++) {
            readers += graph->read[i].key == key && is_first(graph, i);
        }
    }
    return readers;
}

bool machine_rereads(const struct plan *plan, int stage, int key)
{
    for (int i = 0; i < plan->graph->reads; i++) {
        const struct read *read = &plan->graph->read[i];
        if (read->key == key && read->rereads && plan->stage_of[read->unit] == stage) {
            return true;
        }
    }
    return false;
}

/* Uses of a frame by a microbatch: F, B and W of its units, the sends of its keys, the reads of these by
 * other stages of the rank (again by a GRAD where that reads the key), and GRADs. */
static void machine_count_uses(struct machine *machine)
{
    const struct plan *plan = machine->plan;
    for (int stage = 0; stage < plan->stages; stage++) {
        machine->frame_uses[stage] = plan->stage[stage].units * (plan->training ? 3 : 1);
    }
    for (int key = 0; key < plan->graph->keys; key++) {
        int home = machine_home(machine, key);
        for (int stage = 0; stage < plan->stages; stage++) {
            if (stage != home && plan->stage[stage].rank == plan->stage[home].rank) {
                machine->frame_uses[home] +=
                    machine_readers(plan, stage, key) * (1 + plan->training) +
                    (plan->training && machine_rereads(plan, stage, key));
            }
        }
    }
    for (int i = 0; i < plan->shipments; i++) {
        machine->frame_uses[plan->shipment[i].from] += !plan->shipment[i].backward;
    }
    for (int rank = 0; rank < plan->ranks; rank++) {
        for (int i = 0; i < plan->rank[rank].ops; i++) {
            const struct op *op = &plan->rank[rank].op[i];
            if (op->kind == OP_GRAD && op->microbatch == 0) {
                machine->frame_uses[op->stage]++;
            }
        }
    }
}

/* Numbers all slots, frames and backward memories; returns the slots in all. */
static size_t machine_number(struct machine *machine, size_t *out_frames, size_t *out_backwards)
{
    const struct plan *plan = machine->plan;
    size_t slots = 0;
    *out_frames = *out_backwards = 0;
    for (int stage = 0; stage < plan->stages; stage++) {
        const struct stage_plan *s = &plan->stage[stage];
        machine->frame_first[stage] = *out_frames;
        *out_frames += (size_t)s->frames;
        for (int u = 0; u < s->units; u++) {
            machine->backward_first[s->unit[u]] = *out_backwards;
            *out_backwards += (size_t)s->backwards;
        }
    }
    for (int i = 0; i < plan->sums; i++) {
        machine->sum_slot[i] = slots;
        slots += (size_t)plan->sum[i].slots;
    }
    for (int i = 0; i < plan->shipments; i++) {
        const struct shipment *s = &plan->shipment[i];
        machine->shipment_slot[i] =
            s->backward ? machine->sum_slot[plan->stage[s->to].sum[s->key]] : slots;
        slots += s->backward ? 0 : (size_t)s->slots;
        if (!s->backward) {
            machine->arrival[machine_pair(plan, plan->stage[s->to].rank, s->key)] = i;
        }
    }
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
    machine->sum_slot = calloc((size_t)plan->sums + 1, sizeof *machine->sum_slot);
    machine->arrival =
        calloc((size_t)plan->ranks * (size_t)plan->graph->keys + 1, sizeof *machine->arrival);
    machine->frame_first = calloc(stages, sizeof *machine->frame_first);
    machine->frame_uses = calloc(stages, sizeof *machine->frame_uses);
    machine->backward_first = calloc(units, sizeof *machine->backward_first);
    machine->open = calloc((size_t)plan->ranks, sizeof *machine->open);
    machine->made = calloc(units * m, sizeof *machine->made);
    machine->weights = calloc(units, sizeof *machine->weights);
    machine->message = calloc(shipments * m + 1, sizeof *machine->message);
    machine->queue = calloc((size_t)plan->ranks * (size_t)plan->ranks, sizeof *machine->queue);
    if (machine->queue == NULL || machine->next == NULL || machine->at_norm == NULL ||
        machine->shipment_slot == NULL || machine->sum_slot == NULL || machine->arrival == NULL ||
        machine->frame_first == NULL || machine->frame_uses == NULL ||
        machine->backward_first == NULL || machine->open == NULL || machine->made == NULL ||
        machine->weights == NULL || machine->message == NULL) {
        return false;
    }
    size_t frames, backwards, slots = machine_number(machine, &frames, &backwards);
    machine_count_uses(machine);
    machine->slot = calloc(slots + 1, sizeof *machine->slot);
    machine->frame = calloc(frames + 1, sizeof *machine->frame);
    machine->backward = calloc(backwards + 1, sizeof *machine->backward);
    for (size_t i = 0; machine->frame != NULL && i < frames; i++) {
        machine->frame[i].microbatch = -1;
    }
    for (size_t i = 0; machine->backward != NULL && i < backwards; i++) {
        machine->backward[i].microbatch = -1;
    }
    for (int i = 0; i < plan->ranks; i++) {
        machine->open[i] = -1;
    }
    return machine->slot != NULL && machine->frame != NULL && machine->backward != NULL;
}

void machine_fini(struct machine *machine)
{
    free(machine->next);
    free(machine->at_norm);
    free(machine->slot);
    free(machine->shipment_slot);
    free(machine->sum_slot);
    free(machine->arrival);
    free(machine->frame);
    free(machine->frame_first);
    free(machine->frame_uses);
    free(machine->backward);
    free(machine->backward_first);
    free(machine->open);
    free(machine->made);
    free(machine->weights);
    free(machine->message);
    free(machine->queue);
}
