/* preflight.c - muddpipe preflight: is every host of this job fit for it? */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/trace.h"
#include "kernels/kernels.h"
#include "runtime/runtime.h"
#include "tools/arguments.h"
#include "tools/preflight/preflight.h"
#include "tools/tools.h"

#define PAIRS_S 30.0 /* for all pairs */

static int help(void)
{
    printf("usage: mpirun ... muddpipe preflight [CONFIG] [key.path=value ...]\n\n"
           "Looks at every host of a job before the job does, in less than a minute: the rate of "
           "matrix\n"
           "products on each rank, the bandwidth between each two ranks, versions, clocks, memory, "
           "/dev/shm,\n"
           "limits, network adapters and how near they are to the GPUs. What is wrong is named "
           "with its host,\n"
           "and the exit code is then 1. Start it as the job will be started; of a configuration "
           "it takes\n"
           "device, parallel.transport and parallel.threads.\n");
    return EXIT_SUCCESS;
}

static void print_bytes(int64_t bytes, char *out, size_t size)
{
    if (bytes < 0) {
        snprintf(out, size, "?");
    } else {
        snprintf(out, size, "%.1f GiB", (double)bytes / 0x1p30);
    }
}

static void print_ranks(const struct facts *facts, int ranks)
{
    printf("%4s  %-20s %-41s %15s  %11s  %10s  %8s\n", "rank", "host", "computes on", "products",
           "memory free", "/dev/shm", "clock");
    for (int r = 0; r < ranks; r++) {
        char memory[32], shm[32];
        print_bytes(facts[r].memory_free, memory, sizeof memory);
        print_bytes(facts[r].shm_free, shm, sizeof shm);
        printf("%4d  %-20.20s %-32.32s %-8s %7.3g TFLOP/s  %11s  %10s  %+.3f s\n", r, facts[r].host,
               facts[r].computes, facts[r].bus[0] ? facts[r].bus + 5 : "", facts[r].gemm * 1e-12,
               memory, shm, facts[r].clock);
    }
    printf("muddpipe %s; %s%s%s\n", facts[0].program, facts[0].libraries,
           facts[0].driver[0] ? "; " : "", facts[0].driver);
    for (int r = 0; r < ranks; r++) {
        if (facts[r].nearest[0]) {
            printf("rank %d: nearest adapter %s\n", r, facts[r].nearest);
        }
    }
}

enum { TABLE_MOST = 16 }; /* ranks of which all pairs are printed */

static void print_rates(const double *rates, int ranks)
{
    if (ranks < 2 || ranks > TABLE_MOST) {
        return;
    }
    printf("GB/s each way, both ways at once:\n      ");
    for (int b = 0; b < ranks; b++) {
        printf("%7d", b);
    }
    for (int a = 0; a < ranks; a++) {
        printf("\n%6d", a);
        for (int b = 0; b < ranks; b++) {
            double rate = rates[a * ranks + b];
            if (rate > 0) {
                printf("%7.2f", rate * 1e-9);
            } else {
                printf("%7s", "-");
            }
        }
    }
    printf("\n");
}

static status_t open_place(const struct job *job, struct bench_place *place,
                           const char **out_operations)
{
    char why[256];
    const struct kernels *kernels;
    int choice = job->config.device;
    int devices = choice == DEVICE_CHOICE_CPU ? 0 : device_count(DEVICE_CUDA, why, sizeof why);
    if (choice == DEVICE_CHOICE_CUDA && devices == 0) {
        return FAIL(STATUS_UNSUPPORTED, "device=cuda: %s", why);
    }
    TRY(device_open(devices > 0 ? DEVICE_CUDA : DEVICE_HOST,
                    devices > 0 ? group_local_rank(place->group) % devices : 0, &place->device));
    TRY(device_stream_create(place->device, true, &place->stream));
    TRY(devices > 0 ? kernels_cuda(DTYPE_BF16, &kernels) : kernels_cpu(&kernels));
    *out_operations = kernels->name;
    return STATUS_OK;
}

