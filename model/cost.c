/* cost.c - what a unit costs: shapes, bytes (by the layouts themselves) and FLOPs.
 *
 * FLOPs of a matrix product are 2 * rows * inner * columns. Attention counts the causal half:
 * forward 2 products of B * H * T * T/2 * E each; backward five such products. What connectors cost they
 * say themselves. With tensor parallelism all of it is what one part does.
 */
#include "model/cost.h"

#include <string.h>

#include "model/connect/connect.h"

static void unit_flops(const struct unit_shape *shape, const struct connect_flops *connect,
                       struct unit *unit)
{
    double N = (double)shape->tokens, D = (double)shape->D;
    double query = (double)(shape->H * shape->E), key = (double)(shape->G * shape->E);
    double linear = 0, scores = 0;
    switch (shape->kind) {
    case UNIT_EMBED:
        unit->forward_cost = unit->weight_cost = N * D; /* a copy and an addition */
        unit->backward_cost = 0;
        return;
    case UNIT_ATTENTION:
        linear = 2.0 * N * D * (2.0 * query + 2.0 * key);
        scores = (double)shape->B * query * (double)shape->T * (double)shape->T; /* one product */
        break;
    case UNIT_FFN:
        linear = (shape->gelu ? 4.0 : 6.0) * N * D * (double)shape->F;
        break;
    case UNIT_HEAD: /* B makes the logits */
        linear = 2.0 * N * D * (double)shape->V;
        unit->forward_cost = connect->forward;
        unit->backward_cost = 2.0 * linear + connect->backward;
        unit->weight_cost = linear + connect->weight;
        return;
    }
    unit->forward_cost = linear + 2.0 * scores + connect->forward;
    unit->backward_cost = linear + 5.0 * scores + connect->backward;
    unit->weight_cost = linear + connect->weight;
}

/* What B forms again. Norms, rotations and activations count nothing here as elsewhere. */
static double recomputed_flops(enum recompute_choice recompute, const struct unit_shape *shape,
                               const struct connect_flops *connect, const struct unit *unit)
{
    double kept = 0; /* the product of the forward that gives the output */
    double N = (double)shape->tokens, D = (double)shape->D;
    if (recompute != RECOMPUTE_FULL || shape->kind == UNIT_EMBED) {
        return recompute == RECOMPUTE_SELECTIVE ? connect->selective : 0;
    }
    switch (shape->kind) {
    case UNIT_ATTENTION:
        kept = 2.0 * N * D * (double)(shape->H * shape->E);
        break;
    case UNIT_FFN:
        kept = 2.0 * N * D * (double)shape->F;
        break;
    case UNIT_EMBED:
    case UNIT_HEAD:
        return connect->forward;
    }
    return unit->forward_cost - kept;
}

status_t cost_fill(struct model *model)
{
    for (int u = 0; u < model->graph.units; u++) {
        struct unit *unit = &model->graph.unit[u];
        const struct unit_shape *shape = unit_shape(model, u);
        struct connect_flops connect;
        connect_flops(model, u, &connect);
        unit_flops(shape, &connect, unit);
        unit->backward_cost += recomputed_flops(model->recompute, shape, &connect, unit);
        unit->parameter_bytes = (int64_t)(store_unit_room(model, u) * dtype_size(model->dtype));
        unit->gradient_bytes = (int64_t)(store_unit_room(model, u) * sizeof(float));
        unit->moment_bytes = (int64_t)(store_share_room(model, u) * sizeof(float));
        unit->master_bytes = model->dtype == DTYPE_F32 ? 0 : unit->moment_bytes;
        unit_measure(model, u, true, &unit->training);
        unit_measure(model, u, false, &unit->evaluation);
    }
    return STATUS_OK;
}

void model_dense_cost(const struct model *model, struct model_dense_cost *out)
{
    memset(out, 0, sizeof *out);
    for (int p = 0; p < model->params; p++) {
        const struct param *param = &model->param[p];
        enum unit_kind kind = unit_shape(model, param->unit)->kind;
        if (param->trained && param->role >= PARAM_CONNECT) {
            out->parameters += param->count;
        } else if (param->trained && (kind == UNIT_ATTENTION || kind == UNIT_FFN)) {
            out->layer_parameters += param->count;
        }
    }
    for (int u = 0; u < model->graph.units; u++) {
        const struct unit_shape *shape = unit_shape(model, u);
        struct connect_flops connect;
        connect_flops(model, u, &connect);
        out->flops += connect.forward;
        if (shape->kind == UNIT_ATTENTION || shape->kind == UNIT_FFN) {
            out->layer_flops += model->graph.unit[u].forward_cost - connect.forward;
        }
    }
}
