/* mudd_operations.c - the depth aggregate of one consumer: weights from the newest key, mixing, and its
 * gradients; and the keys that a layer makes of its output.
 *
 * With post-norms the ways are X_i + xbar_i^c, or X_i + RMSNorm(xbar_i^c) for those that have one.
 * Backward of the aggregate itself is dA and the generator's path into X_i; what reaches the other keys
 * is gathered when their gradient is formed (mudd_gradient.c).
 */
#include "model/connect/mudd.h"

/* X_i itself, which makes the weights: not its normed key. */
static const void *mudd_newest(const struct part *part, const struct consumer *consumer, int frame)
{
    return part_read_key(part, frame, mudd_raw_key(part->model, consumer->layer));
}

static void mudd_find_keys(const struct part *part, const struct consumer *consumer, int frame,
                           const void **out)
{
    for (size_t j = 0; j < consumer->n; j++) {
        out[j] = part_read_key(part, frame, consumer->key[j]);
    }
}

/* ---- forward ---- */

/* Ways from aggregates: X_i added, after the post-norm where there is one. */
static void mudd_add_newest(struct part *part, const struct consumer *consumer, int frame,
                            struct mudd_stash *stash)
{
    const struct unit_shape *shape = unit_shape(part->model, consumer->unit);
    const void *newest = mudd_newest(part, consumer, frame);
    struct norm_shape norm = unit_rms_norm(part, shape);
    for (size_t c = 0; c < consumer->C; c++) {
        if (consumer->post[c]) {
            part->kernels->norm_forward(&part->ctx, &norm, stash->formed[c], NULL,
                                        stash->post_rstd[c], stash->mixed[c],
                                        unit_weight(part, consumer->unit, PARAM_POSTNORM, 0), NULL);
        }
        part->kernels->add(&part->ctx, stash->formed[c], newest, stash->formed[c],
                           shape->N * shape->D);
    }
}

/* Ways that do not read a key have no weight for it. */
static void mudd_mask(const struct part *part, const struct consumer *consumer, float *weights)
{
    const float *mask = part_constants(part, consumer->unit);
    if (mask) {
        part->kernels->scale_columns(&part->ctx, weights, mask,
                                     unit_shape(part->model, consumer->unit)->N,
                                     consumer->C * consumer->n);
    }
}

static void mudd_norm_newest(const struct part *part, const struct consumer *consumer, int frame,
                             struct mudd_stash *stash)
{
    struct norm_shape norm = unit_rms_norm(part, unit_shape(part->model, consumer->unit));
    part->kernels->norm_forward(&part->ctx, &norm, stash->normed, NULL, stash->rstd,
                                mudd_newest(part, consumer, frame),
                                unit_weight(part, consumer->unit, PARAM_DENSE_NORM, 0), NULL);
}

static void mudd_generate(struct part *part, const struct consumer *consumer, int frame,
                          struct mudd_stash *stash)
{
    const struct kernels *kernels = part->kernels;
    const struct unit_shape *shape = unit_shape(part->model, consumer->unit);
    int unit = consumer->unit;
    mudd_norm_newest(part, consumer, frame, stash);
    kernels->linear_forward(&part->ctx, stash->inner, stash->normed,
                            unit_weight(part, unit, PARAM_DENSE_W1, 0), NULL, shape->N, shape->D,
                            consumer->K);
    kernels->gelu_forward(&part->ctx, stash->hidden, stash->inner, shape->N * consumer->K);
    kernels->mudd_weights_forward(&part->ctx, stash->weights, stash->hidden,
                                  unit_weight(part, unit, PARAM_DENSE_W2, 0),
                                  unit_weight(part, unit, PARAM_DENSE_B, 0), shape->N, consumer->K,
                                  consumer->C * consumer->n);
    mudd_mask(part, consumer, stash->weights);
}

static void mudd_mix(struct part *part, const struct consumer *consumer, int frame,
                     struct mudd_stash *stash)
{
    const struct unit_shape *shape = unit_shape(part->model, consumer->unit);
    const void *key[consumer->n];
    mudd_find_keys(part, consumer, frame, key);
    part->kernels->mudd_forward(&part->ctx, stash->mixed, key, stash->weights,
                                unit_weight(part, consumer->unit, PARAM_DENSE_B, 0), shape->N,
                                shape->D, consumer->C, consumer->n);
    if (consumer->plus) {
        mudd_add_newest(part, consumer, frame, stash);
    }
}

