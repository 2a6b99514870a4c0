/* operations_row.h - operations that see one row at a time: embedding, norms, linears, activations.
 * */
#ifndef TESTS_KERNELS_OPERATIONS_ROW_H
#define TESTS_KERNELS_OPERATIONS_ROW_H

#include "tests/kernels/operation.h"

/* ---- embedding: a rows, b width, c vocabulary, in d parts of which each has some rows of the table (0: 1) ---- */

static inline void embed_ids(const struct problem *p, int32_t *ids)
{
    for (size_t t = 0; t < p->a; t++) {
        ids[t] = (int32_t)((t * t + 3 * t) % p->c);
    }
}
static inline size_t embed_sizes(const struct problem *p, size_t *in, size_t *out, size_t *kept)
{
    in[0] = p->c * p->b;
    *out = p->a * p->b;
    *kept = 0;
    return 1;
}
static inline void embed_reference(const struct problem *p, double *const *in, double *out)
{
    int32_t ids[512];
    embed_ids(p, ids);
    for (size_t i = 0; i < p->a * p->b; i++) {
        out[i] = in[0][(size_t)ids[i / p->b] * p->b + i % p->b];
    }
}
static inline void embed_forward(const struct kernels *k, const struct kernel_ctx *ctx,
                                 const struct problem *p, float *const *in, float *out, float *kept)
{
    int32_t ids[512];
    size_t parts = p->d > 0 ? p->d : 1, count = p->a * p->b;
    float *of_part = kit_floats(count, 0);
    (void)kept;
    embed_ids(p, ids);
    memset(out, 0, count * sizeof *out);
    for (size_t part = 0; part < parts; part++) {
        size_t first = p->c * part / parts, rows = p->c * (part + 1) / parts - first;
        k->embed_forward(ctx, of_part, in[0] + first * p->b, ids, first, rows, p->a, p->b);
        for (size_t i = 0; i < count; i++) {
            out[i] += of_part[i];
        }
    }
    kit_free(of_part, 0);
}
static inline void embed_backward(const struct kernels *k, const struct kernel_ctx *ctx,
                                  const struct problem *p, float *const *in, const float *out,
                                  const float *kept, const float *dout, float *const *din)
{
    int32_t ids[512];
    (void)in, (void)out, (void)kept;
    size_t parts = p->d > 0 ? p->d : 1;
    embed_ids(p, ids);
    for (size_t part = 0; part < parts; part++) {
        size_t first = p->c * part / parts, rows = p->c * (part + 1) / parts - first;
        k->embed_backward(ctx, din[0] + first * p->b, dout, ids, first, rows, p->a, p->b);
    }
}

/* ---- norm: a rows, b width; option 0 RMS, 1 RMS without scale, 2 LAYER, +4 accumulating ---- */

static inline struct norm_shape norm_shape_of(const struct problem *p)
{
    struct norm_shape shape = {(p->option & 3) == 2 ? NORM_LAYER : NORM_RMS, p->a, p->b, 1e-5f};
    return shape;
}
static inline size_t norm_sizes(const struct problem *p, size_t *in, size_t *out, size_t *kept)
{
    in[0] = *out = p->a * p->b;
    in[1] = in[2] = p->b;
    *kept = 2 * p->a;
    return (p->option & 3) == 2 ? 3 : (p->option & 3) == 1 ? 1 : 2;
}
static inline void norm_reference(const struct problem *p, double *const *in, double *out)
{
    int kind = p->option & 3;
    for (size_t r = 0; r < p->a; r++) {
        const double *x = in[0] + r * p->b;
        double mean = 0, variance = 0;
        for (size_t i = 0; i < p->b && kind == 2; i++) {
            mean += x[i] / (double)p->b;
        }
        for (size_t i = 0; i < p->b; i++) {
            variance += (x[i] - mean) * (x[i] - mean) / (double)p->b;
        }
        for (size_t i = 0; i < p->b; i++) {
            out[r * p->b + i] =
                (x[i] - mean) / sqrt(variance + (double)1e-5f) * (kind == 1 ? 1.0 : in[1][i]) +
                (kind == 2 ? in[2][i] : 0.0);
        }
    }
}
static inline void norm_forward(const struct kernels *k, const struct kernel_ctx *ctx,
                                const struct problem *p, float *const *in, float *out, float *kept)
{
    struct norm_shape shape = norm_shape_of(p);
    int kind = p->option & 3;
    k->norm_forward(ctx, &shape, out, kind == 2 ? kept : NULL, kept + p->a, in[0],
                    kind == 1 ? NULL : in[1], kind == 2 ? in[2] : NULL);
}
static inline void norm_backward(const struct kernels *k, const struct kernel_ctx *ctx,
                                 const struct problem *p, float *const *in, const float *out,
                                 const float *kept, const float *dout, float *const *din)
{
    struct norm_shape shape = norm_shape_of(p);
    int kind = p->option & 3;
    (void)out;
    k->norm_backward(ctx, &shape, din[0], p->option & 4, kind == 1 ? NULL : din[1],
                     kind == 2 ? din[2] : NULL, dout, in[0], kind == 2 ? kept : NULL, kept + p->a,
                     kind == 1 ? NULL : in[1]);
}

