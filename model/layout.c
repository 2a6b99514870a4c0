/* layout.c - the memory of a unit for one microbatch, once for measuring and once for binding.
 *
 * Where a tensor lives follows from who reads it after F, and from what is formed again:
 *
 *     tenure                                               none     selective  full      evaluation
 *     KEY    X_j, H_i and what is made of them; xR for a   frame    frame      frame     frame
 *            parallel FFN; the head's dnormed
 *     CORE   projections, attention, gate and up, the      frame    frame      shared    shared
 *            generator; statistics of norms
 *     CHEAP  aggregates and ways, normed inputs, queries   frame    shared     shared    shared
 *            and keys after norm and rotation, the product
 *     LEFT   what B leaves for GRAD                         backward backward   backward
 *     OWN    what B leaves for W                            backward backward   shared
 *
 * CHEAP is two thirds of an attention's frame and two fifths of an FFN's, and costs memory traffic alone:
 * no matrix product is run twice, nor attention. The units of a part take turns in its shared memory. What is
 * formed again for W or GRAD (normed inputs; in full the weights A) must outlive the next turn: B forms it
 * in the unit's own memory of one microbatch.
 */
#include <string.h>

#include "model/model_internal.h"

enum tenure { KEY, CORE, CHEAP, LEFT, OWN };

struct layout {
    const struct model *model;
    const struct unit_shape *shape;
    bool training;
    const struct homes *homes;
};

static struct arena *home(const struct layout *l, enum tenure tenure)
{
    bool full = l->model->recompute == RECOMPUTE_FULL;
    switch (tenure) {
    case KEY:
        return l->homes->frame;
    case CORE:
        return l->training && !full ? l->homes->frame : l->homes->shared;
    case CHEAP:
        return l->training && l->model->recompute == RECOMPUTE_NONE ? l->homes->frame
                                                                    : l->homes->shared;
    case LEFT:
        return l->homes->backward;
    case OWN:
        break;
    }
    return full ? l->homes->shared : l->homes->backward;
}

static void *tensor(const struct layout *l, enum tenure tenure, size_t rows, size_t columns)
{
    return arena_alloc(home(l, tenure), rows * columns * dtype_size(l->model->dtype));
}

static float *floats(const struct layout *l, enum tenure tenure, size_t count)
{
    return arena_alloc(home(l, tenure), count * sizeof(float));
}

static bool mixes(const struct unit_shape *shape)
{
    return shape->consumer && shape->consumer->exists;
}

static bool makes_keys(const struct unit_shape *shape)
{
    return shape->kind == UNIT_EMBED || shape->kind == UNIT_FFN;
}

/* ---- from F on ---- */

static void mudd_stash_layout(const struct layout *l, struct mudd_stash *out)
{
    const struct unit_shape *shape = l->shape;
    if (!mixes(shape)) {
        return;
    }
    if (shape->K > 0) {
        out->normed = tensor(l, CHEAP, shape->N, shape->D);
        out->rstd = floats(l, CORE, shape->N);
        out->hidden = tensor(l, CORE, shape->N, shape->K);
        out->inner = tensor(l, CORE, shape->N, shape->K);
        out->weights = floats(l, CORE, shape->N * shape->C * shape->n);
    }
    for (size_t c = 0; c < shape->C; c++) {
        bool residual = shape->consumer->way[c] == WAY_R;
        enum tenure way = shape->parallel && residual ? KEY : CHEAP;
        out->mixed[c] = tensor(l, shape->post[c] ? CHEAP : way, shape->N, shape->D);
        out->formed[c] = shape->post[c] ? tensor(l, way, shape->N, shape->D) : out->mixed[c];
        out->post_rstd[c] = shape->post[c] ? floats(l, CHEAP, shape->N) : NULL;
    }
}

static void input_norms_layout(const struct layout *l, struct stash *out)
{
    const struct unit_shape *shape = l->shape;
    for (int c = 0; c < INPUTS; c++) {
        if (c > 0 && shape->shared_input) {
            out->normed[c] = out->normed[0];
            out->mean[c] = out->mean[0];
            out->rstd[c] = out->rstd[0];
            continue;
        }
        out->normed[c] = tensor(l, CHEAP, shape->N, shape->D);
        out->rstd[c] = floats(l, CORE, shape->N);
        out->mean[c] = shape->norm == NORM_LAYER ? floats(l, CORE, shape->N) : NULL;
    }
}

