/* bench_comm.c - muddpipe bench comm: latency and bandwidth of every transport. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/trace.h"
#include "runtime/runtime.h"
#include "tools/arguments.h"
#include "tools/bench.h"
#include "tools/tools.h"

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)

static const size_t sizes[] = {4 * KIB, MIB, 8 * MIB, 32 * MIB, 64 * MIB};
enum { SIZES = sizeof sizes / sizeof sizes[0], SMALL = 0, MEDIUM = 1, LARGE = 3, SLOTS = 4 };
enum { ROUNDS = 200, ENQUEUED = 100, MESSAGES_LEAST = 2 * SLOTS, MESSAGES_MOST = 512 };

static int help(void)
{
    printf(
        "usage: mpirun -n 2 muddpipe bench comm [--json FILE] [--repeats N] [key.path=value "
        "...]\n\n"
        "Ranks 0 and 1, 2 and 3, ... send each other messages over every transport that this job\n"
        "can use, all pairs at once: half the time of there and back, bandwidth one way and both\n"
        "ways, and the host's time to enqueue 100 messages; on GPUs also how much matrix products\n"
        "slow down beside messages. Medians of the repeats (least - most), of the slowest pair.\n"
        "1 GB is 1e9 bytes; both ways: of each.\n\n"
        "  --json FILE      the same as JSON, one object a line\n"
        "  --repeats N      1 to %d, 9 unless said\n"
        "  --transports     instead, the names of the transports in this build\n"
        "  device=cpu       messages lie on the host, though there are GPUs\n"
        "  parallel.transport=ucx                      only this one\n"
        "  parallel.transport=threads parallel.pp=2    ranks are threads; without mpirun\n",
        BENCH_REPEATS);
    return EXIT_SUCCESS;
}

/* ---- rows ---- */

static void print_bytes(size_t bytes, char *text, size_t size)
{
    if (bytes == 0) {
        text[0] = '\0';
    } else if (bytes < MIB) {
        snprintf(text, size, "%zu KiB", bytes / KIB);
    } else {
        snprintf(text, size, "%zu MiB", bytes / MIB);
    }
}

void bench_comm_row(const struct bench_comm *bench, const char *test, size_t bytes,
                    const struct bench_value *value, const char *unit, const char *more)
{
    char text[32];
    if (group_rank(bench->group) != 0) {
        return;
    }
    print_bytes(bytes, text, sizeof text);
    printf("  %-24s %8s %10.2f %-5s (%.2f - %.2f)\n", test, text, value->median, unit, value->least,
           value->most);
    fflush(stdout);
    if (bench->json) {
        fprintf(bench->json,
                "{\"bench\":\"comm\",\"transport\":\"%s\",\"device\":\"%s\",\"ranks\":%d,"
                "\"test\":\"%s\",\"bytes\":%zu,\"unit\":\"%s\",\"median\":%.6g,\"least\":%.6g,"
                "\"most\":%.6g,\"repeats\":%d%s}\n",
                bench->transport, device_kind(bench->device) == DEVICE_CUDA ? "cuda" : "cpu",
                group_size(bench->group), test, bytes, unit, value->median, value->least,
                value->most, value->repeats, more);
    }
}

/* ---- measurements ---- */

static bool on_gpu(const struct bench_comm *bench)
{
    return device_kind(bench->device) == DEVICE_CUDA;
}

/* About as many bytes a sample for each size. */
static int messages_of(const struct bench_comm *bench, size_t bytes)
{
    size_t count = (on_gpu(bench) ? 1024 * MIB : 128 * MIB) / bytes;
    return count < MESSAGES_LEAST  ? MESSAGES_LEAST
           : count > MESSAGES_MOST ? MESSAGES_MOST
                                   : (int)count;
}

/* What each message, or round trip, took: seconds. */
static status_t sample(const struct bench_comm *bench, struct meter *meter, enum meter_way way,
                       int size, int count, double *samples)
{
    double seconds;
    TRY(meter_time(meter, way, size, count, &seconds)); /* not counted */
    for (int i = 0; i < bench->repeats; i++) {
        TRY(meter_time(meter, way, size, count, &seconds));
        samples[i] = seconds / count;
    }
    return STATUS_OK;
}

static status_t measure_latency(const struct bench_comm *bench, struct meter *meter)
{
    double samples[BENCH_REPEATS];
    TRY(sample(bench, meter, METER_ROUND, SMALL, ROUNDS, samples));
    for (int i = 0; i < bench->repeats; i++) {
        samples[i] *= 0.5e6;
    }
    struct bench_value value = bench_value_of(samples, bench->repeats);
    bench_comm_row(bench, "latency", sizes[SMALL], &value, "us", "");
    return STATUS_OK;
}

