/* streams.c - the streams of hyper-connections: read, mixed and written token by token, and their gradients.
 *
 * A token's streams lie side by side, so that all of them stay in the first-level cache between their loads.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

static void streams_sum(const struct kernel_ctx *ctx, void *out, const float *weight, size_t stride,
                        const void *x, size_t N, size_t D, size_t n)
{
    enum trace_category before = trace_switch(ctx->trace, TRACE_AGGREGATE);
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t t = 0; t < N; t++) {
        const float *in = (const float *)x + t * n * D;
        for (size_t i = 0; i < D; i += LANES) {
            lanes_t sum = lanes_zero();
            for (size_t s = 0; s < n; s++) {
                lanes_t w = lanes_set(weight ? weight[t * stride + s] : 1.0f);
                sum = lanes_fma(w, lanes_load_n(in + s * D + i, D - i), sum);
            }
            lanes_store_n((float *)out + t * D + i, sum, D - i);
        }
    }
    trace_switch(ctx->trace, before);
}

/* A token of streams_mix; NULL where something is left out. */
struct mix {
    float *out;
    const float *matrix, *x, *weight, *f, *factor, *y;
    bool accumulate, transposed;
    size_t D, n;
};

INLINE void mix_lanes(const struct mix *m, size_t s, size_t i, size_t count)
{
    size_t n = m->n, D = m->D;
    float *out = m->out + s * D + i;
    lanes_t sum = m->accumulate ? lanes_load_n(out, count) : lanes_zero();
    for (size_t r = 0; m->matrix && r < n; r++) {
        float w = m->transposed ? m->matrix[r * n + s] : m->matrix[s * n + r];
        sum = lanes_fma(lanes_set(w), lanes_load_n(m->x + r * D + i, count), sum);
    }
    if (m->f) {
        lanes_t w = lanes_set(m->weight ? m->weight[s] : 1.0f);
        sum = lanes_fma(w, lanes_load_n(m->f + i, count), sum);
    }
    if (m->factor) {
        lanes_t y = lanes_load_n(m->y + s * D + i, count);
        sum = lanes_fma(lanes_set(m->factor[s]), y, sum);
    }
    lanes_store_n(out, sum, count);
}

static const float *row_of(const float *base, size_t row, size_t width)
{
    return base ? base + row * width : NULL;
}

static void streams_mix(const struct kernel_ctx *ctx, void *out, bool accumulate,
                        const float *matrix, bool transposed, const void *x, const float *weight,
                        const void *f, const float *factor, const void *y, size_t stride, size_t N,
                        size_t D, size_t n)
{
    enum trace_category before = trace_switch(ctx->trace, TRACE_AGGREGATE);
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t t = 0; t < N; t++) {
        const struct mix m = {.out = (float *)out + t * n * D,
                              .matrix = row_of(matrix, t, stride),
                              .x = row_of(x, t, n * D),
                              .weight = row_of(weight, t, stride),
                              .f = row_of(f, t, D),
                              .factor = row_of(factor, t, n),
                              .y = row_of(y, t, n * D),
                              .accumulate = accumulate,
                              .transposed = transposed,
                              .D = D,
                              .n = n};
        for (size_t s = 0; s < n; s++) {
            for (size_t i = 0; i < D; i += LANES) {
                mix_lanes(&m, s, i, D - i);
            }
        }
    }
    trace_switch(ctx->trace, before);
}

static float row_dot(const float *a, const float *b, size_t D)
{
    lanes_t sum = lanes_zero();
    for (size_t i = 0; i < D; i += LANES) {
        sum = lanes_fma(lanes_load_n(a + i, D - i), lanes_load_n(b + i, D - i), sum);
    }
    return lanes_sum(sum);
}

static void streams_dots(const struct kernel_ctx *ctx, float *dmatrix, float *dweight,
                         size_t stride, const void *a, const void *b, const void *f, size_t N,
                         size_t D, size_t n)
{
    enum trace_category before = trace_switch(ctx->trace, TRACE_AGGREGATE);
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t t = 0; t < N; t++) {
        const float *left = (const float *)a + t * n * D, *right = row_of(b, t, n * D);
        for (size_t s = 0; s < n; s++) {
            for (size_t r = 0; right && r < n; r++) {
                dmatrix[t * stride + s * n + r] = row_dot(left + s * D, right + r * D, D);
            }
            dweight[t * stride + s] = row_dot(left + s * D, (const float *)f + t * D, D);
        }
    }
    trace_switch(ctx->trace, before);
}

void ISA(streams_fill)(struct kernels *table)
{
    table->streams_sum = streams_sum;
    table->streams_mix = streams_mix;
    table->streams_dots = streams_dots;
}
