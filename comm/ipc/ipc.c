/* ipc.c - the "ipc" transport: copies into memory of another process on the host's GPUs, with every
 * verb an operation of a stream and no host in between.
 *
 * The sender maps the receiver's slots (CUDA IPC) and has a stream for each rank it sends to.
 * Slot k of a channel has two words (ipc.h), which count the messages that went through it:
 *
 *     post   the wire's stream writes the slot's credit: n
 *     put    the stream to the peer waits for the credit n and for the wire's stream (the source is written), copies
 *            by copy engine, writes the slot's arrival: n
 *     wait   the wire's stream waits for the arrival n
 *     sent   the wire's stream waits for the same arrival at the other end: then the copy, and all before
 *            it, have read their sources
 *
 * Counting uses of a slot instead of messages makes any first message and any gap safe. Words may wrap,
 * for they are compared by difference; they begin shortly before that, so that every run has been there.
 *
 * Operations of the wire's stream cost time of the GPU, so those that can be are saved: several credits are
 * one operation, and so are several waits; and since a put stream keeps its order, a wait for one message is a
 * wait for all before it in it, which then wait for nothing. At the receiver that takes the order
 * of the puts (wire_expect).
 *
 * Why nothing deadlocks: a put stream is a queue, and so is the wire's stream; every operation waits for
 * earlier ones of its own queue, or for one of another queue that the plan has put before it: a put
 * for its post, a wait for its put. Puts to one rank stand in one put stream, so a put whose slot is not free
 * holds up those behind it; plan_check has walked the plan under just that rule. Streams to different
 * ranks do not wait for each other as long as the GPU gives each a queue, which is looked at here.
 * Queues are finite: behind some hundreds of puts that wait, the next one stops the caller until the
 * first of them has gone.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/device.h"
#include "base/log.h"
#include "base/trace.h"
#include "comm/ipc/ipc.h"

enum {
    NAP_US = 50,      /* only while closing */
    REFLOOD_MS = 5,   /* between releases, see release_again */
    DRAIN_MS = 2000,  /* for messages under way when a wire is destroyed, which should be none */
    FAREWELL_MS = 500 /* for the others to say goodbye */
};
#define RELEASE_AHEAD (UINT32_C(1) << 30)
#define MILLISECOND INT64_C(1000000)

static struct ipc_wire *ipc_of(const struct wire *wire)
{
    return wire->state;
}

static bool has_reached(const uint32_t *word, uint32_t value)
{
    return (int32_t)(__atomic_load_n(word, __ATOMIC_ACQUIRE) - value) >= 0;
}

/* ---- verbs ---- */

/* The mutex is never held while something is enqueued, for that may block. What a verb is about to wait
 * for is in the books before a lost peer releases it, or the verb is refused. */
static status_t ipc_enter(struct wire *wire)
{
    pthread_mutex_lock(wire->group->shared->wakeup.mutex);
    if (wire->group->shared->failed) {
        pthread_mutex_unlock(wire->group->shared->wakeup.mutex);
        return group_lost(wire->group);
    }
    return STATUS_OK;
}

static void ipc_leave(struct wire *wire)
{
    pthread_mutex_unlock(wire->group->shared->wakeup.mutex);
}

static void book(struct wire *wire, int channel)
{
    wire->counts[channel].messages++;
    wire->counts[channel].bytes += (int64_t)wire->channel[channel].bytes;
}

static status_t ipc_post_all(struct wire *wire, const struct wire_message *messages, int count)
{
    struct ipc_wire *self = ipc_of(wire);

    TRY(ipc_enter(wire));
    self->words = 0;
    for (int i = 0; i < count; i++) {
        const struct wire_message *m = &messages[i];
        struct ipc_slot *s = &self->channel[m->channel].slot[m->slot];
        CHECK(!s->posted, "slot %d of channel %d posted for message %lld still holds message %lld",
              m->slot, m->channel, (long long)m->message, (long long)s->message);
        s->posted = true;
        s->message = m->message;
        self->word[self->words++] = (struct device_word){s->credit, ++s->uses};
    }
    ipc_leave(wire);
    return device_words_write(wire->device, self->word, self->words, wire->stream);
}

static status_t ipc_post(struct wire *wire, int channel, int slot, int64_t message)
{
    return ipc_post_all(wire, &(struct wire_message){channel, slot, message}, 1);
}

