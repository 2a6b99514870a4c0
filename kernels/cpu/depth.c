/* depth.c - attention over depth: sources weighted by a softmax of their own scores, and its gradients.
 *
 * Everything is token by token. A source is read from memory for its sums, and from cache when it is
 * mixed. The gradient of query and scale is summed over chunks of NORM_CHUNK tokens, then over the chunks.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/vec_math.h"

/* A token: its rows of the sources, and what becomes of them. */
struct token {
    const float *const *key; /* [n] */
    size_t offset, D, n;     /* elements into each key */
    const float *query, *scale;
    float eps;
    float score[KEYS_MOST], rstd[KEYS_MOST], alpha[KEYS_MOST];
};

INLINE lanes_t direction(const struct token *t, size_t i, size_t n)
{
    return lanes_mul(lanes_load_n(t->query + i, n), lanes_load_n(t->scale + i, n));
}

static void score_source(struct token *t, size_t s)
{
    const float *x = t->key[s] + t->offset;
    lanes_t dot = lanes_zero(), square = lanes_zero();
    for (size_t i = 0; i < t->D; i += LANES) {
        lanes_t key = lanes_load_n(x + i, t->D - i);
        dot = lanes_fma(direction(t, i, t->D - i), key, dot);
        square = lanes_fma(key, key, square);
    }
    t->rstd[s] = 1.0f / sqrtf(lanes_sum(square) / (float)t->D + t->eps);
    t->score[s] = lanes_sum(dot) * t->rstd[s];
}

static float exp_one(float x)
{
    float e[LANES];
    lanes_store(e, lanes_exp(lanes_set(x)));
    return e[0];
}

static void weigh_sources(struct token *t)
{
    float largest = -INFINITY, sum = 0;
    for (size_t s = 0; s < t->n; s++) {
        score_source(t, s);
        largest = t->score[s] > largest ? t->score[s] : largest;
    }
    for (size_t s = 0; s < t->n; s++) {
        t->alpha[s] = exp_one(t->score[s] - largest);
        sum += t->alpha[s];
    }
    for (size_t s = 0; s < t->n; s++) {
        t->alpha[s] /= sum;
    }
}

/* out (+)= sum of weight[s] times source s, ascending. */
static void mix_sources(const struct token *t, const float *weight, bool accumulate, float *out)
{
    for (size_t i = 0; i < t->D; i += LANES) {
        size_t n = t->D - i;
        lanes_t sum = accumulate ? lanes_load_n(out + i, n) : lanes_zero();
        for (size_t s = 0; s < t->n; s++) {
            sum = lanes_fma(lanes_set(weight[s]), lanes_load_n(t->key[s] + t->offset + i, n), sum);
        }
        lanes_store_n(out + i, sum, n);
    }
}

static struct token token_begin(const void *const *key, const void *query, const void *scale,
                                float eps, size_t row, size_t D, size_t n)
{
    return (struct token){.key = (const float *const *)key,
                          .offset = row * D,
                          .D = D,
                          .n = n,
                          .query = query,
                          .scale = scale,
                          .eps = eps};
}

static void depth_forward(const struct kernel_ctx *ctx, void *out, const void *const *key,
                          const void *query, const void *scale, float eps, size_t N, size_t D,
                          size_t n)
{
    CHECK(n >= 1 && n <= KEYS_MOST, "%zu sources: 1 to %d", n, KEYS_MOST);
    enum trace_category before = trace_switch(ctx->trace, TRACE_AGGREGATE);
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t row = 0; row < N; row++) {
        struct token t = token_begin(key, query, scale, eps, row, D, n);
        weigh_sources(&t);
        mix_sources(&t, t.alpha, false, (float *)out + row * D);
    }
    trace_switch(ctx->trace, before);
}

/* ---- backward ---- */

