/* progress_stream.c - the verbs of a progress as operations of a stream, see progress.h. */
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <time.h>

#include "base/log.h"
#include "base/trace.h"
#include "comm/progress/progress_stream.h"

enum {
    LINGER = 1000000, /* ns awake after something happened */
    SPIN = 200000,    /* ... of it without a nap */
    NAP_SHORTEST = 10000,
    NAP_LONGEST = 40000,
    NAP_SHARE = 16,    /* a nap is this part of how long nothing has happened */
    TIMER_SLACK = 1000 /* ns; 50000 unless asked for */
};

static uint32_t after(int64_t message)
{
    return (uint32_t)message + 1;
}

static bool has_reached(const uint32_t *word, uint32_t value)
{
    return (int32_t)(__atomic_load_n(word, __ATOMIC_ACQUIRE) - value) >= 0;
}

/* ---- the progress thread ---- */

void progress_enter(struct progress *progress)
{
    struct wire *wire = progress->wire;

    log_set_rank(wire->group->rank);
    if (progress->streams != NULL) {
        prctl(PR_SET_TIMERSLACK, (unsigned long)TIMER_SLACK, 0, 0, 0);
        progress->streams->moved = trace_now();
    }
    /* UCX asks CUDA for events, which crashes in a thread without a context. */
    if (wire->device != NULL && device_bind(wire->device) != STATUS_OK) {
        log_error("the progress thread of the wire goes on without its device");
    }
}

bool progress_watches(const struct progress *progress)
{
    const struct progress_streams *s = progress->streams;

    return s != NULL && (s->watching || trace_now() - s->moved < LINGER);
}

void progress_moved(struct progress *progress)
{
    if (progress->streams != NULL) {
        progress->streams->moved = trace_now();
    }
}

void progress_nap(struct progress *progress)
{
    int64_t quiet = trace_now() - progress->streams->moved;

    if (quiet < SPIN) {
        sched_yield();
        return;
    }
    int64_t nap = quiet / NAP_SHARE;
    nap = nap < NAP_SHORTEST ? NAP_SHORTEST : nap > NAP_LONGEST ? NAP_LONGEST : nap;
    nanosleep(&(struct timespec){0, (long)nap}, NULL);
}

static void say_late(struct progress *progress, int channel, int64_t message, const char *verb)
{
    const struct wire_channel *c = &progress->wire->channel[channel];
    struct group *group = progress->wire->group;
    char reason[REASON_SIZE];

    snprintf(reason, sizeof reason,
             "message %" PRId64 " of channel %d (rank %d to rank %d, %zu bytes) has not %s within "
             "%g s (health.deadline_s)",
             message, channel, group_named(group, c->from), group_named(group, c->to), c->bytes,
             verb, group->options.deadline_s);
    group_fail(group, true, reason);
}

/* Nothing has moved for as long as a stream may wait: is there one that does? */
static void check_deadline(struct progress *progress)
{
    struct progress_streams *s = progress->streams;
    int64_t now = trace_now();
    double limit = progress->wire->group->options.deadline_s;

    if (limit <= 0 || (double)(now - s->moved) * 1e-9 < limit) {
        return;
    }
    s->moved = now;
    for (int i = 0; i < progress->wire->count; i++) {
        struct stream_channel *channel = &s->channel[i];
        for (int k = 0; channel->landed != NULL && k < progress->wire->channel[i].slots; k++) {
            const struct landing *landing = &channel->landing[k];
            if (landing->awaited && !has_reached(&channel->landed[k], after(landing->message))) {
                say_late(progress, i, landing->message, "landed");
                return;
            }
        }
        if (channel->first != NULL && channel->first->message <= channel->awaited) {
            say_late(progress, i, channel->first->message, "left");
            return;
        }
    }
}

static void line_up(struct progress_streams *s, struct ticket *ticket)
{
    struct ticket_queue *queue = &s->queue[ticket->queue];

    ticket->next = NULL;
    *queue->end = ticket;
    queue->end = &ticket->next;
}

/* From the front of `queue` to `end` what its stream has reached; the new end. */
static struct ticket **take_due(struct ticket_queue *queue, struct ticket **end)
{
    while (queue->first != NULL && has_reached(queue->first->word, queue->first->due)) {
        *end = queue->first;
        end = &queue->first->next;
        queue->first = queue->first->next;
    }
    if (queue->first == NULL) {
        queue->end = &queue->first;
    }
    return end;
}

struct ticket *streams_due(struct progress *progress, struct ticket *queue)
{
    struct progress_streams *s = progress->streams;
    struct ticket *due = NULL, **end = &due;

