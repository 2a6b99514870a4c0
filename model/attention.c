/* attention.c - the attention unit: norms of its inputs, projections, attention, output.
 *
 *     Attn(Nq(xQ), Nk(xK), Nv(xV)) Wo^T
 *
 * with inputs from the connector, which also takes the output on. With tensor parallelism norms see the rows of this
 * part; projections and attention see all rows, of this part's heads (model.h).
 */
#include "model/connect/connect.h"
#include "model/tp.h"

static const enum param_role projection_role[INPUTS] = {PARAM_WQ, PARAM_WK, PARAM_WV};

/* Rows of the fused weight (q; k; v) before this way's. */
static size_t fused_offset(const struct unit_shape *shape, int way)
{
    size_t row = way == WAY_Q ? 0 : way == WAY_K ? shape->H : shape->H + shape->G;
    return row * shape->E * shape->D;
}

const void *projection_weight(const struct part *part, const struct unit_shape *shape, int unit,
                              int way)
{
    if (shape->fused) {
        return part_at(part, unit_weight(part, unit, PARAM_WQKV, 0), fused_offset(shape, way));
    }
    return unit_weight(part, unit, projection_role[way], 0);
}

float *projection_gradient(const struct part *part, const struct unit_shape *shape, int unit,
                           int way)
{
    if (shape->fused) {
        return unit_gradient(part, unit, PARAM_WQKV, 0) + fused_offset(shape, way);
    }
    return unit_gradient(part, unit, projection_role[way], 0);
}

static enum param_role projection_bias_role(const struct unit_shape *shape, int way)
{
    return shape->fused ? PARAM_WQKV : projection_role[way];
}

/* The fused bias has one value a row of the fused weight. */
static const void *projection_bias(const struct part *part, const struct unit_shape *shape,
                                   int unit, int way)
{
    const void *bias = unit_bias(part, unit, projection_bias_role(shape, way), 0);
    return shape->fused ? part_at(part, bias, fused_offset(shape, way) / shape->D) : bias;
}

static float *projection_bias_gradient(const struct part *part, const struct unit_shape *shape,
                                       int unit, int way)
{
    float *bias = unit_bias_gradient(part, unit, projection_bias_role(shape, way), 0);
    return bias && shape->fused ? bias + fused_offset(shape, way) / shape->D : bias;
}

static size_t projection_width(const struct unit_shape *shape, int way)
{
    return (way == WAY_Q ? shape->H : shape->G) * shape->E;
}

static int norm_index(const struct unit_shape *shape, int way)
{
    return shape->separate_norms ? way : 0;
}

/* Per head: rows of width E. */
static struct norm_shape head_norm(const struct part *part, const struct unit_shape *shape,
                                   size_t heads)
{
    return (struct norm_shape){NORM_RMS, shape->tokens * heads, shape->E,
                               (float)part->model->config.norm_eps};
}

static struct attention_shape scores_shape(const struct part *part, const struct unit_shape *shape,
                                           int frame)
{
    /* 1/sqrt(E), the same bits as a float square root and division give on any IEEE machine */
    return (struct attention_shape){.B = shape->B,
                                    .T = shape->T,
                                    .H = shape->H,
                                    .G = shape->G,
                                    .E = shape->E,
                                    .scale = (float)(1.0 / __builtin_sqrt((double)shape->E)),
                                    .first = part->now->frame[frame].first};
}

static void rotate(const struct part *part, const struct unit_shape *shape, int frame, void *x,
                   size_t heads, bool inverse)
{
    const struct frame *own = &part->now->frame[frame];
    part->kernels->rope(&part->ctx, x, part->cosine, part->sine, own->position, inverse,
                        shape->tokens, shape->T, heads, shape->E, shape->R);
}

/* Ways whose normed inputs are tensors of their own. */
static int distinct_ways(const struct unit_shape *shape)
{
    return shape->shared_input ? 1 : INPUTS;
}

/* The normed input of a way, of all rows. */
static const void *whole_normed(const struct part *part, const struct unit_shape *shape,
                                const struct stash *stash, int way)
{
    return tp_all(part, stash->normed[way], shape->shared_input ? 0 : way);
}

