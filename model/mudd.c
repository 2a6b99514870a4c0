/* mudd.c - the depth aggregate of one consumer: weights from the newest key, mixing, and its gradients.
 *
 *     A_i = GELU(RMSNorm(X_i) W1^T) W2^T + a_i,   xbar_i^c = sum_j A_i[c, j] X_j
 *
 * With post-norms the ways are X_i + xbar_i^c, or X_i + RMSNorm(xbar_i^c) for those that have one.
 * Backward of the aggregate itself is dA and the generator's path into X_i; what reaches the other keys
 * is gathered when their gradient is formed (key_gradient.c).
 */
#include "model/model_internal.h"

/* X_i itself, which makes the weights: not its normed key. */
static const void *generator_input(const struct part *part, const struct unit_shape *shape,
                                   int frame)
{
    return part_key(part, frame, model_raw_key(part->model, shape->consumer->layer));
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

/* Ways from aggregates: X_i added, after the post-norm where there is one. */
static void add_newest(struct part *part, const struct unit_shape *shape, int frame,
                       struct mudd_stash *stash)
{
    const struct kernels *kernels = part->kernels;
    const struct model *model = part->model;
    const void *newest = part_key(part, frame, model_raw_key(model, shape->consumer->layer));
    struct norm_shape norm = generator_norm(part, shape);
    for (size_t c = 0; c < shape->C; c++) {
        if (shape->post[c]) {
            kernels->norm_forward(
                &part->ctx, &norm, stash->formed[c], NULL, stash->post_rstd[c], stash->mixed[c],
                unit_weight(part, shape->consumer->unit, PARAM_POSTNORM, 0), NULL);
        }
        kernels->add(&part->ctx, stash->formed[c], newest, stash->formed[c], shape->N * shape->D);
    }
}

/* Ways that do not read a key have no weight for it. */
static void mask_weights(const struct part *part, const struct unit_shape *shape, float *weights)
{
    if (shape->consumer->mask) {
        part->kernels->scale_columns(&part->ctx, weights,
                                     part->mask[shape->consumer->unit - part->first_unit], shape->N,
                                     shape->C * shape->n);
    }
}

static void norm_newest(const struct part *part, const struct unit_shape *shape, int frame,
                        struct mudd_stash *stash)
{
    struct norm_shape norm = generator_norm(part, shape);
    part->kernels->norm_forward(
        &part->ctx, &norm, stash->normed, NULL, stash->rstd, generator_input(part, shape, frame),
        unit_weight(part, shape->consumer->unit, PARAM_DENSE_NORM, 0), NULL);
}

static void generate(struct part *part, const struct unit_shape *shape, int frame,
                     struct mudd_stash *stash)
{
    const struct kernels *kernels = part->kernels;
    int unit = shape->consumer->unit;
    norm_newest(part, shape, frame, stash);
    kernels->linear_forward(&part->ctx, stash->inner, stash->normed,
                            unit_weight(part, unit, PARAM_DENSE_W1, 0), NULL, shape->N, shape->D,
                            shape->K);
    kernels->gelu_forward(&part->ctx, stash->hidden, stash->inner, shape->N * shape->K);
    kernels->mudd_weights_forward(
        &part->ctx, stash->weights, stash->hidden, unit_weight(part, unit, PARAM_DENSE_W2, 0),
        unit_weight(part, unit, PARAM_DENSE_B, 0), shape->N, shape->K, shape->C * shape->n);
    mask_weights(part, shape, stash->weights);
}

static void mix(struct part *part, const struct unit_shape *shape, int frame,
                struct mudd_stash *stash)
{
    const void *key[shape->n];
    keys_of(part, shape, frame, key);
    part->kernels->mudd_forward(&part->ctx, stash->mixed, key, stash->weights,
                                unit_weight(part, shape->consumer->unit, PARAM_DENSE_B, 0),
                                shape->N, shape->D, shape->C, shape->n);
    if (shape->plus) {
        add_newest(part, shape, frame, stash);
    }
}

void mudd_forward(struct part *part, const struct unit_shape *shape, int frame,
                  struct mudd_stash *stash)
{
    if (shape->K > 0) {
        generate(part, shape, frame, stash);
    }
    mix(part, shape, frame, stash);
}

void mudd_form_again(struct part *part, const struct unit_shape *shape, int frame,
                     struct mudd_stash *stash)
{
    if (shape->K > 0) {
        norm_newest(part, shape, frame, stash);
    }
    mix(part, shape, frame, stash);
}

const void *mixed_gradient(const struct part *part, const struct unit_shape *shape, int unit,
                           size_t c)
{
    return shape->post[c] ? part_back(part, unit)->dmixed[c]
                          : way_gradient(part, shape, unit, shape->consumer->way[c]);
}

/* Through the c-th way's post-norm. */
static void unpost(struct part *part, const struct unit_shape *shape, int unit, int frame, size_t c)
{
    if (!shape->post[c]) {
        return;
    }
    const struct mudd_stash *stash = &part_again(part, unit, frame)->mudd;
    struct backward *back = part_back(part, unit);
    struct norm_shape norm = generator_norm(part, shape);
    part->kernels->norm_backward(&part->ctx, &norm, back->dmixed[c], false, back->dpost_scale[c],
                                 NULL, way_gradient(part, shape, unit, shape->consumer->way[c]),
                                 stash->mixed[c], NULL, stash->post_rstd[c],
                                 unit_weight(part, unit, PARAM_POSTNORM, 0));
}

void mudd_backward(struct part *part, const struct unit_shape *shape, int unit, int frame)
{
    const struct kernels *kernels = part->kernels;
    const struct mudd_stash *stash = &part_again(part, unit, frame)->mudd;
    struct backward *back = part_back(part, unit);
    const void *key[shape->n], *dout[WAYS_MAX];
    keys_of(part, shape, frame, key);
    for (size_t c = 0; c < shape->C; c++) {
        unpost(part, shape, unit, frame, c);
        dout[c] = mixed_gradient(part, shape, unit, c);
    }
    kernels->mudd_backward_weights(&part->ctx, back->dweights, dout, key, shape->N, shape->D,
                                   shape->C, shape->n);
    mask_weights(part, shape, back->dweights);
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
    kernels->norm_backward(&part->ctx, &norm, back->dgenerator, false, back->dgenerator_scale, NULL,
                           back->dgenerator, generator_input(part, shape, frame), NULL, stash->rstd,
                           unit_weight(part, unit, PARAM_DENSE_NORM, 0));
}

void mudd_weight_gradient(struct part *part, const struct unit_shape *shape, int unit, int frame)
{
    const struct kernels *kernels = part->kernels;
    const struct mudd_stash *stash = &part_again(part, unit, frame)->mudd;
    const struct backward *back = part_back(part, unit);
    kernels->mudd_weights_backward_weight(&part->ctx, unit_gradient(part, unit, PARAM_DENSE_W2, 0),
                                          unit_gradient(part, unit, PARAM_DENSE_B, 0),
                                          back->dweights, stash->hidden, shape->N, shape->K,
                                          shape->C * shape->n);
    for (size_t c = 0; c < shape->C; c++) {
        if (shape->post[c]) {
            kernels->accumulate_f32(&part->ctx, unit_gradient(part, unit, PARAM_POSTNORM, 0),
                                    back->dpost_scale[c], shape->D);
        }
    }
    if (back->dgenerator_scale) {
        kernels->accumulate_f32(&part->ctx, unit_gradient(part, unit, PARAM_DENSE_NORM, 0),
                                back->dgenerator_scale, shape->D);
    }
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
        int newest = shape->layer - 1;
        return part_key(part, frame, model_raw_key(part->model, newest));
    }
    const struct mudd_stash *stash = &part_stash(part, unit, frame)->mudd;
    for (size_t c = 0; c < shape->C; c++) {
        if (shape->consumer->way[c] == way) {
            return stash->formed[c];
        }
    }
    return stash->formed[0]; /* one way feeds all */
}

const void *way_gradient(const struct part *part, const struct unit_shape *shape, int unit, int way)
{
    const struct backward *back = part_back(part, unit);
    bool whole = shape->consumer && shape->consumer->shared;
    if (whole || shape->kind == UNIT_HEAD) {
        return back->dinput[0]; /* of the one tensor that feeds everything */
    }
    if (way == WAY_R && back->dresidual) {
        return back->dresidual;
    }
    if (way == WAY_R) {
        return part->key_gradient[model_mid_key(part->model, shape->layer)];
    }
    return back->dinput[way];
}
