/* norm.c - RMSNorm and LayerNorm over rows.
 *
 * Backward, with g = dy * scale and xhat = (x - mean) * rstd:
 *     dx = rstd * (g - [mean of g, LAYER only] - xhat * mean of (g * xhat)).
 * dscale_part and dbias_part are summed over chunks of NORM_CHUNK rows, then over the chunks.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/vec.h"

/* Zeros beyond the first n lanes. */
INLINE lanes_t lanes_first(lanes_t a, size_t n)
{
    float x[LANES];
    if (n >= LANES) {
        return a;
    }
    lanes_store(x, a);
    return lanes_load_part(x, n);
}

static float row_sum(const float *x, size_t width)
{
    lanes_t sum = lanes_zero();
    for (size_t i = 0; i < width; i += LANES) {
        sum = lanes_add(sum, lanes_load_n(x + i, width - i));
    }
    return lanes_sum(sum);
}

static float row_square_sum(const float *x, float mean, size_t width)
{
    lanes_t sum = lanes_zero(), centre = lanes_set(mean);
    for (size_t i = 0; i < width; i += LANES) {
        lanes_t d = lanes_sub(lanes_load_n(x + i, width - i), centre);
        d = lanes_first(d, width - i);
        sum = lanes_fma(d, d, sum);
    }
    return lanes_sum(sum);
}

static void norm_forward(const struct kernel_ctx *ctx, const struct norm_shape *shape, void *y,
                         float *mean, float *rstd, const void *x, const void *scale,
                         const void *bias)
{
    size_t width = shape->width;
    const float *weight = scale, *offset = bias;
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t row = 0; row < shape->rows; row++) {
        const float *in = (const float *)x + row * width;
        float *out = (float *)y + row * width;
        float centre = shape->kind == NORM_LAYER ? row_sum(in, width) / (float)width : 0.0f;
        float variance = row_square_sum(in, centre, width) / (float)width;
        float factor = 1.0f / sqrtf(variance + shape->eps);
        if (shape->kind == NORM_LAYER) {
            mean[row] = centre;
        }
        rstd[row] = factor;
        for (size_t i = 0; y && i < width; i += LANES) {
            size_t n = width - i;
            lanes_t a = lanes_sub(lanes_load_n(in + i, n), lanes_set(centre));
            a = lanes_mul(a, lanes_set(factor));
            if (weight) {
                a = lanes_mul(a, lanes_load_n(weight + i, n));
            }
            if (offset) {
                a = lanes_add(a, lanes_load_n(offset + i, n));
            }
            lanes_store_n(out + i, a, n);
        }
    }
}

struct norm_row {
    const float *dy, *x, *scale; /* scale may be NULL */
    float mean, rstd;
};

INLINE lanes_t row_xhat(const struct norm_row *row, size_t i, size_t n)
{
    lanes_t d = lanes_sub(lanes_load_n(row->x + i, n), lanes_set(row->mean));
    return lanes_mul(d, lanes_set(row->rstd));
}

INLINE lanes_t row_gradient(const struct norm_row *row, lanes_t dy, size_t i, size_t n)
{
    return row->scale ? lanes_mul(dy, lanes_load_n(row->scale + i, n)) : dy;
}

/* Adds the row's share to the chunk's dscale and dbias (each may be NULL). */
static void row_parts(const struct norm_row *row, float *dscale, float *dbias, size_t width)
{
    for (size_t i = 0; i < width; i += LANES) {
        size_t n = width - i;
        lanes_t dy = lanes_load_n(row->dy + i, n);
        if (dscale) {
            lanes_t sum = lanes_load_n(dscale + i, n);
            lanes_store_n(dscale + i, lanes_fma(dy, row_xhat(row, i, n), sum), n);
        }
        if (dbias) {
            lanes_store_n(dbias + i, lanes_add(lanes_load_n(dbias + i, n), dy), n);
        }
    }
}

