/* attention.c - causal softmax attention, forward: blocks of queries against blocks of keys.
 *
 * Everything is held transposed, queries in the lanes: scores S^T [keys, queries] = K Q^T need K as
 * it lies and the block's queries turned around once; a query's maximum and sum then run down a
 * column, so no vector is ever folded; out^T [E, queries] += V^T P^T needs V as it lies. A query's
 * keys come in ascending order, block by block, with the usual rescaling when the maximum grows.
 */
#include "kernels/cpu/attention.h"

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/micro.h"
#include "kernels/cpu/vec_math.h"

struct forward_scratch {
    float *qt;     /* [E, BLOCK] */
    float *ot;     /* [E, BLOCK] */
    float *scores; /* [BLOCK keys, BLOCK queries] */
    float *first;  /* [BLOCK] first visible position, then three more rows: */
    float *largest, *sum, *factor;
};

static struct forward_scratch scratch_cut(float *base, size_t E)
{
    struct forward_scratch s;
    s.qt = base;
    s.ot = s.qt + E * BLOCK;
    s.scores = s.ot + E * BLOCK;
    s.first = s.scores + BLOCK * BLOCK;
    s.largest = s.first + BLOCK;
    s.sum = s.largest + BLOCK;
    s.factor = s.sum + BLOCK;
    return s;
}

/* Scores of one lane of queries become exp(score - largest); the running maximum and sum follow. */
INLINE void softmax_lanes(const struct forward_scratch *s, const struct attention_tile *tile,
                          float scale, size_t lane, bool masked)
{
    float *scores = s->scores + lane;
    lanes_t before = lanes_load(s->largest + lane), largest = before, by = lanes_set(scale);
    for (size_t j = 0; j < tile->keys; j++) {
        lanes_t x = lanes_mul(lanes_load(scores + j * BLOCK), by);
        if (masked) {
            x = attention_mask(x, lanes_set(ATTENTION_HIDDEN), s->first, tile, lane, j);
        }
        lanes_store(scores + j * BLOCK, x);
        largest = lanes_max(largest, x);
    }
    lanes_t factor = lanes_exp(lanes_sub(before, largest));
    lanes_t sum = lanes_mul(lanes_load(s->sum + lane), factor);
    for (size_t j = 0; j < tile->keys; j++) {
        lanes_t p = lanes_exp(lanes_sub(lanes_load(scores + j * BLOCK), largest));
        if (masked) {
            p = attention_mask(p, lanes_zero(), s->first, tile, lane, j);
        }
        lanes_store(scores + j * BLOCK, p);
        sum = lanes_add(sum, p);
    }
    lanes_store(s->largest + lane, largest);
    lanes_store(s->sum + lane, sum);
    lanes_store(s->factor + lane, factor);
}

static void block_forward(const struct attention_shape *shape, const struct forward_scratch *s,
                          const struct attention_tile *tile, const float *k, const float *v)
{
    size_t E = shape->E, row = shape->G * E, lanes = (tile->queries + LANES - 1) / LANES;
    struct micro_operand K = {k, row, 1}, Vt = {v, 1, row};
    micro_gemm(tile->keys, lanes, E, K, s->qt, BLOCK, s->scores, BLOCK, false);
    for (size_t lane = 0; lane < lanes * LANES; lane += LANES) {
        if (tile->masked) {
            softmax_lanes(s, tile, shape->scale, lane, true);
        } else {
            softmax_lanes(s, tile, shape->scale, lane, false);
        }
        lanes_t factor = lanes_load(s->factor + lane);
        for (size_t e = 0; e < E; e++) {
            float *o = s->ot + e * BLOCK + lane;
            lanes_store(o, lanes_mul(lanes_load(o), factor));
        }
    }
    micro_gemm(E, lanes, tile->keys, Vt, s->scores, BLOCK, s->ot, BLOCK, true);
}

/* out rows = ot turned back and divided by the sums; lse = largest + log(sum). */
static void queries_finish(const struct attention_shape *shape, const struct forward_scratch *s,
                           size_t count, float *out, float *lse)
{
    for (size_t lane = 0; lane < BLOCK; lane += LANES) {
        lanes_store(s->factor + lane, lanes_div(lanes_set(1.0f), lanes_load(s->sum + lane)));
    }
    for (size_t i = 0; i < count; i++) {
        lse[i] = (float)((double)s->largest[i] + log_positive((double)s->sum[i]));
    }
    for (size_t e = 0; e < shape->E; e++) {
        for (size_t lane = 0; lane < BLOCK; lane += LANES) {
            float *o = s->ot + e * BLOCK + lane;
            lanes_store(o, lanes_mul(lanes_load(o), lanes_load(s->factor + lane)));
        }
    }
    attention_untranspose(out, shape->H * shape->E, s->ot, count, shape->E);
}

/* One block of queries of one head. */
static void queries_forward(const struct attention_shape *shape, float *base, size_t b, size_t h,
                            size_t block, float *out, float *lse, const float *q, const float *k,
                            const float *v)
{
    size_t T = shape->T, E = shape->E, row = shape->H * E, begin = block * BLOCK;
    size_t count = smaller(T - begin, BLOCK), at = (b * T + begin) * row + h * E;
    size_t kv = b * T * shape->G * E + h / (shape->H / shape->G) * E;
    struct forward_scratch s = scratch_cut(base, E);

    attention_transpose(s.qt, q + at, row, count, E);
    memset(s.ot, 0, E * BLOCK * sizeof *s.ot);
    for (size_t i = 0; i < BLOCK; i++) {
        s.largest[i] = ATTENTION_HIDDEN;
        s.sum[i] = 0;
    }
    size_t start = attention_first(s.first, shape, b, begin, count);
    for (size_t key = start / BLOCK * BLOCK; key < begin + count; key += BLOCK) {
        struct attention_tile tile = attention_tile_at(shape, s.first, begin, count, key);
        size_t offset = kv + key * shape->G * E;
        block_forward(shape, &s, &tile, k + offset, v + offset);
    }
    queries_finish(shape, &s, count, out + at, lse + (b * shape->H + h) * T + begin);
}

static void attention_forward(const struct kernel_ctx *ctx, const struct attention_shape *shape,
                              void *out, float *lse, const void *q, const void *k, const void *v)
{
    CHECK(shape->G && shape->H % shape->G == 0, "%zu heads share %zu", shape->H, shape->G);
    enum trace_category before = trace_switch(ctx->trace, TRACE_ATTENTION);
    size_t each = scratch_attention_forward(shape->E), blocks = blocks_of(shape->T, BLOCK);
    float *scratch = workspace_get(ctx, (size_t)ctx->threads * each * sizeof *scratch);
#pragma omp parallel for num_threads(ctx->threads) schedule(dynamic)
    for (size_t item = 0; item < shape->B * shape->H * blocks; item++) {
        size_t block = blocks - 1 - item % blocks, head = item / blocks;
        queries_forward(shape, scratch + thread_index() * each, head / shape->H, head % shape->H,
                        block, out, lse, q, k, v);
    }
    trace_switch(ctx->trace, before);
}

void ISA(attention_fill)(struct kernels *table)
{
    table->attention_forward = attention_forward;
}
