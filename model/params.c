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
    param->count = param->local = rows * param->shape[1];
    param->init = init;
    param->init_value = value;
    param->decay = param->dims > 1;
    param->trained = true;
    return param;
}

/* Parts of tensor parallelism have so much of it; sections of SPLIT_OUT: all rows alike, if there is one. */
static void set_split(const struct param_list *list, struct param *param, enum param_split split)
{
    param->split = split;
    param->section[0] = param->shape[0];
    int64_t tp = list->model->tp, out = param->shape[0];
    param->local = split == SPLIT_NONE  ? param->count
                   : split == SPLIT_OUT ? (out + tp - 1) / tp * param->shape[1]
                                        : param->count / tp;
}

/* Where rows are divided each part forms its rows' share of the gradient of whatever it has whole. What a unit does with
 * all rows it does with its heads, or (a bias of its output) in the first part alone. */
static void find_summed(struct model *model)
{
    for (int p = 0; p < model->params && model->tp > 1; p++) {
        struct param *param = &model->param[p];
        bool of_heads = param->role == PARAM_Q_NORM || param->role == PARAM_K_NORM;
        bool of_output = param->bias && (param->role == PARAM_WO || param->role == PARAM_W2);
        param->summed = param->split == SPLIT_NONE && (model->split_rows || of_heads || of_output);
    }
}

/* Biases have one dimension, start at 0 and do not decay. */
static struct param *add_bias(struct param_list *list, int role, int64_t width, const char *name)
{
    struct param *param =
        param_add(list, role, width, 0, INIT_ZERO, 0, "layers.%d.%s.bias", list->layer - 1, name);
    param->bias = true;
    return param;
}

/* Variance 2 / (in + out). A bias of outputs that are divided is divided like them; one that is added to a sum over
 * inputs is whole. */
static struct param *add_linear(struct param_list *list, int role, int64_t out, int64_t in,
                                enum param_split split, const char *name)
{
    double std = sqrt(2.0 / (double)(in + out));
    struct param *weight = param_add(list, role, out, in, INIT_NORMAL, std, "layers.%d.%s.weight",
                                     list->layer - 1, name);
    set_split(list, weight, split);
    if (list->model->config.use_linear_bias) {
        set_split(list, add_bias(list, role, out, name),
                  split == SPLIT_OUT ? SPLIT_OUT : SPLIT_NONE);
    }
    return weight;
}

/* Query, key and value rows of a fused weight and its bias are divided each on its own. */
static void set_fused_sections(struct param *weight, bool bias, int64_t query, int64_t key)
{
    for (int i = 0; i <= (int)bias; i++) {
        weight[i].section[0] = query;
        weight[i].section[1] = weight[i].section[2] = key;
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
    const struct model_config *config = &list->model->config;
    int64_t query = config->n_head * E, key = config->n_local_heads * E;
    if (shape->fused) {
        struct param *weight =
            add_linear(list, PARAM_WQKV, query + 2 * key, D, SPLIT_OUT, "attention.wqkv");
        set_fused_sections(weight, config->use_linear_bias, query, key);
    } else {
        add_linear(list, PARAM_WQ, query, D, SPLIT_OUT, "attention.wq");
        add_linear(list, PARAM_WK, key, D, SPLIT_OUT, "attention.wk");
        add_linear(list, PARAM_WV, key, D, SPLIT_OUT, "attention.wv");
    }
    add_linear(list, PARAM_WO, D, query, SPLIT_IN, "attention.wo");
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
    add_linear(list, PARAM_W1, F, D, SPLIT_OUT, "feed_forward.w1");
    if (list->model->config.model_type == MODEL_MUDDFORMER) {
        add_linear(list, PARAM_W3, F, D, SPLIT_OUT, "feed_forward.w3");
    }
    add_linear(list, PARAM_W2, D, F, SPLIT_IN, "feed_forward.w2");
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
    set_split(list,
              param_add(list, PARAM_OUTPUT, config->vocab_size, config->dim, INIT_NORMAL, 0.02,
                        "output.weight"),
              SPLIT_OUT);
}

static void add_embedding(struct param_list *list)
{
    const struct model_config *config = &list->model->config;
    set_split(list,
              param_add(list, PARAM_EMBED, config->vocab_size, config->dim, INIT_NORMAL, 0.02,
                        "tok_embeddings.weight"),
              SPLIT_OUT);
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
            add_embedding(&list);
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
    find_summed(model);
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
