/* attention_backward.c - gradients of q, k and v, with the probabilities made anew from lse.
 *
 * A thread takes one key/value head of one sequence: its query heads ascending, in each the blocks
 * of queries ascending, in each the blocks of keys; dk and dv add up in the workspace in that
 * order.
 *     P^T = exp(scale K Q^T - lse)         dV += P^T dO
 *     dS^T = P^T (V dO^T - delta) scale    dK += dS^T Q     dQ^T += K^T dS^T
 * where delta = rows' sum of dO * O.
 */
#include "kernels/cpu/attention.h"

#include "kernels/cpu/micro.h"
#include "kernels/cpu/vec_math.h"

struct backward_scratch {
    size_t wide;                /* E in whole lanes */
    float *dk, *dv;             /* [T, wide] */
    float *q, *dout;            /* [BLOCK, wide], zeros beyond E */
    float *qt, *doutt, *dqt;    /* [E, BLOCK] */
    float *p, *ds;              /* [BLOCK keys, BLOCK queries] */
    float *first, *lse, *delta; /* [BLOCK] */
};

static struct backward_scratch scratch_cut(float *base, size_t T, size_t E)
{
    struct backward_scratch s;
    s.wide = scratch_lanes(E);
    s.dk = base;
    s.dv = s.dk + T * s.wide;
    s.q = s.dv + T * s.wide;
    s.dout = s.q + BLOCK * s.wide;
    s.qt = s.dout + BLOCK * s.wide;
    s.doutt = s.qt + E * BLOCK;
    s.dqt = s.doutt + E * BLOCK;
    s.p = s.dqt + E * BLOCK;
    s.ds = s.p + BLOCK * BLOCK;
    s.first = s.ds + BLOCK * BLOCK;
    s.lse = s.first + BLOCK;
    s.delta = s.lse + BLOCK;
    return s;
}

/* Scores become P^T, V dO^T becomes dS^T. */
INLINE void gradient_lanes(const struct backward_scratch *s, const struct attention_tile *tile,
                           float scale, size_t lane, bool masked)
{
    lanes_t lse = lanes_load(s->lse + lane), delta = lanes_load(s->delta + lane);
    lanes_t by = lanes_set(scale);
    for (size_t j = 0; j < tile->keys; j++) {
        float *p = s->p + j * BLOCK + lane, *ds = s->ds + j * BLOCK + lane;
        lanes_t x = lanes_exp(lanes_sub(lanes_mul(lanes_load(p), by), lse));
        if (masked) {
            x = attention_mask(x, lanes_zero(), s->first, tile, lane, j);
        }
        lanes_store(p, x);
        lanes_t d = lanes_sub(lanes_load(ds), delta);
        lanes_store(ds, lanes_mul(lanes_mul(x, d), by));
    }
}

static void block_backward(const struct attention_shape *shape, const struct backward_scratch *s,
                           const struct attention_tile *tile, const float *k, const float *v)
{
    size_t E = shape->E, row = shape->G * E, lanes = (tile->queries + LANES - 1) / LANES;
    size_t wide = s->wide / LANES;
    struct micro_operand K = {k, row, 1}, Kt = {k, 1, row}, V = {v, row, 1};
    struct micro_operand P = {s->p, BLOCK, 1}, dS = {s->ds, BLOCK, 1};

    micro_gemm(tile->keys, lanes, E, K, s->qt, BLOCK, s->p, BLOCK, false);
    micro_gemm(tile->keys, lanes, E, V, s->doutt, BLOCK, s->ds, BLOCK, false);
    for (size_t lane = 0; lane < lanes * LANES; lane += LANES) {
        if (tile->masked) {
            gradient_lanes(s, tile, shape->scale, lane, true);
        } else {
            gradient_lanes(s, tile, shape->scale, lane, false);
        }
    }
    micro_gemm(tile->keys, wide, tile->queries, P, s->dout, s->wide, s->dv + tile->key * s->wide,
               s->wide, true);
    micro_gemm(tile->keys, wide, tile->queries, dS, s->q, s->wide, s->dk + tile->key * s->wide,
               s->wide, true);
    micro_gemm(E, lanes, tile->keys, Kt, s->ds, BLOCK, s->dqt, BLOCK, true);
}

/* Sum of the products of two rows of E. */
static float row_dot(const float *a, const float *b, size_t E)
{
    lanes_t sum = lanes_zero();
    for (size_t e = 0; e < E; e += LANES) {
        sum = lanes_fma(lanes_load_n(a + e, E - e), lanes_load_n(b + e, E - e), sum);
    }
    return lanes_sum(sum);
}

