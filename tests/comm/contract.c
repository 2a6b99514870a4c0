/* contract.c - ordering, slots, many channels, next step, sizes, contents, stamps, counts. */
#include "tests/comm/contract.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "base/log.h"
#include "base/rng.h"
#include "base/trace.h"

#define EXPECT(cond, ...)                                                                          \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            return FAIL(STATUS_MISMATCH, "(" #cond ") does not hold: " __VA_ARGS__);               \
        }                                                                                          \
    } while (0)

enum { SLOTS_MOST = 8 };

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

/* ---- a wire with its buffers ---- */

struct rig {
    struct group *group;
    struct wire *wire;
    int count;
    struct wire_channel *channel; /* [count] */
    void **slot;                  /* [count * SLOTS_MOST] */
};

static void rig_close(struct rig *rig)
{
    wire_destroy(rig->wire);
    for (int i = 0; rig->slot != NULL && i < rig->count * SLOTS_MOST; i++) {
        free(rig->slot[i]);
    }
    free(rig->slot);
    free(rig->channel);
}

/* Channels must have from, to, bytes and slots set. */
static status_t rig_open(struct rig *rig, struct group *group, const char *transport,
                         const struct wire_channel *channels, int count)
{
    memset(rig, 0, sizeof *rig);
    rig->group = group;
    rig->count = count;
    rig->channel = calloc((size_t)count, sizeof *rig->channel);
    rig->slot = calloc((size_t)count * SLOTS_MOST, sizeof *rig->slot);
    EXPECT(rig->channel != NULL && rig->slot != NULL, "out of memory");
    for (int i = 0; i < count; i++) {
        rig->channel[i] = channels[i];
        rig->channel[i].slot = NULL;
        if (channels[i].to == group_rank(group)) {
            void **slots = rig->slot + i * SLOTS_MOST;
            for (int k = 0; k < channels[i].slots; k++) {
                slots[k] = malloc(channels[i].bytes);
                EXPECT(slots[k] != NULL, "out of memory");
            }
            rig->channel[i].slot = slots;
        }
    }
    status_t status = wire_create(group, transport, rig->channel, count, &rig->wire);
    if (status != STATUS_OK) {
        rig->wire = NULL;
        rig_close(rig);
    }
    return status;
}

static void fill(void *data, size_t bytes, int channel, int64_t message)
{
    unsigned char *place = data;
    uint32_t state = (uint32_t)(rng_bits(1, (uint64_t)channel, (uint64_t)message) | 1);

    for (size_t i = 0; i < bytes; i++) {
        state = state * 1664525u + 1013904223u;
        place[i] = (unsigned char)(state >> 24);
    }
}

static bool is_filled(const void *data, size_t bytes, int channel, int64_t message)
{
    const unsigned char *place = data;
    uint32_t state = (uint32_t)(rng_bits(1, (uint64_t)channel, (uint64_t)message) | 1);

    for (size_t i = 0; i < bytes; i++) {
        state = state * 1664525u + 1013904223u;
        if (place[i] != (unsigned char)(state >> 24)) {
            return false;
        }
    }
    return true;
}

static status_t check_landed(struct rig *rig, int channel, int slot, int64_t message, int64_t begin)
{
    const struct wire_channel *c = &rig->channel[channel];
    struct wire_stamp stamp;

    TRY(wire_wait(rig->wire, channel, slot, message, &stamp));
    int64_t now = trace_now();
    EXPECT(is_filled(c->slot[slot], c->bytes, channel, message),
           "channel %d, message %lld, %zu bytes", channel, (long long)message, c->bytes);
    EXPECT(stamp.put <= stamp.landed && stamp.landed <= now, "put %lld, landed %lld, now %lld",
           (long long)stamp.put, (long long)stamp.landed, (long long)now);
    EXPECT(stamp.put >= begin - 1000, "put %lld before the part began, %lld", (long long)stamp.put,
           (long long)begin);
    return STATUS_OK;
}

