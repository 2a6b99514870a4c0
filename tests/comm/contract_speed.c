/* contract_speed.c - how fast, and that whoever waits sleeps. */
#include <stdio.h>
#include <sys/resource.h>
#include <time.h>

#include "base/log.h"
#include "base/trace.h"
#include "comm/transport.h"
#include "tests/comm/contract.h"
#include "tests/comm/rig.h"

/* ---- bench ---- */

static status_t ping_pong(struct rig *rig, int64_t first, int rounds)
{
    int rank = group_rank(rig->group);

    for (int64_t m = first; m < first + rounds && rank < 2; m++) {
        if (rank == 0) {
            TRY(wire_post(rig->wire, 1, 0, m));
            TRY(wire_put(rig->wire, 0, 0, m, 0, rig_source(rig, 0, 0)));
            TRY(wire_wait(rig->wire, 1, 0, m, NULL));
        } else {
            TRY(wire_post(rig->wire, 0, 0, m));
            TRY(wire_wait(rig->wire, 0, 0, m, NULL));
            TRY(wire_put(rig->wire, 1, 0, m, 0, rig_source(rig, 1, 0)));
        }
    }
    return rank < 2 ? wire_sent(rig->wire, rank, first + rounds - 1) : STATUS_OK;
}

/* All of it through two slots, from rank 0 to rank 1. */
static status_t one_way(struct rig *rig, int64_t first, int messages)
{
    int rank = group_rank(rig->group);
    int64_t end = first + messages;

    for (int64_t m = first; m < first + 2 && rank == 1; m++) {
        TRY(wire_post(rig->wire, 0, (int)(m % 2), m));
    }
    for (int64_t m = first; m < end && rank < 2; m++) {
        if (rank == 0) {
            TRY(wire_put(rig->wire, 0, (int)(m % 2), m, 0, rig_source(rig, 0, 0)));
        } else {
            TRY(wire_wait(rig->wire, 0, (int)(m % 2), m, NULL));
            if (m + 2 < end) {
                TRY(wire_post(rig->wire, 0, (int)(m % 2), m + 2));
            }
        }
    }
    return rank == 0 ? wire_sent(rig->wire, 0, end - 1) : STATUS_OK;
}

typedef status_t (*pattern_fn)(struct rig *rig, int64_t first, int messages);

/* Twice, of which the second counts. `hops`: messages one after the other in each of `messages`. */
static status_t time_pattern(struct rig *rig, const char *transport, pattern_fn pattern, int hops,
                             int messages)
{
    int64_t begin = 0, enqueued = 0;
    size_t bytes = rig->channel[0].bytes;

    for (int turn = 0; turn < 2; turn++) {
        TRY(group_barrier(rig->group));
        begin = trace_now();
        TRY(pattern(rig, turn * messages, messages));
        enqueued = trace_now();
        TRY(device_stream_sync(rig->device, rig->stream));
    }
    double each = (double)(trace_now() - begin) / 1e3 / messages / hops;
    if (group_rank(rig->group) == 0) {
        printf("%s: %zu bytes %s: %.1f us a message, %.2f GB/s; %d enqueued in %.2f of %.2f ms\n",
               transport, bytes, hops == 2 ? "to and fro" : "one way", each,
               (double)bytes / each / 1e3, messages, (double)(enqueued - begin) / 1e6,
               (double)(trace_now() - begin) / 1e6);
        fflush(stdout);
    }
    return group_barrier(rig->group);
}

status_t contract_bench(struct group *group, const char *transport)
{
    static const size_t near[] = {8, 64 << 10, 1 << 20, 8 << 20};
    static const size_t far[] = {4 << 10, 1 << 20, 8 << 20, 32 << 20, 64 << 20};
    bool gpu = rig_memory.device != NULL && device_kind(rig_memory.device) != DEVICE_HOST;

    for (int s = 0; s < (gpu ? 5 : 4); s++) {
        size_t bytes = gpu ? far[s] : near[s];
        struct wire_channel channels[] = {{0, 1, bytes, 2, NULL, 0}, {1, 0, bytes, 2, NULL, 0}};
        int rounds = bytes > 1 << 20 ? 40 : 100;
        struct rig rig;
        TRY(rig_open(&rig, group, transport, channels, 2, 1, 0));
        status_t status = time_pattern(&rig, transport, ping_pong, 2, rounds);
        rig_close(&rig);
        TRY(status);
        TRY(rig_open(&rig, group, transport, channels, 2, 1, 0));
        status = time_pattern(&rig, transport, one_way, 1, rounds);
        rig_close(&rig);
        TRY(status);
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

    for (int i = 1; i < size; i++) {
        channels[i - 1] = (struct wire_channel){0, i, sizeof(int64_t), 1, NULL, 0};
    }
    TRY(rig_open(&rig, group, transport, channels, size - 1, 1, 1));
    TRY(group_barrier(group));
    double begin = cpu_seconds(who);
    if (rank == 0) {
        nanosleep(&(struct timespec){1, 0}, NULL);
        for (int i = 1; i < size; i++) {
            TRY(wire_put(rig.wire, i - 1, 0, 0, 0, rig_source(&rig, i - 1, 0)));
            TRY(wire_sent(rig.wire, i - 1, 0));
        }
    } else {
        TRY(wire_post(rig.wire, rank - 1, 0, 0));
        TRY(wire_wait(rig.wire, rank - 1, 0, 0, NULL));
        TRY(rig_settle(&rig));
        TRY(report_sleep(group, transport, "for a message", begin, who));
    }
    TRY(group_barrier(group));
    begin = cpu_seconds(who);
    if (rank == 0) {
        nanosleep(&(struct timespec){1, 0}, NULL);
    }
    TRY(group_barrier(group));
    TRY(report_sleep(group, transport, "in a barrier", begin, who));
    rig_close(&rig);
    return STATUS_OK;
}
