/* layout.c - the memory of a unit for one microbatch, once for measuring and once for binding. */
#include <string.h>

#include "model/model_internal.h"

static void *tensor(struct arena *arena, const struct model *model, size_t rows, size_t columns)
{
    return arena_alloc(arena, rows * columns * dtype_size(model->dtype));
}

static float *floats(struct arena *arena, size_t count)
{
    return arena_alloc(arena, count * sizeof(float));
}

static void mudd_stash_layout(const struct model *model, const struct unit_shape *shape,
                              struct arena *arena, struct mudd_stash *out)
{
    if (!shape->consumer || !shape->consumer->exists) {
        return;
    }
    if (shape->K > 0) {
        out->normed = tensor(arena, model, shape->N, shape->D);
        out->rstd = floats(arena, shape->N);
        out->hidden = tensor(arena, model, shape->N, shape->K);
        out->inner = tensor(arena, model, shape->N, shape->K);
        out->weights = floats(arena, shape->N * shape->C * shape->n);
    }
    for (size_t c = 0; c < shape->C; c++) {
        out->mixed[c] = tensor(arena, model, shape->N, shape->D);
        out->formed[c] = shape->post[c] ? tensor(arena, model, shape->N, shape->D) : out->mixed[c];
        out->post_rstd[c] = shape->post[c] ? floats(arena, shape->N) : NULL;
    }
}

static void input_norms_layout(const struct model *model, const struct unit_shape *shape,
                               struct arena *arena, struct stash *out)
{
    for (int c = 0; c < INPUTS; c++) {
        if (c > 0 && shape->shared_input) {
            out->normed[c] = out->normed[0];
            out->mean[c] = out->mean[0];
            out->rstd[c] = out->rstd[0];
            continue;
        }
        out->normed[c] = tensor(arena, model, shape->N, shape->D);
        out->rstd[c] = floats(arena, shape->N);
        out->mean[c] = shape->norm == NORM_LAYER ? floats(arena, shape->N) : NULL;
    }
}

static void attention_stash_layout(const struct model *model, const struct unit_shape *shape,
                                   struct arena *arena, struct stash *out)
{
    size_t query = shape->H * shape->E, key = shape->G * shape->E;
    input_norms_layout(model, shape, arena, out);
    out->q = tensor(arena, model, shape->N, query);
    out->k = tensor(arena, model, shape->N, key);
    out->v = tensor(arena, model, shape->N, key);
    if (shape->qk_norm) {
        out->q_raw = tensor(arena, model, shape->N, query);
        out->k_raw = tensor(arena, model, shape->N, key);
        out->q_rstd = floats(arena, shape->N * shape->H);
        out->k_rstd = floats(arena, shape->N * shape->G);
    }
    out->attended = tensor(arena, model, shape->N, query);
    out->lse = floats(arena, shape->B * shape->H * shape->T);
}

static void products_layout(const struct model *model, const struct unit_shape *shape,
                            struct arena *arena, struct stash *out)
{
    bool layer = shape->unit->kind == UNIT_EMBED || shape->unit->kind == UNIT_FFN;
    if (layer && model_prenorm(model)) {
        out->key_normed = tensor(arena, model, shape->N, shape->D);
        out->key_rstd = floats(arena, shape->N);
    }
    if (layer && model_block_ending(model, shape->unit->layer) >= 0) {
        out->summary = tensor(arena, model, shape->N, shape->D);
    }
}

