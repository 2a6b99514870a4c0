/* params.c - the parameter table: official names, shapes, owners, initial values, decay. */
#include "model/params.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "model/connect/connect.h"

enum { PARAMS_PER_UNIT = 32 };

struct param *param_add(struct param_list *list, int role, int64_t rows, int64_t columns,
                        enum param_init init, double value, const char *format, ...)
{
    struct model *model = list->model;
    struct param *param = &model->param[model->params++];
    memset(param, 0, sizeof *param);
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(param->name, sizeof param->name, format, arguments);
    va_end(arguments);
    CHECK(length > 0 && (size_t)length < sizeof param->name, "parameter name too long");
    param->stream = rng_stream(param->name);
    param->role = role;
    param->unit = list->unit;
    param->layer = list->layer;
    param->dims = columns > 0 ? 2 : 1;
    param->shape[0] = rows;
    param->shape[1] = columns > 0 ? columns : 1;
    param->count = rows * param->shape[1];
    param->init = init;
    param->init_value = value;
    param->decay = param->dims > 1;
    param->trained = true;
    return param;
}

/* Biases have one dimension, start at 0 and do not decay. */
static void add_bias(struct param_list *list, int role, int64_t width, const char *name)
{
    param_add(list, role, width, 0, INIT_ZERO, 0, "layers.%d.%s.bias", list->layer - 1, name)
        ->bias = true;
}

/* Variance 2 / (in + out). */
static void add_linear(struct param_list *list, int role, int64_t out, int64_t in, const char *name)
{
    double std = sqrt(2.0 / (double)(in + out));
    param_add(list, role, out, in, INIT_NORMAL, std, "layers.%d.%s.weight", list->layer - 1, name);
    if (list->model->config.use_linear_bias) {
        add_bias(list, role, out, name);
    }
}

static void add_norm_bias(struct param_list *list, int role, const char *name, int index)
{
    struct param *last = &list->model->param[list->model->params - 1];
    last->index = index;
    if (list->model->config.model_type == MODEL_MUDDPYTHIA) {
        add_bias(list, role, last->shape[0], name);
        list->model->param[list->model->params - 1].index = index;
    }
}

static struct param *add_norm(struct param_list *list, int role, int64_t width, const char *name)
{
    return param_add(list, role, width, 0, INIT_ONE, 0, "layers.%d.%s.weight", list->layer - 1,
                     name);
}

static void add_attention(struct param_list *list)
{
    const struct unit_shape *shape = unit_shape(list->model, list->unit);
    int64_t D = (int64_t)shape->D, E = (int64_t)shape->E;
    int64_t query = (int64_t)shape->H * E, key = (int64_t)shape->G * E;
    if (shape->fused) {
        add_linear(list, PARAM_WQKV, query + 2 * key, D, "attention.wqkv");
    } else {
        add_linear(list, PARAM_WQ, query, D, "attention.wq");
        add_linear(list, PARAM_WK, key, D, "attention.wk");
        add_linear(list, PARAM_WV, key, D, "attention.wv");
    }
    add_linear(list, PARAM_WO, D, query, "attention.wo");
    if (shape->qk_norm) {
        add_norm(list, PARAM_Q_NORM, E, "attention.q_norm");
        add_norm(list, PARAM_K_NORM, E, "attention.k_norm");
    }
    if (shape->separate_norms) {
        for (int c = 0; c < INPUTS; c++) {
            char name[32];
            snprintf(name, sizeof name, "attention_norms.%d", c);
            add_norm(list, PARAM_ATTN_NORM, D, name);
            add_norm_bias(list, PARAM_ATTN_NORM, name, c);
        }
    } else {
        add_norm(list, PARAM_ATTN_NORM, D, "attention_norm");
        add_norm_bias(list, PARAM_ATTN_NORM, "attention_norm", 0);
    }
}

static void add_ffn(struct param_list *list)
{
    int64_t D = list->model->config.dim;
    int64_t F = model_ffn_width(&list->model->config, list->layer);
    add_linear(list, PARAM_W1, F, D, "feed_forward.w1");
    if (list->model->config.model_type == MODEL_MUDDFORMER) {
        add_linear(list, PARAM_W3, F, D, "feed_forward.w3");
    }
    add_linear(list, PARAM_W2, D, F, "feed_forward.w2");
    add_norm(list, PARAM_FFN_NORM, D, "ffn_norm");
    add_norm_bias(list, PARAM_FFN_NORM, "ffn_norm", 0);
}

static void add_head(struct param_list *list)
{
    const struct model_config *config = &list->model->config;
    param_add(list, PARAM_FINAL_NORM, config->dim, 0, INIT_ONE, 0, "norm.weight");
    if (config->model_type == MODEL_MUDDPYTHIA) {
        param_add(list, PARAM_FINAL_NORM, config->dim, 0, INIT_ZERO, 0, "norm.bias")->bias = true;
    }
    param_add(list, PARAM_OUTPUT, config->vocab_size, config->dim, INIT_NORMAL, 0.02,
              "output.weight");
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
        struct param_list list = {model, u, unit_shape(model, u)->layer};
        model->unit_param[u] = model->params;
        model->connector->params(&list);
        switch (unit_shape(model, u)->kind) {
        case UNIT_EMBED:
            param_add(&list, PARAM_EMBED, model->config.vocab_size, model->config.dim, INIT_NORMAL,
                      0.02, "tok_embeddings.weight");
            break;
        case UNIT_ATTENTION:
            add_attention(&list);
            break;
        case UNIT_FFN:
            add_ffn(&list);
            break;
        case UNIT_HEAD:
            add_head(&list);
            break;
        }
    }
    model->unit_param[units] = model->params;
    return STATUS_OK;
}

int unit_param(const struct model *model, int unit, int role, int index, bool bias)
{
    for (int p = model->unit_param[unit]; p < model->unit_param[unit + 1]; p++) {
        const struct param *param = &model->param[p];
        if (param->role == role && param->index == index && param->bias == bias) {
            return p;
        }
    }
    return -1;
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
    case INIT_VALUE:
        return (float)param->init_value;
    case INIT_DIAGONAL:
        return index / param->shape[1] == index % param->shape[1] ? (float)param->init_value : 0.0f;
    case INIT_ELEMENT:
        return index == (int64_t)param->init_value ? 1.0f : 0.0f;
    case INIT_NORMAL:
        return (float)(param->init_value * rng_normal(seed, param->stream, (uint64_t)index));
    }
    return 0.0f;
}