static status_t check_counts(const struct rig *rig, int64_t messages)
{
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

/* All pairs, both directions, several sizes at once: `rounds` messages of every channel through its
 * slots, one source each that is overwritten as soon as it has left. */
static status_t exchange_rounds(struct rig *rig, unsigned char **source, int rounds)
{
    int rank = group_rank(rig->group);
    int64_t begin;

    TRY(group_barrier(rig->group));
    begin = trace_now();
    TRY(group_barrier(rig->group));
    for (int i = 0; i < rig->count; i++) {
        for (int k = 0; rig->channel[i].to == rank && k < rig->channel[i].slots; k++) {
            TRY(wire_post(rig->wire, i, k, k));
        }
    }
    for (int64_t m = 0; m < rounds; m++) {
        for (int i = 0; i < rig->count; i++) {
            const struct wire_channel *c = &rig->channel[i];
            if (c->from == rank) {
                if (m > 0) {
                    TRY(wire_sent(rig->wire, i, m - 1));
                }
                fill(source[i], c->bytes, i, m);
                TRY(wire_put(rig->wire, i, (int)(m % c->slots), m, source[i]));
            }
        }
        for (int i = 0; i < rig->count; i++) {
            const struct wire_channel *c = &rig->channel[i];
            if (c->to == rank) {
                int slot = (int)(m % c->slots);
                TRY(check_landed(rig, i, slot, m, begin));
                if (m + c->slots < rounds) {
                    TRY(wire_post(rig->wire, i, slot, m + c->slots));
                }
            }
        }
    }
    for (int i = 0; i < rig->count; i++) {
        if (rig->channel[i].from == rank) {
            TRY(wire_sent(rig->wire, i, rounds - 1));
            memset(source[i], 0, rig->channel[i].bytes);
        }
    }
    return check_counts(rig, rounds);
}

static status_t check_all_pairs(struct group *group, const char *transport)
{
    static const size_t sizes[] = {4, 100, 9000, 70000, 1 << 20};
    enum { SIZES = sizeof sizes / sizeof sizes[0], ROUNDS = 13 };
    struct wire_channel channels[4 * 3 * SIZES];
    unsigned char *source[4 * 3 * SIZES] = {0};
    struct rig rig;
    int count = 0;
    status_t status = STATUS_OK;

    for (int from = 0; from < group_size(group); from++) {
        for (int to = 0; to < group_size(group); to++) {
            for (int s = 0; from != to && s < SIZES; s++) {
                channels[count++] = (struct wire_channel){from, to, sizes[s], 1 + s % 4, NULL};
            }
        }
    }
    for (int i = 0; i < count; i++) {
        source[i] = malloc(channels[i].bytes);
        EXPECT(source[i] != NULL, "out of memory");
    }
    TRY_GOTO(rig_open(&rig, group, transport, channels, count), free_sources);
    status = exchange_rounds(&rig, source, ROUNDS);
    rig_close(&rig);

free_sources:
    for (int i = 0; i < count; i++) {
        free(source[i]);
    }
    return status;
}

/* The sender is several messages ahead: puts return at once although nothing is posted, and the
 * messages land in order once it is. */
static status_t put_ahead(struct rig *rig, unsigned char *source, int ahead)
{
    size_t bytes = rig->channel[0].bytes;
    int64_t begin = trace_now();

    if (group_rank(rig->group) == 0) {
        for (int m = 0; m < ahead; m++) {
            fill(source + (size_t)m * bytes, bytes, 0, m);
            int64_t called = trace_now();
            TRY(wire_put(rig->wire, 0, m % rig->channel[0].slots, m, source + (size_t)m * bytes));
            EXPECT(trace_now() - called < 500000000, "put %d blocked", m);
        }
        TRY(group_barrier(rig->group));
        for (int m = 0; m < ahead; m++) {
            TRY(wire_sent(rig->wire, 0, m));
            memset(source + (size_t)m * bytes, 0, bytes);
        }
        return check_counts(rig, ahead);
    }
    TRY(group_barrier(rig->group));
    if (group_rank(rig->group) == 1) {
        rest_ms(20);
        for (int m = 0; m < ahead; m++) {
            int slot = m % rig->channel[0].slots;
            TRY(wire_post(rig->wire, 0, slot, m));
            TRY(check_landed(rig, 0, slot, m, begin - INT64_C(10000000000)));
        }
        return check_counts(rig, ahead);
    }
    return STATUS_OK;
}

static status_t check_put_first(struct group *group, const char *transport, size_t bytes)
{
    enum { AHEAD = 6 };
    struct wire_channel channel = {0, 1, bytes, 3, NULL};
    unsigned char *source = malloc(AHEAD * bytes);
    struct rig rig;
    status_t status;

    EXPECT(source != NULL, "out of memory");
    TRY_GOTO(rig_open(&rig, group, transport, &channel, 1), free_source);
    status = put_ahead(&rig, source, AHEAD);
    if (status == STATUS_OK) {
        status = group_barrier(group);
    }
    rig_close(&rig);

free_source:
    free(source);
    return status;
}

/* A few thousand channels, one small message each, posted after they were put. */
static status_t many_channels(struct rig *rig)
{
    int rank = group_rank(rig->group);
    int32_t *values = calloc((size_t)rig->count, sizeof *values);

    EXPECT(values != NULL, "out of memory");
    for (int i = 0; i < rig->count; i++) {
        if (rig->channel[i].from == rank) {
            values[i] = 3 * i;
            TRY(wire_put(rig->wire, i, 0, 5, &values[i]));
        }
    }
    for (int i = 0; i < rig->count; i++) {
        if (rig->channel[i].to == rank) {
            TRY(wire_post(rig->wire, i, 0, 5));
        }
    }
    for (int i = rig->count - 1; i >= 0; i--) {
        int32_t value = 3 * i;
        if (rig->channel[i].to == rank) {
            TRY(wire_wait(rig->wire, i, 0, 5, NULL));
            EXPECT(memcmp(rig->channel[i].slot[0], &value, sizeof value) == 0, "channel %d", i);
        } else if (rig->channel[i].from == rank) {
            TRY(wire_sent(rig->wire, i, 5));
        }
    }
    free(values);
    return STATUS_OK;
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
            (struct wire_channel){from, (from + 1 + i / size % (size - 1)) % size, 4, 1, NULL};
    }
    TRY_GOTO(rig_open(&rig, group, transport, channels, MANY), free_channels);
    status = many_channels(&rig);
    rig_close(&rig);

free_channels:
    free(channels);
    return status;
}

