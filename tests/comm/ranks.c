/* ranks.c - the program that the tests of comm/ start under mpirun.
 *
 *     ranks collectives | contract TRANSPORT | bench TRANSPORT | sleep TRANSPORT
 *     ranks hang TRANSPORT     rank 0 never puts what rank 1 waits for; the others sit in a barrier
 *     ranks fail TRANSPORT     as hang, but rank 0 gives up after a moment
 *     ranks exit               rank 0 ends without leaving the group
 *     ranks stuck              the main thread does not notice that a peer is lost
 *
 * HEARTBEAT and DEADLINE (seconds) set the group's options, START the time to start in, LATE how long
 * rank 0 rests before, having said "late PID". "ready RANK PID" on stdout, one line a rank,
 * tells a test that signals may come.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/device.h"
#include "base/log.h"
#include "comm/fuse.h"
#include "tests/comm/contract.h"

static void rest(double seconds)
{
    struct timespec time = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    while (nanosleep(&time, &time) != 0) {
    }
}

static void describe(void *arg, char *buffer, size_t size)
{
    snprintf(buffer, size, "step 12: wait for X_3 of microbatch 5 from rank %d", *(int *)arg);
}

static double seconds_of(const char *name, double otherwise)
{
    const char *text = getenv(name);
    return text != NULL ? atof(text) : otherwise;
}

static void say_ready(struct group *group)
{
    char line[64];
    int length = snprintf(line, sizeof line, "ready %d %d\n", group_rank(group), (int)getpid());
    if (write(STDOUT_FILENO, line, (size_t)length) != length) {
        exit(3);
    }
}

/* Everybody waits for rank 0, which sleeps: rank 1 in a wire, the others in a barrier. */
static status_t hang(struct group *group, const char *transport, bool give_up)
{
    struct wire *wire;
    int64_t value = 0;
    void *slots[] = {&value};
    struct wire_channel channel = {0, 1, sizeof value, 1, group_rank(group) == 1 ? slots : NULL};
    static int zero = 0;

    TRY(wire_create(group, transport, &channel, 1, &wire));
    group_watch(group, describe, &zero);
    say_ready(group);
    if (group_rank(group) == 0) {
        rest(give_up ? 0.5 : 60);
        return FAIL(STATUS_NUMERIC, "the loss of step 12 is not a number");
    }
    if (group_rank(group) == 1) {
        TRY(wire_post(wire, 0, 0, 0));
        TRY(wire_wait(wire, 0, 0, 0, NULL));
    }
    return group_barrier(group);
}

static void come_late(void)
{
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    char line[64];

    if (getenv("LATE") != NULL && rank != NULL && strcmp(rank, "0") == 0) {
        int length = snprintf(line, sizeof line, "late %d\n", (int)getpid());
        if (write(STDOUT_FILENO, line, (size_t)length) != length) {
            exit(3);
        }
        rest(seconds_of("LATE", 0));
    }
}

static status_t run(struct group *group, const char *mode, const char *transport)
{
    static int zero = 0;

    if (strcmp(mode, "collectives") == 0) {
        return contract_collectives(group);
    }
    if (strcmp(mode, "contract") == 0) {
        return contract_wire(group, transport);
    }
    if (strcmp(mode, "bench") == 0) {
        return contract_bench(group, transport);
    }
    if (strcmp(mode, "sleep") == 0) {
        return contract_sleep(group, transport);
    }
    if (strcmp(mode, "hang") == 0 || strcmp(mode, "fail") == 0) {
        return hang(group, transport, strcmp(mode, "fail") == 0);
    }
    group_watch(group, describe, &zero);
    say_ready(group);
    if (strcmp(mode, "exit") == 0) {
        if (group_rank(group) == 0) {
            rest(0.5);
            _exit(0);
        }
        return group_barrier(group);
    }
    if (strcmp(mode, "stuck") == 0) {
        rest(60);
    }
    return FAIL(STATUS_INVALID, "unknown mode %s", mode);
}

int main(int argc, char **argv)
{
    struct group_options options = {seconds_of("DEADLINE", 30), seconds_of("HEARTBEAT", 30)};
    struct group *group;
    struct device *device;

    if (argc < 2) {
        fprintf(stderr, "usage: mpirun -n N ranks MODE [TRANSPORT]\n");
        return 2;
    }
    fuse_least_s = seconds_of("START", fuse_least_s);
    come_late();
    if (device_open(DEVICE_HOST, 0, &device) != STATUS_OK ||
        group_open_mpi(&options, &group) != STATUS_OK) {
        return 1;
    }
    wire_use_device(group, device, NULL);
    log_set_rank(group_rank(group));
    if (run(group, argv[1], argc > 2 ? argv[2] : "mpi") != STATUS_OK) {
        group_abandon(group, 4);
    }
    group_close(group);
    device_close(device);
    return 0;
}
