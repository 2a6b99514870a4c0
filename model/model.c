/* model.c - from a configuration to tables. */
#include "model/model.h"

#include <stdio.h>
#include <stdlib.h>

#include "model/connect/connect.h"
#include "model/cost.h"
#include "model/tp.h"

static void fill_units(struct model *model)
{
    static const char *const name[] = {"embed", "attn", "ffn", "head"};
    for (int u = 0; u < model->graph.units; u++) {
        const struct unit_shape *shape = unit_shape(model, u);
        struct unit *out = &model->graph.unit[u];
        bool layer = shape->kind == UNIT_ATTENTION || shape->kind == UNIT_FFN;
        out->layer = layer ? shape->layer : 0;
        out->may_start = true;
        snprintf(out->name, sizeof out->name, layer ? "%s %d" : "%s", name[shape->kind],
                 shape->layer);
    }
}

/* Constant generators read float32 weights, of which a share has its own alone in bf16. */
static status_t check_use(const struct model_config *config, const struct model_use *use)
{
    bool constant = config->dense && !config->dynamic_dense &&
                    (config->dense_type == DENSE_QKVR || config->dense_type == DENSE_L);
    if (use->shares > 1 && use->dtype != DTYPE_F32 && constant) {
        return FAIL(
            STATUS_UNSUPPORTED,
            "dynamic_dense is false: constant weights of the dense connections are kept whole "
            "in float32, which replicas in bf16 do not; use precision=float32, or parallel.dp=1");
    }
    return STATUS_OK;
}

status_t model_create(const struct model_config *config, const struct model_use *use,
                      struct model **out)
{
    TRY(check_use(config, use));
    TRY(tp_check(config, use));
    status_t status = STATUS_OK;
    int L = (int)config->n_layer;
    struct model *model = calloc(1, sizeof *model);
    if (!model) {
        return FAIL(STATUS_NOMEM, "no memory for the model's tables");
    }
    model->config = *config;
    model->B = use->B;
    model->T = use->T;
    model->tp = use->tp > 0 ? use->tp : 1;
    model->split_rows = model->tp > 1 && !use->tp_replicate;
    model->rows = use->B * use->T / (model->split_rows ? model->tp : 1);
    model->dtype = use->dtype;
    model->recompute = use->recompute;
    model->weights_at_once = use->weights_at_once;
    model->shares = use->shares > 0 ? use->shares : 1;
    model->connector = connector_find(config);
    if (model->connector->create) {
        TRY_GOTO(model->connector->create(model), destroy_model);
    }
    TRY_GOTO(graph_init(&model->graph, 2 * L + 2, model->connector->keys(model)), destroy_model);
    TRY_GOTO(shapes_fill(model), destroy_model);
    fill_units(model);
    TRY_GOTO(model->connector->fill_graph(model), destroy_model);
    graph_finish(&model->graph);
    TRY_GOTO(params_fill(model), destroy_model);
    TRY_GOTO(cost_fill(model), destroy_model);
    *out = model;
    return STATUS_OK;

destroy_model:
    model_destroy(model);
    return status;
}

void model_destroy(struct model *model)
{
    if (!model) {
        return;
    }
    if (model->connector->destroy) {
        model->connector->destroy(model);
    }
    graph_fini(&model->graph);
    free(model->shape);
    free(model->param);
    free(model->unit_param);
    free(model);
}