void mudd_forward(struct part *part, int unit, int frame, struct stash *stash)
{
    const struct consumer *consumer = mudd_consumer(part->model, unit);
    if (consumer && consumer->K > 0) {
        mudd_generate(part, consumer, frame, mudd_stash_of(stash));
    }
    if (consumer) {
        mudd_mix(part, consumer, frame, mudd_stash_of(stash));
    }
}

void mudd_recompute(struct part *part, int unit, int frame, struct stash *stash)
{
    const struct consumer *consumer = mudd_consumer(part->model, unit);
    if (consumer && consumer->K > 0) {
        mudd_norm_newest(part, consumer, frame, mudd_stash_of(stash));
    }
    if (consumer) {
        mudd_mix(part, consumer, frame, mudd_stash_of(stash));
    }
}

bool mudd_way_is_mixed(const struct consumer *consumer, int way)
{
    for (size_t c = 0; consumer && c < consumer->C; c++) {
        if (consumer->shared || consumer->way[c] == way) {
            return true;
        }
    }
    return false;
}

bool mudd_gradient_over_input(const struct model *model, const struct consumer *consumer, int way)
{
    return model->recompute == RECOMPUTE_NONE && consumer && !consumer->shared &&
           mudd_way_is_mixed(consumer, way);
}

static void *mudd_formed(const struct consumer *consumer, int way, const struct stash *of)
{
    const struct mudd_stash *stash = mudd_stash_of(of);
    for (size_t c = 0; c < consumer->C; c++) {
        if (consumer->way[c] == way) {
            return stash->formed[c];
        }
    }
    return stash->formed[0]; /* one way feeds all */
}

/* The tensor that way `way` of an attention or head takes: the aggregate's, or X_i itself. */
static const void *mudd_way(const struct part *part, int unit, int frame, int way,
                            const struct stash *of)
{
    const struct consumer *consumer = mudd_consumer(part->model, unit);
    if (!mudd_way_is_mixed(consumer, way)) {
        int newest = unit_shape(part->model, unit)->layer - 1;
        return part_read_key(part, frame, mudd_raw_key(part->model, newest));
    }
    return mudd_formed(consumer, way, of);
}

/* The attention before a parallel FFN is always on the same stage. */
const void *mudd_input(const struct part *part, int unit, int frame, int way)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    if (shape->kind == UNIT_FFN) {
        return shape->parallel
                   ? mudd_way(part, unit - 1, frame, WAY_R, part_stash(part, unit - 1, frame))
                   : part_read_key(part, frame, residual_mid(part->model, shape->layer));
    }
    return mudd_way(part, unit, frame, shape->kind == UNIT_HEAD ? WAY_R : way,
                    part_view(part, unit, frame));
}

/* ---- the keys of a layer ---- */

/* Layers of the block that `layer` ends, ascending, added up and divided. */
static void mudd_form_mean(struct part *part, const struct unit_shape *shape, int frame, void *out)
{
    const struct kernels *kernels = part->kernels;
    int S = (int)part->model->config.dense_pattern.block_size, last = shape->layer;
    size_t count = shape->N * shape->D;
    void *sum = part->scratch[0];
    for (int j = last - S + 1; j <= last; j++) {
        const void *key = part_read_key(part, frame, j);
        if (j == last - S + 1) {
            kernels->copy(&part->ctx, sum, key, count);
        } else {
            kernels->add(&part->ctx, sum, sum, key, count);
        }
    }
    kernels->zero(&part->ctx, out, count * dtype_size(part->model->dtype));
    kernels->scale_add(&part->ctx, out, sum, 1.0f / (float)S, count);
}

void mudd_output(struct part *part, int unit, int frame)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    const struct stash *stash = part_stash(part, unit, frame);
    const struct mudd_stash *own = mudd_stash_of(stash);
    if (shape->kind == UNIT_ATTENTION) {
        part->kernels->add(&part->ctx, stash->out, stash->out,
                           mudd_way(part, unit, frame, WAY_R, stash), shape->N * shape->D);
    } else if (shape->kind == UNIT_FFN) {
        residual_add_mid_output(part, unit, frame);
    }
    if (own->key_normed) {
        struct norm_shape norm = unit_rms_norm(part, shape);
        part->kernels->norm_forward(&part->ctx, &norm, own->key_normed, NULL, own->key_rstd,
                                    stash->out, unit_weight(part, unit, PARAM_PRENORM, 0), NULL);
    }
    if (own->summary) {
        mudd_form_mean(part, shape, frame, own->summary);
    }
}