void stash_layout(const struct model *model, int unit, bool training, struct arena *arena,
                  struct stash *out)
{
    struct unit_shape shape;
    unit_shape(model, unit, &shape);
    memset(out, 0, sizeof *out);
    if (shape.unit->kind != UNIT_HEAD) {
        out->out = tensor(arena, model, shape.N, shape.D);
    }
    products_layout(model, &shape, arena, out);
    mudd_stash_layout(model, &shape, arena, &out->mudd);
    switch (shape.unit->kind) {
    case UNIT_EMBED:
        break;
    case UNIT_ATTENTION:
        attention_stash_layout(model, &shape, arena, out);
        break;
    case UNIT_FFN:
        out->normed[0] = tensor(arena, model, shape.N, shape.D);
        out->rstd[0] = floats(arena, shape.N);
        out->mean[0] = shape.norm == NORM_LAYER ? floats(arena, shape.N) : NULL;
        out->gate = tensor(arena, model, shape.N, shape.F);
        out->up = shape.gelu ? NULL : tensor(arena, model, shape.N, shape.F);
        out->product = tensor(arena, model, shape.N, shape.F);
        break;
    case UNIT_HEAD:
        input_norms_layout(model, &shape, arena, out);
        out->dnormed = training ? tensor(arena, model, shape.N, shape.D) : NULL;
        break;
    }
}

static void mudd_backward_layout(const struct model *model, const struct unit_shape *shape,
                                 struct arena *arena, struct backward *out)
{
    if (!shape->consumer || !shape->consumer->exists) {
        return;
    }
    out->dweights = floats(arena, shape->N * shape->C * shape->n);
    for (size_t c = 0; c < shape->C; c++) {
        out->dmixed[c] = shape->post[c] ? tensor(arena, model, shape->N, shape->D) : NULL;
        out->dpost_scale[c] = shape->post[c] ? floats(arena, shape->D) : NULL;
    }
    if (shape->K > 0) {
        out->dinner = tensor(arena, model, shape->N, shape->K);
        out->dgenerator = tensor(arena, model, shape->N, shape->D);
        out->dgenerator_scale = model_prenorm(model) ? floats(arena, shape->D) : NULL;
    }
}

static float *norm_bias(struct arena *arena, const struct unit_shape *shape)
{
    return shape->norm == NORM_LAYER ? floats(arena, shape->D) : NULL;
}

static void input_gradients_layout(const struct model *model, const struct unit_shape *shape,
                                   struct arena *arena, struct backward *out)
{
    for (int c = 0; c < INPUTS; c++) {
        bool shared = c > 0 && shape->shared_input;
        out->dinput[c] = shared ? out->dinput[0] : tensor(arena, model, shape->N, shape->D);
        out->dscale[c] = shared ? out->dscale[0] : floats(arena, shape->D);
        out->dbias[c] = shared ? out->dbias[0] : norm_bias(arena, shape);
    }
}

void backward_layout(const struct model *model, int unit, struct arena *arena, struct backward *out)
{
    struct unit_shape shape;
    unit_shape(model, unit, &shape);
    memset(out, 0, sizeof *out);
    bool layer = shape.unit->kind == UNIT_EMBED || shape.unit->kind == UNIT_FFN;
    out->dkey_scale = layer && model_prenorm(model) ? floats(arena, shape.D) : NULL;
    mudd_backward_layout(model, &shape, arena, out);
    switch (shape.unit->kind) {
    case UNIT_EMBED:
        break;
    case UNIT_ATTENTION:
        input_gradients_layout(model, &shape, arena, out);
        out->dq = tensor(arena, model, shape.N, shape.H * shape.E);
        out->dk = tensor(arena, model, shape.N, shape.G * shape.E);
        out->dv = tensor(arena, model, shape.N, shape.G * shape.E);
        if (shape.qk_norm) {
            out->dq_scale = floats(arena, shape.E);
            out->dk_scale = floats(arena, shape.E);
        }
        out->dresidual = shape.parallel ? tensor(arena, model, shape.N, shape.D) : NULL;
        break;
    case UNIT_FFN:
        out->dgate = tensor(arena, model, shape.N, shape.F);
        out->dup = shape.gelu ? NULL : tensor(arena, model, shape.N, shape.F);
        out->dscale[0] = floats(arena, shape.D);
        out->dbias[0] = norm_bias(arena, &shape);
        out->dinput[0] = shape.parallel ? tensor(arena, model, shape.N, shape.D) : NULL;
        break;
    case UNIT_HEAD:
        out->dinput[0] = tensor(arena, model, shape.N, shape.D);
        out->dscale[0] = floats(arena, shape.D);
        out->dbias[0] = norm_bias(arena, &shape);
        break;
    }
}
