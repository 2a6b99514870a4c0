/* cost.c - what a unit costs: shapes, bytes (by the layouts themselves) and FLOPs.
 *
 * FLOPs of a matrix product are 2 * rows * inner * columns. Attention counts the causal half:
 * forward 2 products of B * H * T * T/2 * E each; backward five such products. The aggregate counts
 * 2 * N * D per way and key: once forward, once for dA, once for the key gradients.
 */
#include <stdlib.h>
#include <string.h>

#include "model/model_internal.h"

const struct unit_shape *unit_shape(const struct model *model, int unit)
{
    return &model->shape[unit];
}

static void shape_fill(const struct model *model, int unit, struct unit_shape *out)
{
    const struct model_config *config = &model->config;
    int L = (int)config->n_layer, layer = (unit + 1) / 2;
    memset(out, 0, sizeof *out);
    out->kind = unit == 0           ? UNIT_EMBED
                : unit == 2 * L + 1 ? UNIT_HEAD
                : unit % 2 == 1     ? UNIT_ATTENTION
                                    : UNIT_FFN;
    out->layer = layer;
    out->B = (size_t)model->B;
    out->T = (size_t)model->T;
    out->N = out->B * out->T;
    out->D = (size_t)config->dim;
    out->H = (size_t)config->n_head;
    out->G = (size_t)config->n_local_heads;
    out->E = (size_t)config->head_dim;
    out->V = (size_t)config->vocab_size;
    if (out->kind == UNIT_FFN) {
        out->F = (size_t)model_ffn_width(config, layer);
    }
    if (out->kind == UNIT_HEAD || (out->kind == UNIT_ATTENTION && layer > 1)) {
        out->consumer = &model->consumer[layer - 1];
        if (out->consumer->exists) {
            out->C = (size_t)out->consumer->ways;
            out->n = (size_t)out->consumer->n;
            out->K = (size_t)out->consumer->inner;
        }
    }
    out->fused = !config->dense || config->dense_type == DENSE_L;
    out->qk_norm = config->use_qk_norm;
    bool pythia = config->model_type == MODEL_MUDDPYTHIA;
    out->norm = pythia ? NORM_LAYER : NORM_RMS;
    out->gelu = pythia;
    out->bias = config->use_linear_bias;
    out->parallel = config->use_parallel_residual;
    out->R = (size_t)((double)config->head_dim * config->rotary_pct);
    out->plus = model_postnorm(model) && out->C > 0;
    const char *normed = config->mudd_postnorm_ways[0] ? config->mudd_postnorm_ways : "r";
    for (size_t c = 0; out->plus && c < out->C; c++) {
        out->post[c] = strchr(normed, "qkvr"[out->consumer->way[c]]) != NULL;
    }
    out->separate_norms = !out->fused && config->sepln && layer > 1;
    bool one_source =
        layer == 1 || !out->consumer || !out->consumer->exists || out->consumer->shared;
    out->shared_input = out->kind == UNIT_HEAD || (one_source && !out->separate_norms);
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
        out->K = shape->K > out->K ? shape->K : out->K;
        out->Cn = shape->C * shape->n > out->Cn ? shape->C * shape->n : out->Cn;
    }
}

/* One multiply-add per element counted as two FLOPs. */
static double mudd_flops(const struct unit_shape *shape)
{
    return 2.0 * (double)(shape->N * shape->D) * (double)(shape->C * shape->n);
}

static double generator_flops(const struct unit_shape *shape)
{
    return 2.0 * (double)shape->N * (double)shape->K * (double)(shape->D + shape->C * shape->n);
}

