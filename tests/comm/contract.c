/* contract.c - ordering, slots, many channels, next step, sizes, contents, stamps, counts. */
#include "tests/comm/contract.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/arena.h"
#include "base/log.h"
#include "base/trace.h"
#include "tests/comm/rig.h"

static void rest_ms(int ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000L}, NULL);
}

/* ---- collectives ---- */

static status_t check_exchange(struct group *group)
{
    int rank = group_rank(group), size = group_size(group);
    int64_t mine = 100 + rank, all[64];
    size_t counts[64], total = 0;
    unsigned char data[64], out[64 * 64];

    TRY(group_allgather(group, &mine, sizeof mine, all));
    for (int i = 0; i < size; i++) {
        EXPECT(all[i] == 100 + i, "rank %d's value is %lld", i, (long long)all[i]);
        counts[i] = (size_t)i; /* rank 0 has nothing to say */
        total += counts[i];
    }
    memset(data, rank, sizeof data);
    TRY(group_allgatherv(group, data, counts, out));
    for (size_t i = 0, at = 0; i < (size_t)size; at += counts[i], i++) {
        for (size_t k = 0; k < counts[i]; k++) {
            EXPECT(out[at + k] == i, "byte %zu of rank %zu", k, i);
        }
    }
    EXPECT(total == (size_t)(size * (size - 1) / 2), "%zu bytes", total);
    return STATUS_OK;
}

static status_t check_agreement(struct group *group)
{
    int rank = group_rank(group), last = group_size(group) - 1;
    char text[1024];

    TRY(group_agree(group, STATUS_OK));
    log_capture(text, sizeof text);
    status_t status = group_agree(group, rank == last ? STATUS_NUMERIC : STATUS_OK);
    log_capture(NULL, 0);
    EXPECT(status == (rank == last ? STATUS_NUMERIC : STATUS_PEER), "%s", status_name(status));
    EXPECT(rank == last || strstr(text, "rank ") != NULL, "no rank named: %s", text);

    TRY(group_same(group, 7, "seven"));
    log_capture(text, sizeof text);
    status = group_same(group, rank == last ? 8 : 7, "the number of the day");
    log_capture(NULL, 0);
    EXPECT(status == STATUS_MISMATCH, "%s", status_name(status));
    EXPECT(strstr(text, "the number of the day") != NULL, "not named: %s", text);
    return STATUS_OK;
}

status_t contract_collectives(struct group *group)
{
    size_t bytes = 3 << 20;
    unsigned char *data = malloc(bytes);

    EXPECT(data != NULL, "out of memory");
    for (int round = 0; round < 20; round++) {
        TRY(group_barrier(group));
        TRY(check_exchange(group));
    }
    for (int root = 0; root < group_size(group); root++) {
        memset(data, group_rank(group) == root ? root + 1 : 0, bytes);
        TRY(group_broadcast(group, data, bytes, root));
        EXPECT(data[0] == root + 1 && data[bytes - 1] == root + 1, "broadcast of rank %d", root);
    }
    free(data);
    return check_agreement(group);
}

/* ---- what every part looks at ---- */

/* Stamps are for transports whose waits stop the caller. */
static status_t check_landed(struct rig *rig, int channel, int slot, int64_t message, int64_t begin)
{
    struct wire_stamp stamp;

    TRY(wire_wait(rig->wire, channel, slot, message, &stamp));
    int64_t now = trace_now();
    TRY(rig_dawdle(rig));
    TRY(rig_take(rig, channel, slot, message));
    if (rig->streamed) {
        return STATUS_OK;
    }
    EXPECT(stamp.put <= stamp.landed && stamp.landed <= now, "put %lld, landed %lld, now %lld",
           (long long)stamp.put, (long long)stamp.landed, (long long)now);
    EXPECT(stamp.put >= begin - 1000, "put %lld before the part began, %lld", (long long)stamp.put,
           (long long)begin);
    return STATUS_OK;
}

/* All that was enqueued has happened as it should. */
static status_t check_end(struct rig *rig, int64_t messages)
{
    TRY(rig_check(rig));
    for (int i = 0; i < rig->count; i++) {
        const struct wire_channel *c = &rig->channel[i];
        int rank = group_rank(rig->group);
        struct wire_count count;
        if (rank == c->from || rank == c->to) {
            wire_counts(rig->wire, i, &count);
            EXPECT(count.messages == messages && count.bytes == messages * (int64_t)c->bytes,
                   "channel %d: %lld messages, %lld bytes", i, (long long)count.messages,
                   (long long)count.bytes);
        }
    }
    return STATUS_OK;
}

