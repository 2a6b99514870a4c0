/* operations_token.h - operations that know tokens: rotary positions, attention, aggregates, loss.
 * */
#ifndef TESTS_KERNELS_OPERATIONS_TOKEN_H
#define TESTS_KERNELS_OPERATIONS_TOKEN_H

#include "tests/kernels/operation.h"

/* ---- rope: a rows, b positions T, c heads, d head width, e rotated part; option 1: given
 * positions, in descending order ---- */

static inline double rope_angle(const struct problem *p, size_t t, size_t d)
{
    return (double)t / pow(100.0, (double)(2 * d) / (double)p->e);
}
static inline size_t rope_position(const struct problem *p, size_t t)
{
    return p->option == 1 ? p->b - 1 - t % p->b : t % p->b;
}
static inline size_t rope_sizes(const struct problem *p, size_t *in, size_t *out, size_t *kept)
{
    in[0] = *out = p->a * p->c * p->d;
    *kept = 0;
    return 1;
}
static inline void rope_reference(const struct problem *p, double *const *in, double *out)
{
    size_t half = p->e / 2;
    memcpy(out, in[0], p->a * p->c * p->d * sizeof *out);
    for (size_t row = 0; row < p->a * p->c; row++) {
        const double *x = in[0] + row * p->d;
        for (size_t d = 0; d < half; d++) {
            double angle = rope_angle(p, rope_position(p, row / p->c), d);
            double c = (double)(float)cos(angle), s = (double)(float)sin(angle);
            out[row * p->d + d] = x[d] * c - x[d + half] * s;
            out[row * p->d + d + half] = x[d + half] * c + x[d] * s;
        }
    }
}
static inline void rope_run(const struct kernels *k, const struct kernel_ctx *ctx,
                            const struct problem *p, float *x, bool inverse)
{
    static float cosine[8192], sine[8192];
    static int32_t position[512];
    for (size_t i = 0; i < p->b * p->e / 2; i++) {
        double angle = rope_angle(p, i / (p->e / 2), i % (p->e / 2));
        cosine[i] = (float)cos(angle);
        sine[i] = (float)sin(angle);
    }
    for (size_t t = 0; t < p->a; t++) {
        position[t] = (int32_t)rope_position(p, t);
    }
    k->rope(ctx, x, cosine, sine, p->option == 1 ? position : NULL, inverse, p->a, p->b, p->c, p->d,
            p->e);
}
static inline void rope_forward(const struct kernels *k, const struct kernel_ctx *ctx,
                                const struct problem *p, float *const *in, float *out, float *kept)
{
    (void)kept;
    memcpy(out, in[0], p->a * p->c * p->d * sizeof *out);
    rope_run(k, ctx, p, out, false);
}
static inline void rope_backward(const struct kernels *k, const struct kernel_ctx *ctx,
                                 const struct problem *p, float *const *in, const float *out,
                                 const float *kept, const float *dout, float *const *din)
{
    (void)in, (void)out, (void)kept;
    memcpy(din[0], dout, p->a * p->c * p->d * sizeof *dout);
    rope_run(k, ctx, p, din[0], true);
}

/* ---- attention: a sequences, b tokens, c heads, d key/value heads, e head width; option: length
 * of the documents, 0 = one ---- */

