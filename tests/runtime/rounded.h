/* rounded.h - the operations in bf16 on the host, for tests: the CPU's float32 operations between bf16
 * tensors. So what bf16 storage does to a model is seen where there is no GPU, and whoever takes a bf16
 * tensor for floats, or the other way round, reads nonsense here too. One thread at a time.
 */
#ifndef TESTS_RUNTIME_ROUNDED_H
#define TESTS_RUNTIME_ROUNDED_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

enum { ROUNDED_LENT = 256 };

static struct {
    const struct kernels *cpu;
    struct {
        float *wide;
        uint16_t *back; /* rounded into at the end; NULL: only read */
        size_t count;
    } lent[ROUNDED_LENT];
    int count;
} rounded;

/* To nearest, ties to even. */
static inline uint16_t rounded_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = isnan(x) ? 0x7fc00000u : bits + 0x7fffu + (bits >> 16 & 1);
    return (uint16_t)(bits >> 16);
}

static inline float rounded_wide(uint16_t x)
{
    uint32_t bits = (uint32_t)x << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

static inline float *rounded_lend(const void *narrow, size_t count, bool back)
{
    if (!narrow) {
        return NULL;
    }
    assert_true(rounded.count < ROUNDED_LENT);
    const uint16_t *x = narrow;
    float *wide = aligned_alloc(256, (count * sizeof *wide + 256) / 256 * 256);
    assert_non_null(wide);
    for (size_t i = 0; i < count; i++) {
        wide[i] = rounded_wide(x[i]);
    }
    rounded.lent[rounded.count].wide = wide;
    rounded.lent[rounded.count].back = back ? (uint16_t *)(uintptr_t)narrow : NULL;
    rounded.lent[rounded.count++].count = count;
    return wide;
}

static inline void rounded_done(void)
{
    for (int i = 0; i < rounded.count; i++) {
        for (size_t k = 0; rounded.lent[i].back && k < rounded.lent[i].count; k++) {
            rounded.lent[i].back[k] = rounded_bits(rounded.lent[i].wide[k]);
        }
        free(rounded.lent[i].wide);
    }
    rounded.count = 0;
}

#define READ(x, count) rounded_lend((x), (count), false)
#define WRITE(x, count) rounded_lend((x), (count), true)
#define RUN(op, ...)                                                                               \
    do {                                                                                           \
        rounded.cpu->op(ctx, __VA_ARGS__);                                                         \
        rounded_done();                                                                            \
    } while (0)

static void r_embed_forward(const struct kernel_ctx *ctx, void *out, const void *table,
                            const int32_t *ids, size_t N, size_t D)
{
    int32_t most = 0;
    for (size_t i = 0; i < N; i++) {
        most = ids[i] > most ? ids[i] : most;
    }
    RUN(embed_forward, WRITE(out, N * D), READ(table, ((size_t)most + 1) * D), ids, N, D);
}

static void r_embed_backward(const struct kernel_ctx *ctx, float *dtable, const void *dout,
                             const int32_t *ids, size_t N, size_t D)
{
    RUN(embed_backward, dtable, READ(dout, N * D), ids, N, D);
}

static void r_norm_forward(const struct kernel_ctx *ctx, const struct norm_shape *s, void *y,
                           float *mean, float *rstd, const void *x, const void *scale,
                           const void *bias)
{
    size_t count = s->rows * s->width;
    RUN(norm_forward, s, WRITE(y, count), mean, rstd, READ(x, count), READ(scale, s->width),
        READ(bias, s->width));
}

static void r_norm_backward(const struct kernel_ctx *ctx, const struct norm_shape *s, void *dx,
                            bool accumulate, float *dscale, float *dbias, const void *dy,
                            const void *x, const float *mean, const float *rstd, const void *scale)
{
    size_t count = s->rows * s->width;
    RUN(norm_backward, s, WRITE(dx, count), accumulate, dscale, dbias, READ(dy, count),
        READ(x, count), mean, rstd, READ(scale, s->width));
}

static void r_linear_forward(const struct kernel_ctx *ctx, void *y, const void *x,
                             const void *weight, const void *bias, size_t N, size_t I, size_t O)
{
    RUN(linear_forward, WRITE(y, N * O), READ(x, N * I), READ(weight, O * I), READ(bias, O), N, I,
        O);
}

static void r_linear_backward_input(const struct kernel_ctx *ctx, void *dx, bool accumulate,
                                    const void *dy, const void *weight, size_t N, size_t I,
                                    size_t O)
{
    RUN(linear_backward_input, WRITE(dx, N * I), accumulate, READ(dy, N * O), READ(weight, O * I),
        N, I, O);
}

static void r_linear_backward_weight(const struct kernel_ctx *ctx, float *dweight, float *dbias,
                                     const void *dy, const void *x, size_t N, size_t I, size_t O)
{
    RUN(linear_backward_weight, dweight, dbias, READ(dy, N * O), READ(x, N * I), N, I, O);
}

static void r_logits_forward(const struct kernel_ctx *ctx, float *logits, const void *x,
                             const void *weight, size_t N, size_t I, size_t O)
{
    RUN(logits_forward, logits, READ(x, N * I), READ(weight, O * I), N, I, O);
}

static void r_rope(const struct kernel_ctx *ctx, void *x, const float *cosine, const float *sine,
                   const int32_t *position, bool inverse, size_t N, size_t T, size_t heads,
                   size_t E, size_t R)
{
    RUN(rope, WRITE(x, N * heads * E), cosine, sine, position, inverse, N, T, heads, E, R);
}

static void r_attention_forward(const struct kernel_ctx *ctx, const struct attention_shape *s,
                                void *out, float *lse, const void *q, const void *k, const void *v)
{
    size_t query = s->B * s->T * s->H * s->E, key = s->B * s->T * s->G * s->E;
    RUN(attention_forward, s, WRITE(out, query), lse, READ(q, query), READ(k, key), READ(v, key));
}

static void r_attention_backward(const struct kernel_ctx *ctx, const struct attention_shape *s,
                                 void *dq, void *dk, void *dv, const void *dout, const void *out,
                                 const float *lse, const void *q, const void *k, const void *v)
{
    size_t query = s->B * s->T * s->H * s->E, key = s->B * s->T * s->G * s->E;
    RUN(attention_backward, s, WRITE(dq, query), WRITE(dk, key), WRITE(dv, key), READ(dout, query),
        READ(out, query), lse, READ(q, query), READ(k, key), READ(v, key));
}

static void r_swiglu_forward(const struct kernel_ctx *ctx, void *y, const void *gate,
                             const void *up, size_t count)
{
    RUN(swiglu_forward, WRITE(y, count), READ(gate, count), READ(up, count), count);
}

static void r_swiglu_backward(const struct kernel_ctx *ctx, void *dgate, void *dup, const void *dy,
                              const void *gate, const void *up, size_t count)
{
    RUN(swiglu_backward, WRITE(dgate, count), WRITE(dup, count), READ(dy, count), READ(gate, count),
        READ(up, count), count);
}

static void r_gelu_forward(const struct kernel_ctx *ctx, void *y, const void *x, size_t count)
{
    RUN(gelu_forward, WRITE(y, count), READ(x, count), count);
}

static void r_gelu_backward(const struct kernel_ctx *ctx, void *dx, const void *dy, const void *x,
                            size_t count)
{
    RUN(gelu_backward, WRITE(dx, count), READ(dy, count), READ(x, count), count);
}

static void r_mudd_weights_forward(const struct kernel_ctx *ctx, float *weights, const void *hidden,
                                   const void *w2, const void *bias, size_t N, size_t K, size_t Cn)
{
    RUN(mudd_weights_forward, weights, READ(hidden, N * K), READ(w2, Cn * K), READ(bias, Cn), N, K,
        Cn);
}

static void r_mudd_weights_backward_input(const struct kernel_ctx *ctx, void *dhidden,
                                          const float *dweights, const void *w2, size_t N, size_t K,
                                          size_t Cn)
{
    RUN(mudd_weights_backward_input, WRITE(dhidden, N * K), dweights, READ(w2, Cn * K), N, K, Cn);
}

static void r_mudd_weights_backward_weight(const struct kernel_ctx *ctx, float *dw2, float *dbias,
                                           const float *dweights, const void *hidden, size_t N,
                                           size_t K, size_t Cn)
{
    RUN(mudd_weights_backward_weight, dw2, dbias, dweights, READ(hidden, N * K), N, K, Cn);
}

static void r_mudd_forward(const struct kernel_ctx *ctx, void *const *out, const void *const *key,
                           const float *weights, const void *static_weights, size_t N, size_t D,
                           size_t C, size_t n)
{
    void *wide_out[WAYS_MAX];
    const void *wide_key[ROUNDED_LENT];
    for (size_t c = 0; c < C; c++) {
        wide_out[c] = WRITE(out[c], N * D);
    }
    for (size_t j = 0; j < n; j++) {
        wide_key[j] = READ(key[j], N * D);
    }
    RUN(mudd_forward, wide_out, wide_key, weights, READ(static_weights, C * n), N, D, C, n);
}

static void r_mudd_backward_weights(const struct kernel_ctx *ctx, float *dweights,
                                    const void *const *dout, const void *const *key, size_t N,
                                    size_t D, size_t C, size_t n)
{
    const void *wide_out[WAYS_MAX], *wide_key[ROUNDED_LENT];
    for (size_t c = 0; c < C; c++) {
        wide_out[c] = READ(dout[c], N * D);
    }
    for (size_t j = 0; j < n; j++) {
        wide_key[j] = READ(key[j], N * D);
    }
    RUN(mudd_backward_weights, dweights, wide_out, wide_key, N, D, C, n);
}

static void r_mudd_backward_key(const struct kernel_ctx *ctx, void *dkey, bool accumulate,
                                const struct mudd_term *terms, size_t count, size_t N, size_t D)
{
    struct mudd_term wide[64];
    assert_true(count <= 64);
    for (size_t i = 0; i < count; i++) {
        wide[i] = terms[i];
        for (size_t c = 0; c < terms[i].ways; c++) {
            wide[i].dout[c] = READ(terms[i].dout[c], N * D);
        }
    }
    RUN(mudd_backward_key, WRITE(dkey, N * D), accumulate, wide, count, N, D);
}

static void r_xent(const struct kernel_ctx *ctx, double *loss, void *dlogits, const float *logits,
                   const int32_t *targets, float scale, size_t rows, size_t V)
{
    RUN(xent, loss, WRITE(dlogits, rows * V), logits, targets, scale, rows, V);
}

static void r_from_f32(const struct kernel_ctx *ctx, void *dst, const float *src, size_t count)
{
    uint16_t *narrow = dst;
    (void)ctx;
    for (size_t i = 0; i < count; i++) {
        narrow[i] = rounded_bits(src[i]);
    }
}

static void r_copy(const struct kernel_ctx *ctx, void *dst, const void *src, size_t count)
{
    (void)ctx;
    memmove(dst, src, count * sizeof(uint16_t));
}

static void r_add(const struct kernel_ctx *ctx, void *out, const void *a, const void *b,
                  size_t count)
{
    RUN(add, WRITE(out, count), READ(a, count), READ(b, count), count);
}

static void r_scale_add(const struct kernel_ctx *ctx, void *dst, const void *src, float scale,
                        size_t count)
{
    RUN(scale_add, WRITE(dst, count), READ(src, count), scale, count);
}

#undef READ
#undef WRITE
#undef RUN

/* The table; what works on floats alone is the CPU's own. */
static inline const struct kernels *rounded_kernels(void)
{
    static struct kernels table;
    assert_ok(kernels_cpu(&rounded.cpu));
    table = *rounded.cpu;
    table.name = "rounded";
    table.dtype = DTYPE_BF16;
    table.embed_forward = r_embed_forward;
    table.embed_backward = r_embed_backward;
    table.norm_forward = r_norm_forward;
    table.norm_backward = r_norm_backward;
    table.linear_forward = r_linear_forward;
    table.linear_backward_input = r_linear_backward_input;
    table.linear_backward_weight = r_linear_backward_weight;
    table.logits_forward = r_logits_forward;
    table.rope = r_rope;
    table.attention_forward = r_attention_forward;
    table.attention_backward = r_attention_backward;
    table.swiglu_forward = r_swiglu_forward;
    table.swiglu_backward = r_swiglu_backward;
    table.gelu_forward = r_gelu_forward;
    table.gelu_backward = r_gelu_backward;
    table.mudd_weights_forward = r_mudd_weights_forward;
    table.mudd_weights_backward_input = r_mudd_weights_backward_input;
    table.mudd_weights_backward_weight = r_mudd_weights_backward_weight;
    table.mudd_forward = r_mudd_forward;
    table.mudd_backward_weights = r_mudd_backward_weights;
    table.mudd_backward_key = r_mudd_backward_key;
    table.xent = r_xent;
    table.from_f32 = r_from_f32;
    table.copy = r_copy;
    table.add = r_add;
    table.scale_add = r_scale_add;
    return &table;
}

#endif
