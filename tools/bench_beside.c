/* bench_beside.c - how much matrix products slow down while copies run beside them.
 *
 * A stream does PRODUCTS products of [4096, 4096] with [11008, 4096], as a 6.9B feed-forward has them.
 * Messages of the meter go both ways meanwhile, spread evenly: each waits for the product after which it
 * is due, so that the wanted rate holds over the whole time. The products' time is between two events of
 * their stream, on each rank; the slowest counts.
 */

#include "kernels/kernels.h"
#include "tools/bench.h"

enum { TOKENS = 4096, WIDTH = 4096, INNER = 11008, PRODUCTS = 120 };
static const double rates[] = {20e9, 60e9, 120e9}; /* bytes/s each way */
enum { RATES = sizeof rates / sizeof rates[0] };

struct beside {
    const struct bench_comm *bench;
    struct meter *meter;
    struct device *device;
    const struct kernels *kernels;
    struct kernel_ctx ctx; /* with the products' stream */
    char *memory;
    void *x, *weight, *y;             /* [TOKENS, WIDTH], [INNER, WIDTH], [TOKENS, INNER] bf16 */
    struct device_event *begin, *end; /* timed */
    struct device_event *after[PRODUCTS]; /* the products so far */
    int messages;                         /* of the run */
};

/* ---- memory ---- */

static status_t create(const struct bench_comm *bench, struct meter *meter, struct beside *beside)
{
    size_t x = (size_t)TOKENS * WIDTH * 2, weight = (size_t)INNER * WIDTH * 2;
    size_t y = (size_t)TOKENS * INNER * 2;
    struct kernel_limits limits = {
        .B = 1, .T = TOKENS, .D = WIDTH, .H = 1, .G = 1, .E = 1, .F = INNER, .V = 1, .K = 1};
    *beside = (struct beside){.bench = bench, .meter = meter, .device = bench->device};
    TRY(kernels_cuda(DTYPE_BF16, &beside->kernels));
    beside->ctx.threads = limits.threads = 1;
    beside->ctx.workspace_bytes = kernels_workspace(beside->kernels, &limits);
    TRY(device_stream_create(beside->device, false, &beside->ctx.stream));
    TRY(device_alloc(beside->device, MEMORY_DEVICE, x + weight + y + beside->ctx.workspace_bytes,
                     "matrices to multiply", (void **)&beside->memory));
    beside->x = beside->memory;
    beside->weight = beside->memory + x;
    beside->y = beside->memory + x + weight;
    beside->ctx.workspace = beside->memory + x + weight + y;
    TRY(bench_fill_numbers(beside->device, beside->ctx.stream, DTYPE_BF16, beside->memory,
                           x + weight));
    TRY(device_event_create(beside->device, true, &beside->begin));
    TRY(device_event_create(beside->device, true, &beside->end));
    for (int i = 0; i < PRODUCTS; i++) {
        TRY(device_event_create(beside->device, false, &beside->after[i]));
    }
    return STATUS_OK;
}

static void destroy(struct beside *beside)
{
    struct device *device = beside->device;
    device_event_destroy(device, beside->begin);
    device_event_destroy(device, beside->end);
    for (int i = 0; i < PRODUCTS; i++) {
        device_event_destroy(device, beside->after[i]);
    }
    device_free(device, MEMORY_DEVICE, beside->memory);
    device_stream_destroy(device, beside->ctx.stream);
}

/* ---- runs ---- */

static status_t enqueue_products(struct beside *beside)
{
    TRY(device_event_record(beside->device, beside->begin, beside->ctx.stream));
    for (int i = 0; i < PRODUCTS; i++) {
        beside->kernels->linear_forward(&beside->ctx, beside->y, beside->x, beside->weight, NULL,
                                        TOKENS, WIDTH, INNER);
        TRY(device_event_record(beside->device, beside->after[i], beside->ctx.stream));
    }
    return device_event_record(beside->device, beside->end, beside->ctx.stream);
}

