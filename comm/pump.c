/* pump.c - tickets between a rank's main thread and a wire's progress thread. */
#include "comm/pump.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/trace.h"

static struct pump *pump_of(const struct wire *wire)
{
    return wire->state;
}

/* ---- creation ---- */

static status_t arrivals_create(struct pump *pump)
{
    struct wire *wire = pump->wire;

    for (int i = 0; i < wire->count; i++) {
        const struct wire_channel *c = &wire->channel[i];
        if (c->to != wire->group->rank) {
            continue;
        }
        struct ticket *tickets = calloc((size_t)c->slots, sizeof *tickets);
        if (tickets == NULL) {
            return FAIL(STATUS_NOMEM, "no memory for %d slots of channel %d", c->slots, i);
        }
        for (int k = 0; k < c->slots; k++) {
            tickets[k].pump = pump;
            tickets[k].channel = i;
            tickets[k].slot = k;
            tickets[k].data = c->slot[k];
            tickets[k].bytes = c->bytes;
        }
        pump->arrival[i] = tickets;
    }
    return STATUS_OK;
}

status_t pump_make_tickets(struct pump *pump, bool arrivals)
{
    const struct wire *wire = pump->wire;

    for (int i = 0; i < wire->count; i++) {
        const struct wire_channel *c = &wire->channel[i];
        int count = (arrivals ? c->to : c->from) == wire->group->rank ? wire_room(wire, i) : 0;
        for (int k = 0; k < count; k++) {
            struct ticket *ticket = malloc(sizeof *ticket);
            if (ticket == NULL) {
                return FAIL(STATUS_NOMEM, "no memory for %d messages of channel %d", count, i);
            }
            *ticket = (struct ticket){.made = pump->made, .older = pump->spare};
            pump->made = pump->spare = ticket;
        }
    }
    return STATUS_OK;
}

status_t pump_init(struct pump *pump, struct wire *wire, void (*wake)(struct pump *pump))
{
    memset(pump, 0, sizeof *pump);
    pump->wire = wire;
    pump->wake = wake;
    pump->queue_end = &pump->queue;
    pump->arrival = calloc((size_t)wire->count, sizeof *pump->arrival);
    pump->departure = calloc((size_t)wire->count, sizeof *pump->departure);
    pump->ahead = calloc((size_t)wire->group->size, sizeof *pump->ahead);
    if (pump->arrival == NULL || pump->departure == NULL || pump->ahead == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for the tickets of %d channels", wire->count);
    }
    TRY(arrivals_create(pump));
    TRY(pump_make_tickets(pump, false));
    return wire->group->class->clocks(wire->group, pump->ahead);
}

void pump_fini(struct pump *pump)
{
    for (int i = 0; i < pump->wire->count; i++) {
        if (pump->arrival != NULL) {
            free(pump->arrival[i]);
        }
    }
    for (struct ticket *t = pump->made, *made; t != NULL; t = made) {
        made = t->made;
        free(t);
    }
    streams_free(pump);
    free(pump->arrival);
    free(pump->departure);
    free(pump->ahead);
}

void pump_peers(const struct wire *wire, bool *out_talks)
{
    memset(out_talks, 0, (size_t)wire->group->size * sizeof *out_talks);
    for (int i = 0; i < wire->count; i++) {
        const struct wire_channel *c = &wire->channel[i];
        if (c->from == wire->group->rank) {
            out_talks[c->to] = true;
        } else if (c->to == wire->group->rank) {
            out_talks[c->from] = true;
        }
    }
}

/* ---- the progress thread's side ---- */

struct ticket *pump_take(struct pump *pump, bool *out_stop)
{
    pthread_mutex_t *mutex = pump->wire->group->bell.mutex;

    pthread_mutex_lock(mutex);
    struct ticket *queue = pump->queue;
    pump->queue = NULL;
    pump->queue_end = &pump->queue;
    *out_stop = pump->stop;
    if (pump->streams != NULL) {
        queue = streams_due(pump, queue);
    }
    pthread_mutex_unlock(mutex);
    return queue;
}

void pump_finish(struct ticket *ticket, int64_t put, bool good)
{
    struct wire *wire = ticket->pump->wire;
    int64_t now = trace_now();

    pthread_mutex_lock(wire->group->bell.mutex);
    if (ticket->state != TICKET_MOVING) { /* broken before */
        pthread_mutex_unlock(wire->group->bell.mutex);
        return;
    }
    ticket->landed = now;
    if (!ticket->sending) {
        put -= ticket->pump->ahead[wire->channel[ticket->channel].from];
        ticket->put = put < now ? put : now;
        wire->counts[ticket->channel].messages += good;
        wire->counts[ticket->channel].bytes += good ? (int64_t)ticket->bytes : 0;
    }
    if (ticket->pump->streams != NULL) {
        streams_finish(ticket, good);
    } else {
        ticket->state = good ? TICKET_DONE : TICKET_BROKEN;
        bell_ring(&wire->group->bell);
    }
    pthread_mutex_unlock(wire->group->bell.mutex);
}

void pump_stop(struct pump *pump)
{
    if (pump->streams != NULL) {
        streams_drain(pump);
    }
    pthread_mutex_lock(pump->wire->group->bell.mutex);
    pump->stop = true;
    pthread_mutex_unlock(pump->wire->group->bell.mutex);
    pump->wake(pump);
}