static void norm_inputs(struct part *part, const struct unit_shape *shape, int unit, int frame,
                        struct stash *stash)
{
    struct norm_shape norm = unit_norm(part, shape);
    for (int way = WAY_Q; way < INPUTS; way++) {
        int index = norm_index(shape, way);
        if (way == WAY_Q || !shape->shared_input) {
            part->kernels->norm_forward(&part->ctx, &norm, stash->normed[way], stash->mean[way],
                                        stash->rstd[way], connect_input(part, unit, frame, way),
                                        unit_weight(part, unit, PARAM_ATTN_NORM, index),
                                        unit_bias(part, unit, PARAM_ATTN_NORM, index));
        }
    }
}

static void gather_inputs(struct part *part, const struct unit_shape *shape,
                          const struct stash *stash)
{
    for (int way = WAY_Q; way < distinct_ways(shape); way++) {
        tp_gather_begin(part, stash->normed[way], way);
    }
}

/* Until the way's is there. */
static void gather_wait(struct part *part, const struct unit_shape *shape, int way)
{
    if (way < distinct_ways(shape)) {
        tp_gather_end(part);
    }
}

/* raw = before QK-norm. A way is projected while those behind it are on their way. */
static void project(struct part *part, const struct unit_shape *shape, int unit,
                    struct stash *stash)
{
    void *raw[INPUTS] = {shape->qk_norm ? stash->q_raw : stash->q,
                         shape->qk_norm ? stash->k_raw : stash->k, stash->v};
    gather_inputs(part, shape, stash);
    for (int way = WAY_Q; way < INPUTS; way++) {
        gather_wait(part, shape, way);
        part->kernels->linear_forward(&part->ctx, raw[way], whole_normed(part, shape, stash, way),
                                      projection_weight(part, shape, unit, way),
                                      projection_bias(part, shape, unit, way), shape->tokens,
                                      shape->D, projection_width(shape, way));
    }
}

static void norm_heads(struct part *part, const struct unit_shape *shape, int unit,
                       struct stash *stash)
{
    struct norm_shape query = head_norm(part, shape, shape->H);
    struct norm_shape key = head_norm(part, shape, shape->G);
    part->kernels->norm_forward(&part->ctx, &query, stash->q, NULL, stash->q_rstd, stash->q_raw,
                                unit_weight(part, unit, PARAM_Q_NORM, 0), NULL);
    part->kernels->norm_forward(&part->ctx, &key, stash->k, NULL, stash->k_rstd, stash->k_raw,
                                unit_weight(part, unit, PARAM_K_NORM, 0), NULL);
}

/* Queries and keys as the scores take them. */
static void form_heads(struct part *part, const struct unit_shape *shape, int unit, int frame,
                       struct stash *stash)
{
    if (shape->qk_norm) {
        norm_heads(part, shape, unit, stash);
    }
    rotate(part, shape, frame, stash->q, shape->H, false);
    rotate(part, shape, frame, stash->k, shape->G, false);
}

/* All but the output's projection. */
static void form_inner(struct part *part, const struct unit_shape *shape, int unit, int frame,
                       struct stash *stash)
{
    connect_forward(part, unit, frame, stash);
    norm_inputs(part, shape, unit, frame, stash);
    project(part, shape, unit, stash);
    form_heads(part, shape, unit, frame, stash);
    struct attention_shape scores = scores_shape(part, shape, frame);
    part->kernels->attention_forward(&part->ctx, &scores, stash->attended, stash->lse, stash->q,
                                     stash->k, stash->v);
}

void attention_forward(struct part *part, int unit, int frame)
{
    const struct kernels *kernels = part->kernels;
    const struct unit_shape *shape = unit_shape(part->model, unit);
    struct stash *stash = part_stash(part, unit, frame);
    form_inner(part, shape, unit, frame, stash);
    kernels->linear_forward(&part->ctx, tp_partial(part, 0, stash->out), stash->attended,
                            unit_weight(part, unit, PARAM_WO, 0), tp_bias(part, unit, PARAM_WO),
                            shape->tokens, shape->H * shape->E, shape->D);
    tp_sum_output(part, shape, stash);
    connect_output(part, unit, frame);
}

