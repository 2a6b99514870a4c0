/* plain.h - the forward of docs/model.md a second time, written from that page and nothing else: in
 * double, one sequence after the other, with loops that follow the formulas. Slow: the measure of
 * what the program computes. Letters as on that page. A `mistake` makes it wrong on purpose.
 */
#ifndef TESTS_RUNTIME_PLAIN_H
#define TESTS_RUNTIME_PLAIN_H

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/test.h"

#include "model/model.h"

enum { PLAIN_POOL = 1 << 20, PLAIN_KEYS = 16, PLAIN_MEAN = 100 };
static const char plain_ways[] = "qkvr";

enum mistake {
    MISTAKE_NONE,
    MISTAKE_WAYS,      /* ways k and v change places */
    MISTAKE_COLUMNS,   /* weights of the first two columns change places */
    MISTAKE_GENERATOR, /* the generator reads the normed key, not X_i itself */
    MISTAKE_BLOCK,     /* the last consumer starts a block of its own */
    MISTAKE_HEADS,     /* query head h reads key/value head h mod G */
    MISTAKE_DOCUMENTS, /* attention looks beyond the start of the document */
    MISTAKE_PARALLEL,  /* the FFN reads H_i */
    MISTAKE_SOURCES,   /* the first two sources change places in the mix */
    MISTAKE_STREAMS,   /* the streams' mixing matrix is transposed */
    MISTAKE_ROUNDS,    /* of sinkhorn one alone is made */
    MISTAKE_GELU       /* the tanh that comes close to the exact one */
};

struct plain_tensor {
    const char *name;
    int64_t count;
    double *value;
    bool read; /* by a forward */
};

struct plain {
    const struct model_config *config;
    enum mistake mistake;
    int64_t T;
    const int32_t *first; /* [T] of the sequence at hand, or NULL */
    int tensors;
    struct plain_tensor *tensor; /* in the order of the program's table */
    double *pool;                /* memory of one sequence */
    int64_t taken;
};

static inline void plain_init(struct plain *plain, const struct model *model,
                              const struct part *part, int64_t T)
{
    *plain = (struct plain){.config = &model->config, .T = T, .tensors = model->params};
    plain->tensor = calloc((size_t)model->params, sizeof *plain->tensor);
    plain->pool = calloc(PLAIN_POOL, sizeof *plain->pool);
    assert_true(plain->tensor != NULL && plain->pool != NULL);
    for (int p = 0; p < model->params; p++) {
        struct plain_tensor *tensor = &plain->tensor[p];
        tensor->name = model->param[p].name;
        tensor->count = model->param[p].count;
        tensor->value = calloc((size_t)tensor->count, sizeof *tensor->value);
        assert_non_null(tensor->value);
        for (int64_t i = 0; i < tensor->count; i++) {
            tensor->value[i] = (double)part_values(part, STORE_WEIGHTS, p)[i];
        }
    }
}

static inline void plain_fini(struct plain *plain)
{
    for (int p = 0; p < plain->tensors; p++) {
        free(plain->tensor[p].value);
    }
    free(plain->tensor);
    free(plain->pool);
}

static inline double *plain_take(struct plain *plain, int64_t count)
{
    double *taken = plain->pool + plain->taken;
    plain->taken += count;
    assert_true(plain->taken <= PLAIN_POOL);
    memset(taken, 0, (size_t)count * sizeof *taken);
    return taken;
}

/* The tensor of this name, which must have this many elements. */
__attribute__((format(printf, 3, 4))) static inline const double *plain_weight(struct plain *plain,
                                                                               int64_t count,
                                                                               const char *format,
                                                                               ...)
{
    char name[PARAM_NAME];
    va_list list;
    va_start(list, format);
    vsnprintf(name, sizeof name, format, list);
    va_end(list);
    for (int p = 0; p < plain->tensors; p++) {
        struct plain_tensor *tensor = &plain->tensor[p];
        if (strcmp(tensor->name, name) == 0) {
            assert_int_equal(tensor->count, count);
            tensor->read = true;
            return tensor->value;
        }
    }
    fail_msg("the model has no %s", name);
    return NULL;
}

/* ---- which keys a consumer reads, in which columns ---- */

struct plain_reads {
    int n;
    int column[PLAIN_KEYS]; /* j of X_j, or PLAIN_MEAN + c: the mean of block c */
    char ways[5];           /* those that are formed */
    bool reads[4][PLAIN_KEYS];
};

/* What dense_pattern.sources says of consumer i: asked[w][j]. */
static inline void plain_sources(const char *text, int i, bool asked[4][PLAIN_KEYS])
{
    while (*text != '\0') {
        char *end;
        long consumer = strtol(text, &end, 10);
        char ways[8] = "qkvr";
        text = end;
        if (*text == ':') {
            size_t length = strcspn(++text, "=");
            snprintf(ways, sizeof ways, "%.*s", (int)length, text);
            text += length;
        }
        do { /* at the = or a comma */
            long key = strtol(text + 1, &end, 10);
            text = end;
            for (int w = 0; w < 4; w++) {
                if (consumer == i && strchr(ways, plain_ways[w]) != NULL) {
                    asked[w][key] = true;
                }
            }
        } while (*text == ',');
        text += *text == ';';
    }
}

static inline void plain_column(struct plain_reads *reads, int key)
{
    if (reads->n == 0 || reads->column[reads->n - 1] != key) {
        reads->column[reads->n++] = key;
    }
}

