/* mudd.c - the depth aggregate of one consumer: weights from the newest key, mixing, and its gradients.
 *
 *     A_i = GELU(RMSNorm(X_i) W1^T) W2^T + a_i,   xbar_i^c = sum_j A_i[c, j] X_j
 *
 * Backward of the aggregate itself is dA and the generator's path into X_i; what reaches the other keys
 * is gathered when their gradient is formed (key_gradient.c).
 */
#include "model/model_internal.h"

static int newest_key(const struct unit_shape *shape)
{
    return shape->consumer->key[shape->n - 1];
}

static void keys_of(const struct part *part, const struct unit_shape *shape, int frame,
                    const void **out)
{
    for (size_t j = 0; j < shape->n; j++) {
        out[j] = part_key(part, frame, shape->consumer->key[j]);
    }
}

static struct norm_shape generator_norm(const struct part *part, const struct unit_shape *shape)
{
    return (struct norm_shape){NORM_RMS, shape->N, shape->D, (float)part->model->config.norm_eps};
}

void mudd_forward(struct part *part, const struct unit_shape *shape, int frame,
                  struct mudd_stash *stash)
{
    const struct kernels *kernels = part->kernels;
    int unit = shape->consumer->unit;
    const float *bias = unit_weight(part, unit, PARAM_DENSE_B, 0);
    const void *key[shape->n];
    keys_of(part, shape, frame, key);
    if (shape->K > 0) {
        struct norm_shape norm = generator_norm(part, shape);
        kernels->norm_forward(&part->ctx, &norm, stash->normed, NULL, stash->rstd,
                              key[shape->n - 1], NULL, NULL);
        kernels->linear_forward(&part->ctx, stash->inner, stash->normed,
                                unit_weight(part, unit, PARAM_DENSE_W1, 0), NULL, shape->N,
                                shape->D, shape->K);
        kernels->gelu_forward(&part->ctx, stash->hidden, stash->inner, shape->N * shape->K);
        kernels->mudd_weights_forward(&part->ctx, stash->weights, stash->hidden,
                                      unit_weight(part, unit, PARAM_DENSE_W2, 0), bias, shape->N,
                                      shape->K, shape->C * shape->n);
    }
    kernels->mudd_forward(&part->ctx, stash->mixed, key, stash->weights, bias, shape->N, shape->D,
                          shape->C, shape->n);
}

void mudd_backward(struct part *part, const struct unit_shape *shape, int unit, int frame)
{
    const struct kernels *kernels = part->kernels;
    const struct mudd_stash *stash = &part_stash(part, unit, frame)->mudd;
    struct backward *back = part_back(part, unit);
    const void *key[shape->n], *dout[WAYS_MAX];
    keys_of(part, shape, frame, key);
    for (size_t c = 0; c < shape->C; c++) {
        dout[c] = way_gradient(part, shape, unit, shape->consumer->way[c]);
    }
    kernels->mudd_backward_weights(&part->ctx, back->dweights, dout, key, shape->N, shape->D,
                                   shape->C, shape->n);
    if (shape->K == 0) {
        return;
    }
    struct norm_shape norm = generator_norm(part, shape);
    kernels->mudd_weights_backward_input(&part->ctx, back->dinner, back->dweights,
                                         unit_weight(part, unit, PARAM_DENSE_W2, 0), shape->N,
                                         shape->K, shape->C * shape->n);
    kernels->gelu_backward(&part->ctx, back->dinner, back->dinner, stash->inner,
                           shape->N * shape->K);
    kernels->linear_backward_input(&part->ctx, back->dgenerator, false, back->dinner,
                                   unit_weight(part, unit, PARAM_DENSE_W1, 0), shape->N, shape->D,
                                   shape->K);
    kernels->norm_backward(&part->ctx, &norm, back->dgenerator, false, NULL, NULL,
                           back->dgenerator, part_key(part, frame, newest_key(shape)), NULL,
                           stash->rstd, NULL);
}

void mudd_weight_gradient(struct part *part, const struct unit_shape *shape, int unit, int frame)
{
    const struct kernels *kernels = part->kernels;
    const struct mudd_stash *stash = &part_stash(part, unit, frame)->mudd;
    const struct backward *back = part_back(part, unit);
    kernels->mudd_weights_backward_weight(
        &part->ctx, unit_gradient(part, unit, PARAM_DENSE_W2, 0),
        unit_gradient(part, unit, PARAM_DENSE_B, 0), back->dweights, stash->hidden, shape->N,
        shape->K, shape->C * shape->n);
    if (shape->K > 0) {
        kernels->linear_backward_weight(&part->ctx, unit_gradient(part, unit, PARAM_DENSE_W1, 0),
                                        NULL, back->dinner, stash->normed, shape->N, shape->D,
                                        shape->K);
    }
}

bool way_mixed(const struct unit_shape *shape, int way)
{
    if (!shape->consumer || !shape->consumer->exists) {
        return false;
    }
    for (size_t c = 0; c < shape->C; c++) {
        if (shape->consumer->shared || shape->consumer->way[c] == way) {
            return true;
        }
    }
    return false;
}

const void *way_input(const struct part *part, const struct unit_shape *shape, int unit, int frame,
                      int way)
{
    if (!way_mixed(shape, way)) {
        int newest = shape->unit->layer - 1;
        return part_key(part, frame, model_hidden_key(part->model, newest));
    }
    const struct mudd_stash *stash = &part_stash(part, unit, frame)->mudd;
    for (size_t c = 0; c < shape->C; c++) {
        if (shape->consumer->way[c] == way) {
            return stash->mixed[c];
        }
    }
    return stash->mixed[0]; /* one way feeds all */
}

const void *way_gradient(const struct part *part, const struct unit_shape *shape, int unit, int way)
{
    const struct backward *back = part_back(part, unit);
    bool whole = shape->consumer && shape->consumer->shared;
    if (whole || shape->unit->kind == UNIT_HEAD) {
        return back->dinput[0]; /* of the one tensor that feeds everything */
    }
    if (way == WAY_R) {
        return part->key_gradient[model_mid_key(part->model, shape->unit->layer)];
    }
    return back->dinput[way];
}