static void row_backward(const struct norm_row *row, enum norm_kind kind, float *dx,
                         bool accumulate, size_t width)
{
    lanes_t sum_g = lanes_zero(), sum_gx = lanes_zero();
    for (size_t i = 0; i < width; i += LANES) {
        size_t n = width - i;
        lanes_t g = row_gradient(row, lanes_load_n(row->dy + i, n), i, n); /* zero in the rest */
        sum_g = lanes_add(sum_g, g);
        sum_gx = lanes_fma(g, row_xhat(row, i, n), sum_gx);
    }
    float mean_g = kind == NORM_LAYER ? lanes_sum(sum_g) / (float)width : 0.0f;
    float mean_gx = lanes_sum(sum_gx) / (float)width;

    for (size_t i = 0; i < width; i += LANES) {
        size_t n = width - i;
        lanes_t g = row_gradient(row, lanes_load_n(row->dy + i, n), i, n);
        lanes_t d = lanes_sub(g, lanes_set(mean_g));
        d = lanes_fma(row_xhat(row, i, n), lanes_set(-mean_gx), d);
        if (accumulate) {
            d = lanes_fma(d, lanes_set(row->rstd), lanes_load_n(dx + i, n));
        } else {
            d = lanes_mul(d, lanes_set(row->rstd));
        }
        lanes_store_n(dx + i, d, n);
    }
}

/* out = sum of the chunks' parts, ascending. */
static void parts_add(const struct kernel_ctx *ctx, float *out, const float *parts, size_t chunks,
                      size_t stride, size_t width)
{
    size_t blocks = blocks_of(width, LANES);
#pragma omp parallel for num_threads(ctx->threads) schedule(static) if (width * chunks > 65536)
    for (size_t block = 0; block < blocks; block++) {
        size_t i = block * LANES, n = width - i;
        lanes_t sum = lanes_zero();
        for (size_t chunk = 0; chunk < chunks; chunk++) {
            sum = lanes_add(sum, lanes_load_n(parts + chunk * stride + i, n));
        }
        lanes_store_n(out + i, sum, n);
    }
}

static void norm_backward(const struct kernel_ctx *ctx, const struct norm_shape *shape, void *dx,
                          bool accumulate, float *dscale_part, float *dbias_part, const void *dy,
                          const void *x, const float *mean, const float *rstd, const void *scale)
{
    size_t width = shape->width, chunks = blocks_of(shape->rows, NORM_CHUNK);
    size_t stride = 2 * width;
    float *parts = NULL;
    if (dscale_part || dbias_part) {
        parts = workspace_get(ctx, scratch_norm_backward(shape->rows, width) * sizeof(float));
    }
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t chunk = 0; chunk < chunks; chunk++) {
        float *dscale = dscale_part ? parts + chunk * stride : NULL;
        float *dbias = dbias_part ? parts + chunk * stride + width : NULL;
        if (parts) {
            memset(parts + chunk * stride, 0, stride * sizeof *parts);
        }
        size_t end = smaller(shape->rows, (chunk + 1) * NORM_CHUNK);
        for (size_t r = chunk * NORM_CHUNK; r < end; r++) {
            struct norm_row row = {(const float *)dy + r * width, (const float *)x + r * width,
                                   scale, shape->kind == NORM_LAYER ? mean[r] : 0.0f, rstd[r]};
            row_parts(&row, dscale, dbias, width);
            row_backward(&row, shape->kind, (float *)dx + r * width, accumulate, width);
        }
    }
    if (dscale_part) {
        parts_add(ctx, dscale_part, parts, chunks, stride, width);
    }
    if (dbias_part) {
        parts_add(ctx, dbias_part, parts + width, chunks, stride, width);
    }
}

void ISA(norm_fill)(struct kernels *table)
{
    table->norm_forward = norm_forward;
    table->norm_backward = norm_backward;
}
