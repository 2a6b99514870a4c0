/* threads.c - the "threads" transport: whoever comes second, the post or the put, copies.
 *
 * Posts and puts of a channel wait in two queues and meet head to head, which is the order of the
 * contract; a mismatch of message or slot is a bug of the caller and is said. All state is under the
 * world's mutex, only the copies are not: a rank may not destroy its end while one runs.
 *
 * Faults: a delayed message lies in its slot but counts as landed later; a lost one takes its slot
 * with it; a dead rank's verbs return STATUS_INTERRUPTED, so that its body ends.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/rng.h"
#include "base/trace.h"
#include "comm/comm.h"
#include "comm/transport.h"

enum slot_state { SLOT_FREE, SLOT_POSTED, SLOT_MOVING, SLOT_LANDED, SLOT_LOST, SLOT_BROKEN };

struct loop_slot {
    enum slot_state state;
    int64_t message, put, landed;
    int next; /* in the queue of posts; -1 = last */
};

struct loop_put {
    struct loop_put *next;
    int64_t message, put;
    int slot;
    bool lost, moving;
    const void *source;
};

struct loop_channel {
    struct loop_slot *slot;    /* [slots] */
    int first_post, last_post; /* -1 = none */
    struct loop_put *puts;     /* not yet copied, oldest first */
    struct loop_put *spare;
};

struct loop_wire { /* shared by the ranks */
    struct loop_wire *next;
    int64_t number; /* the how-manieth wire of every rank */
    int holders, copying, count;
    struct wire **end;            /* [ranks] NULL before creation and after destruction */
    struct loop_channel *channel; /* [count] */
};

static struct loop_world *world_of(const struct wire *wire)
{
    return wire->group->state;
}

/* ---- creation ---- */

static void shared_free(struct loop_wire *shared)
{
    for (int i = 0; shared->channel != NULL && i < shared->count; i++) {
        struct loop_put *lists[] = {shared->channel[i].puts, shared->channel[i].spare};
        for (int k = 0; k < 2; k++) {
            for (struct loop_put *put = lists[k], *next; put != NULL; put = next) {
                next = put->next;
                free(put);
            }
        }
        free(shared->channel[i].slot);
    }
    free(shared->channel);
    free(shared->end);
    free(shared);
}

static bool puts_create(struct loop_channel *c, int count)
{
    for (int i = 0; i < count; i++) {
        struct loop_put *put = calloc(1, sizeof *put);
        if (put == NULL) {
            return false;
        }
        put->next = c->spare;
        c->spare = put;
    }
    return true;
}

static struct loop_wire *shared_create(const struct wire *wire, int64_t number)
{
    struct loop_wire *shared = calloc(1, sizeof *shared);

    if (shared == NULL) {
        return NULL;
    }
    shared->number = number;
    shared->count = wire->count;
    shared->end = calloc((size_t)wire->group->size, sizeof *shared->end);
    shared->channel = calloc((size_t)wire->count, sizeof *shared->channel);
    bool complete = shared->end != NULL && shared->channel != NULL;
    for (int i = 0; complete && i < wire->count; i++) {
        struct loop_channel *c = &shared->channel[i];
        c->first_post = c->last_post = -1;
        c->slot = calloc((size_t)wire->channel[i].slots, sizeof *c->slot);
        complete = c->slot != NULL && puts_create(c, wire_room(wire, i));
    }
    if (!complete) {
        shared_free(shared);
        return NULL;
    }
    return shared;
}

static status_t loop_create(struct wire *wire)
{
    struct loop_world *world = world_of(wire);
    struct loop_wire *shared;

    pthread_mutex_lock(world->mutex);
    int64_t number = world->wires_created[wire->group->rank]++;
    for (shared = world->wires; shared != NULL && shared->number != number;) {
        shared = shared->next;
    }
    if (shared == NULL) {
        shared = shared_create(wire, number);
        if (shared != NULL) {
            shared->next = world->wires;
            world->wires = shared;
        }
    }
    if (shared != NULL) {
        shared->holders++;
        shared->end[wire->group->rank] = wire;
    }
    pthread_mutex_unlock(world->mutex);
    if (shared == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for a wire of %d channels", wire->count);
    }
    wire->state = shared;
    status_t status = wire->group->class->barrier(wire->group);
    if (status != STATUS_OK) {
        loop_wire_class.destroy(wire);
    }
    return status;
}