void mudd_norm_gradient(struct part *part, int unit, int frame, void *dkey, bool accumulate,
                        const void *dnormed)
{
    const struct stash *stash = part_stash(part, unit, frame);
    struct norm_shape norm = unit_rms_norm(part, unit_shape(part->model, unit));
    part->kernels->norm_backward(&part->ctx, &norm, dkey, accumulate,
                                 mudd_backward_of(part, unit)->dkey_scale, NULL, dnormed,
                                 stash->out, NULL, mudd_stash_of(stash)->key_rstd,
                                 unit_weight(part, unit, PARAM_PRENORM, 0));
}

/* ---- backward ---- */

const void *mudd_output_gradient(const struct part *part, int unit)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    int key = shape->kind == UNIT_ATTENTION ? residual_mid(part->model, shape->layer)
                                            : mudd_raw_key(part->model, shape->layer);
    return part->key_gradient[key];
}

static void *mudd_place_of_gradient(const struct part *part, int unit, int way)
{
    const struct consumer *consumer = mudd_consumer(part->model, unit);
    return mudd_gradient_over_input(part->model, consumer, way)
               ? mudd_formed(consumer, way, part_backward_stash(part, unit))
               : part_backward_of(part, unit)->dinput[way];
}

void *mudd_input_gradient(struct part *part, int unit, int way, bool *out_accumulate)
{
    if (unit_shape(part->model, unit)->kind == UNIT_FFN) {
        return residual_ffn_input_gradient(part, unit, mudd_output_gradient(part, unit),
                                           out_accumulate);
    }
    *out_accumulate = false;
    return mudd_place_of_gradient(part, unit, way);
}

const void *mudd_way_gradient(const struct part *part, int unit, int way)
{
    const struct consumer *consumer = mudd_consumer(part->model, unit);
    bool one = (consumer && consumer->shared) || unit_shape(part->model, unit)->kind == UNIT_HEAD;
    if (way == WAY_R && !one) {
        return residual_stream_gradient(part, unit, mudd_backward_of(part, unit)->dstream);
    }
    return mudd_place_of_gradient(part, unit, one ? 0 : way);
}

const void *mudd_mixed_gradient(const struct part *part, const struct consumer *consumer, size_t c)
{
    return consumer->post[c] ? mudd_backward_of(part, consumer->unit)->dmixed[c]
                             : mudd_way_gradient(part, consumer->unit, consumer->way[c]);
}

/* Through the post-norms of the ways that have one. */
static void mudd_backward_postnorms(struct part *part, const struct consumer *consumer)
{
    int unit = consumer->unit;
    const struct mudd_stash *stash = mudd_stash_of(part_backward_stash(part, unit));
    struct mudd_backward *backward = mudd_backward_of(part, unit);
    struct norm_shape norm = unit_rms_norm(part, unit_shape(part->model, unit));
    for (size_t c = 0; c < consumer->C; c++) {
        if (consumer->post[c]) {
            part->kernels->norm_backward(
                &part->ctx, &norm, backward->dmixed[c], false, backward->dpost_scale[c], NULL,
                mudd_way_gradient(part, unit, consumer->way[c]), stash->mixed[c], NULL,
                stash->post_rstd[c], unit_weight(part, unit, PARAM_POSTNORM, 0));
        }
    }
}

/* From dA to the generator's path into X_i. */
static void mudd_backward_generator(struct part *part, const struct consumer *consumer, int frame)
{
    const struct kernels *kernels = part->kernels;
    int unit = consumer->unit;
    const struct unit_shape *shape = unit_shape(part->model, unit);
    const struct mudd_stash *stash = mudd_stash_of(part_backward_stash(part, unit));
    struct mudd_backward *backward = mudd_backward_of(part, unit);
    struct norm_shape norm = unit_rms_norm(part, shape);
    kernels->mudd_weights_backward_input(&part->ctx, backward->dinner, false, backward->dweights,
                                         unit_weight(part, unit, PARAM_DENSE_W2, 0), shape->N,
                                         consumer->K, consumer->C * consumer->n);
    kernels->gelu_backward(&part->ctx, backward->dinner, backward->dinner, stash->inner,
                           shape->N * consumer->K);
    kernels->linear_backward_input(&part->ctx, backward->dgenerator, false, backward->dinner,
                                   unit_weight(part, unit, PARAM_DENSE_W1, 0), shape->N, shape->D,
                                   consumer->K);
    kernels->norm_backward(&part->ctx, &norm, backward->dgenerator, false,
                           backward->dgenerator_scale, NULL, backward->dgenerator,
                           mudd_newest(part, consumer, frame), NULL, stash->rstd,
                           unit_weight(part, unit, PARAM_DENSE_NORM, 0));
}

