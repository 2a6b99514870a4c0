/* unit.c - forward, backward and weight gradients of any unit: one switch each. */
#include "model/connect/connect.h"

void part_forward(struct part *part, int unit, int frame, float loss_scale, double *out_loss)
{
    const struct model *model = part->model;
    const int32_t *inputs = part->frame[frame].inputs;
    switch (unit_shape(model, unit)->kind) {
    case UNIT_EMBED:
        CHECK(inputs, "frame %d has no input tokens", frame);
        part->kernels->embed_forward(&part->ctx, part_stash(part, unit, frame)->out,
                                     unit_weight(part, unit, PARAM_EMBED, 0), inputs,
                                     (size_t)(model->B * model->T), (size_t)model->config.dim);
        connect_output(part, unit, frame);
        break;
    case UNIT_ATTENTION:
        attention_forward(part, unit, frame);
        break;
    case UNIT_FFN:
        ffn_forward(part, unit, frame);
        break;
    case UNIT_HEAD:
        head_forward(part, unit, frame, loss_scale, out_loss);
        break;
    }
}

void part_backward(struct part *part, int unit, int frame)
{
    CHECK(!part->forward_only, "backward after forwards that have none");
    if (part->model->recompute == RECOMPUTE_FULL) {
        CHECK(part->open < 0, "B of unit %d before W of unit %d", unit, part->open);
        part->open = unit;
    }
    switch (unit_shape(part->model, unit)->kind) {
    case UNIT_EMBED: /* tokens have no gradient */
        break;
    case UNIT_ATTENTION:
        attention_backward(part, unit, frame);
        break;
    case UNIT_FFN:
        ffn_backward(part, unit, frame);
        break;
    case UNIT_HEAD:
        head_backward(part, unit, frame);
        break;
    }
}

void part_weight_gradient(struct part *part, int unit, int frame)
{
    const struct model *model = part->model;
    CHECK(model->recompute != RECOMPUTE_FULL || part->open == unit,
          "W of unit %d does not follow its B", unit);
    part->open = -1;
    switch (unit_shape(model, unit)->kind) {
    case UNIT_EMBED:
        part->kernels->embed_backward(&part->ctx, unit_gradient(part, unit, PARAM_EMBED, 0),
                                      connect_output_gradient(part, unit),
                                      part->frame[frame].inputs, (size_t)(model->B * model->T),
                                      (size_t)model->config.dim);
        connect_weight_gradient(part, unit, frame);
        break;
    case UNIT_ATTENTION:
        attention_weight_gradient(part, unit, frame);
        break;
    case UNIT_FFN:
        ffn_weight_gradient(part, unit, frame);
        break;
    case UNIT_HEAD:
        head_weight_gradient(part, unit, frame);
        break;
    }
}

void part_key_gradient(struct part *part, int key, int frame, const struct add *adds, int count)
{
    for (int a = 1; a < count; a++) {
        CHECK(adds[a].read != ADD_RECEIVED, "a received sum comes first");
    }
    part->model->connector->add_gradient(part, key, frame, adds, count);
}
