/* progress.c - tickets between a rank's main thread and a wire's progress thread. */
#include "comm/progress/links.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/trace.h"

static struct progress *progress_of(const struct wire *wire)
{
    return wire->state;
}

/* ---- creation ---- */

static status_t arrivals_create(struct progress *progress)
{
    struct wire *wire = progress->wire;

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
            tickets[k].progress = progress;
            tickets[k].channel = i;
            tickets[k].slot = k;
            tickets[k].data = c->slot[k];
            tickets[k].bytes = c->bytes;
        }
        progress->arrival[i] = tickets;
    }
    return STATUS_OK;
}

status_t progress_make_tickets(struct progress *progress, bool arrivals)
{
    const struct wire *wire = progress->wire;

    for (int i = 0; i < wire->count; i++) {
        const struct wire_channel *c = &wire->channel[i];
        int count = (arrivals ? c->to : c->from) == wire->group->rank ? wire_room(wire, i) : 0;
        for (int k = 0; k < count; k++) {
            struct ticket *ticket = malloc(sizeof *ticket);
            if (ticket == NULL) {
                return FAIL(STATUS_NOMEM, "no memory for %d messages of channel %d", count, i);
            }
            *ticket = (struct ticket){.made = progress->made, .older = progress->spare};
            progress->made = progress->spare = ticket;
        }
    }
    return STATUS_OK;
}

status_t progress_init(struct progress *progress, struct wire *wire,
                       void (*wake)(struct progress *progress))
{
    memset(progress, 0, sizeof *progress);
    progress->wire = wire;
    progress->wake = wake;
    progress->queue_end = &progress->queue;
    progress->arrival = calloc((size_t)wire->count, sizeof *progress->arrival);
    progress->departure = calloc((size_t)wire->count, sizeof *progress->departure);
    progress->ahead = calloc((size_t)wire->group->size, sizeof *progress->ahead);
    if (progress->arrival == NULL || progress->departure == NULL || progress->ahead == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for the tickets of %d channels", wire->count);
    }
    TRY(arrivals_create(progress));
    TRY(progress_make_tickets(progress, false));
    return wire->group->class->clocks(wire->group, progress->ahead);
}

void progress_fini(struct progress *progress)
{
    for (int i = 0; i < progress->wire->count; i++) {
        if (progress->arrival != NULL) {
            free(progress->arrival[i]);
        }
    }
    for (struct ticket *t = progress->made, *made; t != NULL; t = made) {
        made = t->made;
        free(t);
    }
    streams_free(progress);
    free(progress->arrival);
    free(progress->departure);
    free(progress->ahead);
}

void progress_peers(const struct wire *wire, bool *out_talks)
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

struct ticket *progress_take(struct progress *progress, bool *out_stop)
{
    pthread_mutex_t *mutex = progress->wire->group->shared->wakeup.mutex;

    pthread_mutex_lock(mutex);
    struct ticket *queue = progress->queue;
    progress->queue = NULL;
    progress->queue_end = &progress->queue;
    *out_stop = progress->stop;
    if (progress->streams != NULL) {
        queue = streams_due(progress, queue);
    }
    pthread_mutex_unlock(mutex);
    return queue;
}

void progress_finish(struct ticket *ticket, int64_t put, bool good)
{
    struct wire *wire = ticket->progress->wire;
    int64_t now = trace_now();

    pthread_mutex_lock(wire->group->shared->wakeup.mutex);
    if (ticket->state != TICKET_MOVING) { /* broken before */
        pthread_mutex_unlock(wire->group->shared->wakeup.mutex);
        return;
    }
    ticket->landed = now;
    if (!ticket->sending) {
        put -= ticket->progress->ahead[wire->channel[ticket->channel].from];
        ticket->put = put < now ? put : now;
        wire->counts[ticket->channel].messages += good;
        wire->counts[ticket->channel].bytes += good ? (int64_t)ticket->bytes : 0;
        if (!links_keep(ticket->progress->links, ticket->channel)) {
            wire_arrives(wire, ticket->channel, ticket->bytes);
        }
    }
    if (ticket->progress->streams != NULL) {
        streams_finish(ticket, good);
    } else {
        ticket->state = good ? TICKET_DONE : TICKET_BROKEN;
        wakeup_signal(&wire->group->shared->wakeup);
    }
    pthread_mutex_unlock(wire->group->shared->wakeup.mutex);
}

void progress_stop(struct progress *progress)
{
    if (progress->streams != NULL) {
        streams_drain(progress);
    }
    pthread_mutex_lock(progress->wire->group->shared->wakeup.mutex);
    progress->stop = true;
    pthread_mutex_unlock(progress->wire->group->shared->wakeup.mutex);
    progress->wake(progress);
}

/* ---- the main thread's side ---- */

void progress_enqueue(struct progress *progress, struct ticket *ticket)
{
    ticket->state = TICKET_MOVING;
    ticket->next = NULL;
    *progress->queue_end = ticket;
    progress->queue_end = &ticket->next;
}

