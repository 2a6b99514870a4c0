/* product.c - what a layer makes of its output X_j for others: the normed key (PrePostNorm) and, at the
 * end of a block, the mean of the block's keys.
 */
#include "model/model_internal.h"

static struct norm_shape prenorm(const struct part *part, const struct unit_shape *shape)
{
    return (struct norm_shape){NORM_RMS, shape->N, shape->D, (float)part->model->config.norm_eps};
}

/* Layers of the block that `layer` ends, ascending, added up and divided. */
static void form_mean(struct part *part, const struct unit_shape *shape, int frame, void *out)
{
    const struct kernels *kernels = part->kernels;
    int S = (int)part->model->config.dense_pattern.block_size, last = shape->layer;
    size_t count = shape->N * shape->D;
    void *sum = part->scratch[0];
    for (int j = last - S + 1; j <= last; j++) {
        const void *key = part_key(part, frame, model_hidden_key(part->model, j));
        if (j == last - S + 1) {
            kernels->copy(&part->ctx, sum, key, count);
        } else {
            kernels->add(&part->ctx, sum, sum, key, count);
        }
    }
    kernels->zero(&part->ctx, out, count * dtype_size(part->model->dtype));
    kernels->scale_add(&part->ctx, out, sum, 1.0f / (float)S, count);
}

void products_forward(struct part *part, int unit, int frame)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    struct stash *stash = part_stash(part, unit, frame);
    if (stash->key_normed) {
        struct norm_shape norm = prenorm(part, shape);
        part->kernels->norm_forward(&part->ctx, &norm, stash->key_normed, NULL, stash->key_rstd,
                                    stash->out, unit_weight(part, unit, PARAM_PRENORM, 0), NULL);
    }
    if (stash->summary) {
        form_mean(part, shape, frame, stash->summary);
    }
}

/* dX_j (+)= the path through its norm. */
void products_norm_backward(struct part *part, int unit, int frame, void *dkey, bool accumulate,
                            const void *dnormed)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    const struct stash *stash = part_stash(part, unit, frame);
    struct norm_shape norm = prenorm(part, shape);
    part->kernels->norm_backward(&part->ctx, &norm, dkey, accumulate,
                                 part_back(part, unit)->dkey_scale, NULL, dnormed, stash->out, NULL,
                                 stash->key_rstd, unit_weight(part, unit, PARAM_PRENORM, 0));
}

void products_weight_gradient(struct part *part, int unit)
{
    const struct backward *back = part_back(part, unit);
    if (back->dkey_scale) {
        part->kernels->accumulate_f32(&part->ctx, unit_gradient(part, unit, PARAM_PRENORM, 0),
                                      back->dkey_scale, (size_t)part->model->config.dim);
    }
}
