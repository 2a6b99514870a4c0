/* operations_streams.h - the streams of hyper-connections, and their weights from generator to weights. */
#ifndef TESTS_KERNELS_OPERATIONS_STREAMS_H
#define TESTS_KERNELS_OPERATIONS_STREAMS_H

#include "tests/kernels/operation.h"

/* ---- streams: a rows, b width, c streams; in[0] weights [rows, W] of p, M, o, in[1] streams, in[2] what the
 * unit makes of them; the value is what the unit reads, then the new streams; option 4: onto zeros that are
 * there ---- */

static inline size_t streams_weights(const struct problem *p)
{
    return 2 * p->c + p->c * p->c;
}
static inline size_t streams_sizes(const struct problem *p, size_t *in, size_t *out, size_t *kept)
{
    in[0] = p->a * streams_weights(p);
    in[1] = p->a * p->c * p->b;
    in[2] = p->a * p->b;
    *out = p->a * p->b * (1 + p->c);
    *kept = 0;
    return 3;
}
static inline void streams_reference(const struct problem *p, double *const *in, double *out)
{
    size_t D = p->b, n = p->c, W = streams_weights(p);
    memset(out, 0, p->a * D * (1 + n) * sizeof *out);
    for (size_t t = 0; t < p->a; t++) {
        const double *w = in[0] + t * W, *x = in[1] + t * n * D;
        double *to = out + p->a * D + t * n * D;
        for (size_t s = 0; s < n; s++) {
            for (size_t d = 0; d < D; d++) {
                out[t * D + d] += w[s] * x[s * D + d];
                to[s * D + d] += w[n + n * n + s] * in[2][t * D + d];
                for (size_t r = 0; r < n; r++) {
                    to[s * D + d] += w[n + s * n + r] * x[r * D + d];
                }
            }
        }
    }
}
static inline void streams_forward(const struct kernels *k, const struct kernel_ctx *ctx,
                                   const struct problem *p, float *const *in, float *out,
                                   float *kept)
{
    size_t n = p->c, W = streams_weights(p);
    (void)kept;
    k->streams_sum(ctx, out, in[0], W, in[1], p->a, p->b, n);
    k->streams_mix(ctx, out + p->a * p->b, false, in[0] + n, false, in[1], in[0] + n + n * n, in[2],
                   NULL, NULL, W, p->a, p->b, n);
}
static inline void streams_backward(const struct kernels *k, const struct kernel_ctx *ctx,
                                    const struct problem *p, float *const *in, const float *out,
                                    const float *kept, const float *dout, float *const *din)
{
    size_t n = p->c, W = streams_weights(p), N = p->a, square = n * n;
    const float *dh = dout, *dto = dout + N * p->b;
    float *dp = kit_floats(N * n, 0), *dm = kit_floats(N * square, 0);
    float *dpost = kit_floats(N * square, 0); /* of o, with M's stride */
    (void)out, (void)kept;
    memset(dm, 0, N * square * sizeof *dm); /* what lies between is kept */
    memset(dpost, 0, N * square * sizeof *dpost);
    k->streams_sum(ctx, din[2], in[0] + n + square, W, dto, N, p->b, n);
    k->streams_dots(ctx, NULL, dp, n, in[1], NULL, dh, N, p->b, n);
    k->streams_dots(ctx, dm, dpost, square, dto, in[1], in[2], N, p->b, n);
    for (size_t t = 0; t < N; t++) {
        memcpy(din[0] + t * W, dp + t * n, n * sizeof *dp);
        memcpy(din[0] + t * W + n, dm + t * square, square * sizeof *dm);
        memcpy(din[0] + t * W + n + square, dpost + t * square, n * sizeof *dpost);
    }
    bool onto = p->option == 4;
    k->streams_mix(ctx, din[1], onto, in[0] + n, true, dto, in[0], dh, NULL, NULL, W, N, p->b, n);
    kit_free(dp, 0), kit_free(dm, 0), kit_free(dpost, 0);
}

/* ---- weights of hyper-connections: a rows, b width, c streams, option: kind, +4 without p, +8 without M;
 * in: streams; the generators of p, M, o; pre, res, post; their scales ---- */

static const double hyper_eps = 1e-3;

