/* ranks.c - the program that the tests of comm/ start under mpirun.
 *
 *     ranks collectives | contract TRANSPORT | bench TRANSPORT | meter TRANSPORT |
 *           sleep TRANSPORT
 *     ranks sums nccl|mpi | split TRANSPORT
 *     ranks hang TRANSPORT     rank 0 never puts what rank 1 waits for nor posts what the last rank has
 *                              put; the others sit in a barrier
 *     ranks hang KIND          rank 0 does not start the collective that the others are in ("split": of a group)
 *     ranks fail TRANSPORT     as hang, but rank 0 gives up after a moment
 *     ranks choose TRANSPORTS WORDS   parallel.transport=auto takes one of these, for these reasons
 *     ranks sums_refused nccl WORDS   collectives over it cannot be had, for these reasons
 *     ranks refuse TRANSPORT WORDS   a wire cannot be had, and rank 0 says why with these words
 *     ranks exit               rank 0 ends without leaving the group
 *     ranks stuck              the main thread does not notice that a peer is lost
 *
 * With `--device cuda` behind it, buffers are on the GPU of the local rank and the verbs belong to a
 * stream; without a GPU, or for nccl without one a rank, that is skipped.
 *
 * CARRIER (host, nccl) carries what `hang KIND` is in. HEARTBEAT and DEADLINE (seconds) set the group's options, START the time to start in, LATE how long
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
#include "comm/health/start_limit.h"
#include "tests/comm/contract.h"
#include "tests/comm/rig.h"

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

/* Everybody waits for rank 0, which sleeps: rank 1 for a message, the last rank (of three or more) until
 * one has left, on a GPU in their streams; the others in a barrier. */
static status_t wait_for_rank_0(struct rig *rig)
{
    int rank = group_rank(rig->group), last = group_size(rig->group) - 1;

    if (rank == 1) {
        TRY(wire_post(rig->wire, 0, 0, 0));
        TRY(wire_wait(rig->wire, 0, 0, 0, NULL));
    }
    if (rank == last && last > 1) {
        TRY(wire_put(rig->wire, 1, 0, 0, 0, rig_source(rig, 1, 0)));
        TRY(wire_sent(rig->wire, 1, 0));
    }
    TRY(device_stream_sync(rig->device, rig->stream));
    TRY(group_check(rig->group));
    return group_barrier(rig->group);
}

static int kind_of(const char *name)
{
    for (int kind = 0; kind < COLLECTIVE_KINDS; kind++) {
        if (strcmp(collective_kind_name((enum collective_kind)kind), name) == 0) {
            return kind;
        }
    }
    return -1;
}

/* Everybody but rank 0 is in it. */
static status_t hang_together(struct group *group, const char *name, bool give_up)
{
    const char *carrier = getenv("CARRIER") != NULL ? getenv("CARRIER") : "host";
    const struct collective_options options = {.under_way = 1,
                                               .device = rig_memory.device,
                                               .stream = rig_memory.stream,
                                               .carrier = carrier};
    static int zero = 0;
    void *memory;
    float *value;
    size_t counts[16];
    struct collective *collective;
    struct group *part;

    for (int r = 0; r < group_size(group); r++) {
        counts[r] = 2;
    }
    TRY(device_alloc(rig_memory.device, MEMORY_DEVICE, 64 * sizeof *value, "values", &memory));
    value = memory;
    struct collective_call call = {
        .kind = (enum collective_kind)kind_of(name), .counts = counts, .element = sizeof(float)};
    call.out = value + (call.kind == COLLECTIVE_REDUCE_SCATTER ? 2 * group_rank(group) : 0);
    TRY(collective_create(group, &options, &collective));
    group_watch(group, describe, &zero);
    say_ready(group);
    if (group_rank(group) == 0) {
        rest(give_up ? 0.5 : 60);
        return FAIL(STATUS_NUMERIC, "the loss of step 12 is not a number");
    }
    return kind_of(name) >= 0 ? collective_run(collective, &call) : group_split(group, 0, 0, &part);
}

static status_t hang(struct group *group, const char *transport, bool give_up)
{
    int last = group_size(group) - 1;
    struct wire_channel channels[] = {{0, 1, sizeof(int64_t), 1, NULL, 0},
                                      {last, 0, sizeof(int64_t), 1, NULL, 0}};
    static struct rig rig;
    static int zero = 0;

    TRY(rig_open(&rig, group, transport, channels, last > 1 ? 2 : 1, 1, 0));
    group_watch(group, describe, &zero);
    say_ready(group);
    if (group_rank(group) == 0) {
        rest(give_up ? 0.5 : 60);
        return FAIL(STATUS_NUMERIC, "the loss of step 12 is not a number");
    }
    return wait_for_rank_0(&rig);
}

