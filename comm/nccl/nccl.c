/* nccl.c - the "nccl" transport: the verbs, all of which only enqueue.
 *
 *     put    the pair's stream waits for the wire's (the source has been written), sends, and says
 *            that it has, which is what `sent` waits for
 *     post   the wire's stream says that the slot is vacant; once every message before it in the
 *            sender's order has been posted, the pair's stream waits for that, receives, and says
 *            so, which is what `wait` waits for
 *
 * NCCL's messages carry no names: the n-th receive of a pair gets what was sent n-th. The order of the
 * sends is told by wire_expect; without it, it is taken to be the order of the posts.
 *
 * A send or a receive is a kernel. It holds CTAs from its start until both ends have met, so a receive
 * that is posted long before its message takes them from the GEMMs all that time. And it can make
 * CUDA's host calls wait that load a kernel at its first use: whoever uses this transport launches every
 * kernel once before the first post.
 *
 * Nothing ends a kernel whose peer is lost (ncclCommAbort cannot be relied on after a fault). The wire's
 * stream is released; the pair's is left behind, and the process ends with it.
 */
#include "comm/nccl/nccl_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/trace.h"

enum {
    NAP = 50000,       /* ns */
    RELEASED = 1 << 30 /* messages beyond all that are waited for */
};

static struct nccl_wire *self_of(const struct wire *wire)
{
    return wire->state;
}

static void count_message(struct wire *wire, int channel)
{
    pthread_mutex_lock(wire->group->shared->wakeup.mutex);
    wire->counts[channel].messages++;
    wire->counts[channel].bytes += (int64_t)wire->channel[channel].bytes;
    pthread_mutex_unlock(wire->group->shared->wakeup.mutex);
}

/* What went wrong outside of our calls: a network, a thread of NCCL's. STATUS_INTERNAL here and below, for
 * then a rank leaves without waiting for the others. */
static status_t check_pair(const struct nccl_pair *pair)
{
    ncclResult_t error = ncclSuccess;

    TRY(nccl_check(nccl.async_error(pair->comm, &error), STATUS_INTERNAL, "does not answer",
                   pair->from, pair->to));
    return nccl_check(error, STATUS_INTERNAL, "lost the connection", pair->from, pair->to);
}

/* ---- marks of the wire's stream, ends of the pair's ---- */

int64_t nccl_under_way(const struct nccl_pair *pair)
{
    uint32_t ended = __atomic_load_n(&pair->words->ends, __ATOMIC_ACQUIRE);

    return (int32_t)((uint32_t)pair->turns - ended);
}

static bool has_room(const struct nccl_pair *pair)
{
    return nccl_under_way(pair) < NCCL_DEPTH;
}

static status_t mark(struct wire *wire, struct nccl_pair *pair)
{
    pair->marks++;
    return device_word_write(wire->device, &pair->words->marks, (uint32_t)pair->marks,
                             wire->stream);
}

static status_t end_turn(struct wire *wire, struct nccl_pair *pair, int channel, int64_t message)
{
    pair->turns++;
    pair->turn[pair->turns % NCCL_DEPTH] = (struct nccl_turn){channel, message};
    return device_word_write(wire->device, &pair->words->ends, (uint32_t)pair->turns, pair->stream);
}

static status_t await_end(struct wire *wire, const struct nccl_pair *pair, int64_t turn)
{
    return device_word_wait(wire->device, &pair->words->ends, (uint32_t)turn, wire->stream);
}

/* ---- receiving ---- */

/* The receive of the channel's oldest post. */
static status_t issue(struct wire *wire, int channel)
{
    const struct wire_channel *c = &wire->channel[channel];
    struct nccl_channel *own = &self_of(wire)->channel[channel];
    struct nccl_pair *pair = own->pair;
    int slot = own->posted[own->first];
    struct nccl_arrival *arrival = &own->arrival[slot];

    own->first = (own->first + 1) % c->slots;
    own->waiting--;
    TRY(device_word_wait(wire->device, &pair->words->marks, (uint32_t)arrival->mark, pair->stream));
    TRY(nccl_check(
        nccl.recv(c->slot[slot], c->bytes, ncclInt8, NCCL_SENDER, pair->comm, pair->stream),
        STATUS_INTERNAL, "cannot receive", pair->from, pair->to));
    arrival->state = ARRIVAL_ISSUED;
    TRY(end_turn(wire, pair, channel, arrival->message));
    arrival->turn = pair->turns;
    return STATUS_OK;
}

