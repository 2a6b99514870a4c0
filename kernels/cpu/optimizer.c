/* optimizer.c - the gradient's square sum and AdamW. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

enum { CHUNK = 4096, TOGETHER = 8, PASS = 1024 };

/* Squares of chunks of CHUNK elements, `chunks` of them side by side: a chunk's own sum stays left
 * to right while the chains overlap. */
INLINE void chunk_squares(double *sums, const float *x, size_t chunks, size_t size)
{
    double sum[TOGETHER] = {0};
    for (size_t i = 0; i < size; i++) {
#pragma GCC unroll 8
        for (size_t chunk = 0; chunk < chunks; chunk++) {
            double value = (double)x[chunk * CHUNK + i];
            sum[chunk] += value * value; /* the product is exact */
        }
    }
    memcpy(sums, sum, chunks * sizeof *sums);
}

static void sum_squares(const struct kernel_ctx *ctx, double *out, const float *x, size_t count)
{
    enum trace_category before = trace_switch(ctx->trace, TRACE_OPTIMIZER);
    double sums[PASS], total = 0;
    size_t whole = count / CHUNK;
    for (size_t first = 0; first < whole; first += PASS) {
        size_t chunks = smaller(whole - first, PASS), groups = chunks / TOGETHER;
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
        for (size_t group = 0; group < groups; group++) {
            size_t chunk = group * TOGETHER;
            chunk_squares(sums + chunk, x + (first + chunk) * CHUNK, TOGETHER, CHUNK);
        }
        for (size_t chunk = groups * TOGETHER; chunk < chunks; chunk++) {
            chunk_squares(sums + chunk, x + (first + chunk) * CHUNK, 1, CHUNK);
        }
        for (size_t chunk = 0; chunk < chunks; chunk++) {
            total += sums[chunk];
        }
    }
    if (count % CHUNK) {
        chunk_squares(sums, x + whole * CHUNK, 1, count % CHUNK);
        total += sums[0];
    }
    *out = total;
    trace_switch(ctx->trace, before);
}

/* base^exponent by squaring: library powers differ between machines. */
static double power(double base, int64_t exponent)
{
    double result = 1;
    for (; exponent > 0; exponent >>= 1, base *= base) {
        if (exponent & 1) {
            result *= base;
        }
    }
    return result;
}

static void adamw(const struct kernel_ctx *ctx, const struct adamw_args *args, float *p, float *m,
                  float *v, const float *gradient, size_t count)
{
    if (args->gradient_scale_at && *args->gradient_scale_at < 0) {
        return;
    }
    enum trace_category before = trace_switch(ctx->trace, TRACE_OPTIMIZER);
    float beta1 = args->beta1, beta2 = args->beta2, eps = args->eps;
    float scale = args->gradient_scale_at ? *args->gradient_scale_at : args->gradient_scale;
    float rest1 = (float)(1.0 - (double)beta1), rest2 = (float)(1.0 - (double)beta2);
    float decay = (float)(1.0 - (double)args->lr * (double)args->weight_decay);
    float rate = (float)((double)args->lr / (1.0 - power((double)beta1, args->step)));
    float correction = (float)(1.0 / (1.0 - power((double)beta2, args->step)));
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t i = 0; i < count; i++) {
        float g = gradient[i] * scale;
        float first = fmaf(beta1, m[i], rest1 * g);
        float second = fmaf(beta2, v[i], rest2 * g * g);
        m[i] = first;
        v[i] = second;
        p[i] = p[i] * decay - rate * first / (sqrtf(second * correction) + eps);
    }
    trace_switch(ctx->trace, before);
}

void ISA(optimizer_fill)(struct kernels *table)
{
    table->sum_squares = sum_squares;
    table->adamw = adamw;
}