static void unit_flops(const struct unit_shape *shape, struct unit *unit)
{
    double N = (double)shape->N, D = (double)shape->D;
    double query = (double)(shape->H * shape->E), key = (double)(shape->G * shape->E);
    double linear = 0, scores = 0;
    switch (shape->kind) {
    case UNIT_EMBED:
        unit->forward_cost = unit->weight_cost = N * D; /* a copy and an addition */
        return;
    case UNIT_ATTENTION:
        linear = 2.0 * N * D * (2.0 * query + 2.0 * key);
        scores = (double)shape->B * query * (double)shape->T * (double)shape->T; /* one product */
        break;
    case UNIT_FFN:
        linear = (shape->gelu ? 4.0 : 6.0) * N * D * (double)shape->F;
        break;
    case UNIT_HEAD: /* its input and weight gradients belong to the forward */
        linear = 2.0 * N * D * (double)shape->V;
        unit->forward_cost = 3.0 * linear + mudd_flops(shape) + generator_flops(shape);
        unit->backward_cost = 2.0 * mudd_flops(shape) + generator_flops(shape);
        unit->weight_cost = generator_flops(shape);
        return;
    }
    unit->forward_cost = linear + 2.0 * scores + mudd_flops(shape) + generator_flops(shape);
    unit->backward_cost = linear + 5.0 * scores + 2.0 * mudd_flops(shape) + generator_flops(shape);
    unit->weight_cost = linear + generator_flops(shape);
}

/* What B forms again. Norms, rotations and activations count nothing here as elsewhere. */
static double again_flops(enum recompute_choice recompute, const struct unit_shape *shape,
                          const struct unit *unit)
{
    double last = 0; /* product of the forward that gives the key, which is kept */
    double N = (double)shape->N, D = (double)shape->D;
    switch (shape->kind) {
    case UNIT_EMBED:
        return 0;
    case UNIT_ATTENTION:
        last = 2.0 * N * D * (double)(shape->H * shape->E);
        break;
    case UNIT_FFN:
        last = 2.0 * N * D * (double)shape->F;
        break;
    case UNIT_HEAD:
        return recompute == RECOMPUTE_NONE   ? 0
               : recompute == RECOMPUTE_FULL ? mudd_flops(shape) + generator_flops(shape)
                                             : mudd_flops(shape);
    }
    return recompute == RECOMPUTE_NONE   ? 0
           : recompute == RECOMPUTE_FULL ? unit->forward_cost - last
                                         : mudd_flops(shape);
}

status_t cost_fill(struct model *model)
{
    for (int u = 0; u < model->graph.units; u++) {
        struct unit *unit = &model->graph.unit[u];
        const struct unit_shape *shape = unit_shape(model, u);
        unit_flops(shape, unit);
        unit->backward_cost += again_flops(model->recompute, shape, unit);
        for (int p = model->unit_param[u]; p < model->unit_param[u + 1]; p++) {
            int64_t room = (int64_t)param_room(model, p), single = (int64_t)sizeof(float);
            unit->parameter_bytes += room * (int64_t)dtype_size(model->dtype);
            unit->master_bytes += model->dtype == DTYPE_F32 ? 0 : room * single;
            unit->gradient_bytes += room * single;
        }
        unit_measure(model, u, true, &unit->training);
        unit_measure(model, u, false, &unit->evaluation);
    }
    return STATUS_OK;
}

static bool is_dense(const struct param *param)
{
    switch (param->role) {
    case PARAM_DENSE_B:
    case PARAM_DENSE_W1:
    case PARAM_DENSE_W2:
    case PARAM_DENSE_NORM:
    case PARAM_PRENORM:
    case PARAM_POSTNORM:
        return true;
    default:
        return false;
    }
}

void model_dense_cost(const struct model *model, struct model_dense_cost *out)
{
    memset(out, 0, sizeof *out);
    for (int p = 0; p < model->params; p++) {
        const struct param *param = &model->param[p];
        enum unit_kind kind = unit_shape(model, param->unit)->kind;
        if (param->trained && is_dense(param)) {
            out->parameters += param->count;
        } else if (param->trained && (kind == UNIT_ATTENTION || kind == UNIT_FFN)) {
            out->layer_parameters += param->count;
        }
    }
    for (int u = 0; u < model->graph.units; u++) {
        const struct unit_shape *shape = unit_shape(model, u);
        double dense = mudd_flops(shape) + generator_flops(shape);
        out->flops += dense;
        if (shape->kind == UNIT_ATTENTION || shape->kind == UNIT_FFN) {
            out->layer_flops += model->graph.unit[u].forward_cost - dense;
        }
    }
}
