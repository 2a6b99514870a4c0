/* ffn.c - the FFN unit.
 *
 *     SwiGLU  X_i = (silu(n W1^T) * (n W3^T)) W2^T + H_i
 *     GELU    X_i = gelu(n W1^T + b1) W2^T + b2 + H_i
 *
 * with n = Nf(H_i), or Nf(xR) with parallel residual.
 */
#include "model/model_internal.h"

/* What the FFN's norm reads. The attention of a parallel residual is always on the same stage. */
static const void *ffn_input(const struct part *part, const struct unit_shape *shape, int unit,
                             int frame)
{
    if (shape->parallel) {
        const struct unit_shape *attention = unit_shape(part->model, unit - 1);
        return way_input(part, attention, unit - 1, frame, WAY_R);
    }
    return part_key(part, frame, model_mid_key(part->model, shape->layer));
}

static void norm_input(struct part *part, const struct unit_shape *shape, int unit, int frame,
                       struct stash *stash)
{
    struct norm_shape norm = unit_norm(part, shape);
    part->kernels->norm_forward(&part->ctx, &norm, stash->normed[0], stash->mean[0], stash->rstd[0],
                                ffn_input(part, shape, unit, frame),
                                unit_weight(part, unit, PARAM_FFN_NORM, 0),
                                unit_bias(part, unit, PARAM_FFN_NORM, 0));
}

static void form_product(struct part *part, const struct unit_shape *shape, struct stash *stash)
{
    size_t count = shape->N * shape->F;
    if (shape->gelu) {
        part->kernels->gelu_forward(&part->ctx, stash->product, stash->gate, count);
    } else {
        part->kernels->swiglu_forward(&part->ctx, stash->product, stash->gate, stash->up, count);
    }
}

/* All but the last product and the residual. */
static void form_inner(struct part *part, const struct unit_shape *shape, int unit, int frame,
                       struct stash *stash)
{
    const struct kernels *kernels = part->kernels;
    norm_input(part, shape, unit, frame, stash);
    kernels->linear_forward(&part->ctx, stash->gate, stash->normed[0],
                            unit_weight(part, unit, PARAM_W1, 0),
                            unit_bias(part, unit, PARAM_W1, 0), shape->N, shape->D, shape->F);
    if (!shape->gelu) {
        kernels->linear_forward(&part->ctx, stash->up, stash->normed[0],
                                unit_weight(part, unit, PARAM_W3, 0),
                                unit_bias(part, unit, PARAM_W3, 0), shape->N, shape->D, shape->F);
    }
    form_product(part, shape, stash);
}

void ffn_forward(struct part *part, int unit, int frame)
{
    const struct kernels *kernels = part->kernels;
    const struct unit_shape *shape = unit_shape(part->model, unit);
    struct stash *stash = part_stash(part, unit, frame);
    const void *mid = part_key(part, frame, model_mid_key(part->model, shape->layer));
    form_inner(part, shape, unit, frame, stash);
    kernels->linear_forward(&part->ctx, stash->out, stash->product,
                            unit_weight(part, unit, PARAM_W2, 0),
                            unit_bias(part, unit, PARAM_W2, 0), shape->N, shape->F, shape->D);
    kernels->add(&part->ctx, stash->out, stash->out, mid, shape->N * shape->D);
}

/* What the layout did not keep since the forward, but for the product: W forms that. */
static void form_again(struct part *part, const struct unit_shape *shape, int unit, int frame)
{
    struct stash *stash = part_again(part, unit, frame);
    if (part->model->recompute == RECOMPUTE_SELECTIVE) {
        norm_input(part, shape, unit, frame, stash);
    } else if (part->model->recompute == RECOMPUTE_FULL) {
        form_inner(part, shape, unit, frame, stash);
    }
}

