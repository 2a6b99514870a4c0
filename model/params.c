/* params.c - the parameter table: official names, shapes, owners, initial values, decay. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "model/model_internal.h"

/* A growing table; room for everything is had at once. */
struct builder {
    struct model *model;
    int unit, layer;
};

enum { PARAMS_PER_UNIT = 32 };

static struct param *add(struct builder *builder, enum param_role role, int64_t rows,
                         int64_t columns, enum param_init init, double std, const char *format, ...)
    __attribute__((format(printf, 7, 8)));

/* columns 0 = a vector. */
static struct param *add(struct builder *builder, enum param_role role, int64_t rows,
                         int64_t columns, enum param_init init, double std, const char *format, ...)
{
    struct model *model = builder->model;
    struct param *param = &model->param[model->params++];
    memset(param, 0, sizeof *param);
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(param->name, sizeof param->name, format, arguments);
    va_end(arguments);
    CHECK(length > 0 && (size_t)length < sizeof param->name, "parameter name too long");
    param->stream = rng_stream(param->name);
    param->role = role;
    param->unit = builder->unit;
    param->layer = builder->layer;
    param->dims = columns > 0 ? 2 : 1;
    param->shape[0] = rows;
    param->shape[1] = columns > 0 ? columns : 1;
    param->count = rows * param->shape[1];
    param->init = init;
    param->init_std = std;
    param->decay = param->dims > 1 && role != PARAM_DENSE_B;
    param->trained = true;
    return param;
}

/* Biases have one dimension, start at 0 and do not decay. */
static void add_bias(struct builder *builder, enum param_role role, int64_t width, const char *name)
{
    add(builder, role, width, 0, INIT_ZERO, 0, "layers.%d.%s.bias", builder->layer - 1, name)
        ->bias = true;
}

/* Variance 2 / (in + out). */
static void add_linear(struct builder *builder, enum param_role role, int64_t out, int64_t in,
                       const char *name)
{
    double std = sqrt(2.0 / (double)(in + out));
    add(builder, role, out, in, INIT_NORMAL, std, "layers.%d.%s.weight", builder->layer - 1, name);
    if (builder->model->config.use_linear_bias) {
        add_bias(builder, role, out, name);
    }
}

static void add_norm_bias(struct builder *builder, enum param_role role, const char *name,
                          int index)
{
    struct param *last = &builder->model->param[builder->model->params - 1];
    last->index = index;
    if (builder->model->config.model_type == MODEL_MUDDPYTHIA) {
        add_bias(builder, role, last->shape[0], name);
        builder->model->param[builder->model->params - 1].index = index;
    }
}

static struct param *add_norm(struct builder *builder, enum param_role role, int64_t width,
                              const char *name)
{
    return add(builder, role, width, 0, INIT_ONE, 0, "layers.%d.%s.weight", builder->layer - 1,
               name);
}

/* Parameters of consumer i; without dense connections the official modules still carry dense_bs. */
static void add_consumer(struct builder *builder, int i)
{
    const struct model_config *config = &builder->model->config;
    const struct consumer *consumer = &builder->model->consumer[i];
    if (!config->dense) {
        int ways = i == config->n_layer || config->dense_type == DENSE_L ? 1 : WAYS_MAX;
        add(builder, PARAM_DENSE_B, ways, i + 1, INIT_LAST_COLUMN, 0, "dense_bs.%d", i - 1)
            ->trained = false;
        return;
    }
    if (!consumer->exists) {
        return;
    }
    bool both = config->mudd_prenorm && config->mudd_postnorm;
    add(builder, PARAM_DENSE_B, consumer->ways, consumer->n, both ? INIT_ZERO : INIT_LAST_COLUMN, 0,
        "dense_bs.%d", i - 1);
    if (consumer->inner > 0) {
        if (config->mudd_prenorm) {
            add(builder, PARAM_DENSE_NORM, config->dim, 0, INIT_ONE, 0,
                "dynamic_dense.%d.norm.weight", i - 1);
        }
        add(builder, PARAM_DENSE_W1, consumer->inner, config->dim, INIT_NORMAL,
            1.0 / sqrt((double)config->dim), "dynamic_dense.%d.w1.weight", i - 1);
        add(builder, PARAM_DENSE_W2, (int64_t)consumer->ways * consumer->n, consumer->inner,
            INIT_ZERO, 0, "dynamic_dense.%d.w2.weight", i - 1);
    }
    if (config->mudd_postnorm) {
        add(builder, PARAM_POSTNORM, config->dim, 0, INIT_SMALL, 0, "mudd_postnorms.%d.weight",
            i - 1);
    }
}