static status_t choose_wire(const struct job *job, struct bench_place *place)
{
    bool gpu = device_kind(place->device) == DEVICE_CUDA;
    place->transport = job->config.parallel.transport;
    if (group_size(place->group) == 1 || strcmp(place->transport, "auto") != 0) {
        return STATUS_OK;
    }
    return transport_choose(place->group, gpu ? place->device : NULL, gpu ? place->stream : NULL,
                            &place->transport);
}

static status_t tell(const struct bench_place *place, const struct facts *facts,
                     const double *rates, int left, double seconds)
{
    int wrong = 0, ranks = group_size(place->group);
    if (group_rank(place->group) == 0) {
        struct judged judged = {facts, rates, ranks, device_kind(place->device) == DEVICE_CUDA,
                                place->transport};
        print_ranks(facts, ranks);
        print_rates(rates, ranks);
        wrong = judge(&judged, stdout);
        if (left > 0) {
            printf("%d pairs not measured: that would take longer than %.0f s\n", left, PAIRS_S);
        }
        printf("preflight: %d rank%s", ranks, ranks == 1 ? ", " : "s over ");
        if (ranks > 1) {
            printf("%s, ", place->transport);
        }
        if (wrong > 0) {
            printf("%d thing%s wrong (%.1f s)\n", wrong, wrong == 1 ? "" : "s", seconds);
        } else {
            printf("nothing wrong (%.1f s)\n", seconds);
        }
        fflush(stdout);
    }
    TRY(group_broadcast(place->group, &wrong, sizeof wrong, 0));
    return wrong > 0 ? STATUS_MISMATCH : STATUS_OK;
}

static status_t examine(const struct job *job, struct bench_place *place, const char *operations)
{
    int ranks = group_size(place->group), left = 0;
    int64_t begun = trace_now();
    struct facts own, *facts = calloc((size_t)ranks, sizeof *facts);
    double *rates = calloc((size_t)ranks * (size_t)ranks, sizeof *rates);
    status_t status =
        facts && rates ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for %d ranks", ranks);
    status = group_agree(place->group, status);
    if (status == STATUS_OK) {
        status = choose_wire(job, place);
    }
    facts_collect(place->group, place->device, operations, &own);
    if (status == STATUS_OK) {
        int threads = place_threads(&job->config, group_local_size(place->group));
        status = products_measure(place, threads, &own.gemm);
    }
    if (status == STATUS_OK) {
        status = clocks_measure(place->group, &own.clock, &own.clock_error);
    }
    if (status == STATUS_OK) {
        status = pairs_measure(place, PAIRS_S, rates, &left);
    }
    if (status == STATUS_OK) {
        status = group_allgather(place->group, &own, sizeof own, facts);
    }
    if (status == STATUS_OK) {
        status = tell(place, facts, rates, left, (double)(trace_now() - begun) * 1e-9);
    }
    free(facts);
    free(rates);
    return status;
}

static status_t run(struct job *job, struct group *group, void *argument)
{
    (void)argument;
    struct bench_place place = {.group = group};
    const char *operations = "";
    status_t status = group_agree(group, open_place(job, &place, &operations));
    if (status == STATUS_OK) {
        status = examine(job, &place, operations);
    }
    if (place.device) {
        device_stream_destroy(place.device, place.stream);
        device_close(place.device);
    }
    return status;
}

int preflight_main(int argc, char **argv)
{
    struct job job = {.command = "preflight", .argc = argc + 1, .argv = argv - 1};
    struct arguments arguments;
    if (arguments_read(argc, argv, NULL, 0, true, &arguments) != STATUS_OK) {
        return arguments_exit(&arguments);
    }
    if (arguments.help) {
        return help();
    }
    job.config = arguments.config;
    int code = job_run(&job, run, NULL);
    config_free(&arguments.config);
    return code;
}