/* The channel of the pair's next message, if that has been posted; else -1. */
static int next_posted(const struct nccl_wire *self, const struct nccl_pair *pair)
{
    if (pair->expected_count == 0) {
        return pair->waiting > 0 ? pair->posted[pair->first] : -1;
    }
    int channel = pair->expected[pair->next];
    return self->channel[channel].waiting > 0 ? channel : -1;
}

static void step(struct nccl_pair *pair)
{
    if (pair->expected_count > 0) {
        pair->next = (pair->next + 1) % pair->expected_count;
    } else {
        pair->first = (pair->first + 1) % pair->slots;
        pair->waiting--;
    }
}

/* As many receives as have been posted, in the order of the peer's puts. */
static status_t issue_posted(struct wire *wire, struct nccl_pair *pair)
{
    for (int channel; (channel = next_posted(self_of(wire), pair)) >= 0 && has_room(pair);
         step(pair)) {
        TRY(issue(wire, channel));
    }
    return STATUS_OK;
}

static status_t nccl_post(struct wire *wire, int channel, int slot, int64_t message)
{
    struct nccl_channel *own = &self_of(wire)->channel[channel];
    struct nccl_pair *pair = own->pair;
    struct nccl_arrival *arrival = &own->arrival[slot];

    CHECK(arrival->state == ARRIVAL_IDLE,
          "slot %d of channel %d posted for message %" PRId64 " still holds message %" PRId64, slot,
          channel, message, arrival->message);
    TRY(check_pair(pair));
    TRY(mark(wire, pair));
    *arrival = (struct nccl_arrival){ARRIVAL_POSTED, message, pair->marks, 0};
    own->posted[(own->first + own->waiting++) % wire->channel[channel].slots] = slot;
    if (pair->expected_count == 0) {
        pair->posted[(pair->first + pair->waiting++) % pair->slots] = channel;
    }
    return issue_posted(wire, pair);
}

static struct nccl_pair *pair_from(struct nccl_wire *self, int from)
{
    for (int i = 0; i < self->pairs; i++) {
        if (!self->pair[i].sends && self->pair[i].from == from) {
            return &self->pair[i];
        }
    }
    return NULL;
}

static status_t nccl_expect(struct wire *wire, int from, const int *channel, int count)
{
    struct nccl_wire *self = self_of(wire);
    struct nccl_pair *pair = pair_from(self, from);

    CHECK(pair != NULL || count == 0, "rank %d puts nothing to rank %d", from, wire->group->rank);
    if (pair == NULL) {
        return STATUS_OK;
    }
    CHECK(pair->next == 0 && pair->waiting == 0,
          "the puts of rank %d are told anew in the middle of a walk", from);
    for (int i = 0; i < count; i++) {
        CHECK(channel[i] >= 0 && channel[i] < wire->count && self->channel[channel[i]].pair == pair,
              "channel %d is not from rank %d to rank %d", channel[i], from, wire->group->rank);
    }
    if (count > pair->expected_room) {
        int *wider = realloc(pair->expected, (size_t)count * sizeof *wider);
        if (wider == NULL) {
            return FAIL(STATUS_NOMEM, "no memory for the order of %d puts", count);
        }
        pair->expected = wider;
        pair->expected_room = count;
    }
    if (count > 0) {
        memcpy(pair->expected, channel, (size_t)count * sizeof *pair->expected);
    }
    pair->expected_count = count;
    return STATUS_OK;
}

/* ---- far ahead: the host stops where the streams would be full ---- */

static status_t rest(struct wire *wire, int channel, int64_t message, const char *verb,
                     int64_t until)
{
    struct nccl_wire *self = self_of(wire);

    for (int i = 0; i < self->pairs; i++) {
        TRY(self->pair[i].sends ? STATUS_OK : issue_posted(wire, &self->pair[i]));
    }
    if (wire->group->shared->failed || trace_now() > until) {
        return wire_give_up(wire, channel, message, verb);
    }
    nanosleep(&(struct timespec){0, NAP}, NULL);
    return STATUS_OK;
}

static status_t await_room(struct wire *wire, const struct nccl_pair *pair)
{
    const struct nccl_turn *oldest = &pair->turn[(pair->turns + 1) % NCCL_DEPTH];
    int64_t until = group_deadline(wire->group);

    while (!has_room(pair)) {
        TRY(rest(wire, oldest->channel, oldest->message, "left", until));
    }
    return STATUS_OK;
}

