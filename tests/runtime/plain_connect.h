/* plain_connect.h - the second forward, continued: models whose layers read across depth in another way than
 * MUDD. A sub-layer is an attention or an FFN with its norm and without a residual. */
#ifndef TESTS_RUNTIME_PLAIN_CONNECT_H
#define TESTS_RUNTIME_PLAIN_CONNECT_H

#include "plain_layer.h"

/* f_u(h), u from 1. */
static inline double *plain_sublayer(struct plain *plain, int u, const double *h)
{
    int l = (u - 1) / 2;
    char name[PARAM_NAME];
    snprintf(name, sizeof name, u % 2 == 1 ? "layers.%d.attention_norm" : "layers.%d.ffn_norm", l);
    double *x = plain_family_norm(plain, h, name), *const three[3] = {x, x, x};
    return u % 2 == 1 ? plain_attention(plain, l, three) : plain_ffn(plain, l, x);
}

/* ---- attention over depth ---- */

/* h_u from its sources. */
static inline double *plain_depth_mix(struct plain *plain, int u, double *const source[], int n)
{
    int64_t D = plain->config->dim;
    const double *q = plain_weight(plain, D, "depth_attention.%d.query", u - 1);
    const double *g = plain_weight(plain, D, "depth_attention.%d.norm.weight", u - 1);
    double *h = plain_take(plain, plain->T * D), *score = plain_take(plain, plain->T * n);
    for (int s = 0; s < n; s++) {
        const double *normed = plain_norm(plain, source[s], plain->T, D, g, NULL);
        for (int64_t e = 0; e < plain->T * D; e++) {
            score[e / D * n + s] += q[e % D] * normed[e];
        }
    }
    for (int64_t t = 0; t < plain->T; t++) {
        double sum = 0;
        for (int s = 0; s < n; s++) {
            sum += exp(score[t * n + s]);
        }
        for (int s = 0; s < n; s++) {
            int from = plain->mistake == MISTAKE_SOURCES && n > 1 && s < 2 ? 1 - s : s;
            for (int64_t d = 0; d < D; d++) {
                h[t * D + d] += exp(score[t * n + s]) / sum * source[from][t * D + d];
            }
        }
    }
    return h;
}

/* The input of the final norm. */
static inline double *plain_depth(struct plain *plain, double *embedded)
{
    enum { SOURCES = 64 };
    const struct model_config *c = plain->config;
    int L = (int)c->n_layer, S = (int)c->depth_attention_block;
    double *b[SOURCES] = {embedded}, *so_far = NULL;
    int n = 1, in_block = 0; /* sources that are finished; sub-layers in `so_far` */
    for (int u = 1; u <= 2 * L; u++) {
        b[n] = so_far; /* last, if the block has begun */
        double *h = u == 1 ? embedded : plain_depth_mix(plain, u, b, n + (in_block > 0));
        double *v = plain_sublayer(plain, u, h);
        so_far = in_block > 0 ? plain_sum(plain, so_far, v) : v;
        in_block++;
        if (S == 0 || in_block == 2 * S || u == 2 * L) {
            b[n++] = so_far;
            in_block = 0;
            assert_true(n < SOURCES);
        }
    }
    return plain_depth_mix(plain, 2 * L + 1, b, n);
}

/* ---- hyper-connections ---- */

/* <w, x / sqrt(mean x^2 + eps)> */
static inline double plain_generated(const struct plain *plain, const double *w, const double *x,
                                     int64_t width)
{
    double dot = 0, square = 0;
    for (int64_t i = 0; i < width; i++) {
        dot += w[i] * x[i];
        square += x[i] * x[i] / (double)width;
    }
    return dot / sqrt(square + plain->config->norm_eps);
}

static inline void plain_sinkhorn(const struct plain *plain, double *m, int64_t n)
{
    int rounds = plain->mistake == MISTAKE_ROUNDS ? 1 : 20;
    for (int64_t i = 0; i < n * n; i++) {
        m[i] = exp(m[i]);
    }
    for (int round = 0; round < 2 * rounds; round++) {
        int64_t in_line = round % 2 == 0 ? n : 1,
                lines = round % 2 == 0 ? 1 : n; /* columns, rows */
        for (int64_t line = 0; line < n; line++) {
            double sum = 0;
            for (int64_t i = 0; i < n; i++) {
                sum += m[line * lines + i * in_line];
            }
            for (int64_t i = 0; i < n; i++) {
                m[line * lines + i * in_line] /= sum;
            }
        }
    }
}