/* ---- the main thread's side ---- */

void pump_enqueue(struct pump *pump, struct ticket *ticket)
{
    ticket->state = TICKET_MOVING;
    ticket->next = NULL;
    *pump->queue_end = ticket;
    pump->queue_end = &ticket->next;
}

status_t pump_post(struct wire *wire, int channel, int slot, int64_t message)
{
    struct pump *pump = pump_of(wire);

    if (pump->streams != NULL) {
        return streams_post(pump, channel, slot, message);
    }
    struct ticket *ticket = &pump->arrival[channel][slot];
    pthread_mutex_lock(wire->group->bell.mutex);
    CHECK(ticket->state == TICKET_IDLE,
          "slot %d of channel %d posted for message %" PRId64 " still holds message %" PRId64, slot,
          channel, message, ticket->message);
    ticket->message = message;
    pump_enqueue(pump, ticket);
    pthread_mutex_unlock(wire->group->bell.mutex);
    pump->wake(pump);
    return STATUS_OK;
}

/* Departures that are done become spare (mutex held). A broken one stays for wire_sent to find. */
static void reap(struct pump *pump, int channel)
{
    struct ticket **link = &pump->departure[channel];

    while (*link != NULL) {
        struct ticket *ticket = *link;
        if (ticket->state == TICKET_DONE) {
            *link = ticket->older;
            ticket->older = pump->spare;
            pump->spare = ticket;
        } else {
            link = &ticket->older;
        }
    }
}

struct ticket *pump_ticket(struct pump *pump, int channel, int slot, int64_t message)
{
    struct ticket *ticket = pump->spare;

    if (ticket != NULL) {
        pump->spare = ticket->older;
    } else {
        ticket = malloc(sizeof *ticket);
        if (ticket == NULL) {
            return NULL;
        }
        ticket->made = pump->made;
        pump->made = ticket;
    }
    *ticket = (struct ticket){.made = ticket->made,
                              .pump = pump,
                              .channel = channel,
                              .slot = slot,
                              .message = message,
                              .bytes = pump->wire->channel[channel].bytes};
    return ticket;
}

status_t pump_put(struct wire *wire, int channel, int slot, int64_t message, const void *source)
{
    struct pump *pump = pump_of(wire);
    int64_t now = trace_now();

    if (pump->streams != NULL) {
        return streams_put(pump, channel, slot, message, source);
    }
    pthread_mutex_lock(wire->group->bell.mutex);
    reap(pump, channel);
    struct ticket *ticket = pump_ticket(pump, channel, slot, message);
    if (ticket != NULL) {
        ticket->sending = true;
        ticket->data = (void *)(uintptr_t)source;
        ticket->put = now;
        ticket->older = pump->departure[channel];
        pump->departure[channel] = ticket;
        pump_enqueue(pump, ticket);
        wire->counts[channel].messages++;
        wire->counts[channel].bytes += (int64_t)ticket->bytes;
    }
    pthread_mutex_unlock(wire->group->bell.mutex);
    if (ticket == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for a message of channel %d", channel);
    }
    pump->wake(pump);
    return STATUS_OK;
}

/* Sleeps until `ticket` moves no more (mutex held). */
static status_t settle(struct wire *wire, struct ticket *ticket, const char *verb)
{
    int64_t until = group_deadline(wire->group);

    while (ticket->state == TICKET_MOVING) {
        if (wire->group->failed || !bell_sleep(&wire->group->bell, until)) {
            return wire_give_up(wire, ticket->channel, ticket->message, verb);
        }
    }
    if (ticket->state == TICKET_BROKEN) { /* said by the progress thread */
        return wire->group->failed ? group_lost(wire->group) : STATUS_INTERNAL;
    }
    return STATUS_OK;
}

status_t pump_wait(struct wire *wire, int channel, int slot, int64_t message,
                   struct wire_stamp *out_stamp)
{
    struct pump *pump = pump_of(wire);

    if (pump->streams != NULL) {
        return streams_wait(pump, channel, slot, message);
    }
    struct ticket *ticket = &pump->arrival[channel][slot];
    pthread_mutex_lock(wire->group->bell.mutex);
    CHECK(ticket->state != TICKET_IDLE && ticket->message == message,
          "wait for message %" PRId64 " in slot %d of channel %d, which was not posted for it",
          message, slot, channel);
    status_t status = settle(wire, ticket, "landed");
    if (status == STATUS_OK) {
        *out_stamp = (struct wire_stamp){ticket->put, ticket->landed};
        ticket->state = TICKET_IDLE;
    }
    pthread_mutex_unlock(wire->group->bell.mutex);
    return status;
}

status_t pump_sent(struct wire *wire, int channel, int64_t message)
{
    struct pump *pump = pump_of(wire);
    status_t status = STATUS_OK;

    if (pump->streams != NULL) {
        return streams_sent(pump, channel, message);
    }
    pthread_mutex_lock(wire->group->bell.mutex);
    struct ticket *ticket = pump->departure[channel];
    while (ticket != NULL && ticket->message != message) {
        ticket = ticket->older;
    }
    if (ticket != NULL) { /* otherwise long gone */
        status = settle(wire, ticket, "left");
        reap(pump, channel);
    }
    pthread_mutex_unlock(wire->group->bell.mutex);
    return status;
}
