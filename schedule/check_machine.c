/* check_machine.c - all ranks' lists run against each other on an abstract machine.
 *
 * Its memory holds, instead of tensors, what they stand for: which microbatch a frame, a slot or a
 * backward buffer belongs to, in which state, and how many uses are still to come. A message lands
 * when it has been put, its slot posted for it, and all that the sender put to that rank before has
 * landed: so the proof holds for queues that keep their order, streams too, and for short ones: a put
 * to a rank for which PLAN_QUEUE messages wait stops its rank. A rank stops as well at a WAIT or SENT
 * whose message has not landed and at NORM until all are there; every other operation must be lawful
 * at once. What blocks depends on messages alone, so one interleaving stands for all.
 *
 * With W at once a unit's B and W have shared memory between them: nothing else may use it there.
 *
 *     slot   free -post-> posted -landing-> landed -wait-> held [-grad-> formed] -last use-> free
 *     frame  first F of a microbatch takes it, if the one before has had its last use
 */
#include <stdio.h>

#include "schedule/check_machine.h"

enum outcome { OUTCOME_DONE, OUTCOME_BLOCKED, OUTCOME_WRONG };

/* Operation under execution, for messages. */
struct place {
    struct machine *machine;
    int rank, index;
    const struct op *op;
};

#define WRONG(place, ...)                                                                          \
    (check_refuse((place)->machine->checker, (place)->rank, (place)->index, __VA_ARGS__),          \
     OUTCOME_WRONG)

static struct message *message_of(const struct machine *machine, const struct op *op)
{
    size_t row = (size_t)op->shipment * (size_t)machine->plan->microbatches;
    return &machine->message[row + (size_t)op->microbatch];
}

static bool *made_of(const struct machine *machine, int unit, int microbatch)
{
    return &machine->made[(size_t)unit * (size_t)machine->plan->microbatches + (size_t)microbatch];
}

static struct buffer *frame_of(const struct machine *machine, const struct op *op)
{
    return &machine->frame[machine->frame_first[op->stage] + (size_t)op->frame];
}

static struct slot *sum_at(const struct machine *machine, const struct op *op, int sum)
{
    int slot = op->microbatch % machine->plan->sum[sum].slots;
    return &machine->slot[machine->sum_slot[sum] + (size_t)slot];
}

static struct slot *grad_of(const struct machine *machine, const struct op *op, int key)
{
    return sum_at(machine, op, machine->plan->stage[op->stage].sum[key]);
}

/* What B of a unit of the operation's stage left of its microbatch. */
static struct buffer *backward_of(const struct machine *machine, const struct op *op, int unit)
{
    int place = op->microbatch % machine->plan->stage[op->stage].backwards;
    return &machine->backward[machine->backward_first[unit] + (size_t)place];
}

/* Arrival slot in which `key` of the operation's microbatch comes to its rank. */
static struct slot *arrival_of(const struct machine *machine, const struct op *op, int key)
{
    int rank = machine->plan->stage[op->stage].rank;
    int shipment = machine->arrival[machine_pair(machine->plan, rank, key)];
    int slots = machine->plan->shipment[shipment].slots;
    return &machine->slot[machine->shipment_slot[shipment] + (size_t)(op->microbatch % slots)];
}

static bool holds(const struct slot *slot, enum slot_state state, int microbatch)
{
    return slot->state == state && slot->microbatch == microbatch;
}

/* Has the stage formed its sum of the microbatch there? */
static bool is_formed_by(const struct slot *slot, int stage, int microbatch)
{
    return holds(slot, SLOT_FORMED, microbatch) && slot->stage == stage;
}

static void slot_use(struct slot *slot)
{
    slot->uses--;
    slot->state = slot->uses == 0 ? SLOT_FREE : slot->state;
}

/* Is it the unit's first read of its key? */
static bool is_first(const struct graph *graph, int read)
{
    const struct read *r = &graph->read[read];
    return read == graph->first_read[r->unit] || r[-1].key != r->key;
}

/* Uses of an arrived key: F, and B, of the rank's units that read it, and the GRADs that do. */
static int arrival_uses(const struct plan *plan, int rank, int key)
{
    int uses = 0;
    for (int stage = 0; stage < plan->stages; stage++) {
        if (plan->stage[stage].rank == rank) {
            uses += machine_readers(plan, stage, key) * (1 + plan->training);
            uses += plan->training && machine_rereads(plan, stage, key);
        }
    }
    return uses;
}