static status_t measure_bandwidth(const struct bench_comm *bench, struct meter *meter,
                                  enum meter_way way, const char *test)
{
    double samples[BENCH_REPEATS];
    for (int size = MEDIUM; size < SIZES; size++) {
        TRY(sample(bench, meter, way, size, messages_of(bench, sizes[size]), samples));
        for (int i = 0; i < bench->repeats; i++) {
            samples[i] = (double)sizes[size] / samples[i] * 1e-9;
        }
        struct bench_value value = bench_value_of(samples, bench->repeats);
        bench_comm_row(bench, test, sizes[size], &value, "GB/s", "");
    }
    return STATUS_OK;
}

/* How long the host was in the verbs of 100 messages of 1 MiB each way. */
static status_t measure_enqueueing(const struct bench_comm *bench, struct meter *meter)
{
    double samples[BENCH_REPEATS], all[group_size(bench->group)];
    for (int i = 0; i < bench->repeats; i++) {
        TRY(group_barrier(bench->group));
        int64_t start = trace_now();
        TRY(meter_partner(meter) >= 0 ? meter_run(meter, METER_BOTH, MEDIUM, ENQUEUED, NULL)
                                      : STATUS_OK);
        double mine = (double)(trace_now() - start) * 1e-6;
        TRY(meter_partner(meter) >= 0 ? meter_settle(meter) : STATUS_OK);
        TRY(group_allgather(bench->group, &mine, sizeof mine, all));
        samples[i] = 0;
        for (int r = 0; r < group_size(bench->group); r++) {
            samples[i] = all[r] > samples[i] ? all[r] : samples[i];
        }
    }
    struct bench_value value = bench_value_of(samples, bench->repeats);
    bench_comm_row(bench, "host, 100 messages", sizes[MEDIUM], &value, "ms",
                   meter_is_streamed(meter) ? ",\"streamed\":true" : ",\"streamed\":false");
    return STATUS_OK;
}

static status_t measure(const struct bench_comm *bench, struct meter *meter)
{
    for (int size = 0; size < SIZES; size++) {
        TRY(meter_verify(meter, size));
    }
    TRY(measure_latency(bench, meter));
    TRY(measure_bandwidth(bench, meter, METER_FORTH, "one way"));
    TRY(measure_bandwidth(bench, meter, METER_BOTH, "both ways"));
    TRY(measure_enqueueing(bench, meter));
    return on_gpu(bench) ? bench_beside(bench, meter, LARGE, sizes[LARGE]) : STATUS_OK;
}

static status_t measure_transport(const struct bench_comm *bench)
{
    struct meter_options options = {.device = bench->device,
                                    .stream = bench->stream,
                                    .bytes = sizes,
                                    .sizes = SIZES,
                                    .slots = SLOTS};
    struct meter *meter;
    char why[512] = "";
    bool root = group_rank(bench->group) == 0;
    TRY(meter_try(bench->group, bench->transport, &options, &meter, why, sizeof why));
    if (!meter) {
        if (root) {
            printf("transport %s cannot be used here: %s\n", bench->transport, why);
        }
        return STATUS_OK;
    }
    if (root) {
        const char *staged = meter_staged(meter);
        printf("transport %s%s%s\n", bench->transport,
               on_gpu(bench) && !meter_is_streamed(meter) ? " (the host waits at every message)"
               : staged                                   ? ", through host memory: "
                                                          : "",
               staged ? staged : "");
    }
    status_t status = measure(bench, meter);
    meter_destroy(meter);
    return status;
}

/* ---- all transports ---- */

static status_t open_device(struct bench_comm *bench, int choice)
{
    char why[256];
    int devices = choice == DEVICE_CHOICE_CPU ? 0 : device_count(DEVICE_CUDA, why, sizeof why);
    if (choice == DEVICE_CHOICE_CUDA && devices == 0) {
        return FAIL(STATUS_UNSUPPORTED, "device=cuda: %s (device=cpu measures the host's memory)",
                    why);
    }
    TRY(device_open(devices > 0 ? DEVICE_CUDA : DEVICE_HOST,
                    devices > 0 ? group_local_rank(bench->group) % devices : 0, &bench->device));
    return device_stream_create(bench->device, true, &bench->stream);
}