static inline void plain_blocks(const struct plain *plain, int i, struct plain_reads *reads)
{
    const struct model_config *c = plain->config;
    int L = (int)c->n_layer, S = (int)c->dense_pattern.block_size;
    bool ends = i == L && plain->mistake != MISTAKE_BLOCK;
    int own = ends ? (L - 1) / S : i / S;
    plain_column(reads, 0);
    for (int b = 0; b < own; b++) {
        bool mean = c->dense_pattern.block_summary == SUMMARY_MEAN;
        plain_column(reads, mean ? PLAIN_MEAN + b : (b + 1) * S);
    }
    for (int j = own * S + 1; j <= i; j++) {
        plain_column(reads, j);
    }
    plain_column(reads, i);
}

/* False: consumer i does not exist. */
static inline bool plain_reads(const struct plain *plain, int i, struct plain_reads *reads)
{
    const struct model_config *c = plain->config;
    int L = (int)c->n_layer, k = (int)c->dense_pattern.key_dilation;
    int p = (int)c->dense_pattern.query_period, w = (int)c->dense_pattern.window;
    bool single = i == L || c->dense_type == DENSE_L;
    bool listed = c->dense_pattern.sources[0] != '\0';
    bool asked[4][PLAIN_KEYS] = {{false}};
    int ways = 0;
    *reads = (struct plain_reads){.n = 0};
    if (!c->dense || (i % p != 0 && i != L)) {
        return false;
    }
    plain_sources(c->dense_pattern.sources, i, asked);
    for (int way = 0; way < 4; way++) {
        bool formed = c->dense_ways[0] == '\0' || strchr(c->dense_ways, plain_ways[way]) != NULL;
        bool any = false;
        for (int j = 0; j <= i; j++) {
            any = any || asked[way][j];
        }
        if (single ? way == WAY_R && (!listed || any) : formed && (!listed || any)) {
            reads->ways[ways++] = plain_ways[way];
        }
    }
    if (c->dense_pattern.block_size > 0) {
        plain_blocks(plain, i, reads);
    }
    for (int j = 0; j <= i && c->dense_pattern.block_size == 0; j++) {
        bool fixed = c->dense_pattern.key_residue == RESIDUE_FIXED;
        bool dilated = fixed ? j == 0 || j % k == 0 : j % k == i % k;
        bool near = w == 0 || j == 0 || j > i - w;
        bool any = asked[WAY_Q][j] || asked[WAY_K][j] || asked[WAY_V][j] || asked[WAY_R][j];
        if (j == i || (listed ? any : dilated && near)) {
            plain_column(reads, j);
        }
    }
    for (int way = 0; way < 4; way++) {
        for (int n = 0; n < reads->n; n++) {
            reads->reads[way][n] = !listed || n == reads->n - 1 || asked[way][reads->column[n]];
        }
    }
    return ways > 0;
}

/* ---- pieces ---- */

/* Of each row; with a bias LayerNorm, else RMSNorm. Scale and bias may be NULL. */
static inline double *plain_norm(struct plain *plain, const double *x, int64_t rows, int64_t width,
                                 const double *scale, const double *bias)
{
    double *y = plain_take(plain, rows * width);
    for (int64_t r = 0; r < rows; r++) {
        const double *row = x + r * width;
        double mean = 0, square = 0;
        for (int64_t d = 0; d < width && bias != NULL; d++) {
            mean += row[d] / (double)width;
        }
        for (int64_t d = 0; d < width; d++) {
            square += (row[d] - mean) * (row[d] - mean) / (double)width;
        }
        for (int64_t d = 0; d < width; d++) {
            double normed = (row[d] - mean) / sqrt(square + plain->config->norm_eps);
            normed *= scale == NULL ? 1 : scale[d];
            y[r * width + d] = normed + (bias == NULL ? 0 : bias[d]);
        }
    }
    return y;
}

/* The norm of this name over the model's width, of the kind the family has. */
static inline double *plain_family_norm(struct plain *plain, const double *x, const char *name)
{
    int64_t D = plain->config->dim;
    const double *bias = NULL;
    if (plain->config->model_type == MODEL_MUDDPYTHIA) {
        bias = plain_weight(plain, D, "%s.bias", name);
    }
    return plain_norm(plain, x, plain->T, D, plain_weight(plain, D, "%s.weight", name), bias);
}

static inline double *plain_linear(struct plain *plain, const double *x, int64_t in, int64_t out,
                                   bool biased, const char *name)
{
    const double *weight = plain_weight(plain, in * out, "%s.weight", name);
    const double *bias = biased ? plain_weight(plain, out, "%s.bias", name) : NULL;
    double *y = plain_take(plain, plain->T * out);
    for (int64_t t = 0; t < plain->T; t++) {
        for (int64_t o = 0; o < out; o++) {
            double sum = biased ? bias[o] : 0;
            for (int64_t d = 0; d < in; d++) {
                sum += weight[o * in + d] * x[t * in + d];
            }
            y[t * out + o] = sum;
        }
    }
    return y;
}

static inline double *plain_sum(struct plain *plain, const double *a, const double *b)
{
    int64_t count = plain->T * plain->config->dim;
    double *sum = plain_take(plain, count);
    for (int64_t i = 0; i < count; i++) {
        sum[i] = a[i] + b[i];
    }
    return sum;
}

static inline double plain_gelu(const struct plain *plain, double x)
{
    if (plain->mistake == MISTAKE_GELU) {
        return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    }
    return 0.5 * x * (1 + erf(x / sqrt(2)));
}

#endif