static inline enum hyper_kind hyper_kind_of(const struct problem *p)
{
    return (enum hyper_kind)(p->option & 3);
}
static inline size_t hyper_sizes(const struct problem *p, size_t *in, size_t *out, size_t *kept)
{
    size_t n = p->c, D = p->b;
    bool mhc = hyper_kind_of(p) == HYPER_MHC;
    in[0] = p->a * n * D;
    in[1] = in[3] = mhc ? n * n * D : D;
    in[2] = mhc ? n * n * n * D : n * D;
    in[4] = in[6] = n;
    in[5] = n * n;
    in[7] = in[8] = in[9] = 1;
    *out = p->a * streams_weights(p);
    *kept = p->a * streams_weights(p) + p->a * n; /* z, rstd */
    return 10;
}

/* <w, x> / sqrt(mean(x^2) + eps) over `width` elements. */
static inline double hyper_dot(const double *w, const double *x, size_t width)
{
    double dot = 0, square = 0;
    for (size_t i = 0; i < width; i++) {
        dot += w[i] * x[i];
        square += x[i] * x[i] / (double)width;
    }
    return dot / sqrt(square + (double)(float)hyper_eps);
}

static inline void hyper_sinkhorn(double *m, size_t n)
{
    for (size_t i = 0; i < n * n; i++) {
        m[i] = exp(m[i]);
    }
    for (int round = 0; round < SINKHORN_ROUNDS; round++) {
        for (size_t r = 0; r < n; r++) {
            double sum = 0;
            for (size_t s = 0; s < n; s++) {
                sum += m[s * n + r];
            }
            for (size_t s = 0; s < n; s++) {
                m[s * n + r] /= sum;
            }
        }
        for (size_t s = 0; s < n; s++) {
            double sum = 0;
            for (size_t r = 0; r < n; r++) {
                sum += m[s * n + r];
            }
            for (size_t r = 0; r < n; r++) {
                m[s * n + r] /= sum;
            }
        }
    }
}
static inline void hyper_reference(const struct problem *p, double *const *in, double *out)
{
    size_t n = p->c, D = p->b, W = streams_weights(p);
    enum hyper_kind kind = hyper_kind_of(p);
    memset(out, 0, p->a * W * sizeof *out);
    for (size_t t = 0; t < p->a; t++) {
        const double *x = in[0] + t * n * D;
        double *w = out + t * W, *m = w + n, *o = w + n + n * n;
        for (size_t s = 0; s < n; s++) {
            double zp = 0, zo = 0;
            if (kind == HYPER_DYNAMIC) {
                zp = in[7][0] * tanh(hyper_dot(in[1], x + s * D, D));
                zo = in[9][0] * tanh(hyper_dot(in[3], x + s * D, D));
            } else if (kind == HYPER_MHC) {
                zp = in[7][0] * hyper_dot(in[1] + s * n * D, x, n * D);
                zo = in[9][0] * hyper_dot(in[3] + s * n * D, x, n * D);
            }
            bool mhc = kind == HYPER_MHC;
            w[s] = mhc ? 1 / (1 + exp(-zp - in[4][s])) : zp + in[4][s];
            o[s] = mhc ? 2 / (1 + exp(-zo - in[6][s])) : zo + in[6][s];
            for (size_t r = 0; r < n; r++) {
                double z = 0;
                if (kind == HYPER_DYNAMIC) {
                    z = in[8][0] * tanh(hyper_dot(in[2] + s * D, x + r * D, D));
                } else if (mhc) {
                    z = in[8][0] * hyper_dot(in[2] + (s * n + r) * n * D, x, n * D);
                }
                m[s * n + r] = z + in[5][s * n + r];
            }
            w[s] = p->option & 4 ? 0 : w[s];
        }
        if (kind == HYPER_MHC) {
            hyper_sinkhorn(m, n);
        }
        for (size_t i = 0; i < n * n && p->option & 8; i++) {
            m[i] = i / n == i % n ? 1 : 0;
        }
    }
}