/* What the layout did not keep since the forward. Without QK-norm queries and keys were kept as rotated. */
static void recompute(struct part *part, const struct unit_shape *shape, int unit, int frame)
{
    struct stash *stash = part_backward_stash(part, unit);
    switch (part->model->recompute) {
    case RECOMPUTE_NONE:
        break;
    case RECOMPUTE_SELECTIVE:
        connect_recompute(part, unit, frame, stash);
        norm_inputs(part, shape, unit, frame, stash);
        if (shape->qk_norm) {
            form_heads(part, shape, unit, frame, stash);
        }
        break;
    case RECOMPUTE_FULL:
        form_inner(part, shape, unit, frame, stash);
        break;
    }
}

/* Gradients of what the projections made. */
struct projected {
    void *way[INPUTS];
};

static struct projected projected_gradients(const struct stash *stash,
                                            const struct backward *backward)
{
    return (struct projected){{backward->dq ? backward->dq : stash->q_raw,
                               backward->dk ? backward->dk : stash->k_raw, backward->dv}};
}

/* A way's part in the gradient of its normed input. */
static void unproject_way(struct part *part, const struct unit_shape *shape, int unit,
                          const struct projected *dprojected, int way, void *dnormed)
{
    bool accumulate = way > WAY_Q && shape->shared_input;
    part->kernels->linear_backward_input(&part->ctx, dnormed, accumulate, dprojected->way[way],
                                         projection_weight(part, shape, unit, way), shape->tokens,
                                         shape->D, projection_width(shape, way));
}

/* Is the gradient of the way's normed input complete after it? */
static bool is_last_of_input(const struct unit_shape *shape, int way)
{
    return way == INPUTS - 1 || !shape->shared_input;
}

/* From the gradient of a way's normed input, of this part's rows, to that of its input. */
static void unnorm_way(struct part *part, const struct unit_shape *shape, int unit, int frame,
                       int way, const void *dnormed)
{
    const struct stash *stash = part_backward_stash(part, unit);
    struct backward *backward = part_backward_of(part, unit);
    struct norm_shape norm = unit_norm(part, shape);
    bool adds;
    void *dinput = connect_input_gradient(part, unit, way, &adds);
    CHECK(!adds, "the gradient of an attention's input is whole");
    part->kernels->norm_backward(
        &part->ctx, &norm, dinput, false, backward->dscale[way], backward->dbias[way], dnormed,
        connect_input(part, unit, frame, way), stash->mean[way], stash->rstd[way],
        unit_weight(part, unit, PARAM_ATTN_NORM, norm_index(shape, way)));
}

/* From those to the gradients of the ways' inputs. With one part all ways take turns in one place (not dinput: that
 * may be the norm's input itself); with several a way's sum is on its way while the next one is formed. */
static void unproject(struct part *part, const struct unit_shape *shape, int unit, int frame)
{
    const struct projected dprojected =
        projected_gradients(part_backward_stash(part, unit), part_backward_of(part, unit));
    void *dnormed[INPUTS];
    bool several = part->model->tp > 1;
    for (int way = WAY_Q; way < INPUTS; way++) {
        dnormed[way] = tp_partial(part, shape->shared_input ? 0 : way, part->scratch[0]);
        unproject_way(part, shape, unit, &dprojected, way, dnormed[way]);
        if (is_last_of_input(shape, way) && several) {
            tp_reduce_begin(part, dnormed[way]);
        } else if (is_last_of_input(shape, way)) {
            unnorm_way(part, shape, unit, frame, way, dnormed[way]);
        }
    }
    for (int way = WAY_Q; way < INPUTS && several; way++) {
        if (is_last_of_input(shape, way)) {
            tp_reduce_end(part);
            unnorm_way(part, shape, unit, frame, way, tp_own_rows(part, dnormed[way]));
        }
    }
}