static inline struct attention_shape attention_shape_of(const struct problem *p, int32_t *first)
{
    struct attention_shape shape = {p->a, p->b, p->c, p->d, p->e, 0, NULL};
    shape.scale = (float)(1 / sqrt((double)p->e));
    if (p->option) {
        for (size_t i = 0; i < p->a * p->b; i++) { /* the sequences' documents start differently */
            size_t length = (size_t)p->option + i / p->b;
            first[i] = (int32_t)(i % p->b / length * length);
        }
        shape.first = first;
    }
    return shape;
}
static inline size_t attention_sizes(const struct problem *p, size_t *in, size_t *out, size_t *kept)
{
    in[0] = *out = p->a * p->b * p->c * p->e;
    in[1] = in[2] = p->a * p->b * p->d * p->e;
    *kept = p->a * p->b * p->c;
    return 3;
}
static inline void attention_row(const struct problem *p, double *const *in, double *out, size_t b,
                                 size_t h, size_t t, size_t first)
{
    size_t E = p->e, g = h / (p->c / p->d);
    const double *q = in[0] + ((b * p->b + t) * p->c + h) * E;
    double score[1024], largest = -INFINITY, sum = 0;
    for (size_t j = first; j <= t; j++) {
        const double *k = in[1] + ((b * p->b + j) * p->d + g) * E;
        score[j] = 0;
        for (size_t e = 0; e < E; e++) {
            score[j] += q[e] * k[e] * (double)(float)(1 / sqrt((double)E));
        }
        largest = fmax(largest, score[j]);
    }
    for (size_t j = first; j <= t; j++) {
        sum += score[j] = exp(score[j] - largest);
    }
    double *o = out + ((b * p->b + t) * p->c + h) * E;
    memset(o, 0, E * sizeof *o);
    for (size_t j = first; j <= t; j++) {
        const double *v = in[2] + ((b * p->b + j) * p->d + g) * E;
        for (size_t e = 0; e < E; e++) {
            o[e] += score[j] / sum * v[e];
        }
    }
}
static inline void attention_reference(const struct problem *p, double *const *in, double *out)
{
    int32_t first[2048] = {0};
    struct attention_shape shape = attention_shape_of(p, first);
    (void)shape;
    for (size_t i = 0; i < p->a * p->b * p->c; i++) {
        size_t row = i / p->c;
        attention_row(p, in, out, row / p->b, i % p->c, row % p->b, (size_t)first[row]);
    }
}
static inline void attention_forward(const struct kernels *k, const struct kernel_ctx *ctx,
                                     const struct problem *p, float *const *in, float *out,
                                     float *kept)
{
    int32_t first[2048];
    struct attention_shape shape = attention_shape_of(p, first);
    k->attention_forward(ctx, &shape, out, kept, in[0], in[1], in[2]);
}
static inline void attention_backward(const struct kernels *k, const struct kernel_ctx *ctx,
                                      const struct problem *p, float *const *in, const float *out,
                                      const float *kept, const float *dout, float *const *din)
{
    int32_t first[2048];
    struct attention_shape shape = attention_shape_of(p, first);
    k->attention_backward(ctx, &shape, din[0], din[1], din[2], dout, out, kept, in[0], in[1],
                          in[2]);
}

/* ---- aggregate: a rows, b width, c ways, d keys; in[0] weights, in[1..] keys; option 1: static,
 * +4: key gradients in two terms, the second accumulating ---- */

static inline size_t mudd_sizes(const struct problem *p, size_t *in, size_t *out, size_t *kept)
{
    in[0] = (p->option & 1 ? 1 : p->a) * p->c * p->d;
    for (size_t j = 0; j < p->d; j++) {
        in[1 + j] = p->a * p->b;
    }
    *out = p->c * p->a * p->b;
    *kept = 0;
    return 1 + p->d;
}
static inline void mudd_reference(const struct problem *p, double *const *in, double *out)
{
    size_t stride = p->option & 1 ? 0 : p->c * p->d;
    for (size_t c = 0; c < p->c; c++) {
        for (size_t i = 0; i < p->a * p->b; i++) {
            double sum = 0;
            for (size_t j = 0; j < p->d; j++) {
                sum += in[0][i / p->b * stride + c * p->d + j] * in[1 + j][i];
            }
            out[c * p->a * p->b + i] = sum;
        }
    }
}
static inline void mudd_forward(const struct kernels *k, const struct kernel_ctx *ctx,
                                const struct problem *p, float *const *in, float *out, float *kept)
{
    void *ways[WAYS_MAX];
    (void)kept;
    for (size_t c = 0; c < p->c; c++) {
        ways[c] = out + c * p->a * p->b;
    }
    k->mudd_forward(ctx, ways, (const void *const *)(in + 1), p->option & 1 ? NULL : in[0],
                    p->option & 1 ? in[0] : NULL, p->a, p->b, p->c, p->d);
}
static inline void mudd_backward(const struct kernels *k, const struct kernel_ctx *ctx,
                                 const struct problem *p, float *const *in, const float *out,
                                 const float *kept, const float *dout, float *const *din)
{
    const void *ways[WAYS_MAX];
    (void)out, (void)kept;
    for (size_t c = 0; c < p->c; c++) {
        ways[c] = dout + c * p->a * p->b;
    }
    if (p->option & 1) {
        float *dweights = kit_floats(p->a * p->c * p->d, 0);
        k->mudd_backward_weights(ctx, dweights, ways, (const void *const *)(in + 1), p->a, p->b,
                                 p->c, p->d);
        k->mudd_weights_backward_weight(ctx, NULL, din[0], dweights, NULL, p->a, 0, p->c * p->d);
        kit_free(dweights, 0);
    } else {
        k->mudd_backward_weights(ctx, din[0], ways, (const void *const *)(in + 1), p->a, p->b, p->c,
                                 p->d);
    }
    size_t stride = p->option & 1 ? 0 : p->c * p->d, split = p->option & 4 ? p->c - 1 : p->c;
    for (size_t j = 0; j < p->d; j++) {
        struct mudd_term whole = {in[0] + j, stride, p->d, split, {0}};
        struct mudd_term rest = {in[0] + j + split * p->d, stride, p->d, p->c - split, {0}};
        memcpy(whole.dout, ways, split * sizeof *ways);
        memcpy(rest.dout, ways + split, (p->c - split) * sizeof *ways);
        k->mudd_backward_key(ctx, din[1 + j], false, &whole, split ? 1 : 0, p->a, p->b);
        if (split < p->c) {
            k->mudd_backward_key(ctx, din[1 + j], true, &rest, 1, p->a, p->b);
        }
    }
}