struct backward_rows { /* one block of queries of one head, rows H*E apart */
    const float *q, *out, *dout, *lse;
    float *dq;
};

static void queries_load(const struct attention_shape *shape, const struct backward_scratch *s,
                         const struct backward_rows *rows, size_t count)
{
    size_t E = shape->E, stride = shape->H * E;
    attention_transpose(s->qt, rows->q, stride, count, E);
    attention_transpose(s->doutt, rows->dout, stride, count, E);
    memset(s->dqt, 0, E * BLOCK * sizeof *s->dqt);
    for (size_t i = 0; i < BLOCK; i++) {
        s->lse[i] = i < count ? rows->lse[i] : 0;
        s->delta[i] = 0;
    }
    for (size_t i = 0; i < count; i++) {
        memcpy(s->q + i * s->wide, rows->q + i * stride, E * sizeof(float));
        memcpy(s->dout + i * s->wide, rows->dout + i * stride, E * sizeof(float));
        s->delta[i] = row_dot(rows->dout + i * stride, rows->out + i * stride, E);
    }
}

static void queries_backward(const struct attention_shape *shape, const struct backward_scratch *s,
                             const struct backward_rows *rows, size_t b, size_t begin,
                             const float *k, const float *v)
{
    size_t count = smaller(shape->T - begin, BLOCK), row = shape->G * shape->E;
    queries_load(shape, s, rows, count);
    size_t start = attention_first(s->first, shape, b, begin, count);
    for (size_t key = start / BLOCK * BLOCK; key < begin + count; key += BLOCK) {
        struct attention_tile tile = attention_tile_at(shape, s->first, begin, count, key);
        block_backward(shape, s, &tile, k + key * row, v + key * row);
    }
    attention_untranspose(rows->dq, shape->H * shape->E, s->dqt, count, shape->E);
}

static void rows_store(float *out, const float *from, size_t stride, size_t wide, size_t T,
                       size_t E)
{
    for (size_t t = 0; t < T; t++) {
        memcpy(out + t * stride, from + t * wide, E * sizeof *out);
    }
}

struct backward_args {
    float *dq, *dk, *dv;
    const float *dout, *out, *lse, *q, *k, *v;
};

/* Key/value head g of sequence b. */
static void head_backward(const struct attention_shape *shape, const struct backward_args *a,
                          float *base, size_t b, size_t g)
{
    size_t T = shape->T, E = shape->E, group = shape->H / shape->G;
    size_t kv = b * T * shape->G * E + g * E;
    struct backward_scratch s = scratch_cut(base, T, E);
    memset(s.dk, 0, 2 * T * s.wide * sizeof *s.dk);
    memset(s.q, 0, 2 * BLOCK * s.wide * sizeof *s.q);
    for (size_t h = g * group; h < (g + 1) * group; h++) {
        for (size_t begin = 0; begin < T; begin += BLOCK) {
            size_t at = (b * T + begin) * shape->H * E + h * E;
            struct backward_rows rows = {a->q + at, a->out + at, a->dout + at,
                                         a->lse + (b * shape->H + h) * T + begin, a->dq + at};
            queries_backward(shape, &s, &rows, b, begin, a->k + kv, a->v + kv);
        }
    }
    rows_store(a->dk + kv, s.dk, shape->G * E, s.wide, T, E);
    rows_store(a->dv + kv, s.dv, shape->G * E, s.wide, T, E);
}

static void attention_backward(const struct kernel_ctx *ctx, const struct attention_shape *shape,
                               void *dq, void *dk, void *dv, const void *dout, const void *out,
                               const float *lse, const void *q, const void *k, const void *v)
{
    CHECK(shape->G && shape->H % shape->G == 0, "%zu heads share %zu", shape->H, shape->G);
    enum trace_category before = trace_switch(ctx->trace, TRACE_ATTENTION);
    struct backward_args args = {dq, dk, dv, dout, out, lse, q, k, v};
    size_t each = scratch_attention_backward(shape->T, shape->E);
    float *scratch = workspace_get(ctx, (size_t)ctx->threads * each * sizeof *scratch);
#pragma omp parallel for num_threads(ctx->threads) schedule(dynamic)
    for (size_t item = 0; item < shape->B * shape->G; item++) {
        head_backward(shape, &args, scratch + thread_index() * each, item / shape->G,
                      item % shape->G);
    }
    trace_switch(ctx->trace, before);
}

void ISA(attention_backward_fill)(struct kernels *table)
{
    table->attention_backward = attention_backward;
}
