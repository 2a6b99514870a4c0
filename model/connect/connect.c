/* connect.c - the list of connectors. */
#include "model/connect/connect.h"

#include <stdio.h>

const struct connector *connector_find(const struct model_config *config)
{
    static const struct connector *const dense[] = {
        [DENSE_QKVR] = &mudd_connector,
        [DENSE_L] = &mudd_connector,
        [DENSE_DEPTH_ATTENTION] = &depth_attention_connector,
        [DENSE_HYPER] = &hyper_connector,
    };
    return config->dense ? dense[config->dense_type] : &residual_connector;
}

void connect_set_key(struct model *model, int key, const char *letter, int index, int producer,
                     int order)
{
    struct key *out = &model->graph.key[key];
    int64_t bytes = model->rows * model->config.dim * (int64_t)dtype_size(model->dtype);
    *out = (struct key){
        .producer = producer, .order = order, .plain = true, .bytes = bytes, .plain_bytes = bytes};
    snprintf(out->name, sizeof out->name, "%s_%d", letter, index);
}

void connect_flops(const struct model *model, int unit, struct connect_flops *out)
{
    *out = (struct connect_flops){0};
    if (model->connector->flops) {
        model->connector->flops(model, unit, out);
    }
}

void connect_limits(const struct model *model, int unit, struct kernel_limits *out)
{
    if (model->connector->limits) {
        model->connector->limits(model, unit, out);
    }
}

const float *connect_constants(const struct model *model, int unit, size_t *out_count)
{
    *out_count = 0;
    return model->connector->constants ? model->connector->constants(model, unit, out_count) : NULL;
}

void connect_stash_layout(const struct layout *layout, struct stash *out)
{
    if (layout->model->connector->stash_layout) {
        layout->model->connector->stash_layout(layout, out);
    }
}

void connect_stash_view(const struct model *model, const struct backward *backward,
                        struct stash *stash)
{
    if (model->connector->stash_view) {
        model->connector->stash_view(backward, stash);
    }
}

void connect_forward(struct part *part, int unit, int frame, struct stash *stash)
{
    if (part->model->connector->forward) {
        part->model->connector->forward(part, unit, frame, stash);
    }
}

void connect_recompute(struct part *part, int unit, int frame, struct stash *stash)
{
    if (part->model->connector->recompute) {
        part->model->connector->recompute(part, unit, frame, stash);
    }
}

const void *connect_input(const struct part *part, int unit, int frame, int way)
{
    return part->model->connector->input(part, unit, frame, way);
}

void connect_output(struct part *part, int unit, int frame)
{
    part->model->connector->output(part, unit, frame);
}

const void *connect_output_gradient(const struct part *part, int unit)
{
    const void *gradient = part->model->connector->output_gradient(part, unit);
    CHECK(gradient, "the gradient of unit %d's output has no place", unit);
    return gradient;
}

void connect_output_backward(struct part *part, int unit, int frame)
{
    if (part->model->connector->output_backward) {
        part->model->connector->output_backward(part, unit, frame);
    }
}

void *connect_input_gradient(struct part *part, int unit, int way, bool *out_accumulate)
{
    return part->model->connector->input_gradient(part, unit, way, out_accumulate);
}

void connect_backward(struct part *part, int unit, int frame)
{
    if (part->model->connector->backward) {
        part->model->connector->backward(part, unit, frame);
    }
}

void connect_weight_gradient(struct part *part, int unit, int frame)
{
    if (part->model->connector->weight_gradient) {
        part->model->connector->weight_gradient(part, unit, frame);
    }
}
