/* plain_model.h - the second forward, continued: layers, aggregates, loss. */
#ifndef TESTS_RUNTIME_PLAIN_MODEL_H
#define TESTS_RUNTIME_PLAIN_MODEL_H

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
    bool fused = !c->dense || c->dense_type == DENSE_L, bias = c->use_linear_bias;
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

/* X_i from the four inputs of layer i. */
static inline double *plain_layer(struct plain *plain, int i, double *const in[4])
{
    const struct model_config *c = plain->config;
    bool one = i == 1 || !c->dense || c->dense_type == DENSE_L || !c->sepln;
    int l = i - 1; /* names count from 0 */
    double *normed[3];
    char name[PARAM_NAME];
    for (int w = 0; w < 3; w++) {
        snprintf(name, sizeof name, "layers.%d.attention_norms.%d", l, w);
        if (one) {
            snprintf(name, sizeof name, "layers.%d.attention_norm", l);
        }
        normed[w] = plain_family_norm(plain, in[w], name);
    }
    double *h = plain_sum(plain, plain_attention(plain, l, normed), in[WAY_R]);
    bool parallel = c->use_parallel_residual && plain->mistake != MISTAKE_PARALLEL;
    snprintf(name, sizeof name, "layers.%d.ffn_norm", l);
    double *x = plain_family_norm(plain, parallel ? in[WAY_R] : h, name);
    return plain_sum(plain, plain_ffn(plain, l, x), h);
}

/* A_i [T, C n] */
static inline double *plain_mixture(struct plain *plain, int i, const struct plain_reads *reads,
                                    double *const x[], double *const keys[])
{
    const struct model_config *c = plain->config;
    int64_t count = (int64_t)strlen(reads->ways) * reads->n, D = c->dim, K = count;
    const double *constant = plain_weight(plain, count, "dense_bs.%d", i - 1), *scale = NULL;
    double *a = plain_take(plain, plain->T * count);
    char name[PARAM_NAME];
    if (c->dynamic_dense) {
        const double *source = plain->mistake == MISTAKE_GENERATOR ? keys[i] : x[i];
        K *= i == c->n_layer && c->expand_last ? 4 : 1;
        K = c->round64 ? (K / 64 + 1) * 64 : K;
        K = c->dense_pattern.inner > 0 ? c->dense_pattern.inner : K;
        if (c->mudd_prenorm) {
            scale = plain_weight(plain, D, "dynamic_dense.%d.norm.weight", i - 1);
        }
        double *inner = plain_norm(plain, source, plain->T, D, scale, NULL);
        snprintf(name, sizeof name, "dynamic_dense.%d.w1", i - 1);
        inner = plain_linear(plain, inner, D, K, false, name);
        for (int64_t e = 0; e < plain->T * K; e++) {
            inner[e] = plain_gelu(plain, inner[e]);
        }
        snprintf(name, sizeof name, "dynamic_dense.%d.w2", i - 1);
        a = plain_linear(plain, inner, K, count, false, name);
    }
    for (int64_t e = 0; e < plain->T * count; e++) {
        a[e] += constant[e % count];
    }
    return a;
}

