/* hyper.c - the weights of hyper-connections, and their gradients.
 *
 * Every token has its own small numbers, and the steps from z to the weights are the same for all of them: so
 * LANES tokens are done at a time, a token a lane.
 *
 * Sinkhorn backward: the last matrix, the sums that it was divided by and M = (matrix before) / sum give every
 * matrix on the way back, so that 2 n SINKHORN_ROUNDS numbers are kept. With y = x / c, c the sum of x:
 *     dx = (dy - sum(dy y)) / c
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/vec_math.h"

/* What hyper_weights_forward says; `rows` of LANES tokens from `first`. */
struct hyper {
    const float *z, *rstd, *pre, *res, *post;
    float pre_scale, res_scale, post_scale;
    enum hyper_kind kind;
    size_t N, n;
};

/* LANES tokens, a token a lane: the weights, or their gradients. */
struct group {
    lanes_t p[STREAMS_MAX], o[STREAMS_MAX], m[STREAMS_MAX][STREAMS_MAX];
};

static struct hyper hyper_of(const float *z, const float *rstd, const void *pre, const void *res,
                             const void *post, const void *pre_scale, const void *res_scale,
                             const void *post_scale, enum hyper_kind kind, size_t N, size_t n)
{
    CHECK(n >= 2 && n <= STREAMS_MAX, "%zu streams: 2 to %d", n, STREAMS_MAX);
    return (struct hyper){.z = z,
                          .rstd = rstd,
                          .pre = pre,
                          .res = res,
                          .post = post,
                          .pre_scale = pre_scale ? *(const float *)pre_scale : 0,
                          .res_scale = res_scale ? *(const float *)res_scale : 0,
                          .post_scale = post_scale ? *(const float *)post_scale : 0,
                          .kind = kind,
                          .N = N,
                          .n = n};
}

/* Elements base[(first + lane) * width + at], zeros beyond the last token. */
static lanes_t gather(const float *base, size_t width, size_t at, size_t first, size_t N)
{
    float x[LANES] = {0};
    for (size_t lane = 0; lane < LANES && first + lane < N; lane++) {
        x[lane] = base[(first + lane) * width + at];
    }
    return lanes_load(x);
}

static void scatter(float *base, size_t width, size_t at, size_t first, size_t N, lanes_t value)
{
    float x[LANES];
    lanes_store(x, value);
    for (size_t lane = 0; lane < LANES && first + lane < N; lane++) {
        base[(first + lane) * width + at] = x[lane];
    }
}

/* ---- the generator's numbers, normed ---- */

enum block { BLOCK_P, BLOCK_M, BLOCK_O };

/* Where a block of z begins, and its numbers a token. */
static size_t block_offset(const struct hyper *h, enum block block)
{
    return block == BLOCK_P ? 0 : block == BLOCK_M ? h->N * h->n : h->N * (h->n + h->n * h->n);
}

static size_t block_width(const struct hyper *h, enum block block)
{
    return block == BLOCK_M ? h->n * h->n : h->n;
}

/* Of p_s and o_s the stream that its number is made of is s; of M_{s,r} it is r, where each has its own norm. */
static size_t place_in_m(const struct hyper *h, size_t s, size_t r)
{
    return h->kind == HYPER_DYNAMIC ? r * h->n + s : s * h->n + r;
}

static lanes_t rstd_of(const struct hyper *h, size_t stream, size_t first)
{
    return h->kind == HYPER_MHC ? gather(h->rstd, 1, 0, first, h->N)
                                : gather(h->rstd, h->n, stream, first, h->N);
}

static lanes_t z_of(const struct hyper *h, enum block block, size_t place, size_t stream,
                    size_t first)
{
    const float *base = h->z + block_offset(h, block);
    return lanes_mul(gather(base, block_width(h, block), place, first, h->N),
                     rstd_of(h, stream, first));
}

/* tanh x = 1 - 2 / (e^{2x} + 1), which loses near 0: there x - x^3/3 + 2 x^5/15. */
static lanes_t lanes_tanh(lanes_t x)
{
    lanes_t e = lanes_exp(lanes_add(x, x)), one = lanes_set(1.0f);
    lanes_t far = lanes_sub(one, lanes_div(lanes_set(2.0f), lanes_add(e, one)));
    lanes_t q = lanes_mul(x, x);
    lanes_t near = lanes_fma(q, lanes_set(-17.0f / 315.0f), lanes_set(2.0f / 15.0f));
    near = lanes_fma(q, near, lanes_set(-1.0f / 3.0f));
    near = lanes_fma(lanes_mul(x, q), near, x);
    return lanes_select_less(lanes_abs(x), lanes_set(0.15f), near, far);
}