static void unnorm_heads(struct part *part, const struct unit_shape *shape, int unit,
                         const void *dq, const void *dk)
{
    const struct kernels *kernels = part->kernels;
    const struct stash *stash = part_backward_stash(part, unit);
    const struct backward *backward = part_backward_of(part, unit);
    const struct projected dprojected = projected_gradients(stash, backward);
    struct norm_shape query = head_norm(part, shape, shape->H);
    struct norm_shape key = head_norm(part, shape, shape->G);
    kernels->norm_backward(&part->ctx, &query, dprojected.way[WAY_Q], false, backward->dq_scale,
                           NULL, dq, stash->q_raw, NULL, stash->q_rstd,
                           unit_weight(part, unit, PARAM_Q_NORM, 0));
    kernels->norm_backward(&part->ctx, &key, dprojected.way[WAY_K], false, backward->dk_scale, NULL,
                           dk, stash->k_raw, NULL, stash->k_rstd,
                           unit_weight(part, unit, PARAM_K_NORM, 0));
}

void attention_backward(struct part *part, int unit, int frame)
{
    const struct kernels *kernels = part->kernels;
    const struct unit_shape *shape = unit_shape(part->model, unit);
    const struct stash *stash = part_backward_stash(part, unit);
    struct backward *backward = part_backward_of(part, unit);
    void *dattended = part->scratch[0];
    void *dq = backward->dq, *dk = backward->dk;
    if (shape->qk_norm) {
        dq = part->scratch[1];
        dk = part->scratch[2];
    }
    recompute(part, shape, unit, frame);
    connect_output_backward(part, unit, frame);
    const void *doutput = tp_gather_output_gradient(part, unit);
    struct attention_shape scores = scores_shape(part, shape, frame);
    kernels->linear_backward_input(&part->ctx, dattended, false, doutput,
                                   unit_weight(part, unit, PARAM_WO, 0), shape->tokens,
                                   shape->H * shape->E, shape->D);
    kernels->attention_backward(&part->ctx, &scores, dq, dk, backward->dv, dattended,
                                stash->attended, stash->lse, stash->q, stash->k, stash->v);
    rotate(part, shape, frame, dq, shape->H, true);
    rotate(part, shape, frame, dk, shape->G, true);
    if (shape->qk_norm) {
        unnorm_heads(part, shape, unit, dq, dk);
    }
    unproject(part, shape, unit, frame);
    connect_backward(part, unit, frame);
}

void attention_weight_gradient(struct part *part, int unit, int frame)
{
    const struct kernels *kernels = part->kernels;
    const struct unit_shape *shape = unit_shape(part->model, unit);
    const struct stash *stash = part_backward_stash(part, unit);
    const struct backward *backward = part_backward_of(part, unit);
    const struct projected dprojected = projected_gradients(stash, backward);
    gather_inputs(part, shape, stash);
    kernels->linear_backward_weight(&part->ctx, unit_gradient(part, unit, PARAM_WO, 0),
                                    tp_bias_gradient(part, unit, PARAM_WO),
                                    tp_output_gradient(part, unit), stash->attended, shape->tokens,
                                    shape->H * shape->E, shape->D);
    for (int way = WAY_Q; way < INPUTS; way++) {
        gather_wait(part, shape, way);
        kernels->linear_backward_weight(&part->ctx, projection_gradient(part, shape, unit, way),
                                        projection_bias_gradient(part, shape, unit, way),
                                        dprojected.way[way], whole_normed(part, shape, stash, way),
                                        shape->tokens, shape->D, projection_width(shape, way));
        if (way == WAY_Q || !shape->shared_input) {
            kernels->accumulate_f32(
                &part->ctx, unit_gradient(part, unit, PARAM_ATTN_NORM, norm_index(shape, way)),
                backward->dscale[way], shape->D);
            unit_accumulate_bias(part, unit, PARAM_ATTN_NORM, norm_index(shape, way),
                                 backward->dbias[way], shape->D);
        }
    }
    if (shape->qk_norm) {
        kernels->accumulate_f32(&part->ctx, unit_gradient(part, unit, PARAM_Q_NORM, 0),
                                backward->dq_scale, shape->E);
        kernels->accumulate_f32(&part->ctx, unit_gradient(part, unit, PARAM_K_NORM, 0),
                                backward->dk_scale, shape->E);
    }
    connect_weight_gradient(part, unit, frame);
}