/* NCCL cannot be had: said with these words, and `auto` does without. */
static status_t refuse_sums(struct group *group, const char *words)
{
    struct collective_options options = {.under_way = 1,
                                         .device = rig_memory.device,
                                         .stream = rig_memory.stream,
                                         .carrier = "nccl"};
    struct collective *collective;
    char text[1024] = "";

    log_capture(text, sizeof text);
    status_t status = collective_create(group, &options, &collective);
    log_capture(NULL, 0);
    EXPECT(status == STATUS_UNSUPPORTED && strstr(text, words) != NULL, "%s: %s",
           status_name(status), text);
    options.carrier = "auto";
    TRY(collective_create(group, &options, &collective));
    EXPECT(strcmp(collective_carrier(collective), "host") == 0, "carried by %s",
           collective_carrier(collective));
    collective_destroy(collective);
    return group_barrier(group);
}

static status_t refuse(struct group *group, const char *transport, const char *words)
{
    struct wire_channel channel = {0, 1, sizeof(int64_t), 1, NULL, 0};
    char text[1024] = "";
    struct rig rig;

    log_capture(text, sizeof text);
    status_t status = rig_open(&rig, group, transport, &channel, 1, 1, 0);
    log_capture(NULL, 0);
    EXPECT(status == STATUS_UNSUPPORTED || (status == STATUS_PEER && group_rank(group) > 0),
           "%s: %s", status_name(status), text);
    EXPECT(status == STATUS_PEER || strstr(text, words) != NULL, "it says: %s", text);
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

static status_t run(struct group *group, const char *mode, const char *transport, const char *words)
{
    static int zero = 0;

    if (strcmp(mode, "collectives") == 0) {
        return contract_collectives(group);
    }
    if (strcmp(mode, "sums") == 0) {
        return contract_sums(group, strcmp(transport, "nccl") == 0 ? "nccl" : "host");
    }
    if (strcmp(mode, "sums_refused") == 0) {
        return refuse_sums(group, words);
    }
    if (strcmp(mode, "split") == 0) {
        return contract_split(group, transport);
    }
    if (strcmp(mode, "contract") == 0) {
        return contract_wire(group, transport);
    }
    if (strcmp(mode, "links") == 0) {
        return contract_links(group, transport);
    }
    if (strcmp(mode, "bench") == 0) {
        return contract_bench(group, transport);
    }
    if (strcmp(mode, "meter") == 0) {
        return contract_meter(group, transport);
    }
    if (strcmp(mode, "sleep") == 0) {
        return contract_sleep(group, transport);
    }
    if (strcmp(mode, "choose") == 0) {
        return contract_choose(group, transport, words);
    }
    if (strcmp(mode, "refuse") == 0) {
        return refuse(group, transport, words);
    }
    if (strcmp(mode, "hang") == 0 || strcmp(mode, "fail") == 0) {
        bool together = kind_of(transport) >= 0 || strcmp(transport, "split") == 0;
        return (together ? hang_together : hang)(group, transport, strcmp(mode, "fail") == 0);
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

/* `--device cuda` behind the other arguments. */
static bool wants_gpu(int argc, char **argv)
{
    return argc > 3 && strcmp(argv[argc - 2], "--device") == 0 &&
           strcmp(argv[argc - 1], "cuda") == 0;
}

static status_t use_device(struct group *group, bool gpu, int gpus, struct device **out_device,
                           void **out_stream)
{
    int index = gpu ? group_local_rank(group) % gpus : 0;

    TRY(device_open(gpu ? DEVICE_CUDA : DEVICE_HOST, index, out_device));
    TRY(device_stream_create(*out_device, false, out_stream));
    rig_memory = (struct rig_memory){*out_device, *out_stream};
    return STATUS_OK;
}

int main(int argc, char **argv)
{
    struct group_options options = {seconds_of("DEADLINE", 30), seconds_of("HEARTBEAT", 30)};
    bool gpu = wants_gpu(argc, argv);
    struct device *device = NULL;
    struct group *group;
    char why[256] = "";
    void *stream = NULL;

    if (argc < 2) {
        fprintf(stderr, "usage: mpirun -n N ranks MODE [TRANSPORT] [--device cuda]\n");
        return 2;
    }
    int gpus = gpu ? device_count(DEVICE_CUDA, why, sizeof why) : 0;
    if (gpu && gpus == 0) {
        printf("skipped: %s\n", why);
        return 77;
    }
    start_limit_least_s = seconds_of("START", start_limit_least_s);
    come_late();
    if (group_open_mpi(&options, &group) != STATUS_OK) {
        return 1;
    }
    log_set_rank(group_rank(group));
    if (gpu && strcmp(argv[2], "nccl") == 0 && strstr(argv[1], "refuse") == NULL &&
        group_local_size(group) > gpus) {
        printf("skipped: nccl for %d ranks on %d GPUs\n", group_local_size(group), gpus);
        group_close(group);
        return 77;
    }
    if (use_device(group, gpu, gpus, &device, &stream) != STATUS_OK ||
        run(group, argv[1], argc > 2 ? argv[2] : "mpi", argc > 3 ? argv[3] : "") != STATUS_OK) {
        group_abandon(group, 4);
    }
    device_stream_destroy(device, stream);
    group_close(group);
    device_close(device);
    return 0;
}