/* ---- forward ---- */

/* The divisors of every round: columns, then rows. */
struct sinkhorn {
    lanes_t column[SINKHORN_ROUNDS][STREAMS_MAX], row[SINKHORN_ROUNDS][STREAMS_MAX];
};

static void sinkhorn_round(struct group *g, size_t n, lanes_t *column, lanes_t *row)
{
    for (size_t r = 0; r < n; r++) {
        column[r] = g->m[0][r];
        for (size_t s = 1; s < n; s++) {
            column[r] = lanes_add(column[r], g->m[s][r]);
        }
    }
    for (size_t s = 0; s < n; s++) {
        row[s] = lanes_zero();
        for (size_t r = 0; r < n; r++) {
            g->m[s][r] = lanes_div(g->m[s][r], column[r]);
            row[s] = lanes_add(row[s], g->m[s][r]);
        }
        for (size_t r = 0; r < n; r++) {
            g->m[s][r] = lanes_div(g->m[s][r], row[s]);
        }
    }
}

/* g->m from logarithms to the doubly stochastic matrix. */
static void sinkhorn_run(struct group *g, size_t n, struct sinkhorn *out)
{
    lanes_t largest = g->m[0][0];
    for (size_t s = 0; s < n; s++) {
        for (size_t r = 0; r < n; r++) {
            largest = lanes_max(largest, g->m[s][r]);
        }
    }
    for (size_t s = 0; s < n; s++) {
        for (size_t r = 0; r < n; r++) {
            g->m[s][r] = lanes_exp(lanes_sub(g->m[s][r], largest));
        }
    }
    for (int round = 0; round < SINKHORN_ROUNDS; round++) {
        sinkhorn_round(g, n, out->column[round], out->row[round]);
    }
}

/* a + scale z, a a parameter. */
static lanes_t scaled(const float *a, size_t at, float scale, lanes_t z)
{
    return lanes_fma(lanes_set(scale), z, lanes_set(a[at]));
}

/* One of p or o. */
static lanes_t vector_weight(const struct hyper *h, enum block block, size_t s, size_t first)
{
    const float *a = block == BLOCK_P ? h->pre : h->post;
    float scale = block == BLOCK_P ? h->pre_scale : h->post_scale;
    if (h->kind == HYPER_STATIC) {
        return lanes_set(a[s]);
    }
    lanes_t z = z_of(h, block, s, s, first);
    if (h->kind == HYPER_DYNAMIC) {
        return scaled(a, s, scale, lanes_tanh(z));
    }
    lanes_t sigmoid = lanes_sigmoid(scaled(a, s, scale, z));
    return block == BLOCK_P ? sigmoid : lanes_add(sigmoid, sigmoid);
}

static void matrix_weights(const struct hyper *h, size_t first, struct group *g,
                           struct sinkhorn *out)
{
    size_t n = h->n;
    for (size_t s = 0; s < n; s++) {
        for (size_t r = 0; r < n; r++) {
            if (!h->res) {
                g->m[s][r] = lanes_set(s == r ? 1.0f : 0.0f);
            } else if (h->kind == HYPER_STATIC) {
                g->m[s][r] = lanes_set(h->res[s * n + r]);
            } else {
                lanes_t z = z_of(h, BLOCK_M, place_in_m(h, s, r), r, first);
                z = h->kind == HYPER_DYNAMIC ? lanes_tanh(z) : z;
                g->m[s][r] = scaled(h->res, s * n + r, h->res_scale, z);
            }
        }
    }
    if (h->res && h->kind == HYPER_MHC) {
        sinkhorn_run(g, n, out);
    }
}

static void hyper_weights_forward(const struct kernel_ctx *ctx, float *weights, const float *z,
                                  const float *rstd, const void *pre, const void *res,
                                  const void *post, const void *pre_scale, const void *res_scale,
                                  const void *post_scale, enum hyper_kind kind, size_t N, size_t n)
{
    const struct hyper h =
        hyper_of(z, rstd, pre, res, post, pre_scale, res_scale, post_scale, kind, N, n);
    size_t width = 2 * n + n * n, groups = blocks_of(N, LANES);
    enum trace_category before = trace_switch(ctx->trace, TRACE_AGGREGATE);
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t i = 0; i < groups; i++) {
        struct group g;
        struct sinkhorn rounds;
        size_t first = i * LANES;
        matrix_weights(&h, first, &g, &rounds);
        for (size_t s = 0; s < n; s++) {
            if (pre) {
                scatter(weights, width, s, first, N, vector_weight(&h, BLOCK_P, s, first));
            }
            scatter(weights, width, n + n * n + s, first, N, vector_weight(&h, BLOCK_O, s, first));
            for (size_t r = 0; r < n; r++) {
                scatter(weights, width, n + s * n + r, first, N, g.m[s][r]);
            }
        }
    }
    trace_switch(ctx->trace, before);
}

