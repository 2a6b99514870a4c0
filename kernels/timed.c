/* timed.c - every op of a table as a span of a timeline. */
#include "base/timeline.h"
#include "kernels/kernels.h"

#define OP(op, category, parameters, ...)                                                          \
    static void timed_##op parameters                                                              \
    {                                                                                              \
        timeline_begin(ctx->timeline, ctx->stream, #op, category);                                 \
        ctx->timed->op(ctx, __VA_ARGS__);                                                          \
        timeline_end(ctx->timeline);                                                               \
    }
#define CTX const struct kernel_ctx *ctx

OP(embed_forward, "embed",
   (CTX, void *out, const void *table, const int32_t *ids, size_t N, size_t D), out, table, ids, N,
   D)
OP(embed_backward, "embed",
   (CTX, float *dtable, const void *dout, const int32_t *ids, size_t N, size_t D), dtable, dout,
   ids, N, D)
OP(norm_forward, "norms",
   (CTX, const struct norm_shape *shape, void *y, float *mean, float *rstd, const void *x,
    const void *scale, const void *bias),
   shape, y, mean, rstd, x, scale, bias)
OP(norm_backward, "norms",
   (CTX, const struct norm_shape *shape, void *dx, bool accumulate, float *dscale_part,
    float *dbias_part, const void *dy, const void *x, const float *mean, const float *rstd,
    const void *scale),
   shape, dx, accumulate, dscale_part, dbias_part, dy, x, mean, rstd, scale)
OP(linear_forward, "gemm forward",
   (CTX, void *y, const void *x, const void *weight, const void *bias, size_t N, size_t I,
    size_t O),
   y, x, weight, bias, N, I, O)
OP(linear_backward_input, "gemm dgrad",
   (CTX, void *dx, bool accumulate, const void *dy, const void *weight, size_t N, size_t I,
    size_t O),
   dx, accumulate, dy, weight, N, I, O)
OP(linear_backward_weight, "gemm wgrad",
   (CTX, float *dweight, float *dbias, const void *dy, const void *x, size_t N, size_t I, size_t O),
   dweight, dbias, dy, x, N, I, O)
OP(logits_forward, "gemm forward",
   (CTX, float *logits, const void *x, const void *weight, size_t N, size_t I, size_t O), logits, x,
   weight, N, I, O)
OP(rope, "rope",
   (CTX, void *x, const float *cosine, const float *sine, const int32_t *position, bool inverse,
    size_t N, size_t T, size_t heads, size_t E, size_t R),
   x, cosine, sine, position, inverse, N, T, heads, E, R)
OP(attention_forward, "attention forward",
   (CTX, const struct attention_shape *shape, void *out, float *lse, const void *q, const void *k,
    const void *v),
   shape, out, lse, q, k, v)
OP(attention_backward, "attention backward",
   (CTX, const struct attention_shape *shape, void *dq, void *dk, void *dv, const void *dout,
    const void *out, const float *lse, const void *q, const void *k, const void *v),
   shape, dq, dk, dv, dout, out, lse, q, k, v)
OP(swiglu_forward, "activations", (CTX, void *y, const void *gate, const void *up, size_t count), y,
   gate, up, count)
OP(swiglu_backward, "activations",
   (CTX, void *dgate, void *dup, const void *dy, const void *gate, const void *up, size_t count),
   dgate, dup, dy, gate, up, count)
OP(gelu_forward, "activations", (CTX, void *y, const void *x, size_t count), y, x, count)
OP(gelu_backward, "activations", (CTX, void *dx, const void *dy, const void *x, size_t count), dx,
   dy, x, count)
OP(mudd_weights_forward, "generator",
   (CTX, float *weights, const void *hidden, const void *w2, const void *bias, size_t N, size_t K,
    size_t Cn),
   weights, hidden, w2, bias, N, K, Cn)
OP(mudd_weights_backward_input, "generator",
   (CTX, void *dhidden, const float *dweights, const void *w2, size_t N, size_t K, size_t Cn),
   dhidden, dweights, w2, N, K, Cn)
OP(mudd_weights_backward_weight, "generator",
   (CTX, float *dw2, float *dbias, const float *dweights, const void *hidden, size_t N, size_t K,
    size_t Cn),
   dw2, dbias, dweights, hidden, N, K, Cn)
OP(mudd_forward, "aggregate forward",
   (CTX, void *const *out, const void *const *key, const float *weights, const void *static_weights,
    size_t N, size_t D, size_t C, size_t n),
   out, key, weights, static_weights, N, D, C, n)
OP(mudd_backward_weights, "aggregate dA",
   (CTX, float *dweights, const void *const *dout, const void *const *key, size_t N, size_t D,
    size_t C, size_t n),
   dweights, dout, key, N, D, C, n)
OP(mudd_backward_key, "key gradient",
   (CTX, void *dkey, bool accumulate, const struct mudd_term *terms, size_t count, size_t N,
    size_t D),
   dkey, accumulate, terms, count, N, D)
OP(xent, "loss",
   (CTX, double *loss, void *dlogits, const float *logits, const int32_t *targets, float scale,
    size_t rows, size_t V),
   loss, dlogits, logits, targets, scale, rows, V)
OP(from_f32, "copies", (CTX, void *dst, const float *src, size_t count), dst, src, count)
OP(copy, "copies", (CTX, void *dst, const void *src, size_t count), dst, src, count)
OP(zero, "copies", (CTX, void *dst, size_t bytes), dst, bytes)
OP(add, "elementwise", (CTX, void *out, const void *a, const void *b, size_t count), out, a, b,
   count)
OP(scale_add, "elementwise", (CTX, void *dst, const void *src, float scale, size_t count), dst, src,
   scale, count)
OP(scale_columns, "elementwise", (CTX, float *x, const float *scale, size_t rows, size_t columns),
   x, scale, rows, columns)
OP(accumulate_f32, "elementwise", (CTX, float *dst, const float *src, size_t count), dst, src,
   count)
OP(sum_squares, "optimizer", (CTX, double *out, const float *x, size_t count), out, x, count)
OP(adamw, "optimizer",
   (CTX, const struct adamw_args *args, float *p, float *m, float *v, const float *gradient,
    size_t count),
   args, p, m, v, gradient, count)

void kernels_time(const struct kernels *real, struct kernels *out)
{
    *out = (struct kernels){
        .name = real->name,
        .dtype = real->dtype,
        .workspace = real->workspace,
#define ENTRY(op) .op = timed_##op
        ENTRY(embed_forward),
        ENTRY(embed_backward),
        ENTRY(norm_forward),
        ENTRY(norm_backward),
        ENTRY(linear_forward),
        ENTRY(linear_backward_input),
        ENTRY(linear_backward_weight),
        ENTRY(logits_forward),
        ENTRY(rope),
        ENTRY(attention_forward),
        ENTRY(attention_backward),
        ENTRY(swiglu_forward),
        ENTRY(swiglu_backward),
        ENTRY(gelu_forward),
        ENTRY(gelu_backward),
        ENTRY(mudd_weights_forward),
        ENTRY(mudd_weights_backward_input),
        ENTRY(mudd_weights_backward_weight),
        ENTRY(mudd_forward),
        ENTRY(mudd_backward_weights),
        ENTRY(mudd_backward_key),
        ENTRY(xent),
        ENTRY(from_f32),
        ENTRY(copy),
        ENTRY(zero),
        ENTRY(add),
        ENTRY(scale_add),
        ENTRY(scale_columns),
        ENTRY(accumulate_f32),
        ENTRY(sum_squares),
        ENTRY(adamw),
    };
}