/* Uses of a formed gradient: one by whoever gets the sum next, or B and W of its producer here, and the
 * gradients of the keys that it was made of. */
static int grad_uses(const struct machine *machine, int stage, int key)
{
    const struct plan *plan = machine->plan;
    if (machine_home(machine, key) != stage) {
        return 1;
    }
    const struct graph *graph = plan->graph;
    int uses = 2, producer = graph->key[key].producer;
    for (int i = graph->first_read[producer]; i < graph->first_read[producer + 1]; i++) {
        uses += graph->read[i].kind == READ_MAKES && graph->read[i].made == key;
    }
    return uses;
}

/* ---- the wire ---- */

/* Slot in which the message of a put will land. */
static struct slot *target_of(const struct machine *machine, const struct op *op)
{
    int slots = machine->plan->shipment[op->shipment].slots;
    return &machine->slot[machine->shipment_slot[op->shipment] + (size_t)(op->microbatch % slots)];
}

static struct queue *queue_of(const struct machine *machine, const struct op *op)
{
    const struct plan *plan = machine->plan;
    const struct shipment *s = &plan->shipment[op->shipment];
    return &machine->queue[plan_rank_of(plan, s->from) * plan->ranks + plan_rank_of(plan, s->to)];
}

static void queue_put(struct machine *machine, const struct op *op)
{
    struct queue *queue = queue_of(machine, op);
    if (queue->first == NULL) {
        queue->first = op;
    } else {
        message_of(machine, queue->last)->behind = op;
    }
    queue->last = op;
    queue->length++;
}

/* What is first in the queue of the operation's message and has its slot, and so on. */
static void land(struct machine *machine, const struct op *op)
{
    struct queue *queue = queue_of(machine, op);
    while (queue->first != NULL &&
           holds(target_of(machine, queue->first), SLOT_POSTED, queue->first->microbatch)) {
        struct message *message = message_of(machine, queue->first);
        target_of(machine, queue->first)->state = SLOT_LANDED;
        message->landed = true;
        queue->first = message->behind;
        queue->length--;
    }
}

static enum outcome run_post(struct place *p)
{
    struct machine *machine = p->machine;
    struct slot *slot =
        &machine->slot[machine->shipment_slot[p->op->shipment] + (size_t)p->op->slot];
    if (slot->state != SLOT_FREE) {
        return WRONG(p, "its slot still belongs to microbatch %d", slot->microbatch);
    }
    *slot = (struct slot){.state = SLOT_POSTED, .microbatch = p->op->microbatch};
    land(machine, p->op);
    return OUTCOME_DONE;
}

static enum outcome run_wait(struct place *p)
{
    struct machine *machine = p->machine;
    const struct plan *plan = machine->plan;
    const struct shipment *s = &plan->shipment[p->op->shipment];
    struct slot *slot =
        &machine->slot[machine->shipment_slot[p->op->shipment] + (size_t)p->op->slot];
    if (holds(slot, SLOT_POSTED, p->op->microbatch)) {
        return OUTCOME_BLOCKED;
    }
    if (!holds(slot, SLOT_LANDED, p->op->microbatch)) {
        return WRONG(p, "its slot was not posted for it");
    }
    slot->state = SLOT_HELD;
    slot->uses = s->backward ? 1 : arrival_uses(plan, plan->stage[s->to].rank, s->key);
    return OUTCOME_DONE;
}

static enum outcome run_put(struct place *p)
{
    struct machine *machine = p->machine;
    const struct op *op = p->op;
    if (machine->plan->shipment[op->shipment].backward) {
        if (!is_formed_by(grad_of(machine, op, op->key), op->stage, op->microbatch)) {
            return WRONG(p, "the gradient has not been formed");
        }
    } else if (frame_of(machine, op)->microbatch != op->microbatch ||
               !*made_of(machine, machine->plan->graph->key[op->key].producer, op->microbatch)) {
        return WRONG(p, "the key has not been made");
    }
    if (queue_of(machine, op)->length >= PLAN_QUEUE) {
        return OUTCOME_BLOCKED;
    }
    message_of(machine, op)->put = true;
    queue_put(machine, op);
    land(machine, op);
    return OUTCOME_DONE;
}

