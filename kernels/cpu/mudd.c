/* mudd.c - the aggregates over earlier layers' outputs, and their gradients.
 *
 * All three walk token by token. Mixing and dweights take KEYS keys at a time for all ways, so that
 * each key is read from memory once; mixing adds up on the stack, COLUMNS at a time, because
 * outputs and keys that lie the same distance from a page's start would push each other out of the
 * first-level cache. A key's gradient is read and written once while all its consumers' rows stream
 * by. The order of the fmaf steps of an element is that of kernels.h and does not depend on this
 * grouping.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

enum { KEYS = 4, COLUMNS = 512 };

/* sum[c][i..] += weight * key, `keys` keys ascending. */
INLINE void mix_lanes(float (*sum)[COLUMNS], const float *const *key,
                      const lanes_t weight[KEYS][WAYS_MAX], size_t ways, size_t keys, size_t i,
                      size_t n)
{
    lanes_t y[WAYS_MAX];
#pragma GCC unroll 4
    for (size_t c = 0; c < ways; c++) {
        y[c] = lanes_load(sum[c] + i);
    }
#pragma GCC unroll 4
    for (size_t j = 0; j < keys; j++) {
        lanes_t x = lanes_load_n(key[j] + i, n);
#pragma GCC unroll 4
        for (size_t c = 0; c < ways; c++) {
            y[c] = lanes_fma(weight[j][c], x, y[c]);
        }
    }
#pragma GCC unroll 4
    for (size_t c = 0; c < ways; c++) {
        lanes_store(sum[c] + i, y[c]);
    }
}

INLINE void mix_keys(float (*sum)[COLUMNS], const float *const *key, const float *weights, size_t n,
                     size_t ways, size_t keys, size_t columns)
{
    lanes_t weight[KEYS][WAYS_MAX];
#pragma GCC unroll 4
    for (size_t j = 0; j < keys; j++) {
#pragma GCC unroll 4
        for (size_t c = 0; c < ways; c++) {
            weight[j][c] = lanes_set(weights[c * n + j]);
        }
    }
    size_t i = 0;
    for (; i + LANES <= columns; i += LANES) {
        mix_lanes(sum, key, weight, ways, keys, i, LANES);
    }
    if (i < columns) {
        mix_lanes(sum, key, weight, ways, keys, i, columns - i);
    }
}

/* Some columns of one token, `offset` elements into keys and outputs. */
INLINE void mix_columns(void *const *out, const void *const *key_, const float *weights,
                        size_t offset, size_t columns, size_t ways, size_t n)
{
    float sum[WAYS_MAX][COLUMNS];
    memset(sum, 0, ways * sizeof *sum);
    for (size_t j = 0; j < n; j += KEYS) {
        size_t keys = smaller(n - j, KEYS);
        const float *key[KEYS];
        for (size_t k = 0; k < keys; k++) {
            key[k] = (const float *)key_[j + k] + offset;
        }
        if (keys == KEYS) {
            mix_keys(sum, key, weights + j, n, ways, KEYS, columns);
            continue;
        }
        for (size_t k = 0; k < keys; k++) {
            mix_keys(sum, key + k, weights + j + k, n, ways, 1, columns);
        }
    }
    for (size_t c = 0; c < ways; c++) {
        memcpy((float *)out[c] + offset, sum[c], columns * sizeof(float));
    }
}

INLINE void mix_row(void *const *out, const void *const *key, const float *weights, size_t offset,
                    size_t D, size_t ways, size_t n)
{
    for (size_t i = 0; i < D; i += COLUMNS) {
        mix_columns(out, key, weights, offset + i, smaller(D - i, COLUMNS), ways, n);
    }
}

static void mudd_forward(const struct kernel_ctx *ctx, void *const *out, const void *const *key,
                         const float *weights, const void *static_weights, size_t N, size_t D,
                         size_t C, size_t n)
{
    CHECK(C >= 1 && C <= WAYS_MAX, "%zu ways", C);
    enum trace_category before = trace_switch(ctx->trace, TRACE_AGGREGATE);
    size_t stride = weights ? C * n : 0;
    const float *base = weights ? weights : static_weights;
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t t = 0; t < N; t++) {
        const float *row = base + t * stride;
        switch (C) {
        case 1:
            mix_row(out, key, row, t * D, D, 1, n);
            break;
        case 2:
            mix_row(out, key, row, t * D, D, 2, n);
            break;
        case 3:
            mix_row(out, key, row, t * D, D, 3, n);
            break;
        default:
            mix_row(out, key, row, t * D, D, 4, n);
            break;
        }
    }
    trace_switch(ctx->trace, before);
}

/* ---- gradient of the weights ---- */

INLINE void dot_lanes(lanes_t sum[KEYS][WAYS_MAX], const float *const *dout,
                      const float *const *key, size_t ways, size_t keys, size_t i, size_t n)
{
    lanes_t d[WAYS_MAX];
#pragma GCC unroll 4
    for (size_t c = 0; c < ways; c++) {
        d[c] = lanes_load_n(dout[c] + i, n);
    }
#pragma GCC unroll 4
    for (size_t j = 0; j < keys; j++) {
        lanes_t x = lanes_load_n(key[j] + i, n);
#pragma GCC unroll 4
        for (size_t c = 0; c < ways; c++) {
            sum[j][c] = lanes_fma(d[c], x, sum[j][c]);
        }
    }
}