/* ---- parts ---- */

static status_t send_round(struct rig *rig, int64_t m)
{
    for (int i = 0; i < rig->count; i++) {
        const struct wire_channel *c = &rig->channel[i];
        if (c->from == group_rank(rig->group)) {
            void *source = rig_source(rig, i, 0);
            if (m > 0) {
                TRY(wire_sent(rig->wire, i, m - 1));
            }
            TRY(rig_dawdle(rig));
            TRY(rig_fill(rig, source, i, m));
            TRY(wire_put(rig->wire, i, (int)(m % c->slots), m, 0, source));
        }
    }
    return STATUS_OK;
}

static status_t take_round(struct rig *rig, int64_t m, int rounds, int64_t begin)
{
    for (int i = 0; i < rig->count; i++) {
        const struct wire_channel *c = &rig->channel[i];
        if (c->to == group_rank(rig->group)) {
            int slot = (int)(m % c->slots);
            TRY(check_landed(rig, i, slot, m, begin));
            if (m + c->slots < rounds) {
                TRY(wire_post(rig->wire, i, slot, m + c->slots));
            }
        }
    }
    return STATUS_OK;
}

/* A round's puts of every rank, in the order of send_round. */
static status_t expect_round(struct rig *rig)
{
    int *channel = calloc((size_t)rig->count + 1, sizeof *channel);
    status_t status = STATUS_OK;

    EXPECT(channel != NULL, "out of memory");
    for (int from = 0; from < group_size(rig->group) && status == STATUS_OK; from++) {
        int count = 0;
        for (int i = 0; i < rig->count; i++) {
            if (rig->channel[i].from == from && rig->channel[i].to == group_rank(rig->group)) {
                channel[count++] = i;
            }
        }
        status = wire_expect(rig->wire, from, channel, count);
    }
    free(channel);
    return status;
}

/* All pairs, both directions, several sizes at once: `rounds` messages of every channel through its
 * slots, one source each that is overwritten as soon as it has left. */
static status_t exchange_rounds(struct rig *rig, int rounds)
{
    int rank = group_rank(rig->group);
    int64_t begin;

    TRY(group_barrier(rig->group));
    begin = trace_now();
    TRY(group_barrier(rig->group));
    TRY(expect_round(rig));
    for (int i = 0; i < rig->count; i++) {
        for (int k = 0; rig->channel[i].to == rank && k < rig->channel[i].slots; k++) {
            TRY(wire_post(rig->wire, i, k, k));
        }
    }
    for (int64_t m = 0; m < rounds; m++) {
        TRY(send_round(rig, m));
        TRY(take_round(rig, m, rounds, begin));
    }
    for (int i = 0; i < rig->count; i++) {
        if (rig->channel[i].from == rank) {
            TRY(wire_sent(rig->wire, i, rounds - 1));
            TRY(rig_erase(rig, rig_source(rig, i, 0), rig->channel[i].bytes));
        }
    }
    return check_end(rig, rounds);
}

/* ---- several at once ---- */

enum { GANG = 4, GANG_SLOTS = 2, GANG_ROUNDS = 9 };

/* Message m of all channels that begin (`sending`) or end here, as they are put. */
static int gang(const struct rig *rig, bool sending, int64_t m, struct wire_message *out)
{
    int count = 0, rank = group_rank(rig->group);

    for (int i = 0; i < rig->count; i++) {
        const struct wire_channel *c = &rig->channel[i];
        if ((sending ? c->from : c->to) == rank) {
            out[count++] = (struct wire_message){i, (int)(m % c->slots), m};
        }
    }
    return count;
}

/* Waits for the latest, which others may then be believed by, and for the rest at once, or all at once. */
static status_t gang_take(struct rig *rig, int64_t m)
{
    struct wire_message in[GANG];
    int count = gang(rig, false, m, in), alone = count > 0 && m % 2 == 0;

    if (alone) {
        TRY(wire_wait(rig->wire, in[count - 1].channel, in[count - 1].slot, m, NULL));
    }
    TRY(wire_wait_all(rig->wire, in, count - alone));
    for (int i = 0; i < count; i++) {
        TRY(rig_take(rig, in[i].channel, in[i].slot, m));
        TRY(rig_erase(rig, rig->channel[in[i].channel].slot[in[i].slot],
                      rig->channel[in[i].channel].bytes));
    }
    if (m + GANG_SLOTS < GANG_ROUNDS) {
        count = gang(rig, false, m + GANG_SLOTS, in);
        TRY(wire_post_all(rig->wire, in, count));
    }
    return STATUS_OK;
}