static void add_attention(struct builder *builder)
{
    const struct unit_shape *shape = unit_shape(builder->model, builder->unit);
    int64_t D = (int64_t)shape->D, E = (int64_t)shape->E;
    int64_t query = (int64_t)shape->H * E, key = (int64_t)shape->G * E;
    if (builder->layer > 1) {
        add_consumer(builder, builder->layer - 1);
    }
    if (shape->fused) {
        add_linear(builder, PARAM_WQKV, query + 2 * key, D, "attention.wqkv");
    } else {
        add_linear(builder, PARAM_WQ, query, D, "attention.wq");
        add_linear(builder, PARAM_WK, key, D, "attention.wk");
        add_linear(builder, PARAM_WV, key, D, "attention.wv");
    }
    add_linear(builder, PARAM_WO, D, query, "attention.wo");
    if (shape->qk_norm) {
        add_norm(builder, PARAM_Q_NORM, E, "attention.q_norm");
        add_norm(builder, PARAM_K_NORM, E, "attention.k_norm");
    }
    if (shape->separate_norms) {
        for (int c = 0; c < INPUTS; c++) {
            char name[32];
            snprintf(name, sizeof name, "attention_norms.%d", c);
            add_norm(builder, PARAM_ATTN_NORM, D, name);
            add_norm_bias(builder, PARAM_ATTN_NORM, name, c);
        }
    } else {
        add_norm(builder, PARAM_ATTN_NORM, D, "attention_norm");
        add_norm_bias(builder, PARAM_ATTN_NORM, "attention_norm", 0);
    }
}

/* Of the key that the embedding or this layer makes. */
static void add_prenorm(struct builder *builder)
{
    if (model_prenorm(builder->model)) {
        add(builder, PARAM_PRENORM, builder->model->config.dim, 0, INIT_ONE, 0,
            "mudd_prenorms.%d.weight", builder->layer);
    }
}

static void add_ffn(struct builder *builder)
{
    int64_t D = builder->model->config.dim;
    int64_t F = model_ffn_width(&builder->model->config, builder->layer);
    add_linear(builder, PARAM_W1, F, D, "feed_forward.w1");
    if (builder->model->config.model_type == MODEL_MUDDFORMER) {
        add_linear(builder, PARAM_W3, F, D, "feed_forward.w3");
    }
    add_linear(builder, PARAM_W2, D, F, "feed_forward.w2");
    add_norm(builder, PARAM_FFN_NORM, D, "ffn_norm");
    add_norm_bias(builder, PARAM_FFN_NORM, "ffn_norm", 0);
    add_prenorm(builder);
}

static void add_head(struct builder *builder)
{
    const struct model_config *config = &builder->model->config;
    add_consumer(builder, (int)config->n_layer);
    add(builder, PARAM_FINAL_NORM, config->dim, 0, INIT_ONE, 0, "norm.weight");
    if (config->model_type == MODEL_MUDDPYTHIA) {
        add(builder, PARAM_FINAL_NORM, config->dim, 0, INIT_ZERO, 0, "norm.bias")->bias = true;
    }
    add(builder, PARAM_OUTPUT, config->vocab_size, config->dim, INIT_NORMAL, 0.02, "output.weight");
}

status_t params_fill(struct model *model)
{
    int units = model->graph.units;
    model->param = calloc((size_t)units * PARAMS_PER_UNIT, sizeof *model->param);
    model->unit_param = calloc((size_t)units + 1, sizeof *model->unit_param);
    if (!model->param || !model->unit_param) {
        return FAIL(STATUS_NOMEM, "no memory for the parameter table of %d units", units);
    }
    for (int u = 0; u < units; u++) {
        struct builder builder = {model, u, unit_shape(model, u)->layer};
        model->unit_param[u] = model->params;
        switch (unit_shape(model, u)->kind) {
        case UNIT_EMBED:
            add(&builder, PARAM_EMBED, model->config.vocab_size, model->config.dim, INIT_NORMAL,
                0.02, "tok_embeddings.weight");
            add_prenorm(&builder);
            break;
        case UNIT_ATTENTION:
            add_attention(&builder);
            break;
        case UNIT_FFN:
            add_ffn(&builder);
            break;
        case UNIT_HEAD:
            add_head(&builder);
            break;
        }
    }
    model->unit_param[units] = model->params;
    return STATUS_OK;
}

int64_t model_parameter_count(const struct model *model)
{
    int64_t count = 0;
    for (int p = 0; p < model->params; p++) {
        count += model->param[p].trained ? model->param[p].count : 0;
    }
    return count;
}

const struct param *model_find_param(const struct model *model, const char *name)
{
    for (int p = 0; p < model->params; p++) {
        if (strcmp(model->param[p].name, name) == 0) {
            return &model->param[p];
        }
    }
    return NULL;
}

float param_initial(const struct param *param, uint64_t seed, int64_t index)
{
    switch (param->init) {
    case INIT_ZERO:
        return 0.0f;
    case INIT_ONE:
        return 1.0f;
    case INIT_SMALL:
        return 1e-3f;
    case INIT_LAST_COLUMN:
        return index % param->shape[1] == param->shape[1] - 1 ? 1.0f : 0.0f;
    case INIT_NORMAL:
        return (float)(param->init_std * rng_normal(seed, param->stream, (uint64_t)index));
    }
    return 0.0f;
}