    for (struct ticket *ticket = queue, *next; ticket != NULL; ticket = next) {
        next = ticket->next;
        line_up(s, ticket);
    }
    s->watching = false;
    s->resting = true;
    if (progress->wire->group->shared->failed) { /* streams run on without us, over garbage */
        return NULL;
    }
    for (int i = 0; i < s->queues; i++) {
        end = take_due(&s->queue[i], end);
        s->watching |= s->queue[i].first != NULL;
    }
    *end = NULL;
    s->resting = due == NULL && !s->watching;
    if (due != NULL) {
        s->moved = trace_now();
        for (struct ticket *ticket = due; ticket != NULL; ticket = ticket->next) {
            ticket->put = s->moved;
        }
    } else {
        check_deadline(progress);
    }
    return due;
}

/* ---- completion ---- */

static void recycle(struct ticket *ticket)
{
    ticket->state = TICKET_DONE;
    ticket->older = ticket->progress->spare;
    ticket->progress->spare = ticket;
}

/* Departures may be through in another order than they left; streams learn of them in theirs. */
static void close_departures(struct stream_channel *channel)
{
    while (channel->first != NULL && channel->first->state == TICKET_DONE) {
        struct ticket *ticket = channel->first;
        channel->first = ticket->newer;
        word_set(channel->sent, after(ticket->message));
        ticket->progress->streams->departures--;
        recycle(ticket);
    }
    if (channel->first == NULL) {
        channel->end = &channel->first;
    }
}

void streams_finish(struct ticket *ticket, bool good)
{
    struct progress *progress = ticket->progress;
    struct stream_channel *channel = &progress->streams->channel[ticket->channel];
    const struct wire_channel *c = &progress->wire->channel[ticket->channel];
    struct group *group = progress->wire->group;
    char reason[REASON_SIZE];

    progress->streams->moved = ticket->landed;
    if (group->shared->failed ||
        (!good && progress->stop)) { /* words are far ahead; or withdrawn at the end */
        ticket->state = TICKET_BROKEN;
    } else if (!good) {
        ticket->state = TICKET_BROKEN;
        snprintf(reason, sizeof reason,
                 "message %" PRId64 " of channel %d (rank %d to rank %d, %zu bytes) was lost by "
                 "transport %s, whose message says how",
                 ticket->message, ticket->channel, group_named(group, c->from),
                 group_named(group, c->to), c->bytes, progress->wire->class->name);
        group_fail(group, true, reason);
    } else if (ticket->sending) {
        ticket->state = TICKET_DONE;
        close_departures(channel);
        wakeup_signal(&group->shared->wakeup);
    } else {
        word_set(&channel->landed[ticket->slot], after(ticket->message));
        recycle(ticket);
    }
}

/* ---- the verbs ---- */

/* Streams do not stop the caller: this is where it learns that a peer is lost. */
static status_t lock(struct progress *progress)
{
    pthread_mutex_lock(progress->wire->group->shared->wakeup.mutex);
    if (!progress->wire->group->shared->failed) {
        return STATUS_OK;
    }
    pthread_mutex_unlock(progress->wire->group->shared->wakeup.mutex);
    return group_lost(progress->wire->group);
}

static void unlock(struct progress *progress)
{
    pthread_mutex_unlock(progress->wire->group->shared->wakeup.mutex);
}

/* Queues `ticket`, to be started when `word` reaches `due`; wakes the thread unless it is awake.
 * Unlocks. */
static status_t hand_over(struct progress *progress, struct ticket *ticket, int channel, int queue,
                          const uint32_t *word, uint32_t due)
{
    bool wake = progress->streams->resting;

    if (ticket != NULL) {
        ticket->queue = queue;
        ticket->word = word;
        ticket->due = due;
        progress_enqueue(progress, ticket);
        progress->streams->resting = false;
    }
    unlock(progress);
    if (ticket == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for a message of channel %d", channel);
    }
    if (wake) {
        progress->wake(progress);
    }
    return STATUS_OK;
}

/* Makes a ticket due when the wire's stream gets here. Unlocks. */
static status_t hand_to_stream(struct progress *progress, struct ticket *ticket, int channel)
{
    struct progress_streams *s = progress->streams;
    uint32_t due = ++s->enqueued;

    TRY(hand_over(progress, ticket, channel, 0, s->reached, due));
    return device_word_write(device_of(progress), s->reached, due, progress->wire->stream);
}

static void *place_of(const struct progress *progress, int channel, int slot)
{
    const struct stream_channel *own = &progress->streams->channel[channel];

    return progress->streams->staged ? own->buffer + (size_t)slot * own->stride
                                     : progress->wire->channel[channel].slot[slot];
}

status_t streams_post(struct progress *progress, int channel, int slot, int64_t message)
{
    struct stream_channel *own = &progress->streams->channel[channel];
    struct landing *landing = &own->landing[slot];

    TRY(lock(progress));
    CHECK(landing->message < 0 || (landing->awaited && message > landing->message),
          "slot %d of channel %d posted for message %" PRId64 " after message %" PRId64 ", %s",
          slot, channel, message, landing->message,
          landing->awaited ? "which is not before it" : "which nobody has waited for");
    if (landing->message < 0) {
        word_set(&own->landed[slot], after(message) - 1);
    }
    *landing = (struct landing){.message = message};
    struct ticket *ticket = progress_ticket(progress, channel, slot, message);
    if (ticket != NULL) {
        ticket->data = place_of(progress, channel, slot);
    }
    return hand_to_stream(progress, ticket, channel);
}

