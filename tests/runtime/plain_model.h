/* plain_model.h - the second forward, continued: layers, MUDD's aggregates, loss. */
#ifndef TESTS_RUNTIME_PLAIN_MODEL_H
#define TESTS_RUNTIME_PLAIN_MODEL_H

#include "plain_connect.h"

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
    bool depth = c->dense && c->dense_type == DENSE_DEPTH_ATTENTION;
    bool hyper = c->dense && c->dense_type == DENSE_HYPER;
    in[WAY_R] = depth ? plain_depth(plain, x[0]) : hyper ? plain_hyper(plain, x[0]) : x[0];
    for (int i = 1; i <= c->n_layer && !depth && !hyper; i++) {
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
