/* products.c - the rate of matrix products, on every rank at once: as in training they share power and cores. */
#include "base/trace.h"
#include "kernels/kernels.h"
#include "tools/bench.h"
#include "tools/preflight/preflight.h"

enum { REPEATS = 5, SMALLEST = 512 };
#define SAMPLE_S 0.3
#define PRODUCT_S                                                                                  \
    0.001 /* that one takes at least, if there is a larger one: below it, starting counts */

struct products {
    const struct kernels *kernels;
    struct kernel_ctx ctx;
    size_t most;  /* of width */
    size_t width; /* y, x, w [width, width]; y = x w^T */
    char *memory;
    void *x, *weight, *y;
};

static status_t create(const struct bench_place *place, int threads, struct products *out)
{
    bool gpu = device_kind(place->device) == DEVICE_CUDA;
    TRY(gpu ? kernels_cuda(DTYPE_BF16, &out->kernels) : kernels_cpu(&out->kernels));
    out->most = gpu ? 8192 : 1024;
    struct kernel_limits limits = {.B = 1,
                                   .T = out->most,
                                   .D = out->most,
                                   .H = 1,
                                   .G = 1,
                                   .E = 1,
                                   .F = out->most,
                                   .V = 1,
                                   .K = 1,
                                   .threads = threads};
    size_t element = dtype_size(out->kernels->dtype);
    size_t matrix = out->most * out->most * element;
    out->ctx.threads = threads;
    out->ctx.stream = place->stream;
    out->ctx.workspace_bytes = kernels_workspace(out->kernels, &limits);
    TRY(device_alloc(place->device, MEMORY_DEVICE, 3 * matrix + out->ctx.workspace_bytes,
                     "matrices to multiply", (void **)&out->memory));
    out->x = out->memory;
    out->weight = out->memory + matrix;
    out->y = out->memory + 2 * matrix;
    out->ctx.workspace = out->memory + 3 * matrix;
    return bench_fill_numbers(place->device, place->stream, out->kernels->dtype, out->memory,
                              2 * matrix);
}

/* Seconds of `count` products. */
static status_t time_them(const struct bench_place *place, struct products *products, int count,
                          double *out)
{
    int64_t start = trace_now();
    for (int i = 0; i < count; i++) {
        products->kernels->linear_forward(&products->ctx, products->y, products->x,
                                          products->weight, NULL, products->width, products->width,
                                          products->width);
    }
    TRY(device_stream_sync(place->device, place->stream));
    *out = (double)(trace_now() - start) * 1e-9;
    return STATUS_OK;
}

/* Seconds of one product of the largest width that is worth while, after some to warm up. */
static status_t choose_width(const struct bench_place *place, struct products *products,
                             double *out)
{
    products->width = SMALLEST;
    for (;;) {
        TRY(time_them(place, products, 1, out));
        TRY(time_them(place, products, 1, out));
        if (*out >= PRODUCT_S || 2 * products->width > products->most) {
            return STATUS_OK;
        }
        products->width *= 2;
    }
}

/* The best of the repeats: what the card or the cores can do. All ranks take rank 0's width. */
static status_t measure(const struct bench_place *place, struct products *products, double *out)
{
    double seconds = 0;
    TRY(group_agree(place->group, choose_width(place, products, &seconds)));
    TRY(group_broadcast(place->group, &products->width, sizeof products->width, 0));
    double width = (double)products->width, flops = 2 * width * width * width;
    int count = 1 + (int)(SAMPLE_S / seconds);
    TRY(group_broadcast(place->group, &count, sizeof count, 0));
    *out = 0;
    for (int i = 0; i < REPEATS; i++) {
        TRY(time_them(place, products, count, &seconds));
        *out = flops * count / seconds > *out ? flops * count / seconds : *out;
    }
    return STATUS_OK;
}

status_t products_measure(const struct bench_place *place, int threads, double *out)
{
    struct products products = {0};
    status_t status = group_agree(place->group, create(place, threads, &products));
    if (status == STATUS_OK) {
        status = group_barrier(place->group);
    }
    if (status == STATUS_OK) {
        status = group_agree(place->group, measure(place, &products, out));
    }
    device_free(place->device, MEMORY_DEVICE, products.memory);
    return status;
}