/* ---- what a stream waits for ---- */

/* The message is put at `turn` of its peer and there when `until` is reached. */
static void line_want(struct ipc_line *line, int64_t turn, struct device_word until)
{
    if (turn > line->seen && turn > line->wanted) {
        line->wanted = turn;
        line->until = until;
    }
}

static void line_take(struct ipc_wire *self, struct ipc_line *line)
{
    if (line->wanted > line->seen) {
        self->word[self->words++] = line->until;
        line->seen = line->wanted;
    }
}

/* The stream waits for the words noted and for the last of what is wanted of each put stream (mutex held, which
 * is left). */
static status_t wait_wanted(struct wire *wire)
{
    struct ipc_wire *self = ipc_of(wire);

    for (int i = 0; i < wire->group->size; i++) {
        line_take(self, &self->peer[i].in);
        line_take(self, &self->peer[i].out);
    }
    ipc_leave(wire);
    return device_words_wait(wire->device, self->word, self->words, wire->stream);
}

static void want_arrival(struct wire *wire, const struct wire_message *m)
{
    struct ipc_wire *self = ipc_of(wire);
    struct ipc_channel *c = &self->channel[m->channel];
    struct ipc_peer *peer = &self->peer[wire->channel[m->channel].from];
    struct ipc_slot *s = &c->slot[m->slot];
    struct device_word until = {s->arrival, s->uses};

    CHECK(s->posted && s->message == m->message,
          "wait for message %lld in slot %d of channel %d, which was not posted for it",
          (long long)m->message, m->slot, m->channel);
    s->posted = false;
    book(wire, m->channel);
    if (c->walk > 0) {
        int64_t n = c->waits++;
        line_want(&peer->in, n / c->walk * peer->expected + c->turn[n % c->walk], until);
    } else {
        self->word[self->words++] = until;
    }
}

static status_t ipc_wait_all(struct wire *wire, const struct wire_message *messages, int count)
{
    TRY(ipc_enter(wire));
    ipc_of(wire)->words = 0;
    for (int i = 0; i < count; i++) {
        want_arrival(wire, &messages[i]);
    }
    return wait_wanted(wire);
}

static status_t ipc_wait(struct wire *wire, int channel, int slot, int64_t message,
                         struct wire_stamp *out_stamp)
{
    (void)out_stamp;
    return ipc_wait_all(wire, &(struct wire_message){channel, slot, message}, 1);
}

static status_t expect_on(struct ipc_channel *c, int index, const int *channel, int count)
{
    int walk = 0;

    c->walk = 0;
    c->waits = 0;
    for (int i = 0; i < count; i++) {
        walk += channel[i] == index;
    }
    if (walk > c->turns) {
        int64_t *wider = realloc(c->turn, (size_t)walk * sizeof *wider);
        if (wider == NULL) {
            return FAIL(STATUS_NOMEM, "no memory for the order of %d messages", walk);
        }
        c->turn = wider;
        c->turns = walk;
    }
    for (int i = 0; i < count; i++) {
        if (channel[i] == index) {
            c->turn[c->walk++] = i;
        }
    }
    return STATUS_OK;
}

/* All that is under way belongs to walks whose waits have been enqueued. */
static status_t ipc_expect(struct wire *wire, int from, const int *channel, int count)
{
    struct ipc_wire *self = ipc_of(wire);

    for (int i = 0; i < wire->count; i++) {
        if (wire->channel[i].from == from && wire->channel[i].to == wire->group->rank) {
            TRY(expect_on(&self->channel[i], i, channel, count));
        }
    }
    self->peer[from].expected = count;
    self->peer[from].in = (struct ipc_line){.seen = -1, .wanted = -1};
    return STATUS_OK;
}

/* ---- sending ---- */

/* Forgets puts that have gone; makes room for another (mutex held). The ring grows only when more
 * messages of a channel are under way than it was made for (wire_options.under_way) and than ever before. */
static status_t reserve_put(struct ipc_channel *c)
{
    while (c->puts > 0 &&
           has_reached(c->slot[c->put[c->first].slot].arrival, c->put[c->first].use)) {
        c->first = (c->first + 1) % c->room;
        c->puts--;
    }
    if (c->puts < c->room) {
        return STATUS_OK;
    }
    struct ipc_put *wider = malloc(2 * (size_t)c->room * sizeof *wider);
    if (wider == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for %d messages under way", 2 * c->room);
    }
    for (int i = 0; i < c->puts; i++) {
        wider[i] = c->put[(c->first + i) % c->room];
    }
    free(c->put);
    c->put = wider;
    c->first = 0;
    c->room *= 2;
    return STATUS_OK;
}