static status_t check_refusals(struct group *group, const char *transport)
{
    struct wire_channel channel = {0, 1, 4, 1, NULL};
    struct wire *wire;
    char text[1024];
    int32_t slot;
    void *slots[] = {&slot};
    const char *wrong = group_is_threads(group) ? "mpi" : "threads";

    log_capture(text, sizeof text);
    status_t unknown = wire_create(group, "pigeons", &channel, 0, &wire);
    status_t unfit = wire_create(group, wrong, &channel, 0, &wire);
    channel.slots += group_rank(group) == 1;
    channel.slot = group_rank(group) == 1 ? slots : NULL;
    status_t different = wire_create(group, transport, &channel, 1, &wire);
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
    TRY(check_put_first(group, transport, 4));
    TRY(check_put_first(group, transport, 100000));
    TRY(check_put_first(group, transport, 8 << 20));
    TRY(check_many_channels(group, transport));
    return group_barrier(group);
}

/* ---- failures ---- */

static status_t exchange(struct rig *rig, int messages)
{
    int rank = group_rank(rig->group);
    int64_t value;

    for (int m = 0; m < messages; m++) {
        for (int i = 0; i < rig->count; i++) {
            if (rig->channel[i].to == rank) {
                TRY(wire_post(rig->wire, i, 0, m));
            }
        }
        for (int i = 0; i < rig->count; i++) {
            if (rig->channel[i].from == rank) {
                value = m;
                TRY(wire_put(rig->wire, i, 0, m, &value));
                TRY(wire_sent(rig->wire, i, m));
            }
        }
        for (int i = 0; i < rig->count; i++) {
            if (rig->channel[i].to == rank) {
                TRY(wire_wait(rig->wire, i, 0, m, NULL));
            }
        }
    }
    return STATUS_OK;
}

status_t contract_exchange(struct group *group, const char *transport, int count, int messages)
{
    struct wire_channel channels[64];
    int size = group_size(group);
    struct rig rig;

    for (int i = 0; i < count; i++) {
        channels[i] = (struct wire_channel){i, (i + 1) % size, sizeof(int64_t), 1, NULL};
    }
    TRY(rig_open(&rig, group, transport, channels, count));
    status_t status = exchange(&rig, messages);
    rig_close(&rig);
    return status;
}

/* ---- bench ---- */