static void attention_stash_layout(const struct layout *l, struct stash *out)
{
    const struct unit_shape *shape = l->shape;
    size_t query = shape->H * shape->E, key = shape->G * shape->E;
    input_norms_layout(l, out);
    out->q = tensor(l, shape->qk_norm ? CHEAP : CORE, shape->N, query);
    out->k = tensor(l, shape->qk_norm ? CHEAP : CORE, shape->N, key);
    out->v = tensor(l, CORE, shape->N, key);
    if (shape->qk_norm) {
        out->q_raw = tensor(l, CORE, shape->N, query);
        out->k_raw = tensor(l, CORE, shape->N, key);
        out->q_rstd = floats(l, CORE, shape->N * shape->H);
        out->k_rstd = floats(l, CORE, shape->N * shape->G);
    }
    out->attended = tensor(l, CORE, shape->N, query);
    out->lse = floats(l, CORE, shape->B * shape->H * shape->T);
}

static void ffn_stash_layout(const struct layout *l, struct stash *out)
{
    const struct unit_shape *shape = l->shape;
    out->normed[0] = tensor(l, CHEAP, shape->N, shape->D);
    out->rstd[0] = floats(l, CORE, shape->N);
    out->mean[0] = shape->norm == NORM_LAYER ? floats(l, CORE, shape->N) : NULL;
    out->gate = tensor(l, CORE, shape->N, shape->F);
    out->up = shape->gelu ? NULL : tensor(l, CORE, shape->N, shape->F);
    out->product = tensor(l, CHEAP, shape->N, shape->F);
}

static void products_layout(const struct layout *l, struct stash *out)
{
    const struct unit_shape *shape = l->shape;
    if (!makes_keys(shape)) {
        return;
    }
    if (model_prenorm(l->model)) {
        out->key_normed = tensor(l, KEY, shape->N, shape->D);
        out->key_rstd = floats(l, KEY, shape->N);
    }
    if (model_block_ending(l->model, shape->layer) >= 0) {
        out->summary = tensor(l, KEY, shape->N, shape->D);
    }
}

void stash_layout(const struct model *model, int unit, bool training, const struct homes *homes,
                  struct stash *out)
{
    const struct unit_shape *shape = unit_shape(model, unit);
    struct layout l = {.model = model, .shape = shape, .training = training, .homes = homes};
    memset(out, 0, sizeof *out);
    if (shape->kind != UNIT_HEAD) {
        out->out = tensor(&l, KEY, shape->N, shape->D);
    }
    products_layout(&l, out);
    mudd_stash_layout(&l, &out->mudd);
    switch (shape->kind) {
    case UNIT_EMBED:
        break;
    case UNIT_ATTENTION:
        attention_stash_layout(&l, out);
        break;
    case UNIT_FFN:
        ffn_stash_layout(&l, out);
        break;
    case UNIT_HEAD:
        input_norms_layout(&l, out);
        out->dnormed = training ? tensor(&l, KEY, shape->N, shape->D) : NULL;
        break;
    }
}

/* ---- from B on ---- */

/* What B forms again where the shared set would not keep it until W (selective) or GRAD (full). */
static void again_layout(const struct layout *l, struct backward *out)
{
    const struct unit_shape *shape = l->shape;
    bool selective = l->model->recompute == RECOMPUTE_SELECTIVE;
    bool norms = shape->kind == UNIT_ATTENTION || shape->kind == UNIT_FFN;
    int inputs = shape->kind == UNIT_ATTENTION && !shape->shared_input ? INPUTS : 1;
    for (int c = 0; selective && norms && c < inputs; c++) {
        out->normed[c] = tensor(l, LEFT, shape->N, shape->D);
    }
    for (int c = inputs; c < INPUTS; c++) {
        out->normed[c] = out->normed[0];
    }
    if (shape->K > 0 && selective) {
        out->generator_normed = tensor(l, LEFT, shape->N, shape->D);
    }
    if (shape->K > 0 && l->model->recompute == RECOMPUTE_FULL) {
        out->weights = floats(l, LEFT, shape->N * shape->C * shape->n);
    }
}