/* ---- attention over depth: a rows, b width, c sources; in[0] query, in[1] scale, in[2..] sources;
 * option 4: the gradients of sources onto zeros that are there ---- */

static const double depth_eps = 1e-3;

static inline size_t depth_sizes(const struct problem *p, size_t *in, size_t *out, size_t *kept)
{
    in[0] = in[1] = p->b;
    for (size_t s = 0; s < p->c; s++) {
        in[2 + s] = p->a * p->b;
    }
    *out = p->a * p->b;
    *kept = 0;
    return 2 + p->c;
}
static inline void depth_reference(const struct problem *p, double *const *in, double *out)
{
    for (size_t t = 0; t < p->a; t++) {
        double score[KEYS_MOST], largest = -INFINITY, sum = 0;
        for (size_t s = 0; s < p->c; s++) {
            const double *key = in[2 + s] + t * p->b;
            double square = 0;
            for (size_t d = 0; d < p->b; d++) {
                square += key[d] * key[d] / (double)p->b;
            }
            score[s] = 0;
            for (size_t d = 0; d < p->b; d++) {
                score[s] += in[0][d] * in[1][d] * key[d] / sqrt(square + (double)(float)depth_eps);
            }
            largest = fmax(largest, score[s]);
        }
        for (size_t s = 0; s < p->c; s++) {
            sum += score[s] = exp(score[s] - largest);
        }
        for (size_t d = 0; d < p->b; d++) {
            out[t * p->b + d] = 0;
            for (size_t s = 0; s < p->c; s++) {
                out[t * p->b + d] += score[s] / sum * in[2 + s][t * p->b + d];
            }
        }
    }
}
static inline void depth_forward(const struct kernels *k, const struct kernel_ctx *ctx,
                                 const struct problem *p, float *const *in, float *out, float *kept)
{
    (void)kept;
    k->depth_forward(ctx, out, (const void *const *)(in + 2), in[0], in[1], (float)depth_eps, p->a,
                     p->b, p->c);
}
static inline void depth_backward(const struct kernels *k, const struct kernel_ctx *ctx,
                                  const struct problem *p, float *const *in, const float *out,
                                  const float *kept, const float *dout, float *const *din)
{
    float *coefficients = kit_floats(p->a * 3 * p->c, 0);
    bool onto = p->option == 4;
    (void)out, (void)kept;
    k->depth_backward(ctx, coefficients, din[0], din[1], dout, (const void *const *)(in + 2), in[0],
                      in[1], (float)depth_eps, p->a, p->b, p->c);
    for (size_t s = 0; s < p->c; s++) {
        struct depth_term term = {coefficients + s, p->c, dout, in[0], in[1]};
        if (onto) {
            k->depth_backward_key(ctx, din[2 + s], false, NULL, 0, in[2 + s], p->a, p->b);
        }
        k->depth_backward_key(ctx, din[2 + s], onto, &term, 1, in[2 + s], p->a, p->b);
    }
    kit_free(coefficients, 0);
}

/* ---- cross-entropy: a rows, b vocabulary; the value is the loss; option 1: in place ---- */