static status_t ipc_put(struct wire *wire, int channel, int slot, int64_t message, int64_t order,
                        const void *source)
{
    (void)order;
    struct ipc_channel *c = &ipc_of(wire)->channel[channel];
    struct ipc_slot *s = &c->slot[slot];
    struct ipc_peer *peer = &ipc_of(wire)->peer[wire->channel[channel].to];
    struct device *device = wire->device;

    TRY(ipc_enter(wire));
    status_t status = reserve_put(c);
    uint32_t use = s->uses + 1;
    if (status == STATUS_OK) {
        s->uses = use;
        c->put[(c->first + c->puts++) % c->room] =
            (struct ipc_put){message, slot, use, peer->puts++};
        book(wire, channel);
    }
    ipc_leave(wire);
    TRY(status);
    /* The credit first: it is mostly there before the source is, and then costs no time. */
    TRY(device_event_record(device, peer->ready, wire->stream));
    TRY(device_word_wait(device, s->credit, use, peer->stream));
    TRY(device_event_wait(device, peer->ready, peer->stream));
    wire_time_begin(wire, peer->stream, "copy", channel, message);
    status = device_copy(device, s->there, source, wire->channel[channel].bytes, peer->stream);
    timeline_end(wire->timeline);
    TRY(status);
    return device_word_write(device, s->arrival, use, peer->stream);
}

static void want_sent(struct wire *wire, int channel, int64_t message)
{
    struct ipc_channel *c = &ipc_of(wire)->channel[channel];
    int found = 0;

    while (found < c->puts && c->put[(c->first + found) % c->room].message != message) {
        found++;
    }
    if (found < c->puts) { /* otherwise long gone */
        struct ipc_put put = c->put[(c->first + found) % c->room];
        struct device_word until = {c->slot[put.slot].arrival, put.use};
        c->first = (c->first + found + 1) % c->room;
        c->puts -= found + 1;
        line_want(&ipc_of(wire)->peer[wire->channel[channel].to].out, put.turn, until);
    }
}

static status_t ipc_sent_all(struct wire *wire, const struct wire_message *messages, int count)
{
    TRY(ipc_enter(wire));
    ipc_of(wire)->words = 0;
    for (int i = 0; i < count; i++) {
        want_sent(wire, messages[i].channel, messages[i].message);
    }
    return wait_wanted(wire);
}

static status_t ipc_sent(struct wire *wire, int channel, int64_t message)
{
    return ipc_sent_all(wire, &(struct wire_message){channel, 0, message}, 1);
}

/* ---- a peer is lost ---- */

/* Lets every wait pass that has been enqueued (mutex held): of the wire's stream for arrivals, of put streams
 * for credits. With those everything gets on, what `sent` waits for included. */
static void release_waits(struct ipc_wire *self)
{
    struct wire *wire = self->wire;

    for (int i = 0; i < wire->count; i++) {
        struct ipc_slot *slots = self->channel[i].slot;
        bool lands = wire->channel[i].to == wire->group->rank;
        for (int k = 0; slots != NULL && k < wire->channel[i].slots; k++) {
            uint32_t *word = lands ? slots[k].arrival : slots[k].credit;
            __atomic_store_n(word, slots[k].uses - 1 + RELEASE_AHEAD, __ATOMIC_RELEASE);
        }
    }
}

/* A peer that lives may still write a word that was released, before it hears of the loss: so again
 * and again, until the wire goes or the process ends. */
static void *release_again(void *argument)
{
    struct ipc_wire *self = argument;

    while (!self->closing) {
        nanosleep(&(struct timespec){0, REFLOOD_MS * MILLISECOND}, NULL);
        pthread_mutex_lock(self->wire->group->shared->wakeup.mutex);
        release_waits(self);
        pthread_mutex_unlock(self->wire->group->shared->wakeup.mutex);
    }
    return NULL;
}

static void ipc_release(struct wire *wire)
{
    struct ipc_wire *self = ipc_of(wire);

    release_waits(self);
    self->releasing = pthread_create(&self->releaser, NULL, release_again, self) == 0;
}