static void loop_destroy(struct wire *wire)
{
    struct loop_world *world = world_of(wire);
    struct loop_wire *shared = wire->state;

    pthread_mutex_lock(world->mutex);
    shared->end[wire->group->rank] = NULL;
    while (shared->copying > 0) {
        wakeup_wait(&wire->group->shared->wakeup, INT64_MAX);
    }
    shared->holders--;
    if (shared->holders == 0) {
        struct loop_wire **link = &world->wires;
        while (*link != shared) {
            link = &(*link)->next;
        }
        *link = shared->next;
        shared_free(shared);
    }
    pthread_mutex_unlock(world->mutex);
}

/* ---- the meeting of posts and puts (mutex held) ---- */

static void release_put(struct loop_channel *c, struct loop_put *put)
{
    struct loop_put **link = &c->puts;

    while (*link != put) {
        link = &(*link)->next;
    }
    *link = put->next;
    put->next = c->spare;
    c->spare = put;
}

static struct loop_put *oldest_waiting(struct loop_channel *c)
{
    struct loop_put *put = c->puts;

    while (put != NULL && put->moving) {
        put = put->next;
    }
    return put;
}

/* By how much the message lands later. */
static int64_t delay_ns(const struct loop_faults *faults, int channel, int64_t message)
{
    int64_t ns = faults->delay_us * 1000;
    bool late = faults->late_one_in > 0 && rng_below(1, (uint64_t)channel, (uint64_t)message,
                                                     (uint64_t)faults->late_one_in) == 0;
    return late ? ns * faults->late_times : ns;
}

static void copy_message(struct wire *wire, int channel, struct loop_put *put,
                         struct loop_slot *slot)
{
    struct loop_world *world = world_of(wire);
    struct loop_wire *shared = wire->state;
    struct loop_channel *c = &shared->channel[channel];
    int from = wire->channel[channel].from, to = wire->channel[channel].to;
    struct wire *receiver = shared->end[to];
    void *target = receiver->channel[channel].slot[slot - c->slot];
    size_t bytes = wire->channel[channel].bytes;

    slot->state = SLOT_MOVING;
    put->moving = true;
    shared->copying++;
    pthread_mutex_unlock(world->mutex);
    memcpy(target, put->source, bytes);
    pthread_mutex_lock(world->mutex);
    shared->copying--;

    int64_t now = trace_now();
    slot->state = SLOT_LANDED;
    slot->put = put->put;
    slot->landed = put->put + delay_ns(&world->top->faults, channel, put->message);
    slot->landed = slot->landed > now ? slot->landed : now;
    wire_arrives(receiver, channel, bytes);
    receiver->counts[channel].messages++;
    receiver->counts[channel].bytes += (int64_t)bytes;
    release_put(c, put);
    wakeup_signal(&world->group[from].shared->wakeup);
    wakeup_signal(&world->group[to].shared->wakeup);
    for (int i = 0; i < world->ranks; i++) { /* who waits to destroy its end */
        if (shared->end[i] == NULL) {
            wakeup_signal(&world->group[i].shared->wakeup);
        }
    }
}

/* Lets what can meet on `channel` meet. Nothing moves once an end is gone. */
static void match(struct wire *wire, int channel)
{
    struct loop_world *world = world_of(wire);
    struct loop_wire *shared = wire->state;
    struct loop_channel *c = &shared->channel[channel];
    int from = wire->channel[channel].from, to = wire->channel[channel].to;
    struct loop_put *put;

    while ((put = oldest_waiting(c)) != NULL && c->first_post >= 0 && shared->end[from] != NULL &&
           shared->end[to] != NULL && !wire->group->shared->failed) {
        struct loop_slot *slot = &c->slot[c->first_post];
        int index = c->first_post;
        c->first_post = slot->next;
        if (put->lost) {
            slot->state = SLOT_LOST;
            release_put(c, put);
            wakeup_signal(&world->group[from].shared->wakeup);
        } else if (put->message != slot->message || put->slot != index) {
            log_error("channel %d: message %" PRId64
                      " for slot %d meets the post of message %" PRId64
                      " in slot %d; posts and puts must have one order",
                      channel, put->message, put->slot, slot->message, index);
            slot->state = SLOT_BROKEN;
            release_put(c, put);
            wakeup_signal(&world->group[from].shared->wakeup);
            wakeup_signal(&world->group[to].shared->wakeup);
        } else {
            copy_message(wire, channel, put, slot);
        }
    }
}

/* ---- verbs ---- */