static void print_who(const struct bench_comm *bench)
{
    struct device_info info;
    int pairs = group_size(bench->group) / 2;
    device_info(bench->device, &info);
    printf("%d pair%s of ranks, messages in the memory of %s%s; medians of %d (least - most)\n",
           pairs, pairs == 1 ? "" : "s", on_gpu(bench) ? "GPUs, rank 0's " : "the ", info.name,
           bench->repeats);
    fflush(stdout);
}

/* Those between processes. */
static int print_transports(void)
{
    for (int i = 0; transport_at(i); i++) {
        if (!transport_is_threads(transport_at(i))) {
            printf("%s\n", transport_at(i));
        }
    }
    return EXIT_SUCCESS;
}

struct request {
    const char *json;
    int repeats;
};

/* Files and devices: what may fail on one rank only. */
static status_t open_all(struct bench_comm *bench, const struct request *request, int device)
{
    TRY(open_device(bench, device));
    if (request->json && group_rank(bench->group) == 0) {
        bench->json = fopen(request->json, "w");
        return bench->json ? STATUS_OK
                           : FAIL(STATUS_IO, "cannot write %s: %s", request->json, strerror(errno));
    }
    return STATUS_OK;
}

static status_t close_all(struct bench_comm *bench, const struct request *request)
{
    status_t status = STATUS_OK;
    if (bench->device) {
        device_stream_destroy(bench->device, bench->stream);
        device_close(bench->device);
    }
    if (bench->json) {
        bool failed = ferror(bench->json) != 0;
        if (fclose(bench->json) != 0 || failed) {
            status = FAIL(STATUS_IO, "cannot write %s: %s", request->json, strerror(errno));
        }
    }
    return status;
}

/* The transports asked for: one, or all that connect ranks of this kind. */
static bool is_wanted(const struct job *job, const struct group *group, const char *name)
{
    const char *wanted = job->config.parallel.transport;
    return strcmp(wanted, "auto") == 0 ? transport_is_threads(name) == group_is_threads(group)
                                       : strcmp(name, wanted) == 0;
}

static status_t run(struct job *job, struct group *group, void *argument)
{
    const struct request *request = argument;
    struct bench_comm bench = {.group = group, .repeats = request->repeats};
    bool measured = false;
    if (group_size(group) == 1) {
        return FAIL(STATUS_INVALID, "bench comm measures messages between ranks, and there is one: "
                                    "start two (mpirun -n 2 muddpipe bench comm)");
    }
    status_t status = group_agree(group, open_all(&bench, request, job->config.device));
    if (status == STATUS_OK && group_rank(group) == 0) {
        print_who(&bench);
    }
    for (int i = 0; transport_at(i) && status == STATUS_OK; i++) {
        if (is_wanted(job, group, transport_at(i))) {
            bench.transport = transport_at(i);
            measured = true;
            status = measure_transport(&bench);
        }
    }
    if (status == STATUS_OK && !measured) {
        status = FAIL(STATUS_UNSUPPORTED, "the transport asked for is not in this build");
    }
    status_t closed = close_all(&bench, request);
    return status == STATUS_OK ? group_agree(group, closed) : status;
}

int bench_comm_main(int argc, char **argv)
{
    struct job job = {.command = "bench comm", .argc = argc + 2, .argv = argv - 2};
    struct arguments arguments;
    struct request request = {.repeats = 9};
    const char *repeats = NULL;
    long long number = request.repeats;
    bool list = false;
    const struct flag flags[] = {{"--json", &request.json, NULL},
                                 {"--repeats", &repeats, NULL},
                                 {"--transports", NULL, &list}};
    char *words[argc]; /* messages name the command by the first */
    memcpy(words, argv, sizeof words);
    words[0] = (char[]){"bench comm"};
    if (arguments_read(argc, words, flags, 3, true, &arguments) != STATUS_OK) {
        return arguments_exit(&arguments);
    }
    if (arguments.help) {
        return help();
    }
    if (repeats && (arguments_number("--repeats", repeats, 1, &number) != STATUS_OK ||
                    number > BENCH_REPEATS)) {
        fprintf(stderr, "muddpipe bench comm: --repeats is 1 to %d\n", BENCH_REPEATS);
        config_free(&arguments.config);
        return EXIT_USAGE;
    }
    request.repeats = (int)number;
    job.config = arguments.config;
    int code = list ? print_transports() : job_run(&job, run, &request);
    config_free(&arguments.config);
    return code;
}