/* ---- backward ---- */

/* What a group gives: dz and factor; and its tokens' parts of the parameters' gradients, a lane each. */
struct group_gradient {
    lanes_t dpre[STREAMS_MAX], dpost[STREAMS_MAX], dres[STREAMS_MAX][STREAMS_MAX];
    lanes_t dpre_scale, dres_scale, dpost_scale;
    lanes_t norm[STREAMS_MAX]; /* sum of dz z of a stream's numbers */
};

/* y = x / c, c the sum of x over r: dx = (dy - sum(dy y)) / c, and x. `by_row`: over the second index. */
static void divide_backward(struct group *y, struct group *dy, size_t n, const lanes_t *divisor,
                            bool by_row)
{
    for (size_t i = 0; i < n; i++) {
        lanes_t sum = lanes_zero();
        for (size_t j = 0; j < n; j++) {
            size_t s = by_row ? i : j, r = by_row ? j : i;
            sum = lanes_fma(dy->m[s][r], y->m[s][r], sum);
        }
        for (size_t j = 0; j < n; j++) {
            size_t s = by_row ? i : j, r = by_row ? j : i;
            dy->m[s][r] = lanes_div(lanes_sub(dy->m[s][r], sum), divisor[i]);
            y->m[s][r] = lanes_mul(y->m[s][r], divisor[i]);
        }
    }
}

/* From dM (in d->m) to the gradients of the logarithms. */
static void sinkhorn_backward(struct group *g, struct group *d, size_t n,
                              const struct sinkhorn *rounds)
{
    for (int round = SINKHORN_ROUNDS; round-- > 0;) {
        divide_backward(g, d, n, rounds->row[round], true);
        divide_backward(g, d, n, rounds->column[round], false);
    }
    for (size_t s = 0; s < n; s++) {
        for (size_t r = 0; r < n; r++) {
            d->m[s][r] = lanes_mul(d->m[s][r], g->m[s][r]);
        }
    }
}

/* dz of one number whose scaled sum with a parameter has the gradient `d`. */
static lanes_t number_backward(const struct hyper *h, enum block block, size_t place, size_t stream,
                               size_t first, float scale, lanes_t d, lanes_t *dscale,
                               struct group_gradient *out)
{
    lanes_t z = z_of(h, block, place, stream, first), inner = z, slope = lanes_set(1.0f);
    if (h->kind == HYPER_DYNAMIC) {
        inner = lanes_tanh(z);
        slope = lanes_sub(slope, lanes_mul(inner, inner));
    }
    lanes_t dz = lanes_mul(lanes_mul(d, lanes_set(scale)), slope);
    *dscale = lanes_fma(d, inner, *dscale);
    size_t norm = h->kind == HYPER_DYNAMIC ? stream : 0;
    out->norm[norm] = lanes_fma(dz, z, out->norm[norm]);
    return lanes_mul(dz, rstd_of(h, stream, first));
}

static void vector_backward(const struct hyper *h, enum block block, size_t first, const lanes_t *d,
                            float *dz, struct group_gradient *out)
{
    bool p = block == BLOCK_P;
    for (size_t s = 0; s < h->n; s++) {
        lanes_t ds = d[s];
        if (h->kind == HYPER_MHC) { /* sigmoid, or twice that */
            lanes_t y = vector_weight(h, block, s, first), whole = lanes_set(p ? 1.0f : 2.0f);
            lanes_t slope = lanes_mul(y, lanes_sub(lanes_set(1.0f), lanes_div(y, whole)));
            ds = lanes_mul(ds, slope);
        }
        (p ? out->dpre : out->dpost)[s] = ds;
        if (h->kind != HYPER_STATIC) {
            lanes_t to = number_backward(h, block, s, s, first, p ? h->pre_scale : h->post_scale,
                                         ds, p ? &out->dpre_scale : &out->dpost_scale, out);
            scatter(dz + block_offset(h, block), h->n, s, first, h->N, to);
        }
    }
}