static status_t ping_pong(struct rig *rig, const void *source, int rounds)
{
    int rank = group_rank(rig->group);

    for (int m = 0; m < rounds && rank < 2; m++) {
        if (rank == 0) {
            TRY(wire_post(rig->wire, 1, 0, m));
            TRY(wire_put(rig->wire, 0, 0, m, source));
            TRY(wire_wait(rig->wire, 1, 0, m, NULL));
            TRY(wire_sent(rig->wire, 0, m));
        } else {
            TRY(wire_post(rig->wire, 0, 0, m));
            TRY(wire_wait(rig->wire, 0, 0, m, NULL));
            TRY(wire_put(rig->wire, 1, 0, m, source));
            TRY(wire_sent(rig->wire, 1, m));
        }
    }
    return group_barrier(rig->group);
}

status_t contract_bench(struct group *group, const char *transport)
{
    static const size_t sizes[] = {8, 64 << 10, 1 << 20, 8 << 20};

    for (int s = 0; s < 4; s++) {
        struct wire_channel channels[] = {{0, 1, sizes[s], 1, NULL}, {1, 0, sizes[s], 1, NULL}};
        int rounds = sizes[s] > 1 << 20 ? 40 : 400;
        void *source = calloc(1, sizes[s]);
        struct rig rig;
        TRY(rig_open(&rig, group, transport, channels, 2));
        TRY(ping_pong(&rig, source, 2));
        rig_close(&rig);
        TRY(rig_open(&rig, group, transport, channels, 2));
        TRY(group_barrier(group));
        int64_t begin = trace_now();
        TRY(ping_pong(&rig, source, rounds));
        double one_way = (double)(trace_now() - begin) / 2e3 / rounds;
        if (group_rank(group) == 0) {
            printf("%s: %zu bytes: %.1f us one way, %.2f GB/s\n", transport, sizes[s], one_way,
                   (double)sizes[s] / one_way / 1e3);
            fflush(stdout);
        }
        rig_close(&rig);
        free(source);
    }
    return STATUS_OK;
}

/* ---- sleep ---- */

static double cpu_seconds(int who)
{
    struct rusage usage;

    getrusage(who, &usage);
    return (double)usage.ru_utime.tv_sec + (double)usage.ru_utime.tv_usec * 1e-6 +
           (double)usage.ru_stime.tv_sec + (double)usage.ru_stime.tv_usec * 1e-6;
}

static status_t report_sleep(struct group *group, const char *transport, const char *what,
                             double begin, int who)
{
    double used = cpu_seconds(who) - begin;

    printf("%s: rank %d used %.1f %% of a core while it waited %s\n", transport, group_rank(group),
           used * 100, what);
    fflush(stdout);
    /* One that spins uses the whole core. What sleeping costs exactly is a figure for a quiet machine
     * (about 0.04 here): each nap costs more where others fill the caches in between. */
    EXPECT(used < 0.5, "%g s of a core in one second", used);
    return STATUS_OK;
}

status_t contract_sleep(struct group *group, const char *transport)
{
    /* Threads of one process share its usage: look at the calling thread only. */
    int who = group_is_threads(group) ? RUSAGE_THREAD : RUSAGE_SELF;
    int rank = group_rank(group), size = group_size(group);
    struct wire_channel channels[64];
    struct rig rig;
    int64_t value = 1;

    for (int i = 1; i < size; i++) {
        channels[i - 1] = (struct wire_channel){0, i, sizeof value, 1, NULL};
    }
    TRY(rig_open(&rig, group, transport, channels, size - 1));
    TRY(group_barrier(group));
    double begin = cpu_seconds(who);
    if (rank == 0) {
        rest_ms(1000);
        for (int i = 1; i < size; i++) {
            TRY(wire_put(rig.wire, i - 1, 0, 0, &value));
            TRY(wire_sent(rig.wire, i - 1, 0));
        }
    } else {
        TRY(wire_post(rig.wire, rank - 1, 0, 0));
        TRY(wire_wait(rig.wire, rank - 1, 0, 0, NULL));
        TRY(report_sleep(group, transport, "for a message", begin, who));
    }
    TRY(group_barrier(group));
    begin = cpu_seconds(who);
    if (rank == 0) {
        rest_ms(1000);
    }
    TRY(group_barrier(group));
    TRY(report_sleep(group, transport, "in a barrier", begin, who));
    rig_close(&rig);
    return STATUS_OK;
}