/* The first messages leave after the first product: the wanted rate is that of both ends working. */
static status_t wait_for_product(void *argument, int message)
{
    struct beside *beside = argument;
    int product = (int)((int64_t)message * PRODUCTS / beside->messages);
    return device_event_wait(beside->device, beside->after[product], beside->bench->stream);
}

/* ms of the slowest rank's products, with so many messages each way. */
static status_t run(struct beside *beside, int size, int messages, double *out_ms)
{
    struct group *group = beside->bench->group;
    struct meter_pace pace = {wait_for_product, beside};
    double mine, all[group_size(group)];
    beside->messages = messages;
    TRY(group_barrier(group));
    TRY(enqueue_products(beside));
    if (messages > 0 && meter_partner(beside->meter) >= 0) {
        TRY(meter_run(beside->meter, METER_BOTH, size, messages, &pace));
        TRY(meter_settle(beside->meter));
    }
    TRY(device_event_sync(beside->device, beside->end));
    TRY(device_event_elapsed(beside->device, beside->begin, beside->end, &mine));
    TRY(group_allgather(group, &mine, sizeof mine, all));
    *out_ms = 0;
    for (int r = 0; r < group_size(group); r++) {
        *out_ms = all[r] > *out_ms ? all[r] : *out_ms;
    }
    return STATUS_OK;
}

static int messages_at(double rate, double alone_ms, size_t bytes)
{
    int messages = (int)(rate * alone_ms * 1e-3 / (double)bytes + 0.5);
    return messages > 0 ? messages : 1;
}

static void report(const struct beside *beside, size_t bytes, double *alone,
                   double (*ms)[BENCH_REPEATS], const int *messages)
{
    const struct bench_comm *bench = beside->bench;
    struct bench_value value = bench_value_of(alone, bench->repeats);
    double base = value.median;
    char name[64], more[128];
    snprintf(name, sizeof name, "%d products alone", PRODUCTS);
    bench_comm_row(bench, name, 0, &value, "ms", "");
    for (int r = 0; r < RATES; r++) {
        for (int i = 0; i < bench->repeats; i++) {
            ms[r][i] = 100 * (ms[r][i] / base - 1);
        }
        value = bench_value_of(ms[r], bench->repeats);
        double reached = messages[r] * (double)bytes / (base * 1e6 * (1 + value.median / 100));
        snprintf(name, sizeof name, "... beside %.0f GB/s", reached);
        snprintf(more, sizeof more, ",\"wanted_gb_s\":%.0f,\"gb_s\":%.2f", rates[r] * 1e-9,
                 reached);
        bench_comm_row(bench, name, bytes, &value, "% more", more);
    }
}

/* Alone and beside by turns, so that a card that grows warm slows all down alike. */
static status_t measure(struct beside *beside, int size, size_t bytes)
{
    const struct bench_comm *bench = beside->bench;
    double alone[BENCH_REPEATS], ms[RATES][BENCH_REPEATS];
    int messages[RATES];
    for (int warm = 0; warm < 2; warm++) {
        TRY(run(beside, size, 0, &alone[0]));
    }
    for (int r = 0; r < RATES; r++) {
        messages[r] = messages_at(rates[r], alone[0], bytes);
    }
    for (int i = 0; i < bench->repeats; i++) {
        TRY(run(beside, size, 0, &alone[i]));
        for (int r = 0; r < RATES; r++) {
            TRY(run(beside, size, messages[r], &ms[r][i]));
        }
    }
    report(beside, bytes, alone, ms, messages);
    return STATUS_OK;
}

status_t bench_beside(const struct bench_comm *bench, struct meter *meter, int size, size_t bytes)
{
    struct beside beside;
    if (group_local_size(bench->group) > device_count(DEVICE_CUDA, NULL, 0)) {
        if (group_rank(bench->group) == 0) {
            printf("  ranks share a GPU and take turns: nothing to learn beside products\n");
        }
        return STATUS_OK;
    }
    status_t status = group_agree(bench->group, create(bench, meter, &beside));
    if (status == STATUS_OK) {
        status = measure(&beside, size, bytes);
    }
    destroy(&beside);
    return status;
}