static void mudd_backward_consumer(struct part *part, const struct consumer *consumer, int frame)
{
    const struct unit_shape *shape = unit_shape(part->model, consumer->unit);
    struct mudd_backward *backward = mudd_backward_of(part, consumer->unit);
    const void *key[consumer->n], *dout[WAYS_MAX];
    mudd_find_keys(part, consumer, frame, key);
    mudd_backward_postnorms(part, consumer);
    for (size_t c = 0; c < consumer->C; c++) {
        dout[c] = mudd_mixed_gradient(part, consumer, c);
    }
    part->kernels->mudd_backward_weights(&part->ctx, backward->dweights, dout, key, shape->N,
                                         shape->D, consumer->C, consumer->n);
    mudd_mask(part, consumer, backward->dweights);
    if (consumer->K > 0) {
        mudd_backward_generator(part, consumer, frame);
    }
}

/* A parallel FFN's path joins the stream first; where one way feeds everything, R then joins Q, K, V. */
void mudd_backward(struct part *part, int unit, int frame)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    const struct consumer *consumer = mudd_consumer(part->model, unit);
    void *dstream = mudd_backward_of(part, unit)->dstream;
    if (dstream) {
        residual_join(part, unit, dstream);
    }
    if (shape->kind == UNIT_ATTENTION && consumer && consumer->shared) {
        void *dinput = part_backward_of(part, unit)->dinput[0];
        part->kernels->add(&part->ctx, dinput, residual_stream_gradient(part, unit, dstream),
                           dinput, shape->N * shape->D);
    }
    if (consumer) {
        mudd_backward_consumer(part, consumer, frame);
    }
}

/* ---- weights ---- */

static void mudd_weight_gradient_consumer(struct part *part, const struct consumer *consumer)
{
    const struct kernels *kernels = part->kernels;
    int unit = consumer->unit;
    const struct unit_shape *shape = unit_shape(part->model, unit);
    const struct mudd_stash *stash = mudd_stash_of(part_backward_stash(part, unit));
    const struct mudd_backward *backward = mudd_backward_of(part, unit);
    kernels->mudd_weights_backward_weight(&part->ctx, unit_gradient(part, unit, PARAM_DENSE_W2, 0),
                                          unit_gradient(part, unit, PARAM_DENSE_B, 0),
                                          backward->dweights, stash->hidden, shape->N, consumer->K,
                                          consumer->C * consumer->n);
    for (size_t c = 0; c < consumer->C; c++) {
        if (consumer->post[c]) {
            kernels->accumulate_f32(&part->ctx, unit_gradient(part, unit, PARAM_POSTNORM, 0),
                                    backward->dpost_scale[c], shape->D);
        }
    }
    if (backward->dgenerator_scale) {
        kernels->accumulate_f32(&part->ctx, unit_gradient(part, unit, PARAM_DENSE_NORM, 0),
                                backward->dgenerator_scale, shape->D);
    }
    if (consumer->K > 0) {
        kernels->linear_backward_weight(&part->ctx, unit_gradient(part, unit, PARAM_DENSE_W1, 0),
                                        NULL, backward->dinner, stash->normed, shape->N, shape->D,
                                        consumer->K);
    }
}

void mudd_weight_gradient(struct part *part, int unit, int frame)
{
    (void)frame;
    const struct consumer *consumer = mudd_consumer(part->model, unit);
    const float *dkey_scale = mudd_backward_of(part, unit)->dkey_scale;
    if (consumer) {
        mudd_weight_gradient_consumer(part, consumer);
    }
    if (dkey_scale) {
        part->kernels->accumulate_f32(&part->ctx, unit_gradient(part, unit, PARAM_PRENORM, 0),
                                      dkey_scale, unit_shape(part->model, unit)->D);
    }
}