static enum outcome run_sent(struct place *p)
{
    struct machine *machine = p->machine;
    const struct op *op = p->op;
    const struct message *message = message_of(machine, op);
    if (!message->put) {
        return WRONG(p, "nothing was put");
    }
    if (!message->landed) {
        return OUTCOME_BLOCKED;
    }
    if (machine->plan->shipment[op->shipment].backward) {
        slot_use(grad_of(machine, op, op->key));
    } else {
        frame_of(machine, op)->uses--;
    }
    return OUTCOME_DONE;
}

/* ---- compute ---- */

/* A read in the frame of another stage of the rank; false if that is another microbatch's. */
static bool other_frame_use(struct machine *machine, int stage, int microbatch)
{
    int place = microbatch % machine->plan->stage[stage].frames;
    struct buffer *frame = &machine->frame[machine->frame_first[stage] + (size_t)place];
    frame->uses--;
    return frame->microbatch == microbatch;
}

/* The key is there; one of another stage loses a use. */
static enum outcome read_key(struct place *p, int key)
{
    struct machine *machine = p->machine;
    const struct key *what = &machine->plan->graph->key[key];
    int home = machine_home(machine, key);
    if (machine->plan->stage[home].rank == p->rank) {
        if (!*made_of(machine, what->producer, p->op->microbatch)) {
            return WRONG(p, "%s has not been made", what->name);
        }
        if (home != p->op->stage && !other_frame_use(machine, home, p->op->microbatch)) {
            return WRONG(p, "%s has been overwritten", what->name);
        }
        return OUTCOME_DONE;
    }
    struct slot *slot = arrival_of(machine, p->op, key);
    if (!holds(slot, SLOT_HELD, p->op->microbatch)) {
        return WRONG(p, "%s is not there", what->name);
    }
    slot_use(slot);
    return OUTCOME_DONE;
}

/* All keys that the unit reads. */
static enum outcome read_keys(struct place *p)
{
    const struct graph *graph = p->machine->plan->graph;
    int unit = p->op->unit;
    enum outcome outcome = OUTCOME_DONE;
    for (int i = graph->first_read[unit];
         i < graph->first_read[unit + 1] && outcome == OUTCOME_DONE; i++) {
        if (is_first(graph, i)) {
            outcome = read_key(p, graph->read[i].key);
        }
    }
    return outcome;
}

/* A use of the microbatch's frame; false if the frame is another's. */
static bool frame_use(struct place *p)
{
    struct buffer *frame = frame_of(p->machine, p->op);
    frame->uses--;
    return frame->microbatch == p->op->microbatch;
}

/* Weight gradients take the microbatches in ascending order. */
static enum outcome weights_add(struct place *p)
{
    int *weights = &p->machine->weights[p->op->unit];
    if (*weights != p->op->microbatch) {
        return WRONG(p, "the weight gradient is due for microbatch %d", *weights);
    }
    *weights += 1;
    return OUTCOME_DONE;
}

/* Is the rank's shared memory free? With W at once it is the unit's own from B to W. */
static bool shared_free(const struct place *p)
{
    return p->machine->open[p->rank] < 0;
}

static enum outcome run_f(struct place *p)
{
    struct machine *machine = p->machine;
    const struct op *op = p->op;
    if (!shared_free(p)) {
        return WRONG(p, "W of unit %d is due first", machine->open[p->rank]);
    }
    struct buffer *frame = frame_of(machine, op);
    if (frame->microbatch != op->microbatch) {
        if (frame->uses > 0) {
            return WRONG(p, "its frame is still needed for microbatch %d", frame->microbatch);
        }
        *frame = (struct buffer){op->microbatch, machine->frame_uses[op->stage]};
    }
    frame->uses--;
    *made_of(machine, op->unit, op->microbatch) = true;
    return read_keys(p);
}

/* The gradients of what the unit produced are formed, and are used once. */
static enum outcome read_produced_grads(struct place *p)
{
    const struct graph *graph = p->machine->plan->graph;
    for (int key = 0; key < graph->keys; key++) {
        if (graph->key[key].producer != p->op->unit || !p->machine->checker->graded[key]) {
            continue;
        }
        struct slot *slot = grad_of(p->machine, p->op, key);
        if (!is_formed_by(slot, p->op->stage, p->op->microbatch)) {
            return WRONG(p, "the gradient of its output has not been formed");
        }
        slot_use(slot);
    }
    return OUTCOME_DONE;
}