static status_t gang_put(struct rig *rig, int64_t m)
{
    struct wire_message out[GANG];
    int count = gang(rig, true, m - 1, out);

    TRY(m > 0 ? wire_sent_all(rig->wire, out, count) : STATUS_OK);
    for (int i = 0; i < count; i++) {
        void *source = rig_source(rig, out[i].channel, 0);
        if (m == GANG_ROUNDS) {
            TRY(rig_erase(rig, source, rig->channel[out[i].channel].bytes));
            continue;
        }
        TRY(rig_fill(rig, source, out[i].channel, m));
        TRY(rig_dawdle(rig));
        TRY(wire_put(rig->wire, out[i].channel, (int)(m % GANG_SLOTS), m, 0, source));
    }
    return STATUS_OK;
}

static status_t gang_rounds(struct rig *rig, bool told)
{
    struct wire_message in[GANG];

    TRY(told ? expect_round(rig) : STATUS_OK);
    for (int64_t m = 0; m < GANG_SLOTS; m++) {
        TRY(wire_post_all(rig->wire, in, gang(rig, false, m, in)));
    }
    TRY(group_barrier(rig->group));
    for (int64_t m = 0; m < GANG_ROUNDS; m++) {
        TRY(gang_put(rig, m));
        TRY(gang_take(rig, m));
    }
    TRY(gang_put(rig, GANG_ROUNDS));
    return check_end(rig, GANG_ROUNDS);
}

static status_t check_at_once(struct group *group, const char *transport, bool told)
{
    struct wire_channel channels[2 * GANG];
    struct rig rig;

    for (int i = 0; i < 2 * GANG; i++) {
        size_t bytes = i % 2 == 0 ? 100000 : 1000;
        channels[i] = (struct wire_channel){i / GANG, 1 - i / GANG, bytes, GANG_SLOTS, NULL, 0};
    }
    TRY(rig_open(&rig, group, transport, channels, 2 * GANG, 1, GANG_ROUNDS));
    status_t status = gang_rounds(&rig, told);
    rig_close(&rig);
    return status;
}

static status_t check_all_pairs(struct group *group, const char *transport)
{
    static const size_t sizes[] = {4, 100, 9000, 70000, 1 << 20};
    enum { SIZES = sizeof sizes / sizeof sizes[0], ROUNDS = 13 };
    struct wire_channel channels[4 * 3 * SIZES];
    struct rig rig;
    int count = 0;

    for (int from = 0; from < group_size(group); from++) {
        for (int to = 0; to < group_size(group); to++) {
            for (int s = 0; from != to && s < SIZES; s++) {
                channels[count++] = (struct wire_channel){from, to, sizes[s], 1 + s % 4, NULL, 0};
            }
        }
    }
    TRY(rig_open(&rig, group, transport, channels, count, 1, ROUNDS));
    status_t status = exchange_rounds(&rig, ROUNDS);
    rig_close(&rig);
    return status;
}

/* The sender is several messages ahead: puts return at once although nothing is posted, and the
 * messages land in order once it is. */
static status_t put_ahead(struct rig *rig, int ahead)
{
    int64_t begin = trace_now();
    int slots = rig->channel[0].slots;

    if (group_rank(rig->group) == 0) {
        for (int m = 0; m < ahead; m++) {
            TRY(rig_dawdle(rig));
            TRY(rig_fill(rig, rig_source(rig, 0, m), 0, m));
            int64_t called = trace_now();
            TRY(wire_put(rig->wire, 0, m % slots, m, 0, rig_source(rig, 0, m)));
            EXPECT(trace_now() - called < 500000000, "put %d blocked", m);
        }
        TRY(group_barrier(rig->group));
        for (int m = 0; m < ahead; m++) {
            TRY(wire_sent(rig->wire, 0, m));
            TRY(rig_erase(rig, rig_source(rig, 0, m), rig->channel[0].bytes));
        }
        return check_end(rig, ahead);
    }
    TRY(group_barrier(rig->group));
    if (group_rank(rig->group) == 1) {
        rest_ms(20);
        for (int m = 0; m < ahead; m++) {
            TRY(wire_post(rig->wire, 0, m % slots, m));
            TRY(check_landed(rig, 0, m % slots, m, begin - INT64_C(10000000000)));
        }
        return check_end(rig, ahead);
    }
    return STATUS_OK;
}

