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

#endif