/* A gradient is written: into the sum received, or into a free slot. */
static enum outcome form_grad(struct place *p, int key, bool received)
{
    struct slot *slot = grad_of(p->machine, p->op, key);
    int relay, mate;
    check_sum_before(p->machine->checker, p->op->stage, key, &relay, &mate);
    int before = relay >= 0 ? relay : mate;
    bool remote = before >= 0 && p->machine->plan->stage[before].rank != p->rank;
    bool there = remote ? holds(slot, SLOT_HELD, p->op->microbatch)
                        : is_formed_by(slot, before, p->op->microbatch);
    if (received && !there) {
        return WRONG(p, "the sum of the later stages is not there");
    }
    if (!received && slot->state != SLOT_FREE) {
        return WRONG(p, "its slot still belongs to microbatch %d", slot->microbatch);
    }
    *slot = (struct slot){SLOT_FORMED, p->op->microbatch, grad_uses(p->machine, p->op->stage, key),
                          p->op->stage};
    return OUTCOME_DONE;
}

static enum outcome run_b(struct place *p)
{
    struct machine *machine = p->machine;
    const struct graph *graph = machine->plan->graph;
    struct buffer *left = backward_of(machine, p->op, p->op->unit);
    if (!shared_free(p)) {
        return WRONG(p, "W of unit %d is due first", machine->open[p->rank]);
    }
    machine->open[p->rank] = machine->plan->weights_at_once ? p->op->unit : -1;
    if (!frame_use(p) || !*made_of(machine, p->op->unit, p->op->microbatch)) {
        return WRONG(p, "its forward has not been run");
    }
    if (left->uses > 0) {
        return WRONG(p, "what it left for microbatch %d is still needed", left->microbatch);
    }
    enum outcome outcome = read_produced_grads(p);
    if (outcome == OUTCOME_DONE) {
        outcome = read_keys(p);
    }
    *left = (struct buffer){p->op->microbatch, 1}; /* its W, and the GRADs that add it */
    int unit = p->op->unit, last = -1;
    for (int i = graph->first_read[unit];
         i < graph->first_read[unit + 1] && outcome == OUTCOME_DONE; i++) {
        const struct read *read = &graph->read[i];
        if (read->kind == READ_FORMS) {
            outcome = form_grad(p, read->key, false);
        } else if (read->kind == READ_LEAVES) {
            left->uses += read->key != last; /* one GRAD a key */
            last = read->key;
        }
    }
    return outcome;
}

/* What B of the unit left; `first`: the addition is the unit's first to this gradient. */
static enum outcome add_leftover(struct place *p, int unit, bool first)
{
    struct buffer *left = backward_of(p->machine, p->op, unit);
    if (left->microbatch != p->op->microbatch) {
        return WRONG(p, "unit %d has not contributed yet", unit);
    }
    left->uses -= first;
    return OUTCOME_DONE;
}

/* The gradient of a key that was made of this one on this stage. */
static enum outcome add_made(struct place *p, int key)
{
    struct slot *slot = grad_of(p->machine, p->op, key);
    if (!is_formed_by(slot, p->op->stage, p->op->microbatch)) {
        return WRONG(p, "the gradient of %s is not there", p->machine->plan->graph->key[key].name);
    }
    slot_use(slot);
    return OUTCOME_DONE;
}

static enum outcome run_grad(struct place *p)
{
    struct machine *machine = p->machine;
    bool received = false;
    int before = -1;
    for (int i = 0; i < p->op->adds; i++) {
        int index = machine->plan->add[p->op->first_add + i].read;
        if (index == ADD_RECEIVED) {
            received = true;
            continue;
        }
        if (index == ADD_PARTIAL) {
            int relay, mate;
            check_sum_before(machine->checker, p->op->stage, p->op->key, &relay, &mate);
            struct slot *partial =
                sum_at(machine, p->op, machine->plan->stage[p->op->stage].partial[p->op->key]);
            if (!is_formed_by(partial, mate, p->op->microbatch)) {
                return WRONG(p, "this rank's own sum is not there");
            }
            slot_use(partial);
            continue;
        }
        const struct read *read = &machine->plan->graph->read[index];
        enum outcome outcome = read->kind == READ_MAKES
                                   ? add_made(p, read->made)
                                   : add_leftover(p, read->unit, read->unit != before);
        if (outcome != OUTCOME_DONE) {
            return outcome;
        }
        before = read->kind == READ_MAKES ? before : read->unit;
    }
    if (!frame_use(p)) {
        return WRONG(p, "its frame is another microbatch's");
    }
    if (machine_rereads(machine->plan, p->op->stage, p->op->key)) {
        enum outcome outcome = read_key(p, p->op->key);
        if (outcome != OUTCOME_DONE) {
            return outcome;
        }
    }
    return form_grad(p, p->op->key, received);
}

