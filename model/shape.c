/* shape.c - the shapes of units, and the largest of them. */
#include "model/shape.h"

#include <stdlib.h>
#include <string.h>

#include "model/connect/connect.h"

const struct unit_shape *unit_shape(const struct model *model, int unit)
{
    return &model->shape[unit];
}

/* Units alternate: embedding, then attention and FFN of each layer, then the head. */
static enum unit_kind unit_kind_of(const struct model *model, int unit)
{
    if (unit == 0 || unit == model->graph.units - 1) {
        return unit == 0 ? UNIT_EMBED : UNIT_HEAD;
    }
    return unit % 2 == 1 ? UNIT_ATTENTION : UNIT_FFN;
}

static void shape_fill(const struct model *model, int unit, struct unit_shape *out)
{
    const struct model_config *config = &model->config;
    bool pythia = config->model_type == MODEL_MUDDPYTHIA;
    size_t tp = (size_t)model->tp;
    memset(out, 0, sizeof *out);
    out->kind = unit_kind_of(model, unit);
    out->layer = (unit + 1) / 2;
    out->B = (size_t)model->B;
    out->T = (size_t)model->T;
    out->tokens = out->B * out->T;
    out->N = (size_t)model->rows;
    out->D = (size_t)config->dim;
    out->H = (size_t)config->n_head / tp;
    out->G = (size_t)config->n_local_heads / tp;
    out->E = (size_t)config->head_dim;
    out->V = ((size_t)config->vocab_size + tp - 1) / tp;
    out->F = out->kind == UNIT_FFN ? (size_t)model_ffn_width(config, out->layer) / tp : 0;
    out->R = (size_t)((double)config->head_dim * config->rotary_pct);
    out->fused = !config->dense || config->dense_type != DENSE_QKVR;
    out->qk_norm = config->use_qk_norm;
    out->norm = pythia ? NORM_LAYER : NORM_RMS;
    out->gelu = pythia;
    out->bias = config->use_linear_bias;
    out->parallel = config->use_parallel_residual;
    out->separate_norms = !out->fused && config->sepln && out->layer > 1;
    bool one_input = model->connector->inputs(model, unit) == 1;
    out->shared_input = out->kind == UNIT_HEAD || (one_input && !out->separate_norms);
}

status_t shapes_fill(struct model *model)
{
    model->shape = calloc((size_t)model->graph.units, sizeof *model->shape);
    if (!model->shape) {
        return FAIL(STATUS_NOMEM, "no memory for the shapes of %d units", model->graph.units);
    }
    for (int u = 0; u < model->graph.units; u++) {
        shape_fill(model, u, &model->shape[u]);
    }
    return STATUS_OK;
}

void model_limits(const struct model *model, int threads, struct kernel_limits *out)
{
    memset(out, 0, sizeof *out);
    out->threads = threads;
    for (int u = 0; u < model->graph.units; u++) {
        const struct unit_shape *shape = unit_shape(model, u);
        out->B = shape->B;
        out->T = shape->T;
        out->D = shape->D;
        out->H = shape->H;
        out->G = shape->G;
        out->E = shape->E;
        out->V = shape->V;
        out->F = shape->F > out->F ? shape->F : out->F;
        connect_limits(model, u, out);
    }
}
