/* plain_layer.h - the second forward, continued: attention and FFN. */
#ifndef TESTS_RUNTIME_PLAIN_LAYER_H
#define TESTS_RUNTIME_PLAIN_LAYER_H

#include "plain.h"

/* Columns from..from + width of each row. */
static inline double *plain_slice(struct plain *plain, const double *x, int64_t row, int64_t from,
                                  int64_t width)
{
    double *y = plain_take(plain, plain->T * width);
    for (int64_t t = 0; t < plain->T; t++) {
        memcpy(y + t * width, x + t * row + from, (size_t)width * sizeof *y);
    }
    return y;
}

static inline int64_t plain_first(const struct plain *plain, int64_t t)
{
    return plain->first == NULL ? 0 : plain->first[t];
}

static inline void plain_rotary(struct plain *plain, double *x, int64_t heads)
{
    const struct model_config *c = plain->config;
    int64_t E = c->head_dim, R = llrint(c->rotary_pct * (double)E);
    for (int64_t t = 0; t < plain->T; t++) {
        for (int64_t h = 0; h < heads; h++) {
            double *head = x + (t * heads + h) * E;
            for (int64_t d = 0; d < R / 2; d++) {
                double position = (double)(t - plain_first(plain, t));
                double angle = position * pow(c->rope_base, -2.0 * (double)d / (double)R);
                double a = head[d], b = head[d + R / 2];
                head[d] = a * cos(angle) - b * sin(angle);
                head[d + R / 2] = b * cos(angle) + a * sin(angle);
            }
        }
    }
}

/* Queries [T, H E], keys and values [T, G E]; before the output projection. */
static inline double *plain_scores(struct plain *plain, const double *q, const double *k,
                                   const double *v)
{
    const struct model_config *c = plain->config;
    int64_t H = c->n_head, G = c->n_local_heads, E = c->head_dim, T = plain->T;
    double *y = plain_take(plain, T * H * E), *p = plain_take(plain, T);
    for (int64_t t = 0; t < T; t++) {
        int64_t from = plain->mistake == MISTAKE_DOCUMENTS ? 0 : plain_first(plain, t);
        for (int64_t h = 0; h < H; h++) {
            int64_t g = plain->mistake == MISTAKE_HEADS ? h % G : h / (H / G);
            double sum = 0;
            for (int64_t s = from; s <= t; s++) {
                double dot = 0;
                for (int64_t e = 0; e < E; e++) {
                    dot += q[(t * H + h) * E + e] * k[(s * G + g) * E + e];
                }
                p[s] = exp(dot / sqrt((double)E));
                sum += p[s];
            }
            for (int64_t s = from; s <= t; s++) {
                for (int64_t e = 0; e < E; e++) {
                    y[(t * H + h) * E + e] += p[s] / sum * v[(s * G + g) * E + e];
                }
            }
        }
    }
    return y;
}

static inline double *plain_attention(struct plain *plain, int l, double *const normed[3])
{
    const struct model_config *c = plain->config;
    int64_t D = c->dim, H = c->n_head, G = c->n_local_heads, E = c->head_dim;
    int64_t heads[3] = {H, G, G}, from = 0;
    bool fused = !c->dense || c->dense_type != DENSE_QKVR, bias = c->use_linear_bias;
    double *x[3], *all = NULL;
    char name[PARAM_NAME];
    if (fused) {
        snprintf(name, sizeof name, "layers.%d.attention.wqkv", l);
        all = plain_linear(plain, normed[0], D, (H + 2 * G) * E, bias, name);
    }
    for (int i = 0; i < 3; i++) {
        if (fused) {
            x[i] = plain_slice(plain, all, (H + 2 * G) * E, from, heads[i] * E);
            from += heads[i] * E;
        } else {
            snprintf(name, sizeof name, "layers.%d.attention.w%c", l, plain_ways[i]);
            x[i] = plain_linear(plain, normed[i], D, heads[i] * E, bias, name);
        }
        if (i < 2 && c->use_qk_norm) {
            const double *scale =
                plain_weight(plain, E, "layers.%d.attention.%c_norm.weight", l, plain_ways[i]);
            x[i] = plain_norm(plain, x[i], plain->T * heads[i], E, scale, NULL);
        }
        if (i < 2) {
            plain_rotary(plain, x[i], heads[i]);
        }
    }
    snprintf(name, sizeof name, "layers.%d.attention.wo", l);
    return plain_linear(plain, plain_scores(plain, x[0], x[1], x[2]), H * E, D, bias, name);
}

static inline double *plain_ffn(struct plain *plain, int l, const double *x)
{
    const struct model_config *c = plain->config;
    bool pythia = c->model_type == MODEL_MUDDPYTHIA, bias = c->use_linear_bias;
    int64_t D = c->dim, F = c->intermediate_size;
    char name[PARAM_NAME];
    if (c->ffn_scale_with_layer) {
        double width = (double)F * ((double)l / (double)(c->n_layer - 1) + 0.5);
        F = 128 * llrint(width / 128); /* ties to the even one */
    }
    snprintf(name, sizeof name, "layers.%d.feed_forward.w1", l);
    double *inner = plain_linear(plain, x, D, F, bias, name), *gate = NULL;
    if (!pythia) {
        snprintf(name, sizeof name, "layers.%d.feed_forward.w3", l);
        gate = plain_linear(plain, x, D, F, bias, name);
    }
    for (int64_t i = 0; i < plain->T * F; i++) {
        inner[i] = pythia ? plain_gelu(plain, inner[i]) : inner[i] / (1 + exp(-inner[i])) * gate[i];
    }
    snprintf(name, sizeof name, "layers.%d.feed_forward.w2", l);
    return plain_linear(plain, inner, F, D, bias, name);
}

#endif