static void mudd_backward_layout(const struct layout *l, struct backward *out)
{
    const struct unit_shape *shape = l->shape;
    if (!mixes(shape)) {
        return;
    }
    out->dweights = floats(l, OWN, shape->N * shape->C * shape->n);
    for (size_t c = 0; c < shape->C; c++) {
        out->dmixed[c] = shape->post[c] ? tensor(l, LEFT, shape->N, shape->D) : NULL;
        out->dpost_scale[c] = shape->post[c] ? floats(l, OWN, shape->D) : NULL;
    }
    if (shape->K > 0) {
        out->dinner = tensor(l, OWN, shape->N, shape->K);
        out->dgenerator = tensor(l, LEFT, shape->N, shape->D);
        out->dgenerator_scale = model_prenorm(l->model) ? floats(l, OWN, shape->D) : NULL;
    }
}

static float *norm_bias(const struct layout *l)
{
    return l->shape->norm == NORM_LAYER ? floats(l, OWN, l->shape->D) : NULL;
}

static void attention_backward_layout(const struct layout *l, struct backward *out)
{
    const struct unit_shape *shape = l->shape;
    for (int c = 0; c < INPUTS; c++) {
        bool shared = c > 0 && shape->shared_input;
        out->dinput[c] = shared ? out->dinput[0] : tensor(l, LEFT, shape->N, shape->D);
        out->dscale[c] = shared ? out->dscale[0] : floats(l, OWN, shape->D);
        out->dbias[c] = shared ? out->dbias[0] : norm_bias(l);
    }
    out->dq = tensor(l, OWN, shape->N, shape->H * shape->E);
    out->dk = tensor(l, OWN, shape->N, shape->G * shape->E);
    out->dv = tensor(l, OWN, shape->N, shape->G * shape->E);
    if (shape->qk_norm) {
        out->dq_scale = floats(l, OWN, shape->E);
        out->dk_scale = floats(l, OWN, shape->E);
    }
    out->dresidual = shape->parallel ? tensor(l, LEFT, shape->N, shape->D) : NULL;
}

void backward_layout(const struct model *model, int unit, const struct homes *homes,
                     struct backward *out)
{
    const struct unit_shape *shape = unit_shape(model, unit);
    struct layout l = {.model = model, .shape = shape, .training = true, .homes = homes};
    memset(out, 0, sizeof *out);
    bool normed = makes_keys(shape) && model_prenorm(model); /* its GRAD comes before B */
    out->dkey_scale = normed ? floats(&l, LEFT, shape->D) : NULL;
    again_layout(&l, out);
    mudd_backward_layout(&l, out);
    switch (shape->kind) {
    case UNIT_EMBED:
        break;
    case UNIT_ATTENTION:
        attention_backward_layout(&l, out);
        break;
    case UNIT_FFN:
        out->dgate = tensor(&l, OWN, shape->N, shape->F);
        out->dup = shape->gelu ? NULL : tensor(&l, OWN, shape->N, shape->F);
        out->dscale[0] = floats(&l, OWN, shape->D);
        out->dbias[0] = norm_bias(&l);
        out->dinput[0] = shape->parallel ? tensor(&l, LEFT, shape->N, shape->D) : NULL;
        break;
    case UNIT_HEAD:
        out->dinput[0] = tensor(&l, LEFT, shape->N, shape->D);
        out->dscale[0] = floats(&l, OWN, shape->D);
        out->dbias[0] = norm_bias(&l);
        break;
    }
}

void stash_again(const struct backward *back, struct stash *stash)
{
    for (int c = 0; c < INPUTS; c++) {
        stash->normed[c] = back->normed[c] ? back->normed[c] : stash->normed[c];
    }
    stash->mudd.normed = back->generator_normed ? back->generator_normed : stash->mudd.normed;
    stash->mudd.weights = back->weights ? back->weights : stash->mudd.weights;
}

void unit_measure(const struct model *model, int unit, bool training, struct unit_bytes *out)
{
    struct arena frame, backward, shared;
    struct homes homes = {&frame, &backward, &shared};
    struct stash stash;
    struct backward back;
    arena_init_measure(&frame);
    arena_init_measure(&backward);
    arena_init_measure(&shared);
    stash_layout(model, unit, training, &homes, &stash);
    if (training) {
        backward_layout(model, unit, &homes, &back);
    }
    *out = (struct unit_bytes){(int64_t)frame.used, (int64_t)backward.used, (int64_t)shared.used};
}