/* alpha, a, b [3, n]. */
static void token_coefficients(const struct token *t, const float *dout, float *out)
{
    float dalpha[KEYS_MOST], mean = 0;
    for (size_t s = 0; s < t->n; s++) {
        const float *x = t->key[s] + t->offset;
        lanes_t dot = lanes_zero();
        for (size_t i = 0; i < t->D; i += LANES) {
            size_t n = t->D - i;
            dot = lanes_fma(lanes_load_n(dout + i, n), lanes_load_n(x + i, n), dot);
        }
        dalpha[s] = lanes_sum(dot);
        mean = fmaf(t->alpha[s], dalpha[s], mean);
    }
    for (size_t s = 0; s < t->n; s++) {
        float dscore = t->alpha[s] * (dalpha[s] - mean), rstd = t->rstd[s];
        out[s] = t->alpha[s];
        out[t->n + s] = dscore * rstd;
        out[2 * t->n + s] = -(dscore * t->score[s]) * (rstd * rstd) / (float)t->D;
    }
}

/* dquery = scale * sum, dscale = query * sum, where sum is that of the chunks, ascending. */
static void parts_finish(float *dquery, float *dscale, const float *parts, size_t chunks,
                         const float *query, const float *scale, size_t D)
{
    for (size_t i = 0; i < D; i += LANES) {
        size_t n = D - i;
        lanes_t sum = lanes_zero();
        for (size_t chunk = 0; chunk < chunks; chunk++) {
            sum = lanes_add(sum, lanes_load_n(parts + chunk * D + i, n));
        }
        lanes_store_n(dquery + i, lanes_mul(sum, lanes_load_n(scale + i, n)), n);
        lanes_store_n(dscale + i, lanes_mul(sum, lanes_load_n(query + i, n)), n);
    }
}

static void depth_backward(const struct kernel_ctx *ctx, float *coefficients, float *dquery_part,
                           float *dscale_part, const void *dout, const void *const *key,
                           const void *query, const void *scale, float eps, size_t N, size_t D,
                           size_t n)
{
    CHECK(n >= 1 && n <= KEYS_MOST, "%zu sources: 1 to %d", n, KEYS_MOST);
    enum trace_category before = trace_switch(ctx->trace, TRACE_AGGREGATE);
    size_t chunks = blocks_of(N, NORM_CHUNK);
    float *parts = workspace_get(ctx, chunks * D * sizeof *parts);
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t chunk = 0; chunk < chunks; chunk++) {
        size_t begin = chunk * NORM_CHUNK, end = smaller(N, begin + NORM_CHUNK);
        for (size_t row = begin; row < end; row++) {
            struct token t = token_begin(key, query, scale, eps, row, D, n);
            float *own = coefficients + row * 3 * n;
            weigh_sources(&t);
            token_coefficients(&t, (const float *)dout + row * D, own);
            mix_sources(&t, own + n, row > begin, parts + chunk * D);
        }
    }
    parts_finish(dquery_part, dscale_part, parts, chunks, query, scale, D);
    trace_switch(ctx->trace, before);
}

static void depth_backward_key(const struct kernel_ctx *ctx, void *dkey, bool accumulate,
                               const struct depth_term *terms, size_t count, const void *key,
                               size_t N, size_t D)
{
    enum trace_category before = trace_switch(ctx->trace, TRACE_AGGREGATE);
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t row = 0; row < N; row++) {
        float *out = (float *)dkey + row * D;
        for (size_t i = 0; i < D; i += LANES) {
            size_t n = D - i;
            lanes_t sum = accumulate ? lanes_load_n(out + i, n) : lanes_zero();
            lanes_t x = lanes_load_n((const float *)key + row * D + i, n);
            for (size_t k = 0; k < count; k++) {
                const struct depth_term *term = &terms[k];
                const float *at = term->coefficients + row * 3 * term->n;
                const float *dout = (const float *)term->dout + row * D + i;
                lanes_t w = lanes_mul(lanes_load_n((const float *)term->query + i, n),
                                      lanes_load_n((const float *)term->scale + i, n));
                sum = lanes_fma(lanes_set(at[0]), lanes_load_n(dout, n), sum);
                sum = lanes_fma(lanes_set(at[term->n]), w, sum);
                sum = lanes_fma(lanes_set(at[2 * term->n]), x, sum);
            }
            lanes_store_n(out + i, sum, n);
        }
    }
    trace_switch(ctx->trace, before);
}

void ISA(depth_fill)(struct kernels *table)
{
    table->depth_forward = depth_forward;
    table->depth_backward = depth_backward;
    table->depth_backward_key = depth_backward_key;
}
