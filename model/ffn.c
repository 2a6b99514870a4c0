/* ffn.c - the FFN unit.
 *
 *     SwiGLU  (silu(n W1^T) * (n W3^T)) W2^T
 *     GELU    gelu(n W1^T + b1) W2^T + b2
 *
 * with n = Nf(x), x from the connector, which also takes the output on. With tensor parallelism the norm sees the rows
 * of this part, products and activation see all rows, of this part's columns (model.h).
 */
#include "model/connect/connect.h"
#include "model/tp.h"

static void norm_input(struct part *part, const struct unit_shape *shape, int unit, int frame,
                       struct stash *stash)
{
    struct norm_shape norm = unit_norm(part, shape);
    part->kernels->norm_forward(&part->ctx, &norm, stash->normed[0], stash->mean[0], stash->rstd[0],
                                connect_input(part, unit, frame, 0),
                                unit_weight(part, unit, PARAM_FFN_NORM, 0),
                                unit_bias(part, unit, PARAM_FFN_NORM, 0));
}

static void form_activated(struct part *part, const struct unit_shape *shape, struct stash *stash)
{
    size_t count = shape->tokens * shape->F;
    if (shape->gelu) {
        part->kernels->gelu_forward(&part->ctx, stash->activated, stash->gate, count);
    } else {
        part->kernels->swiglu_forward(&part->ctx, stash->activated, stash->gate, stash->up, count);
    }
}

/* All but the last product and the residual. */
static void form_inner(struct part *part, const struct unit_shape *shape, int unit, int frame,
                       struct stash *stash)
{
    const struct kernels *kernels = part->kernels;
    norm_input(part, shape, unit, frame, stash);
    tp_gather_begin(part, stash->normed[0], 0);
    tp_gather_end(part);
    const void *normed = tp_all(part, stash->normed[0], 0);
    kernels->linear_forward(&part->ctx, stash->gate, normed, unit_weight(part, unit, PARAM_W1, 0),
                            unit_bias(part, unit, PARAM_W1, 0), shape->tokens, shape->D, shape->F);
    if (!shape->gelu) {
        kernels->linear_forward(&part->ctx, stash->up, normed, unit_weight(part, unit, PARAM_W3, 0),
                                unit_bias(part, unit, PARAM_W3, 0), shape->tokens, shape->D,
                                shape->F);
    }
    form_activated(part, shape, stash);
}

void ffn_forward(struct part *part, int unit, int frame)
{
    const struct kernels *kernels = part->kernels;
    const struct unit_shape *shape = unit_shape(part->model, unit);
    struct stash *stash = part_stash(part, unit, frame);
    connect_forward(part, unit, frame, stash);
    form_inner(part, shape, unit, frame, stash);
    kernels->linear_forward(&part->ctx, tp_partial(part, 0, stash->out), stash->activated,
                            unit_weight(part, unit, PARAM_W2, 0), tp_bias(part, unit, PARAM_W2),
                            shape->tokens, shape->F, shape->D);
    tp_sum_output(part, shape, stash);
    connect_output(part, unit, frame);
}

/* What the layout did not keep since the forward. */
static void recompute(struct part *part, const struct unit_shape *shape, int unit, int frame)
{
    struct stash *stash = part_backward_stash(part, unit);
    if (part->model->recompute == RECOMPUTE_SELECTIVE) {
        connect_recompute(part, unit, frame, stash);
        norm_input(part, shape, unit, frame, stash);
        form_activated(part, shape, stash);
    } else if (part->model->recompute == RECOMPUTE_FULL) {
        connect_forward(part, unit, frame, stash);
        form_inner(part, shape, unit, frame, stash);
    }
}

/* From the activation's gradient to those of gate and up, in their own places, and of the normed input, of this part's
 * rows. */