/* The inputs of what follows layer i; `keys` [PLAIN_MEAN + blocks]. */
static inline void plain_consumer(struct plain *plain, int i, double *const x[],
                                  double *const keys[], double *in[4])
{
    const struct model_config *c = plain->config;
    int64_t D = c->dim;
    struct plain_reads reads;
    const char *normed = c->mudd_postnorm_ways[0] == '\0' ? "r" : c->mudd_postnorm_ways;
    for (int w = 0; w < 4; w++) {
        in[w] = x[i];
    }
    if (!plain_reads(plain, i, &reads)) {
        return;
    }
    int64_t n = reads.n, C = (int64_t)strlen(reads.ways);
    const double *a = plain_mixture(plain, i, &reads, x, keys);
    for (int64_t f = 0; f < C; f++) {
        int way = (int)(strchr(plain_ways, reads.ways[f]) - plain_ways);
        double *mixed = plain_take(plain, plain->T * D);
        for (int64_t j = 0; j < n; j++) {
            int64_t from = plain->mistake == MISTAKE_COLUMNS && n > 1 && j < 2 ? 1 - j : j;
            for (int64_t e = 0; e < plain->T * D && reads.reads[way][j]; e++) {
                mixed[e] += a[e / D * C * n + f * n + from] * keys[reads.column[j]][e];
            }
        }
        if (c->mudd_postnorm) {
            const double *scale = plain_weight(plain, D, "mudd_postnorms.%d.weight", i - 1);
            if (strchr(normed, reads.ways[f]) != NULL) {
                mixed = plain_norm(plain, mixed, plain->T, D, scale, NULL);
            }
            mixed = plain_sum(plain, x[i], mixed);
        }
        in[way] = mixed;
    }
    if (plain->mistake == MISTAKE_WAYS) {
        double *k = in[WAY_K];
        in[WAY_K] = in[WAY_V];
        in[WAY_V] = k;
    }
    for (int w = 0; w < 4 && c->dense_type == DENSE_L; w++) {
        in[w] = in[WAY_R];
    }
}

/* The key of X_j, and the mean of the block that it completes. */
static inline void plain_key(struct plain *plain, int j, double *const x[], double *keys[])
{
    const struct model_config *c = plain->config;
    int S = (int)c->dense_pattern.block_size;
    keys[j] = x[j];
    if (c->dense && c->mudd_prenorm) {
        const double *scale = plain_weight(plain, c->dim, "mudd_prenorms.%d.weight", j);
        keys[j] = plain_norm(plain, x[j], plain->T, c->dim, scale, NULL);
    }
    if (S > 0 && j > 0 && j % S == 0) {
        double *mean = plain_take(plain, plain->T * c->dim);
        for (int b = j - S + 1; b <= j; b++) {
            for (int64_t e = 0; e < plain->T * c->dim; e++) {
                mean[e] += keys[b][e] / S;
            }
        }
        keys[PLAIN_MEAN + j / S - 1] = mean;
    }
}

/* Sum over the tokens of one sequence of -log p(target). */
static inline double plain_sequence(struct plain *plain, const int32_t *inputs,
                                    const int32_t *targets, const int32_t *first)
{
    const struct model_config *c = plain->config;
    int64_t D = c->dim, V = c->vocab_size;
    const double *embedding = plain_weight(plain, V * D, "tok_embeddings.weight");
    double *x[PLAIN_KEYS], *keys[PLAIN_MEAN + PLAIN_KEYS], *in[4], loss = 0;
    assert_true(c->n_layer < PLAIN_KEYS);
    plain->taken = 0;
    plain->first = first;
    x[0] = plain_take(plain, plain->T * D);
    for (int64_t e = 0; e < plain->T * D; e++) {
        x[0][e] = embedding[inputs[e / D] * D + e % D];
    }
    plain_key(plain, 0, x, keys);
    for (int w = 0; w < 4; w++) {
        in[w] = x[0];
    }
    for (int i = 1; i <= c->n_layer; i++) {
        x[i] = plain_layer(plain, i, in);
        plain_key(plain, i, x, keys);
        plain_consumer(plain, i, x, keys, in);
    }
    double *last = plain_family_norm(plain, in[WAY_R], "norm");
    double *logits = plain_linear(plain, last, D, V, false, "output");
    for (int64_t t = 0; t < plain->T; t++) {
        double sum = 0;
        for (int64_t v = 0; v < V; v++) {
            sum += exp(logits[t * V + v]);
        }
        loss += log(sum) - logits[t * V + targets[t]];
    }
    return loss;
}

/* Mean over so many sequences. */
static inline double plain_loss(struct plain *plain, int64_t sequences, const int32_t *inputs,
                                const int32_t *targets, const int32_t *first)
{
    double loss = 0;
    for (int64_t s = 0; s < sequences; s++) {
        int64_t at = s * plain->T;
        loss += plain_sequence(plain, inputs + at, targets + at, first == NULL ? NULL : first + at);
    }
    return loss / (double)(sequences * plain->T);
}

#endif