/* Of host memory it has pinned buffers if it must, words if it is a stream's, and nothing else. */
static status_t check_pinned(const struct rig *rig, const char *transport)
{
    const char *staged = wire_staged(rig->wire);
    size_t buffers = 0, staging = wire_staging_bytes(rig->wire);
    bool words = wire_pinned_bytes(rig->wire) > staging;
    int rank = group_rank(rig->group);

    for (int i = 0; i < rig->count; i++) {
        const struct wire_channel *c = &rig->channel[i];
        size_t bytes = (c->bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
        buffers += c->from == rank || c->to == rank ? (size_t)c->slots * bytes : 0;
    }
    EXPECT(staging == (staged != NULL ? buffers : 0), "%zu bytes of %zu, staged: %s", staging,
           buffers, staged != NULL ? staged : "no");
    EXPECT(words == (rig->on_gpu && rig->streamed), "%zu bytes in all",
           wire_pinned_bytes(rig->wire));
    EXPECT(strcmp(transport, "mpi") != 0 || (staged != NULL) == rig->on_gpu, "staged: %s",
           staged != NULL ? staged : "no");
    return STATUS_OK;
}

static status_t check_put_first(struct group *group, const char *transport, size_t bytes, int slots,
                                int ahead)
{
    struct wire_channel channel = {0, 1, bytes, slots, NULL, 0};
    struct rig rig;

    TRY(rig_open(&rig, group, transport, &channel, 1, ahead, ahead));
    status_t status = check_pinned(&rig, transport);
    if (status == STATUS_OK) {
        status = put_ahead(&rig, ahead);
    }
    if (status == STATUS_OK) {
        status = group_barrier(group);
    }
    rig_close(&rig);
    return status;
}

static status_t put_all(struct rig *rig)
{
    for (int i = 0; i < rig->count; i++) {
        if (rig->channel[i].from == group_rank(rig->group)) {
            TRY(rig_fill(rig, rig_source(rig, i, 0), i, 5));
            TRY(wire_put(rig->wire, i, 0, 5, 0, rig_source(rig, i, 0)));
        }
    }
    return STATUS_OK;
}

static status_t post_all(struct rig *rig)
{
    for (int i = 0; i < rig->count; i++) {
        if (rig->channel[i].to == group_rank(rig->group)) {
            TRY(wire_post(rig->wire, i, 0, 5));
        }
    }
    return STATUS_OK;
}

/* A few thousand channels, one small message each, waited for in the opposite order. Where nothing is
 * enqueued they are put before they are posted; the queues of a GPU do not hold so many. */
static status_t many_channels(struct rig *rig)
{
    int rank = group_rank(rig->group);

    TRY(rig->streamed ? post_all(rig) : put_all(rig));
    TRY(rig->streamed ? put_all(rig) : post_all(rig));
    for (int i = rig->count - 1; i >= 0; i--) {
        if (rig->channel[i].to == rank) {
            TRY(wire_wait(rig->wire, i, 0, 5, NULL));
            TRY(rig_take(rig, i, 0, 5));
        } else if (rig->channel[i].from == rank) {
            TRY(wire_sent(rig->wire, i, 5));
        }
    }
    return check_end(rig, 1);
}

static status_t check_many_channels(struct group *group, const char *transport)
{
    enum { MANY = 2000 };
    struct wire_channel *channels = calloc(MANY, sizeof *channels);
    int size = group_size(group);
    struct rig rig;
    status_t status;

    EXPECT(channels != NULL, "out of memory");
    for (int i = 0; i < MANY; i++) {
        int from = i % size;
        channels[i] =
            (struct wire_channel){from, (from + 1 + i / size % (size - 1)) % size, 4, 1, NULL, 0};
    }
    TRY_GOTO(rig_open(&rig, group, transport, channels, MANY, 1, 1), free_channels);
    status = check_pinned(&rig, transport);
    if (status == STATUS_OK) {
        status = many_channels(&rig);
    }
    rig_close(&rig);

free_channels:
    free(channels);
    return status;
}

/* The receiver's host is several messages ahead: nothing is put before it has enqueued all. */
static status_t wait_ahead(struct rig *rig, int ahead)
{
    int slots = rig->channel[0].slots;
    bool done = false;

    if (group_rank(rig->group) == 1) {
        int64_t called = trace_now();
        for (int m = 0; m < ahead; m++) {
            TRY(wire_post(rig->wire, 0, m % slots, m));
            TRY(check_landed(rig, 0, m % slots, m, 0));
        }
        EXPECT(trace_now() - called < 500000000, "the waits of a stream stopped the caller");
        rest_ms(20);
        TRY(device_event_record(rig->device, rig->mark, rig->stream));
        TRY(device_event_done(rig->device, rig->mark, &done));
        EXPECT(!done, "the stream did not wait for what nobody had put");
    }
    TRY(group_barrier(rig->group));
    if (group_rank(rig->group) == 0) {
        for (int m = 0; m < ahead; m++) {
            TRY(rig_fill(rig, rig_source(rig, 0, m), 0, m));
            TRY(wire_put(rig->wire, 0, m % slots, m, 0, rig_source(rig, 0, m)));
        }
    }
    return group_rank(rig->group) < 2 ? check_end(rig, ahead) : STATUS_OK;
}

static status_t check_wait_first(struct group *group, const char *transport)
{
    enum { AHEAD = 40 };
    struct wire_channel channel = {0, 1, 5000, 2, NULL, 0};
    struct rig rig;

    TRY(rig_open(&rig, group, transport, &channel, 1, AHEAD, AHEAD));
    status_t status = rig.streamed ? wait_ahead(&rig, AHEAD) : STATUS_OK;
    rig_close(&rig);
    return status;
}

static status_t check_refusals(struct group *group, const char *transport)
{
    struct wire_channel channel = {0, 1, 4, 1, NULL, 0};
    struct wire *wire;
    char text[1024];
    int32_t slot;
    void *slots[] = {&slot};
    const char *wrong = group_is_threads(group) ? "mpi" : "threads";
    const struct wire_options own = {
        .transport = transport, .device = rig_memory.device, .stream = rig_memory.stream};

    log_capture(text, sizeof text);
    status_t unknown =
        wire_create(group, &(struct wire_options){.transport = "pigeons"}, &channel, 0, &wire);
    status_t unfit =
        wire_create(group, &(struct wire_options){.transport = wrong}, &channel, 0, &wire);
    channel.slots += group_rank(group) == 1;
    channel.slot = group_rank(group) == 1 ? slots : NULL;
    status_t different = wire_create(group, &own, &channel, 1, &wire);
    log_capture(NULL, 0);
    EXPECT(unknown == STATUS_INVALID && unfit == STATUS_INVALID && different == STATUS_MISMATCH,
           "%s, %s, %s", status_name(unknown), status_name(unfit), status_name(different));
    EXPECT(strstr(text, "pigeons") != NULL && strstr(text, "list of channels") != NULL, "%s", text);
    return STATUS_OK;
}

status_t contract_wire(struct group *group, const char *transport)
{
    TRY(check_refusals(group, transport));
    TRY(check_all_pairs(group, transport));
    TRY(check_put_first(group, transport, 4, 3, 6));
    TRY(check_put_first(group, transport, 100000, 3, 6));
    TRY(check_put_first(group, transport, 8 << 20, 3, 6));
    TRY(check_put_first(group, transport, 64 << 20, 2, 3));
    TRY(check_at_once(group, transport, true));
    TRY(check_at_once(group, transport, false));
    TRY(check_wait_first(group, transport));
    TRY(check_many_channels(group, transport));
    return group_barrier(group);
}

/* ---- failures ---- */

static status_t exchange(struct rig *rig, int messages)
{
    int rank = group_rank(rig->group);

    for (int m = 0; m < messages; m++) {
        for (int i = 0; i < rig->count; i++) {
            if (rig->channel[i].to == rank) {
                TRY(wire_post(rig->wire, i, 0, m));
            }
        }
        for (int i = 0; i < rig->count; i++) {
            if (rig->channel[i].from == rank) {
                TRY(rig_fill(rig, rig_source(rig, i, 0), i, m));
                TRY(wire_put(rig->wire, i, 0, m, 0, rig_source(rig, i, 0)));
                TRY(wire_sent(rig->wire, i, m));
            }
        }
        for (int i = 0; i < rig->count; i++) {
            if (rig->channel[i].to == rank) {
                TRY(wire_wait(rig->wire, i, 0, m, NULL));
                TRY(rig_take(rig, i, 0, m));
            }
        }
    }
    return rig_check(rig);
}

status_t contract_exchange(struct group *group, const char *transport, int count, int messages)
{
    struct wire_channel channels[64];
    int size = group_size(group);
    struct rig rig;

    for (int i = 0; i < count; i++) {
        channels[i] = (struct wire_channel){i, (i + 1) % size, sizeof(int64_t), 1, NULL, 0};
    }
    TRY(rig_open(&rig, group, transport, channels, count, 1, messages));
    status_t status = exchange(&rig, messages);
    rig_close(&rig);
    return status;
}