/* In the stream of the receiver: the source into the staging buffer, once that is free. */
static status_t copy_out(struct progress *progress, int channel, int64_t before, void *buffer,
                         const void *source, int64_t message)
{
    struct stream_channel *own = &progress->streams->channel[channel];
    const struct wire_channel *c = &progress->wire->channel[channel];
    struct device *device = device_of(progress);
    void *to = progress->streams->to[c->to];

    TRY(device_event_record(device, progress->streams->put, progress->wire->stream));
    TRY(device_event_wait(device, progress->streams->put, to));
    if (before >= 0) {
        TRY(device_word_wait(device, own->sent, after(before), to));
    }
    wire_time_begin(progress->wire, to, "copy out", channel, message);
    TRY(device_copy(device, buffer, source, c->bytes, to));
    timeline_end(progress->wire->timeline);
    return device_word_write(device, own->copied, after(message), to);
}

static status_t put_staged(struct progress *progress, struct ticket *ticket, int channel,
                           int64_t message, const void *source)
{
    struct stream_channel *own = &progress->streams->channel[channel];
    const struct wire_channel *c = &progress->wire->channel[channel];
    int place = (int)(own->puts % c->slots);
    int64_t before = own->puts < c->slots ? -1 : own->staged[place];
    void *buffer = own->buffer + (size_t)place * own->stride;

    own->staged[place] = message;
    own->puts++;
    if (ticket != NULL) {
        ticket->data = buffer;
    }
    TRY(hand_over(progress, ticket, channel, 1 + c->to, own->copied, after(message)));
    return copy_out(progress, channel, before, buffer, source, message);
}

status_t streams_put(struct progress *progress, int channel, int slot, int64_t message,
                     int64_t order, const void *source)
{
    struct stream_channel *own = &progress->streams->channel[channel];
    struct wire_count *count = &progress->wire->counts[channel];

    TRY(lock(progress));
    CHECK(message > own->last, "channel %d: message %" PRId64 " put after message %" PRId64,
          channel, message, own->last);
    if (own->last < 0) {
        word_set(own->sent, after(message) - 1);
        word_set(own->copied, after(message) - 1);
    }
    own->last = message;
    struct ticket *ticket = progress_ticket(progress, channel, slot, message);
    if (ticket != NULL) {
        ticket->sending = true;
        ticket->order = order;
        ticket->data = (void *)(uintptr_t)source;
        *own->end = ticket;
        own->end = &ticket->newer;
        progress->streams->departures++;
        count->messages++;
        count->bytes += (int64_t)ticket->bytes;
    }
    if (progress->streams->staged) {
        return put_staged(progress, ticket, channel, message, source);
    }
    return hand_to_stream(progress, ticket, channel);
}

status_t streams_wait(struct progress *progress, int channel, int slot, int64_t message)
{
    struct stream_channel *own = &progress->streams->channel[channel];
    struct landing *landing = &own->landing[slot];
    const struct wire_channel *c = &progress->wire->channel[channel];
    struct device *device = device_of(progress);
    void *in = progress->streams->in;

    TRY(lock(progress));
    CHECK(landing->message == message && !landing->awaited,
          "wait for message %" PRId64 " in slot %d of channel %d, which was not posted for it",
          message, slot, channel);
    landing->awaited = true;
    unlock(progress);
    if (!progress->streams->staged) {
        return device_word_wait(device, &own->landed[slot], after(message), progress->wire->stream);
    }
    /* What has landed was posted: the wire's stream has come past the post, and the slot is free. */
    TRY(device_word_wait(device, &own->landed[slot], after(message), in));
    wire_time_begin(progress->wire, in, "copy in", channel, message);
    TRY(device_copy(device, c->slot[slot], place_of(progress, channel, slot), c->bytes, in));
    timeline_end(progress->wire->timeline);
    TRY(device_event_record(device, progress->streams->landed, in));
    return device_event_wait(device, progress->streams->landed, progress->wire->stream);
}

status_t streams_sent(struct progress *progress, int channel, int64_t message)
{
    struct stream_channel *own = &progress->streams->channel[channel];

    TRY(lock(progress));
    CHECK(message <= own->last, "channel %d: message %" PRId64 " has not been put", channel,
          message);
    own->awaited = message > own->awaited ? message : own->awaited;
    unlock(progress);
    return device_word_wait(device_of(progress),
                            progress->streams->staged ? own->copied : own->sent, after(message),
                            progress->wire->stream);
}