/* ---- linear: a rows, b inputs, c outputs; option 0 bias, 1 none, 2 logits, 3 generator,
 * +4 accumulating ---- */

static inline size_t linear_sizes(const struct problem *p, size_t *in, size_t *out, size_t *kept)
{
    in[0] = p->a * p->b;
    in[1] = p->c * p->b;
    in[2] = p->c;
    *out = p->a * p->c;
    *kept = 0;
    return (p->option & 3) == 0 || (p->option & 3) == 3 ? 3 : 2;
}
static inline void linear_reference(const struct problem *p, double *const *in, double *out)
{
    bool bias = (p->option & 3) == 0 || (p->option & 3) == 3;
    for (size_t i = 0; i < p->a; i++) {
        for (size_t j = 0; j < p->c; j++) {
            double sum = bias ? in[2][j] : 0;
            for (size_t x = 0; x < p->b; x++) {
                sum += in[0][i * p->b + x] * in[1][j * p->b + x];
            }
            out[i * p->c + j] = sum;
        }
    }
}
static inline void linear_forward(const struct kernels *k, const struct kernel_ctx *ctx,
                                  const struct problem *p, float *const *in, float *out,
                                  float *kept)
{
    (void)kept;
    switch (p->option & 3) {
    case 2:
        k->logits_forward(ctx, out, in[0], in[1], p->a, p->b, p->c);
        break;
    case 3:
        k->mudd_weights_forward(ctx, out, in[0], in[1], in[2], p->a, p->b, p->c);
        break;
    default:
        k->linear_forward(ctx, out, in[0], in[1], p->option & 3 ? NULL : in[2], p->a, p->b, p->c);
    }
}
static inline void linear_backward(const struct kernels *k, const struct kernel_ctx *ctx,
                                   const struct problem *p, float *const *in, const float *out,
                                   const float *kept, const float *dout, float *const *din)
{
    (void)out, (void)kept;
    if ((p->option & 3) == 3) {
        k->mudd_weights_backward_input(ctx, din[0], false, dout, in[1], p->a, p->b, p->c);
        k->mudd_weights_backward_weight(ctx, din[1], din[2], dout, in[0], p->a, p->b, p->c);
        return;
    }
    k->linear_backward_input(ctx, din[0], p->option & 4, dout, in[1], p->a, p->b, p->c);
    k->linear_backward_weight(ctx, din[1], p->option & 3 ? NULL : din[2], dout, in[0], p->a, p->b,
                              p->c);
}

/* ---- activations: a elements, b: size of the inputs' values in tenths ---- */

static inline size_t swiglu_sizes(const struct problem *p, size_t *in, size_t *out, size_t *kept)
{
    in[0] = in[1] = *out = p->a;
    *kept = 0;
    return 2;
}
static inline void swiglu_reference(const struct problem *p, double *const *in, double *out)
{
    for (size_t i = 0; i < p->a; i++) {
        out[i] = in[0][i] / (1 + exp(-in[0][i])) * in[1][i];
    }
}
static inline void swiglu_forward(const struct kernels *k, const struct kernel_ctx *ctx,
                                  const struct problem *p, float *const *in, float *out,
                                  float *kept)
{
    (void)kept;
    k->swiglu_forward(ctx, out, in[0], in[1], p->a);
}
static inline void swiglu_backward(const struct kernels *k, const struct kernel_ctx *ctx,
                                   const struct problem *p, float *const *in, const float *out,
                                   const float *kept, const float *dout, float *const *din)
{
    (void)out, (void)kept;
    k->swiglu_backward(ctx, din[0], din[1], dout, in[0], in[1], p->a);
}
static inline size_t gelu_sizes(const struct problem *p, size_t *in, size_t *out, size_t *kept)
{
    in[0] = *out = p->a;
    *kept = 0;
    return 1;
}
static inline void gelu_reference(const struct problem *p, double *const *in, double *out)
{
    for (size_t i = 0; i < p->a; i++) {
        out[i] = in[0][i] * 0.5 * erfc(-in[0][i] / sqrt(2.0));
    }
}
static inline void gelu_forward(const struct kernels *k, const struct kernel_ctx *ctx,
                                const struct problem *p, float *const *in, float *out, float *kept)
{
    (void)kept;
    k->gelu_forward(ctx, out, in[0], p->a);
}
static inline void gelu_backward(const struct kernels *k, const struct kernel_ctx *ctx,
                                 const struct problem *p, float *const *in, const float *out,
                                 const float *kept, const float *dout, float *const *din)
{
    (void)out, (void)kept;
    k->gelu_backward(ctx, din[0], dout, in[0], p->a);
}

#endif
