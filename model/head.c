/* head.c - the final norm, logits and loss, a chunk of tokens at a time.
 *
 * The one place where forward and backward meet: per chunk of rows the logits are made, turned into loss
 * and their gradient, and used for the input and weight gradients at once, so that the logits of a whole
 * microbatch never exist.
 */
#include "model/connect/connect.h"

/* bf16 runs on GPUs, where products of few rows waste the card. */
size_t head_chunk_rows(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? 1024 : 128;
}

static void head_chunk(struct part *part, const struct unit_shape *shape, int unit,
                       struct stash *stash, const int32_t *targets, size_t first, size_t rows,
                       float loss_scale, double *loss)
{
    const struct kernels *kernels = part->kernels;
    size_t D = shape->D, V = shape->V;
    const void *weight = unit_weight(part, unit, PARAM_OUTPUT, 0);
    const void *normed = part_at(part, stash->normed[0], first * D);
    void *dlogits = part->forward_only ? NULL : part->dlogits;
    kernels->logits_forward(&part->ctx, part->logits, normed, weight, rows, D, V);
    kernels->xent(&part->ctx, loss, dlogits, part->logits, targets + first, loss_scale, rows, V);
    if (!part->forward_only) {
        unsigned char *dnormed = stash->dnormed;
        dnormed += first * D * dtype_size(part->model->dtype);
        kernels->linear_backward_input(&part->ctx, dnormed, false, dlogits, weight, rows, D, V);
        kernels->linear_backward_weight(&part->ctx, unit_gradient(part, unit, PARAM_OUTPUT, 0),
                                        NULL, dlogits, normed, rows, D, V);
    }
}

/* The input and its norm. */
static void form_inner(struct part *part, const struct unit_shape *shape, int unit, int frame,
                       struct stash *stash)
{
    struct norm_shape norm = unit_norm(part, shape);
    connect_forward(part, unit, frame, stash);
    part->kernels->norm_forward(&part->ctx, &norm, stash->normed[0], stash->mean[0], stash->rstd[0],
                                connect_input(part, unit, frame, 0),
                                unit_weight(part, unit, PARAM_FINAL_NORM, 0),
                                unit_bias(part, unit, PARAM_FINAL_NORM, 0));
}

void head_forward(struct part *part, int unit, int frame, float loss_scale, double *out_loss)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    struct stash *stash = part_stash(part, unit, frame);
    form_inner(part, shape, unit, frame, stash);
    const int32_t *targets = part->now->frame[frame].targets;
    part->kernels->zero(&part->ctx, out_loss, sizeof *out_loss);
    for (size_t first = 0; targets && first < shape->N; first += part->head_rows) {
        size_t rows = shape->N - first < part->head_rows ? shape->N - first : part->head_rows;
        head_chunk(part, shape, unit, stash, targets, first, rows, loss_scale, out_loss);
    }
}

/* What the layout did not keep since the forward. The normed input did its work there. */
static void form_again(struct part *part, const struct unit_shape *shape, int unit, int frame)
{
    struct stash *stash = part_recomputed(part, unit);
    if (part->model->recompute == RECOMPUTE_SELECTIVE) {
        connect_form_again(part, unit, frame, stash);
    } else if (part->model->recompute == RECOMPUTE_FULL) {
        form_inner(part, shape, unit, frame, stash);
    }
}

void head_backward(struct part *part, int unit, int frame)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    const struct stash *stash = part_recomputed(part, unit);
    struct backward *back = part_backward_of(part, unit);
    struct norm_shape norm = unit_norm(part, shape);
    bool accumulate;
    form_again(part, shape, unit, frame);
    void *dinput = connect_input_gradient(part, unit, 0, &accumulate);
    part->kernels->norm_backward(&part->ctx, &norm, dinput, accumulate, back->dscale[0],
                                 back->dbias[0], stash->dnormed,
                                 connect_input(part, unit, frame, 0), stash->mean[0],
                                 stash->rstd[0], unit_weight(part, unit, PARAM_FINAL_NORM, 0));
    connect_backward(part, unit, frame);
}

void head_weight_gradient(struct part *part, int unit, int frame)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    part->kernels->accumulate_f32(&part->ctx, unit_gradient(part, unit, PARAM_FINAL_NORM, 0),
                                  part_backward_of(part, unit)->dscale[0], shape->D);
    unit_accumulate_bias(part, unit, PARAM_FINAL_NORM, 0, part_backward_of(part, unit)->dbias[0],
                         shape->D);
    connect_weight_gradient(part, unit, frame);
}

/* A chunk at a time, as in the forward. */
status_t part_logits(struct part *part, int frame, int64_t first, int64_t rows, float *out)
{
    int unit = part->model->graph.units - 1;
    const struct unit_shape *shape = unit_shape(part->model, unit);
    part->now = &part->stage[part->stage_of[unit]];
    const struct stash *stash = part_stash(part, unit, frame);
    int64_t most = (int64_t)part->head_rows;
    for (int64_t done = 0; done < rows; done += most) {
        size_t chunk = (size_t)(rows - done < most ? rows - done : most);
        size_t row = (size_t)(first + done);
        part->kernels->logits_forward(
            &part->ctx, part->logits, part_at(part, stash->normed[0], row * shape->D),
            unit_weight(part, unit, PARAM_OUTPUT, 0), chunk, shape->D, shape->V);
        TRY(part_fetch(part, out + (size_t)done * shape->V, part->logits,
                       chunk * shape->V * sizeof *out));
    }
    return STATUS_OK;
}