/* The generators' rows and width. */
static inline void hyper_shape(const struct problem *p, size_t *rows, size_t *width)
{
    bool mhc = hyper_kind_of(p) == HYPER_MHC;
    *rows = mhc ? p->a : p->a * p->c;
    *width = mhc ? p->c * p->b : p->b;
}
static inline void hyper_forward(const struct kernels *k, const struct kernel_ctx *ctx,
                                 const struct problem *p, float *const *in, float *out, float *kept)
{
    size_t n = p->c, N = p->a, rows, width, W = streams_weights(p);
    enum hyper_kind kind = hyper_kind_of(p);
    bool generates = kind != HYPER_STATIC;
    float *z = kept, *rstd = kept + N * W;
    hyper_shape(p, &rows, &width);
    struct norm_shape norm = {NORM_RMS, rows, width, (float)hyper_eps};
    memset(kept, 0, (N * W + N * n) * sizeof *kept);
    memset(out, 0, N * W * sizeof *out);
    if (generates) {
        size_t each = kind == HYPER_MHC ? n : 1; /* numbers of p a row: n, or one a stream */
        k->norm_forward(ctx, &norm, NULL, NULL, rstd, in[0], NULL, NULL);
        k->mudd_weights_forward(ctx, z, in[0], in[1], NULL, rows, width, each);
        k->mudd_weights_forward(ctx, z + N * n, in[0], in[2], NULL, rows, width, each * n);
        k->mudd_weights_forward(ctx, z + N * (n + n * n), in[0], in[3], NULL, rows, width, each);
    }
    k->hyper_weights_forward(ctx, out, generates ? z : NULL, generates ? rstd : NULL,
                             p->option & 4 ? NULL : in[4], p->option & 8 ? NULL : in[5], in[6],
                             generates ? in[7] : NULL, generates ? in[8] : NULL,
                             generates ? in[9] : NULL, kind, N, n);
    for (size_t t = 0; t < N && p->option & 4; t++) {
        memset(out + t * W, 0, n * sizeof *out);
    }
}
static inline void hyper_backward(const struct kernels *k, const struct kernel_ctx *ctx,
                                  const struct problem *p, float *const *in, const float *out,
                                  const float *kept, const float *dout, float *const *din)
{
    size_t n = p->c, N = p->a, rows, width, W = streams_weights(p);
    enum hyper_kind kind = hyper_kind_of(p);
    bool generates = kind != HYPER_STATIC;
    const float *z = kept, *rstd = kept + N * W;
    float *dz = kit_floats(N * W, 0), *factor = kit_floats(N * n, 0);
    float *dparams = kit_floats(W + 3, 0);
    (void)out;
    hyper_shape(p, &rows, &width);
    k->hyper_weights_backward(ctx, generates ? dz : NULL, generates ? factor : NULL, dparams, dout,
                              generates ? z : NULL, generates ? rstd : NULL,
                              p->option & 4 ? NULL : in[4], p->option & 8 ? NULL : in[5], in[6],
                              generates ? in[7] : NULL, generates ? in[8] : NULL,
                              generates ? in[9] : NULL, kind, width, N, n);
    memcpy(din[4], dparams, n * sizeof *dparams);
    memcpy(din[5], dparams + n, n * n * sizeof *dparams);
    memcpy(din[6], dparams + n + n * n, n * sizeof *dparams);
    if (generates) {
        const size_t offset[] = {0, N * n, N * (n + n * n)};
        size_t each = kind == HYPER_MHC ? n : 1;
        bool onto = false;
        for (size_t i = 0; i < 3; i++) {
            bool there = i == 0 ? !(p->option & 4) : i == 1 ? !(p->option & 8) : true;
            size_t numbers = i == 1 ? each * n : each;
            din[7 + i][0] = dparams[W + i];
            if (there) {
                k->mudd_weights_backward_input(ctx, din[0], onto, dz + offset[i], in[1 + i], rows,
                                               width, numbers);
                k->mudd_weights_backward_weight(ctx, din[1 + i], NULL, dz + offset[i], in[0], rows,
                                                width, numbers);
                onto = true;
            }
        }
        k->streams_mix(ctx, din[0], true, NULL, false, NULL, NULL, NULL, factor, in[0], 0, N, p->b,
                       n);
    }
    kit_free(dz, 0), kit_free(factor, 0), kit_free(dparams, 0);
}

#endif