static const void *inactivate(struct part *part, const struct unit_shape *shape, int unit,
                              const struct stash *stash)
{
    const struct kernels *kernels = part->kernels;
    void *dactivated = part->scratch[0], *dnormed = tp_partial(part, 0, part->scratch[1]);
    if (shape->gelu) {
        kernels->gelu_backward(&part->ctx, stash->gate, dactivated, stash->gate,
                               shape->tokens * shape->F);
    } else {
        kernels->swiglu_backward(&part->ctx, stash->gate, stash->up, dactivated, stash->gate,
                                 stash->up, shape->tokens * shape->F);
    }
    kernels->linear_backward_input(&part->ctx, dnormed, false, stash->gate,
                                   unit_weight(part, unit, PARAM_W1, 0), shape->tokens, shape->D,
                                   shape->F);
    if (!shape->gelu) {
        kernels->linear_backward_input(&part->ctx, dnormed, true, stash->up,
                                       unit_weight(part, unit, PARAM_W3, 0), shape->tokens,
                                       shape->D, shape->F);
    }
    tp_reduce_begin(part, dnormed);
    tp_reduce_end(part);
    return tp_own_rows(part, dnormed);
}

void ffn_backward(struct part *part, int unit, int frame)
{
    const struct kernels *kernels = part->kernels;
    const struct unit_shape *shape = unit_shape(part->model, unit);
    struct stash *stash = part_backward_stash(part, unit);
    struct backward *backward = part_backward_of(part, unit);
    bool accumulate;
    recompute(part, shape, unit, frame);
    connect_output_backward(part, unit, frame);
    const void *doutput = tp_gather_output_gradient(part, unit);
    kernels->linear_backward_input(&part->ctx, part->scratch[0], false, doutput,
                                   unit_weight(part, unit, PARAM_W2, 0), shape->tokens, shape->F,
                                   shape->D);
    const void *dnormed = inactivate(part, shape, unit, stash);
    void *dinput = connect_input_gradient(part, unit, 0, &accumulate);
    struct norm_shape norm = unit_norm(part, shape);
    kernels->norm_backward(&part->ctx, &norm, dinput, accumulate, backward->dscale[0],
                           backward->dbias[0], dnormed, connect_input(part, unit, frame, 0),
                           stash->mean[0], stash->rstd[0],
                           unit_weight(part, unit, PARAM_FFN_NORM, 0));
    connect_backward(part, unit, frame);
}

void ffn_weight_gradient(struct part *part, int unit, int frame)
{
    const struct kernels *kernels = part->kernels;
    const struct unit_shape *shape = unit_shape(part->model, unit);
    const struct stash *stash = part_backward_stash(part, unit);
    const struct backward *backward = part_backward_of(part, unit);
    tp_gather_begin(part, stash->normed[0], 0);
    kernels->linear_backward_weight(
        &part->ctx, unit_gradient(part, unit, PARAM_W2, 0), tp_bias_gradient(part, unit, PARAM_W2),
        tp_output_gradient(part, unit), stash->activated, shape->tokens, shape->F, shape->D);
    tp_gather_end(part);
    const void *normed = tp_all(part, stash->normed[0], 0);
    kernels->linear_backward_weight(&part->ctx, unit_gradient(part, unit, PARAM_W1, 0),
                                    unit_bias_gradient(part, unit, PARAM_W1, 0), stash->gate,
                                    normed, shape->tokens, shape->D, shape->F);
    if (!shape->gelu) {
        kernels->linear_backward_weight(&part->ctx, unit_gradient(part, unit, PARAM_W3, 0),
                                        unit_bias_gradient(part, unit, PARAM_W3, 0), stash->up,
                                        normed, shape->tokens, shape->D, shape->F);
    }
    kernels->accumulate_f32(&part->ctx, unit_gradient(part, unit, PARAM_FFN_NORM, 0),
                            backward->dscale[0], shape->D);
    unit_accumulate_bias(part, unit, PARAM_FFN_NORM, 0, backward->dbias[0], shape->D);
    connect_weight_gradient(part, unit, frame);
}