static inline void xent_targets(const struct problem *p, int32_t *targets)
{
    for (size_t t = 0; t < p->a; t++) {
        targets[t] = t % 5 == 3 ? -1 : (int32_t)((7 * t * t + t) % p->b);
    }
}
static inline size_t xent_sizes(const struct problem *p, size_t *in, size_t *out, size_t *kept)
{
    in[0] = p->a * p->b;
    *out = 1;
    *kept = 0;
    return 1;
}
static inline void xent_reference(const struct problem *p, double *const *in, double *out)
{
    int32_t targets[512];
    xent_targets(p, targets);
    *out = 0;
    for (size_t r = 0; r < p->a; r++) {
        const double *x = in[0] + r * p->b;
        double largest = -INFINITY, sum = 0;
        for (size_t i = 0; i < p->b; i++) {
            largest = fmax(largest, x[i]);
        }
        for (size_t i = 0; i < p->b; i++) {
            sum += exp(x[i] - largest);
        }
        *out += targets[r] < 0 ? 0 : largest + log(sum) - x[targets[r]];
    }
}
static inline void xent_forward(const struct kernels *k, const struct kernel_ctx *ctx,
                                const struct problem *p, float *const *in, float *out, float *kept)
{
    int32_t targets[512];
    double loss = 0;
    (void)kept;
    xent_targets(p, targets);
    k->xent(ctx, &loss, NULL, in[0], targets, 1.0f, p->a, p->b);
    *out = (float)loss;
}
static inline void xent_backward(const struct kernels *k, const struct kernel_ctx *ctx,
                                 const struct problem *p, float *const *in, const float *out,
                                 const float *kept, const float *dout, float *const *din)
{
    int32_t targets[512];
    double loss = 0;
    (void)out, (void)kept;
    xent_targets(p, targets);
    if (p->option & 1) {
        memcpy(din[0], in[0], p->a * p->b * sizeof(float));
        k->xent(ctx, &loss, din[0], din[0], targets, *dout, p->a, p->b);
    } else {
        k->xent(ctx, &loss, din[0], in[0], targets, *dout, p->a, p->b);
    }
}

/* ---- the same of a vocabulary in c parts of b / c; option 1: in place ---- */

#define xent_parts_sizes xent_sizes
#define xent_parts_reference xent_reference

/* Columns of a part, one part behind the other, and back. */
static inline void xent_parts_turn(const struct problem *p, bool back, float *whole, float *parts)
{
    size_t V = p->b / p->c;
    for (size_t i = 0; i < p->a * p->b; i++) {
        size_t row = i / p->b, part = i % p->b / V;
        float *at = &parts[(part * p->a + row) * V + i % V];
        *(back ? &whole[i] : at) = *(back ? at : &whole[i]);
    }
}
/* Every part finds the same loss. dlogits: NULL, or [parts, rows, V]. */
static inline double xent_parts_run(const struct kernels *k, const struct kernel_ctx *ctx,
                                    const struct problem *p, float *whole, float scale,
                                    float *dlogits)
{
    int32_t targets[512];
    size_t V = p->b / p->c, count = p->a * V;
    float *logits = kit_floats(p->c * count, 0), *sums = kit_floats(p->c * p->a * 3, 0);
    double loss[16] = {0};
    xent_targets(p, targets);
    xent_parts_turn(p, false, whole, logits);
    for (size_t part = 0; part < p->c; part++) {
        k->xent_sums(ctx, sums + part * p->a * 3, logits + part * count, targets, part * V, p->a,
                     V);
    }
    for (size_t part = 0; part < p->c; part++) {
        float *x = logits + part * count, *d = dlogits ? dlogits + part * count : NULL;
        if (d && (p->option & 1)) {
            memcpy(d, x, count * sizeof *d);
            x = d;
        }
        k->xent_joined(ctx, &loss[part], d, x, sums, p->c, targets, part * V, scale, p->a, V);
        assert_memory_equal(&loss[part], &loss[0], sizeof *loss);
    }
    kit_free(logits, 0), kit_free(sums, 0);
    return loss[0];
}
static inline void xent_parts_forward(const struct kernels *k, const struct kernel_ctx *ctx,
                                      const struct problem *p, float *const *in, float *out,
                                      float *kept)
{
    (void)kept;
    *out = (float)xent_parts_run(k, ctx, p, in[0], 1.0f, NULL);
}
static inline void xent_parts_backward(const struct kernels *k, const struct kernel_ctx *ctx,
                                       const struct problem *p, float *const *in, const float *out,
                                       const float *kept, const float *dout, float *const *din)
{
    float *dlogits = kit_floats(p->a * p->b, 0);
    (void)out, (void)kept;
    (void)xent_parts_run(k, ctx, p, in[0], *dout, dlogits);
    xent_parts_turn(p, true, din[0], dlogits);
    kit_free(dlogits, 0);
}

#endif