static enum outcome run_w(struct place *p)
{
    struct buffer *left = backward_of(p->machine, p->op, p->op->unit);
    if (!frame_use(p) || left->microbatch != p->op->microbatch) {
        return WRONG(p, "its backward has not been run");
    }
    int *open = &p->machine->open[p->rank];
    if (p->machine->plan->weights_at_once && *open != p->op->unit) {
        return WRONG(p, "its backward was not just before");
    }
    *open = -1;
    left->uses--;
    enum outcome outcome = read_produced_grads(p);
    return outcome == OUTCOME_DONE ? weights_add(p) : outcome;
}

static enum outcome run_norm(struct place *p)
{
    p->machine->at_norm[p->rank] = true;
    for (int rank = 0; rank < p->machine->plan->ranks; rank++) {
        if (!p->machine->at_norm[rank]) {
            return OUTCOME_BLOCKED;
        }
    }
    return OUTCOME_DONE;
}

static enum outcome run_op(struct place *p)
{
    switch (p->op->kind) {
    case OP_POST:
        return run_post(p);
    case OP_WAIT:
        return run_wait(p);
    case OP_PUT:
        return run_put(p);
    case OP_SENT:
        return run_sent(p);
    case OP_F:
        return run_f(p);
    case OP_B:
        return run_b(p);
    case OP_GRAD:
        return run_grad(p);
    case OP_W:
        return run_w(p);
    case OP_NORM:
        return run_norm(p);
    default:
        return OUTCOME_DONE;
    }
}

/* ---- the run ---- */

static enum outcome machine_run_rank(struct machine *machine, int rank, bool *out_moved)
{
    const struct rank_plan *list = &machine->plan->rank[rank];
    while (machine->next[rank] < list->ops) {
        int index = machine->next[rank];
        struct place place = {machine, rank, index, &list->op[index]};
        enum outcome outcome = run_op(&place);
        if (outcome != OUTCOME_DONE) {
            return outcome;
        }
        machine->next[rank]++;
        *out_moved = true;
    }
    return OUTCOME_DONE;
}

/* All ranks that are not at their end, and what each waits for. */
static bool machine_deadlock(const struct machine *machine)
{
    char text[400] = "";
    int used = 0;
    for (int rank = 0; rank < machine->plan->ranks; rank++) {
        const struct rank_plan *list = &machine->plan->rank[rank];
        if (machine->next[rank] < list->ops && used >= 0 && (size_t)used < sizeof text) {
            char what[160];
            op_print(machine->plan, &list->op[machine->next[rank]], what, sizeof what);
            used += snprintf(text + used, sizeof text - (size_t)used, "%s rank %d at %d (%s)",
                             used > 0 ? "," : "", rank, machine->next[rank], what);
        }
    }
    return check_refuse(machine->checker, -1, -1, "deadlock:%s", text);
}

static bool machine_run(struct machine *machine)
{
    bool moved = true, done = false;
    while (moved && !done) {
        moved = false;
        done = true;
        for (int rank = 0; rank < machine->plan->ranks; rank++) {
            enum outcome outcome = machine_run_rank(machine, rank, &moved);
            if (outcome == OUTCOME_WRONG) {
                return false;
            }
            done = done && outcome == OUTCOME_DONE;
        }
    }
    return done || machine_deadlock(machine);
}

status_t check_machine(const struct checker *checker)
{
    struct machine machine = {.checker = checker, .plan = checker->plan};
    status_t status = STATUS_NOMEM;
    if (machine_init(&machine)) {
        status = machine_run(&machine) ? STATUS_OK : STATUS_INTERNAL;
    }
    machine_fini(&machine);
    return status;
}