/* The weights of a token: p [n], M [n, n], o [n], from its streams [n, D]. */
static inline void plain_hyper_weights(struct plain *plain, int u, const double *x, double *p,
                                       double *m, double *o)
{
    const struct model_config *c = plain->config;
    int64_t n = c->hyper_streams, D = c->dim;
    int L = (int)c->n_layer, kind = c->hyper_kind, l = u - 1;
    bool mhc = kind == HYPER_MHC, mixes = !mhc || (u > 1 && u < 2 * L);
    const char *bias = mhc ? "_b" : "";
    for (int64_t s = 0; s < n; s++) {
        o[s] = plain_weight(plain, n, "hyper.%d.post%s", l, bias)[s];
        p[s] = u > 1 ? plain_weight(plain, n, "hyper.%d.pre%s", l, bias)[s] : 0;
        for (int64_t r = 0; r < n; r++) {
            const double *res =
                mixes ? plain_weight(plain, n * n, "hyper.%d.res%s", l, bias) : NULL;
            m[s * n + r] = mixes ? res[s * n + r] : s == r ? 1 : 0;
        }
    }
    for (int64_t s = 0; s < n && kind != HYPER_STATIC; s++) {
        int64_t width = mhc ? n * D : D, rows = mhc ? n : 1;
        const double *own = mhc ? x : x + s * D;
        int64_t row = mhc ? s : 0;
        const double *w = plain_weight(plain, rows * width, "hyper.%d.post_w", l) + row * width;
        double z = plain_generated(plain, w, own, width);
        o[s] += plain_weight(plain, 1, "hyper.%d.post_scale", l)[0] * (mhc ? z : tanh(z));
        if (u > 1) {
            w = plain_weight(plain, rows * width, "hyper.%d.pre_w", l) + row * width;
            z = plain_generated(plain, w, own, width);
            p[s] += plain_weight(plain, 1, "hyper.%d.pre_scale", l)[0] * (mhc ? z : tanh(z));
        }
        for (int64_t r = 0; r < n && mixes; r++) {
            w = plain_weight(plain, rows * n * width, "hyper.%d.res_w", l);
            bool turned = plain->mistake == MISTAKE_STREAMS;
            z = mhc ? plain_generated(plain, w + (turned ? r * n + s : s * n + r) * width, x, width)
                    : tanh(plain_generated(plain, w + (turned ? r : s) * width,
                                           x + (turned ? s : r) * D, width));
            m[s * n + r] += plain_weight(plain, 1, "hyper.%d.res_scale", l)[0] * z;
        }
    }
    for (int64_t s = 0; s < n && mhc; s++) {
        p[s] = 1 / (1 + exp(-p[s]));
        o[s] = 2 / (1 + exp(-o[s]));
    }
    if (mhc && mixes) {
        plain_sinkhorn(plain, m, n);
    }
}

/* The input of the final norm. */
static inline double *plain_hyper(struct plain *plain, double *embedded)
{
    const struct model_config *c = plain->config;
    int64_t n = c->hyper_streams, D = c->dim, T = plain->T;
    double *x = plain_take(plain, T * n * D), *w = plain_take(plain, T * (2 * n + n * n));
    double *p = w, *m = w + T * n, *o = m + T * n * n; /* of all tokens */
    for (int64_t e = 0; e < T * n * D; e++) {
        x[e] = embedded[e / (n * D) * D + e % D];
    }
    for (int u = 1; u <= 2 * (int)c->n_layer; u++) {
        double *h = plain_take(plain, T * D), *next = plain_take(plain, T * n * D);
        for (int64_t t = 0; t < T; t++) {
            plain_hyper_weights(plain, u, x + t * n * D, p + t * n, m + t * n * n, o + t * n);
            for (int64_t e = 0; e < n * D; e++) {
                h[t * D + e % D] += p[t * n + e / D] * x[t * n * D + e];
            }
        }
        double *f = plain_sublayer(plain, u, u == 1 ? embedded : h);
        for (int64_t e = 0; e < T * n * D; e++) {
            int64_t t = e / (n * D), s = e / D % n, d = e % D;
            next[e] = o[t * n + s] * f[t * D + d];
            for (int64_t r = 0; r < n; r++) {
                next[e] += m[(t * n + s) * n + r] * x[(t * n + r) * D + d];
            }
        }
        x = next;
    }
    double *sum = plain_take(plain, T * D);
    for (int64_t e = 0; e < T * n * D; e++) {
        sum[e / (n * D) * D + e % D] += x[e];
    }
    return sum;
}

#endif