static status_t await_issue(struct wire *wire, int channel, const struct nccl_arrival *arrival)
{
    struct nccl_pair *pair = self_of(wire)->channel[channel].pair;
    int64_t until = group_deadline(wire->group);

    while (arrival->state == ARRIVAL_POSTED) {
        if (next_posted(self_of(wire), pair) < 0) {
            return FAIL(STATUS_INTERNAL,
                        "message %" PRId64
                        " of channel %d is awaited before its turn: rank %d puts "
                        "one of channel %d first, which has no slot yet",
                        arrival->message, channel, pair->from, pair->expected[pair->next]);
        }
        TRY(rest(wire, channel, arrival->message, "landed", until));
    }
    return STATUS_OK;
}

static status_t nccl_wait(struct wire *wire, int channel, int slot, int64_t message,
                          struct wire_stamp *out_stamp)
{
    struct nccl_channel *own = &self_of(wire)->channel[channel];
    struct nccl_arrival *arrival = &own->arrival[slot];

    (void)out_stamp;
    CHECK(arrival->state != ARRIVAL_IDLE && arrival->message == message,
          "message %" PRId64 " of channel %d awaited in slot %d, which is not posted for it",
          message, channel, slot);
    TRY(await_issue(wire, channel, arrival));
    TRY(await_end(wire, own->pair, arrival->turn));
    arrival->state = ARRIVAL_IDLE;
    count_message(wire, channel);
    return STATUS_OK;
}

/* ---- sending ---- */

static status_t nccl_put(struct wire *wire, int channel, int slot, int64_t message, int64_t order,
                         const void *source)
{
    (void)order;
    struct nccl_channel *own = &self_of(wire)->channel[channel];
    struct nccl_pair *pair = own->pair;

    (void)slot; /* the receiver names it in its post */
    TRY(check_pair(pair));
    TRY(await_room(wire, pair));
    TRY(mark(wire, pair));
    TRY(device_word_wait(wire->device, &pair->words->marks, (uint32_t)pair->marks, pair->stream));
    wire_time_begin(wire, pair->stream, "send", channel, message);
    ncclResult_t result = nccl.send(source, wire->channel[channel].bytes, ncclInt8, NCCL_RECEIVER,
                                    pair->comm, pair->stream);
    timeline_end(wire->timeline);
    TRY(nccl_check(result, STATUS_INTERNAL, "cannot send", pair->from, pair->to));
    own->newest = message;
    count_message(wire, channel);
    return end_turn(wire, pair, channel, message);
}

static status_t nccl_sent(struct wire *wire, int channel, int64_t message)
{
    const struct nccl_channel *own = &self_of(wire)->channel[channel];
    const struct nccl_pair *pair = own->pair;

    CHECK(message <= own->newest, "message %" PRId64 " of channel %d was never put", message,
          channel);
    for (int64_t i = pair->turns, last = i - nccl_under_way(pair); i > last; i--) {
        const struct nccl_turn *turn = &pair->turn[i % NCCL_DEPTH];
        if (turn->channel == channel && turn->message == message) {
            return await_end(wire, pair, i);
        }
    }
    return STATUS_OK; /* it has left */
}

/* What has ended since may say so again and be waited for again: nobody believes the results, and no
 * host waits for the stream alone. */
static void nccl_release(struct wire *wire)
{
    struct nccl_wire *self = self_of(wire);

    for (int i = 0; i < self->pairs; i++) {
        __atomic_fetch_add(&self->pair[i].words->ends, RELEASED, __ATOMIC_RELEASE);
    }
}

/* Of a library that can be loaded; why it cannot, nobody has asked. */
static void nccl_version(char *out, size_t size)
{
    char words[512];
    log_capture(words, sizeof words);
    bool loaded = nccl_load() == STATUS_OK;
    log_capture(NULL, 0);
    if (loaded) {
        snprintf(out, size, "NCCL %d.%d.%d", nccl.release / 10000, nccl.release / 100 % 100,
                 nccl.release % 100);
    }
}

const struct wire_class nccl_wire_class = {
    .name = "nccl",
    .version = nccl_version,
    .gpus_only = true,
    /* Its kernels take multiprocessors from matrix products: 1.4B trains 8 % slower over it than over copy
     * engines of the same bandwidth. So it must be quicker by half. */
    .handicap = 1.5,
    .streams = true,
    .early = true,
    .create = nccl_connect,
    .destroy = nccl_disconnect,
    .post = nccl_post,
    .put = nccl_put,
    .wait = nccl_wait,
    .sent = nccl_sent,
    .expect = nccl_expect,
    .release = nccl_release,
};