static status_t loop_post(struct wire *wire, int channel, int slot, int64_t message)
{
    struct loop_world *world = world_of(wire);
    struct loop_wire *shared = wire->state;
    struct loop_channel *c = &shared->channel[channel];
    struct loop_slot *s = &c->slot[slot];
    status_t status = STATUS_OK;

    pthread_mutex_lock(world->mutex);
    if (loop_is_dead(wire->group)) {
        status = STATUS_INTERRUPTED;
        goto unlock;
    }
    CHECK(s->state == SLOT_FREE,
          "slot %d of channel %d posted for message %" PRId64 " still holds message %" PRId64, slot,
          channel, message, s->message);
    *s = (struct loop_slot){.state = SLOT_POSTED, .message = message, .next = -1};
    if (c->first_post < 0) {
        c->first_post = slot;
    } else {
        c->slot[c->last_post].next = slot;
    }
    c->last_post = slot;
    match(wire, channel);

unlock:
    pthread_mutex_unlock(world->mutex);
    return status;
}

static status_t enqueue_put(struct wire *wire, int channel, const struct loop_put *fields)
{
    struct loop_channel *c = &((struct loop_wire *)wire->state)->channel[channel];
    struct loop_put *put = c->spare;
    struct loop_put **link = &c->puts;

    if (put != NULL) {
        c->spare = put->next;
    } else {
        put = malloc(sizeof *put);
        if (put == NULL) {
            return FAIL(STATUS_NOMEM, "no memory for a message of channel %d", channel);
        }
    }
    *put = *fields;
    while (*link != NULL) {
        link = &(*link)->next;
    }
    *link = put;
    wire->counts[channel].messages++;
    wire->counts[channel].bytes += (int64_t)wire->channel[channel].bytes;
    return STATUS_OK;
}

static status_t loop_put(struct wire *wire, int channel, int slot, int64_t message, int64_t order,
                         const void *source)
{
    (void)order;
    struct loop_world *world = world_of(wire);
    const struct loop_faults *faults = &world->top->faults;
    struct loop_put put = {.message = message, .put = trace_now(), .slot = slot, .source = source};
    status_t status;

    pthread_mutex_lock(world->mutex);
    TRY_GOTO(loop_sends(wire->group), unlock);
    put.lost = faults->lose && faults->lose_channel == channel && faults->lose_message == message;
    TRY_GOTO(enqueue_put(wire, channel, &put), unlock);
    match(wire, channel);

unlock:
    pthread_mutex_unlock(world->mutex);
    return status;
}

static status_t loop_wait(struct wire *wire, int channel, int slot, int64_t message,
                          struct wire_stamp *out_stamp)
{
    struct loop_world *world = world_of(wire);
    struct loop_wire *shared = wire->state;
    struct loop_slot *s = &shared->channel[channel].slot[slot];
    int64_t until = group_deadline(wire->group);
    status_t status = STATUS_OK;

    pthread_mutex_lock(world->mutex);
    CHECK(s->state != SLOT_FREE && s->message == message,
          "wait for message %" PRId64 " in slot %d of channel %d, which was not posted for it",
          message, slot, channel);
    for (;;) {
        if (s->state == SLOT_LANDED && trace_now() >= s->landed) {
            *out_stamp = (struct wire_stamp){s->put, s->landed};
            s->state = SLOT_FREE;
            break;
        }
        if (loop_is_dead(wire->group) || s->state == SLOT_BROKEN) {
            status = s->state == SLOT_BROKEN ? STATUS_INTERNAL : STATUS_INTERRUPTED;
            break;
        }
        int64_t next = s->state == SLOT_LANDED && s->landed < until ? s->landed : until;
        if (wire->group->shared->failed ||
            (!wakeup_wait(&wire->group->shared->wakeup, next) && next == until)) {
            status = wire_give_up(wire, channel, message, "landed");
            break;
        }
    }
    pthread_mutex_unlock(world->mutex);
    return status;
}

static bool is_under_way(const struct loop_channel *c, int64_t message)
{
    for (const struct loop_put *put = c->puts; put != NULL; put = put->next) {
        if (put->message == message) {
            return true;
        }
    }
    return false;
}

static status_t loop_sent(struct wire *wire, int channel, int64_t message)
{
    struct loop_world *world = world_of(wire);
    struct loop_wire *shared = wire->state;
    int64_t until = group_deadline(wire->group);
    status_t status = STATUS_OK;

    pthread_mutex_lock(world->mutex);
    while (is_under_way(&shared->channel[channel], message)) {
        if (loop_is_dead(wire->group)) {
            status = STATUS_INTERRUPTED;
            break;
        }
        if (wire->group->shared->failed || !wakeup_wait(&wire->group->shared->wakeup, until)) {
            status = wire_give_up(wire, channel, message, "left");
            break;
        }
    }
    pthread_mutex_unlock(world->mutex);
    return status;
}

const struct wire_class loop_wire_class = {
    .name = "threads",
    .threads = true,
    .create = loop_create,
    .destroy = loop_destroy,
    .post = loop_post,
    .put = loop_put,
    .wait = loop_wait,
    .sent = loop_sent,
};