static void matrix_backward(const struct hyper *h, size_t first, struct group *d, float *dz,
                            struct group_gradient *out)
{
    size_t n = h->n;
    if (!h->res) {
        return;
    }
    if (h->kind == HYPER_MHC) {
        struct group g;
        struct sinkhorn rounds;
        matrix_weights(h, first, &g, &rounds);
        sinkhorn_backward(&g, d, n, &rounds);
    }
    for (size_t s = 0; s < n; s++) {
        for (size_t r = 0; r < n; r++) {
            out->dres[s][r] = d->m[s][r];
            if (h->kind != HYPER_STATIC) {
                size_t place = place_in_m(h, s, r);
                lanes_t to = number_backward(h, BLOCK_M, place, r, first, h->res_scale, d->m[s][r],
                                             &out->dres_scale, out);
                scatter(dz + block_offset(h, BLOCK_M), n * n, place, first, h->N, to);
            }
        }
    }
}

/* -(sum of dz z) rstd^2 / width: the path through a stream's (dynamic) or the token's mean square. */
static void factor_backward(const struct hyper *h, size_t first, size_t width, float *factor,
                            const struct group_gradient *from)
{
    for (size_t s = 0; s < h->n; s++) {
        lanes_t rstd = rstd_of(h, s, first);
        lanes_t sum = from->norm[h->kind == HYPER_DYNAMIC ? s : 0];
        lanes_t value = lanes_mul(sum, lanes_mul(rstd, rstd));
        value = lanes_div(value, lanes_set(-(float)width));
        scatter(factor, h->n, s, first, h->N, value);
    }
}

/* part [W + 3] += the lanes' sums. Lanes beyond the last token have zeros. */
static void parts_gather(float *part, const struct group_gradient *from, size_t n)
{
    for (size_t s = 0; s < n; s++) {
        part[s] += lanes_sum(from->dpre[s]);
        part[n + n * n + s] += lanes_sum(from->dpost[s]);
        for (size_t r = 0; r < n; r++) {
            part[n + s * n + r] += lanes_sum(from->dres[s][r]);
        }
    }
    size_t width = 2 * n + n * n;
    part[width] += lanes_sum(from->dpre_scale);
    part[width + 1] += lanes_sum(from->dres_scale);
    part[width + 2] += lanes_sum(from->dpost_scale);
}

static void group_backward(const struct hyper *h, size_t first, const float *dweights, size_t width,
                           float *dz, float *factor, float *part)
{
    size_t n = h->n, W = 2 * n + n * n;
    struct group d;
    struct group_gradient out;
    memset(&out, 0, sizeof out);
    for (size_t s = 0; s < n; s++) {
        d.p[s] = h->pre ? gather(dweights, W, s, first, h->N) : lanes_zero();
        d.o[s] = gather(dweights, W, n + n * n + s, first, h->N);
        for (size_t r = 0; r < n; r++) {
            d.m[s][r] = gather(dweights, W, n + s * n + r, first, h->N);
        }
    }
    if (h->pre) {
        vector_backward(h, BLOCK_P, first, d.p, dz, &out);
    }
    vector_backward(h, BLOCK_O, first, d.o, dz, &out);
    matrix_backward(h, first, &d, dz, &out);
    if (h->kind != HYPER_STATIC) {
        factor_backward(h, first, width, factor, &out);
    }
    parts_gather(part, &out, n);
}

static void hyper_weights_backward(const struct kernel_ctx *ctx, float *dz, float *factor,
                                   float *dparams_part, const float *dweights, const float *z,
                                   const float *rstd, const void *pre, const void *res,
                                   const void *post, const void *pre_scale, const void *res_scale,
                                   const void *post_scale, enum hyper_kind kind, size_t width,
                                   size_t N, size_t n)
{
    const struct hyper h =
        hyper_of(z, rstd, pre, res, post, pre_scale, res_scale, post_scale, kind, N, n);
    size_t count = 2 * n + n * n + 3, chunks = blocks_of(N, NORM_CHUNK);
    enum trace_category before = trace_switch(ctx->trace, TRACE_AGGREGATE);
    float *parts = workspace_get(ctx, chunks * count * sizeof *parts);
    memset(parts, 0, chunks * count * sizeof *parts);
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t chunk = 0; chunk < chunks; chunk++) {
        size_t end = smaller(N, (chunk + 1) * NORM_CHUNK);
        for (size_t first = chunk * NORM_CHUNK; first < end; first += LANES) {
            group_backward(&h, first, dweights, width, dz, factor, parts + chunk * count);
        }
    }
    for (size_t i = 0; i < count; i++) {
        dparams_part[i] = 0;
        for (size_t chunk = 0; chunk < chunks; chunk++) {
            dparams_part[i] += parts[chunk * count + i];
        }
    }
    trace_switch(ctx->trace, before);
}

void ISA(hyper_fill)(struct kernels *table)
{
    table->hyper_weights_forward = hyper_weights_forward;
    table->hyper_weights_backward = hyper_weights_backward;
}