/* ---- destruction ---- */

static void nap(void)
{
    nanosleep(&(struct timespec){0, NAP_US * 1000}, NULL);
}

/* Waits until a stream has nothing left to do; releases what it waits for if that takes long. False
 * if even that does not help. */
static bool drain(struct ipc_wire *self, void *stream)
{
    struct group *group = self->wire->group;
    int64_t begin = trace_now();
    bool done = false;

    if (device_event_record(self->wire->device, self->mark, stream) != STATUS_OK) {
        return false;
    }
    for (;;) {
        if (device_event_done(self->wire->device, self->mark, &done) != STATUS_OK) {
            return false;
        }
        int64_t passed = trace_now() - begin;
        if (done || passed > 2 * DRAIN_MS * MILLISECOND) {
            return done;
        }
        if (group->shared->failed || passed > DRAIN_MS * MILLISECOND) {
            pthread_mutex_lock(group->shared->wakeup.mutex);
            release_waits(self);
            pthread_mutex_unlock(group->shared->wakeup.mutex);
        }
        nap();
    }
}

static bool drain_all(struct ipc_wire *self)
{
    bool done = drain(self, self->wire->stream);

    for (int i = 0; i < self->wire->group->size && done; i++) {
        done = self->peer[i].stream == NULL || drain(self, self->peer[i].stream);
    }
    return done;
}

/* Nobody frees a slot that another still maps: each tells those it sends to that it does not any more,
 * and waits for the word of those that send to it, unless they are gone. */
static void take_leave(struct ipc_wire *self)
{
    struct group *group = self->wire->group;
    int64_t until = trace_now() + FAREWELL_MS * MILLISECOND;
    size_t rank = (size_t)group->rank;

    for (int i = 0; i < group->size; i++) {
        if (self->peer[i].flags.memory != NULL) {
            __atomic_store_n(ipc_flags_word(&self->peer[i].flags, rank), 1, __ATOMIC_RELEASE);
        }
    }
    for (int i = 0; i < group->size; i++) {
        while (self->peer[i].sends_to_us && !group->shared->failed && trace_now() < until &&
               !has_reached(ipc_flags_word(&self->own, (size_t)i), 1)) {
            nap();
        }
    }
}

static void free_channel(struct ipc_wire *self, int channel)
{
    struct ipc_channel *c = &self->channel[channel];
    struct wire *wire = self->wire;

    for (int k = 0; c->slot != NULL && k < wire->channel[channel].slots; k++) {
        device_unimport(wire->device, &c->slot[k].handle, c->slot[k].there);
    }
    free(c->slot);
    free(c->put);
    free(c->turn);
}

void ipc_free(struct ipc_wire *self, bool connected)
{
    struct wire *wire = self->wire;

    for (int i = 0; self->channel != NULL && i < wire->count; i++) {
        free_channel(self, i);
    }
    if (connected) {
        take_leave(self);
    }
    for (int i = 0; self->peer != NULL && i < wire->group->size; i++) {
        device_stream_destroy(wire->device, self->peer[i].stream);
        device_event_destroy(wire->device, self->peer[i].ready);
        ipc_flags_close(&self->peer[i].flags);
    }
    device_event_destroy(wire->device, self->mark);
    ipc_flags_close(&self->own);
    free(self->peer);
    free(self->channel);
    free(self->word);
    free(self);
}

/* The group has struck the wire off its list: nobody releases it any more. */
static void ipc_destroy(struct wire *wire)
{
    struct ipc_wire *self = ipc_of(wire);
    bool idle = drain_all(self);

    self->closing = true;
    if (self->releasing) {
        pthread_join(self->releaser, NULL);
    }
    if (idle) {
        ipc_free(self, true);
    } else { /* streams that still use all this; it goes with the process */
        log_warn("the streams of a wire do not end: its memory stays mapped");
    }
}

const struct wire_class ipc_wire_class = {
    .name = "ipc",
    .gpus_only = true,
    .settles = true,
    .handicap = 1.0,
    .streams = true,
    .create = ipc_create,
    .destroy = ipc_destroy,
    .post = ipc_post,
    .put = ipc_put,
    .wait = ipc_wait,
    .sent = ipc_sent,
    .post_all = ipc_post_all,
    .wait_all = ipc_wait_all,
    .sent_all = ipc_sent_all,
    .expect = ipc_expect,
    .release = ipc_release,
};