INLINE void dot_keys(float *dweights, const float *const *dout, const float *const *key, size_t n,
                     size_t ways, size_t keys, size_t D)
{
    lanes_t sum[KEYS][WAYS_MAX];
#pragma GCC unroll 4
    for (size_t j = 0; j < keys; j++) {
#pragma GCC unroll 4
        for (size_t c = 0; c < ways; c++) {
            sum[j][c] = lanes_zero();
        }
    }
    size_t i = 0;
    for (; i + LANES <= D; i += LANES) {
        dot_lanes(sum, dout, key, ways, keys, i, LANES);
    }
    if (i < D) {
        dot_lanes(sum, dout, key, ways, keys, i, D - i);
    }
#pragma GCC unroll 4
    for (size_t j = 0; j < keys; j++) {
#pragma GCC unroll 4
        for (size_t c = 0; c < ways; c++) {
            dweights[c * n + j] = lanes_sum(sum[j][c]);
        }
    }
}

INLINE void dot_row(float *dweights, const void *const *dout_, const void *const *key_,
                    size_t offset, size_t D, size_t ways, size_t n)
{
    const float *dout[WAYS_MAX];
    for (size_t c = 0; c < ways; c++) {
        dout[c] = (const float *)dout_[c] + offset;
    }
    for (size_t j = 0; j < n; j += KEYS) {
        size_t keys = smaller(n - j, KEYS);
        const float *key[KEYS];
        for (size_t k = 0; k < keys; k++) {
            key[k] = (const float *)key_[j + k] + offset;
        }
        if (keys == KEYS) {
            dot_keys(dweights + j, dout, key, n, ways, KEYS, D);
            continue;
        }
        for (size_t k = 0; k < keys; k++) {
            dot_keys(dweights + j + k, dout, key + k, n, ways, 1, D);
        }
    }
}

static void mudd_backward_weights(const struct kernel_ctx *ctx, float *dweights,
                                  const void *const *dout, const void *const *key, size_t N,
                                  size_t D, size_t C, size_t n)
{
    CHECK(C >= 1 && C <= WAYS_MAX, "%zu ways", C);
    enum trace_category before = trace_switch(ctx->trace, TRACE_AGGREGATE);
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t t = 0; t < N; t++) {
        float *row = dweights + t * C * n;
        switch (C) {
        case 1:
            dot_row(row, dout, key, t * D, D, 1, n);
            break;
        case 2:
            dot_row(row, dout, key, t * D, D, 2, n);
            break;
        case 3:
            dot_row(row, dout, key, t * D, D, 3, n);
            break;
        default:
            dot_row(row, dout, key, t * D, D, 4, n);
            break;
        }
    }
    trace_switch(ctx->trace, before);
}

/* ---- gradient of a key ---- */

INLINE void term_lanes(float *dkey, const lanes_t *weight, const float *const *dout, size_t ways,
                       bool first, size_t i, size_t n)
{
    lanes_t sum = first ? lanes_zero() : lanes_load_n(dkey + i, n);
#pragma GCC unroll 4
    for (size_t c = 0; c < ways; c++) {
        sum = lanes_fma(weight[c], lanes_load_n(dout[c] + i, n), sum);
    }
    lanes_store_n(dkey + i, sum, n);
}

INLINE void term_row(float *dkey, const struct mudd_term *term, size_t ways, bool first, size_t t,
                     size_t D)
{
    lanes_t weight[WAYS_MAX];
    const float *dout[WAYS_MAX];
#pragma GCC unroll 4
    for (size_t c = 0; c < ways; c++) {
        weight[c] = lanes_set(term->weights[t * term->row_stride + c * term->way_stride]);
        dout[c] = (const float *)term->dout[c] + t * D;
    }
    size_t i = 0;
    for (; i + LANES <= D; i += LANES) {
        term_lanes(dkey, weight, dout, ways, first, i, LANES);
    }
    if (i < D) {
        term_lanes(dkey, weight, dout, ways, first, i, D - i);
    }
}

static void mudd_backward_key(const struct kernel_ctx *ctx, void *dkey, bool accumulate,
                              const struct mudd_term *terms, size_t count, size_t N, size_t D)
{
    enum trace_category before = trace_switch(ctx->trace, TRACE_AGGREGATE);
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t t = 0; t < N; t++) {
        float *row = (float *)dkey + t * D;
        if (count == 0 && !accumulate) {
            memset(row, 0, D * sizeof *row);
        }
        for (size_t k = 0; k < count; k++) {
            bool first = k == 0 && !accumulate;
            switch (terms[k].ways) {
            case 1:
                term_row(row, &terms[k], 1, first, t, D);
                break;
            case 2:
                term_row(row, &terms[k], 2, first, t, D);
                break;
            case 3:
                term_row(row, &terms[k], 3, first, t, D);
                break;
            default:
                term_row(row, &terms[k], 4, first, t, D);
                break;
            }
        }
    }
    trace_switch(ctx->trace, before);
}

void ISA(mudd_fill)(struct kernels *table)
{
    table->mudd_forward = mudd_forward;
    table->mudd_backward_weights = mudd_backward_weights;
    table->mudd_backward_key = mudd_backward_key;
}