status_t progress_post(struct wire *wire, int channel, int slot, int64_t message)
{
    struct progress *progress = progress_of(wire);

    if (progress->streams != NULL) {
        return streams_post(progress, channel, slot, message);
    }
    struct ticket *ticket = &progress->arrival[channel][slot];
    pthread_mutex_lock(wire->group->shared->wakeup.mutex);
    CHECK(ticket->state == TICKET_IDLE,
          "slot %d of channel %d posted for message %" PRId64 " still holds message %" PRId64, slot,
          channel, message, ticket->message);
    ticket->message = message;
    progress_enqueue(progress, ticket);
    pthread_mutex_unlock(wire->group->shared->wakeup.mutex);
    progress->wake(progress);
    return STATUS_OK;
}

/* Departures that are done become spare (mutex held). A broken one stays for wire_sent to find. */
static void reap(struct progress *progress, int channel)
{
    struct ticket **link = &progress->departure[channel];

    while (*link != NULL) {
        struct ticket *ticket = *link;
        if (ticket->state == TICKET_DONE) {
            *link = ticket->older;
            ticket->older = progress->spare;
            progress->spare = ticket;
        } else {
            link = &ticket->older;
        }
    }
}

struct ticket *progress_ticket(struct progress *progress, int channel, int slot, int64_t message)
{
    struct ticket *ticket = progress->spare;

    if (ticket != NULL) {
        progress->spare = ticket->older;
    } else {
        ticket = malloc(sizeof *ticket);
        if (ticket == NULL) {
            return NULL;
        }
        ticket->made = progress->made;
        progress->made = ticket;
    }
    *ticket = (struct ticket){.made = ticket->made,
                              .progress = progress,
                              .channel = channel,
                              .slot = slot,
                              .message = message,
                              .bytes = progress->wire->channel[channel].bytes};
    return ticket;
}

status_t progress_put(struct wire *wire, int channel, int slot, int64_t message, int64_t order,
                      const void *source)
{
    struct progress *progress = progress_of(wire);
    int64_t now = trace_now();

    if (progress->streams != NULL) {
        return streams_put(progress, channel, slot, message, order, source);
    }
    pthread_mutex_lock(wire->group->shared->wakeup.mutex);
    reap(progress, channel);
    struct ticket *ticket = progress_ticket(progress, channel, slot, message);
    if (ticket != NULL) {
        ticket->sending = true;
        ticket->data = (void *)(uintptr_t)source;
        ticket->put = now;
        ticket->order = order;
        ticket->older = progress->departure[channel];
        progress->departure[channel] = ticket;
        progress_enqueue(progress, ticket);
        wire->counts[channel].messages++;
        wire->counts[channel].bytes += (int64_t)ticket->bytes;
    }
    pthread_mutex_unlock(wire->group->shared->wakeup.mutex);
    if (ticket == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for a message of channel %d", channel);
    }
    progress->wake(progress);
    return STATUS_OK;
}

/* Sleeps until `ticket` moves no more (mutex held). */
static status_t settle(struct wire *wire, struct ticket *ticket, const char *verb)
{
    int64_t until = group_deadline(wire->group);

    while (ticket->state == TICKET_MOVING) {
        if (wire->group->shared->failed || !wakeup_wait(&wire->group->shared->wakeup, until)) {
            return wire_give_up(wire, ticket->channel, ticket->message, verb);
        }
    }
    if (ticket->state == TICKET_BROKEN) { /* said by the progress thread */
        return wire->group->shared->failed ? group_lost(wire->group) : STATUS_INTERNAL;
    }
    return STATUS_OK;
}

status_t progress_wait(struct wire *wire, int channel, int slot, int64_t message,
                       struct wire_stamp *out_stamp)
{
    struct progress *progress = progress_of(wire);

    if (progress->streams != NULL) {
        return streams_wait(progress, channel, slot, message);
    }
    struct ticket *ticket = &progress->arrival[channel][slot];
    pthread_mutex_lock(wire->group->shared->wakeup.mutex);
    CHECK(ticket->state != TICKET_IDLE && ticket->message == message,
          "wait for message %" PRId64 " in slot %d of channel %d, which was not posted for it",
          message, slot, channel);
    status_t status = settle(wire, ticket, "landed");
    if (status == STATUS_OK) {
        *out_stamp = (struct wire_stamp){ticket->put, ticket->landed};
        ticket->state = TICKET_IDLE;
    }
    pthread_mutex_unlock(wire->group->shared->wakeup.mutex);
    return status;
}

status_t progress_sent(struct wire *wire, int channel, int64_t message)
{
    struct progress *progress = progress_of(wire);
    status_t status = STATUS_OK;

    if (progress->streams != NULL) {
        return streams_sent(progress, channel, message);
    }
    pthread_mutex_lock(wire->group->shared->wakeup.mutex);
    struct ticket *ticket = progress->departure[channel];
    while (ticket != NULL && ticket->message != message) {
        ticket = ticket->older;
    }
    if (ticket != NULL) { /* otherwise long gone */
        status = settle(wire, ticket, "left");
        reap(progress, channel);
    }
    pthread_mutex_unlock(wire->group->shared->wakeup.mutex);
    return status;
}
