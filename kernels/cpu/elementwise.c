/* elementwise.c - copies and sums; each element is on its own. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

static void copy(const struct kernel_ctx *ctx, void *dst, const void *src, size_t count)
{
    size_t blocks = blocks_of(count, ELEMENT_BLOCK);
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t block = 0; block < blocks; block++) {
        size_t begin = block * ELEMENT_BLOCK, size = smaller(count - begin, ELEMENT_BLOCK);
        memcpy((float *)dst + begin, (const float *)src + begin, size * sizeof(float));
    }
}

static void zero(const struct kernel_ctx *ctx, void *dst, size_t bytes)
{
    enum { BYTES = 4 * ELEMENT_BLOCK };
    size_t blocks = blocks_of(bytes, BYTES);
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t block = 0; block < blocks; block++) {
        size_t begin = block * BYTES;
        memset((unsigned char *)dst + begin, 0, smaller(bytes - begin, BYTES));
    }
}

static void add(const struct kernel_ctx *ctx, void *out, const void *a, const void *b, size_t count)
{
    float *y = out;
    const float *x0 = a, *x1 = b;
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t i = 0; i < count; i++) {
        y[i] = x0[i] + x1[i];
    }
}

static void scale_add(const struct kernel_ctx *ctx, void *dst, const void *src, float scale,
                      size_t count)
{
    float *y = dst;
    const float *x = src;
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t i = 0; i < count; i++) {
        y[i] = fmaf(scale, x[i], y[i]);
    }
}

static void scale_columns(const struct kernel_ctx *ctx, float *x, const float *scale, size_t rows,
                          size_t columns)
{
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t r = 0; r < rows; r++) {
        for (size_t c = 0; c < columns; c++) {
            x[r * columns + c] *= scale[c];
        }
    }
    (void)ctx;
}

static void accumulate_f32(const struct kernel_ctx *ctx, float *dst, const float *src, size_t count)
{
    add(ctx, dst, dst, src, count);
}

static void from_f32(const struct kernel_ctx *ctx, void *dst, const float *src, size_t count)
{
    copy(ctx, dst, src, count);
}

void ISA(elementwise_fill)(struct kernels *table)
{
    table->copy = copy;
    table->zero = zero;
    table->add = add;
    table->scale_add = scale_add;
    table->scale_columns = scale_columns;
    table->accumulate_f32 = accumulate_f32;
    table->from_f32 = from_f32;
}
