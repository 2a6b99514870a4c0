/* ffn.c - the FFN unit: X_i = (silu(n W1^T) * (n W3^T)) W2^T + H_i with n = Nf(H_i). */
#include "model/model_internal.h"

static struct norm_shape ffn_norm(const struct part *part, const struct unit_shape *shape)
{
    return (struct norm_shape){NORM_RMS, shape->N, shape->D, (float)part->model->config.norm_eps};
}

void ffn_forward(struct part *part, int unit, int frame)
{
    const struct kernels *kernels = part->kernels;
    struct unit_shape shape;
    unit_shape(part->model, unit, &shape);
    struct stash *stash = part_stash(part, unit, frame);
    const void *mid = part_key(part, frame, model_mid_key(part->model, shape.unit->layer));
    struct norm_shape norm = ffn_norm(part, &shape);
    kernels->norm_forward(&part->ctx, &norm, stash->normed[0], NULL, stash->rstd[0], mid,
                          unit_weight(part, unit, PARAM_FFN_NORM, 0), NULL);
    kernels->linear_forward(&part->ctx, stash->gate, stash->normed[0],
                            unit_weight(part, unit, PARAM_W1, 0), NULL, shape.N, shape.D, shape.F);
    kernels->linear_forward(&part->ctx, stash->up, stash->normed[0],
                            unit_weight(part, unit, PARAM_W3, 0), NULL, shape.N, shape.D, shape.F);
    kernels->swiglu_forward(&part->ctx, stash->product, stash->gate, stash->up, shape.N * shape.F);
    kernels->linear_forward(&part->ctx, stash->out, stash->product,
                            unit_weight(part, unit, PARAM_W2, 0), NULL, shape.N, shape.F, shape.D);
    kernels->add(&part->ctx, stash->out, stash->out, mid, shape.N * shape.D);
}

/* Forms the gradient of H_i whole: the residual first, then the FFN's path. */
void ffn_backward(struct part *part, int unit, int frame)
{
    const struct kernels *kernels = part->kernels;
    struct unit_shape shape;
    unit_shape(part->model, unit, &shape);
    const struct stash *stash = part_stash(part, unit, frame);
    struct backward *back = part_back(part, unit);
    int layer = shape.unit->layer, mid_key = model_mid_key(part->model, layer);
    const void *dout = part->key_gradient[model_hidden_key(part->model, layer)];
    void *dmid = part->key_gradient[mid_key];
    CHECK(dout && dmid, "the gradients of X_%d and H_%d have no place", layer, layer);
    void *dproduct = part->scratch[0], *dnormed = part->scratch[1];
    kernels->linear_backward_input(&part->ctx, dproduct, false, dout,
                                   unit_weight(part, unit, PARAM_W2, 0), shape.N, shape.F, shape.D);
    kernels->swiglu_backward(&part->ctx, back->dgate, back->dup, dproduct, stash->gate, stash->up,
                             shape.N * shape.F);
    kernels->linear_backward_input(&part->ctx, dnormed, false, back->dgate,
                                   unit_weight(part, unit, PARAM_W1, 0), shape.N, shape.D, shape.F);
    kernels->linear_backward_input(&part->ctx, dnormed, true, back->dup,
                                   unit_weight(part, unit, PARAM_W3, 0), shape.N, shape.D, shape.F);
    kernels->copy(&part->ctx, dmid, dout, shape.N * shape.D);
    struct norm_shape norm = ffn_norm(part, &shape);
    kernels->norm_backward(&part->ctx, &norm, dmid, true, back->dscale[0], NULL, dnormed,
                           part_key(part, frame, mid_key), NULL, stash->rstd[0],
                           unit_weight(part, unit, PARAM_FFN_NORM, 0));
}

void ffn_weight_gradient(struct part *part, int unit, int frame)
{
    const struct kernels *kernels = part->kernels;
    struct unit_shape shape;
    unit_shape(part->model, unit, &shape);
    const struct stash *stash = part_stash(part, unit, frame);
    const struct backward *back = part_back(part, unit);
    const void *dout = part->key_gradient[model_hidden_key(part->model, shape.unit->layer)];
    kernels->linear_backward_weight(&part->ctx, unit_gradient(part, unit, PARAM_W2, 0), NULL, dout,
                                    stash->product, shape.N, shape.F, shape.D);
    kernels->linear_backward_weight(&part->ctx, unit_gradient(part, unit, PARAM_W1, 0), NULL,
                                    back->dgate, stash->normed[0], shape.N, shape.D, shape.F);
    kernels->linear_backward_weight(&part->ctx, unit_gradient(part, unit, PARAM_W3, 0), NULL,
                                    back->dup, stash->normed[0], shape.N, shape.D, shape.F);
    kernels->accumulate_f32(&part->ctx, unit_gradient(part, unit, PARAM_FFN_NORM, 0),
                            back->dscale[0], shape.D);
}