/* From the product's gradient to that of the normed input, in scratch[1]. */
static void inactivate(struct part *part, const struct unit_shape *shape, int unit,
                       const struct stash *stash, struct backward *back)
{
    const struct kernels *kernels = part->kernels;
    void *dproduct = part->scratch[0], *dnormed = part->scratch[1];
    if (shape->gelu) {
        kernels->gelu_backward(&part->ctx, back->dgate, dproduct, stash->gate, shape->N * shape->F);
    } else {
        kernels->swiglu_backward(&part->ctx, back->dgate, back->dup, dproduct, stash->gate,
                                 stash->up, shape->N * shape->F);
    }
    kernels->linear_backward_input(&part->ctx, dnormed, false, back->dgate,
                                   unit_weight(part, unit, PARAM_W1, 0), shape->N, shape->D,
                                   shape->F);
    if (!shape->gelu) {
        kernels->linear_backward_input(&part->ctx, dnormed, true, back->dup,
                                       unit_weight(part, unit, PARAM_W3, 0), shape->N, shape->D,
                                       shape->F);
    }
}

/* Gradient of X_i, the unit's output. */
static const void *output_gradient(const struct part *part, const struct unit_shape *shape)
{
    return part->key_gradient[model_raw_key(part->model, shape->layer)];
}

/* Forms the gradient of H_i whole: the residual first, then the FFN's path (with parallel residual that
 * path goes to xR instead and waits in dinput). */
void ffn_backward(struct part *part, int unit, int frame)
{
    const struct kernels *kernels = part->kernels;
    const struct unit_shape *shape = unit_shape(part->model, unit);
    struct stash *stash = part_again(part, unit, frame);
    struct backward *back = part_back(part, unit);
    const void *dout = output_gradient(part, shape);
    void *dmid = part->key_gradient[model_mid_key(part->model, shape->layer)];
    CHECK(dout && dmid, "the gradients of layer %d have no place", shape->layer);
    form_again(part, shape, unit, frame);
    kernels->linear_backward_input(&part->ctx, part->scratch[0], false, dout,
                                   unit_weight(part, unit, PARAM_W2, 0), shape->N, shape->F,
                                   shape->D);
    inactivate(part, shape, unit, stash, back);
    kernels->copy(&part->ctx, dmid, dout, shape->N * shape->D);
    struct norm_shape norm = unit_norm(part, shape);
    kernels->norm_backward(&part->ctx, &norm, shape->parallel ? back->dinput[0] : dmid,
                           !shape->parallel, back->dscale[0], back->dbias[0], part->scratch[1],
                           ffn_input(part, shape, unit, frame), stash->mean[0], stash->rstd[0],
                           unit_weight(part, unit, PARAM_FFN_NORM, 0));
}

void ffn_weight_gradient(struct part *part, int unit, int frame)
{
    const struct kernels *kernels = part->kernels;
    const struct unit_shape *shape = unit_shape(part->model, unit);
    struct stash *stash = part_again(part, unit, frame);
    const struct backward *back = part_back(part, unit);
    if (part->model->recompute == RECOMPUTE_SELECTIVE) {
        form_product(part, shape, stash);
    }
    kernels->linear_backward_weight(&part->ctx, unit_gradient(part, unit, PARAM_W2, 0),
                                    unit_bias_gradient(part, unit, PARAM_W2, 0),
                                    output_gradient(part, shape), stash->product, shape->N,
                                    shape->F, shape->D);
    kernels->linear_backward_weight(&part->ctx, unit_gradient(part, unit, PARAM_W1, 0),
                                    unit_bias_gradient(part, unit, PARAM_W1, 0), back->dgate,
                                    stash->normed[0], shape->N, shape->D, shape->F);
    if (!shape->gelu) {
        kernels->linear_backward_weight(&part->ctx, unit_gradient(part, unit, PARAM_W3, 0),
                                        unit_bias_gradient(part, unit, PARAM_W3, 0), back->dup,
                                        stash->normed[0], shape->N, shape->D, shape->F);
    }
    kernels->accumulate_f32(&part->ctx, unit_gradient(part, unit, PARAM_FFN_NORM, 0),
                            back->dscale[0], shape->D);
    accumulate_bias(part, unit, PARAM_FFN_NORM, 0, back->dbias[0], shape->D);
}
