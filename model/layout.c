/* layout.c - which tensor lives where (layout.h has the table), for measuring and for binding. */
#include "model/layout.h"

#include <string.h>

#include "model/connect/connect.h"

static struct arena *home_of(const struct layout *l, enum lifetime lifetime)
{
    bool full = l->model->recompute == RECOMPUTE_FULL;
    switch (lifetime) {
    case KEY:
        return l->homes->frame;
    case CORE:
        return l->training && !full ? l->homes->frame : l->homes->shared;
    case CHEAP:
        return l->training && l->model->recompute == RECOMPUTE_NONE ? l->homes->frame
                                                                    : l->homes->shared;
    case ALONE:
        return l->homes->shared;
    case UNTIL_GRAD:
        return l->homes->backward;
    case UNTIL_W:
        break;
    }
    return full ? l->homes->shared : l->homes->backward;
}

void *layout_tensor(const struct layout *l, enum lifetime lifetime, size_t rows, size_t columns)
{
    return arena_alloc(home_of(l, lifetime), rows * columns * dtype_size(l->model->dtype));
}

float *layout_floats(const struct layout *l, enum lifetime lifetime, size_t count)
{
    return arena_alloc(home_of(l, lifetime), count * sizeof(float));
}

/* ---- from F on ---- */

static void layout_input_norms(const struct layout *l, struct stash *out)
{
    const struct unit_shape *shape = l->shape;
    for (int c = 0; c < INPUTS; c++) {
        if (c > 0 && shape->shared_input) {
            out->normed[c] = out->normed[0];
            out->mean[c] = out->mean[0];
            out->rstd[c] = out->rstd[0];
            continue;
        }
        out->normed[c] = layout_tensor(l, CHEAP, shape->N, shape->D);
        out->rstd[c] = layout_floats(l, CORE, shape->N);
        out->mean[c] = shape->norm == NORM_LAYER ? layout_floats(l, CORE, shape->N) : NULL;
    }
}

static void layout_attention(const struct layout *l, struct stash *out)
{
    const struct unit_shape *shape = l->shape;
    size_t query = shape->H * shape->E, key = shape->G * shape->E;
    layout_input_norms(l, out);
    out->q = layout_tensor(l, shape->qk_norm ? CHEAP : CORE, shape->tokens, query);
    out->k = layout_tensor(l, shape->qk_norm ? CHEAP : CORE, shape->tokens, key);
    out->v = layout_tensor(l, CORE, shape->tokens, key);
    if (shape->qk_norm) {
        out->q_raw = layout_tensor(l, CORE, shape->tokens, query);
        out->k_raw = layout_tensor(l, CORE, shape->tokens, key);
        out->q_rstd = layout_floats(l, CORE, shape->tokens * shape->H);
        out->k_rstd = layout_floats(l, CORE, shape->tokens * shape->G);
    }
    out->attended = layout_tensor(l, CORE, shape->tokens, query);
    out->lse = layout_floats(l, CORE, shape->B * shape->H * shape->T);
}

static void layout_ffn(const struct layout *l, struct stash *out)
{
    const struct unit_shape *shape = l->shape;
    out->normed[0] = layout_tensor(l, CHEAP, shape->N, shape->D);
    out->rstd[0] = layout_floats(l, CORE, shape->N);
    out->mean[0] = shape->norm == NORM_LAYER ? layout_floats(l, CORE, shape->N) : NULL;
    out->gate = layout_tensor(l, CORE, shape->tokens, shape->F);
    out->up = shape->gelu ? NULL : layout_tensor(l, CORE, shape->tokens, shape->F);
    out->activated = layout_tensor(l, CHEAP, shape->tokens, shape->F);
}

static void layout_head(const struct layout *l, struct stash *out)
{
    const struct unit_shape *shape = l->shape;
    out->normed[0] = layout_tensor(l, ALONE, shape->N, shape->D);
    out->rstd[0] = layout_floats(l, ALONE, shape->N);
    out->mean[0] = shape->norm == NORM_LAYER ? layout_floats(l, ALONE, shape->N) : NULL;
}

void stash_layout(const struct model *model, int unit, bool training, const struct homes *homes,
                  struct stash *out)
{
    const struct unit_shape *shape = unit_shape(model, unit);
    struct layout l = {model, shape, unit, training, homes};
    memset(out, 0, sizeof *out);
    if (shape->kind != UNIT_HEAD) {
        out->out = layout_tensor(&l, KEY, shape->N, shape->D);
    }
    connect_stash_layout(&l, out);
    switch (shape->kind) {
    case UNIT_EMBED:
        break;
    case UNIT_ATTENTION:
        layout_attention(&l, out);
        break;
    case UNIT_FFN:
        layout_ffn(&l, out);
        break;
    case UNIT_HEAD:
        layout_head(&l, out);
        break;
    }
}

/* ---- from B on ---- */

/* The normed inputs and the activation, where the shared set would not keep them until W. */
static void layout_recomputed(const struct layout *l, struct backward *out)
{
    const struct unit_shape *shape = l->shape;
    bool selective = l->model->recompute == RECOMPUTE_SELECTIVE;
    bool norms = shape->kind == UNIT_ATTENTION || shape->kind == UNIT_FFN;
    int inputs = shape->kind == UNIT_ATTENTION && !shape->shared_input ? INPUTS : 1;
    for (int c = 0; selective && norms && c < inputs; c++) {
        out->normed[c] = layout_tensor(l, UNTIL_GRAD, shape->N, shape->D);
    }
    for (int c = inputs; norms && c < INPUTS; c++) {
        out->normed[c] = out->normed[0];
    }
    if (selective && shape->kind == UNIT_FFN) {
        out->activated = layout_tensor(l, UNTIL_GRAD, shape->tokens, shape->F);
    }
}

static void layout_norm_shares(const struct layout *l, int inputs, struct backward *out)
{
    const struct unit_shape *shape = l->shape;
    for (int c = 0; c < INPUTS; c++) {
        bool own = c < inputs;
        out->dscale[c] = own ? layout_floats(l, UNTIL_W, shape->D) : out->dscale[0];
        out->dbias[c] = !own                        ? out->dbias[0]
                        : shape->norm == NORM_LAYER ? layout_floats(l, UNTIL_W, shape->D)
                                                    : NULL;
    }
}

/* The output's gradient of all parts' tokens, gathered by B for itself and W. */
static void layout_output_gradient(const struct layout *l, struct backward *out)
{
    const struct unit_shape *shape = l->shape;
    out->doutput = l->model->split_rows ? layout_tensor(l, UNTIL_W, shape->tokens, shape->D) : NULL;
}

static void layout_attention_backward(const struct layout *l, struct backward *out)
{
    const struct unit_shape *shape = l->shape;
    layout_norm_shares(l, shape->shared_input ? 1 : INPUTS, out);
    layout_output_gradient(l, out);
    if (!shape->qk_norm) {
        out->dq = layout_tensor(l, UNTIL_W, shape->tokens, shape->H * shape->E);
        out->dk = layout_tensor(l, UNTIL_W, shape->tokens, shape->G * shape->E);
    }
    out->dv = layout_tensor(l, UNTIL_W, shape->tokens, shape->G * shape->E);
    if (shape->qk_norm) {
        out->dq_scale = layout_floats(l, UNTIL_W, shape->E);
        out->dk_scale = layout_floats(l, UNTIL_W, shape->E);
    }
}

/* B forms the norm in any case; with full recomputation the stash that it forms again stays until W. */
static void layout_head_backward(const struct layout *l, struct backward *out)
{
    const struct unit_shape *shape = l->shape;
    bool full = l->model->recompute == RECOMPUTE_FULL;
    out->normed[0] = full ? NULL : layout_tensor(l, UNTIL_W, shape->N, shape->D);
    out->dlogits = layout_tensor(l, UNTIL_W, shape->tokens, shape->V);
}

static void backward_layout(const struct model *model, int unit, const struct homes *homes,
                            struct backward *out)
{
    const struct unit_shape *shape = unit_shape(model, unit);
    struct layout l = {model, shape, unit, true, homes};
    memset(out, 0, sizeof *out);
    layout_recomputed(&l, out);
    model->connector->backward_layout(&l, out);
    switch (shape->kind) {
    case UNIT_EMBED:
        break;
    case UNIT_ATTENTION:
        layout_attention_backward(&l, out);
        break;
    case UNIT_FFN:
        layout_norm_shares(&l, 1, out);
        layout_output_gradient(&l, out);
        break;
    case UNIT_HEAD:
        layout_norm_shares(&l, 1, out);
        layout_head_backward(&l, out);
        break;
    }
}

void unit_layout_backward(const struct model *model, int unit, struct arena *backward,
                          struct arena *shared, struct stash *out_recomputed, struct backward *out)
{
    bool full = model->recompute == RECOMPUTE_FULL, own = full && !model->weights_at_once;
    struct arena nowhere;
    struct homes homes = {&nowhere, backward, own ? backward : shared};
    arena_init_measure(&nowhere);
    memset(out_recomputed, 0, sizeof *out_recomputed);
    if (full) { /* what is in a frame stays there: its places in `recomputed` are NULL */
        stash_layout(model, unit, true, &homes, out_recomputed);
    }
    backward_layout(model, unit, &homes, out);
}

_Static_assert(sizeof(struct stash) % sizeof(void *) == 0, "a stash is pointers alone");

void stash_view(const struct model *model, const struct stash *recomputed,
                const struct backward *backward, struct stash *stash)
{
    void *from[sizeof(struct stash) / sizeof(void *)], *to[sizeof(struct stash) / sizeof(void *)];
    memcpy(from, recomputed, sizeof from);
    memcpy(to, stash, sizeof to);
    for (size_t i = 0; i < sizeof to / sizeof to[0]; i++) {
        to[i] = from[i] ? from[i] : to[i];
    }
    memcpy(stash, to, sizeof to);
    for (int c = 0; c < INPUTS; c++) {
        stash->normed[c] = backward->normed[c] ? backward->normed[c] : stash->normed[c];
    }
    stash->activated = backward->activated ? backward->activated : stash->activated;
    connect_stash_view(model, backward, stash);
}

void unit_measure(const struct model *model, int unit, bool training, struct unit_bytes *out)
{
    struct arena frame, backward, shared;
    struct homes homes = {&frame, &backward, &shared};
    struct stash stash, recomputed;
    struct backward leaves;
    arena_init_measure(&frame);
    arena_init_measure(&backward);
    arena_init_measure(&shared);
    stash_layout(model, unit, training, &homes, &stash);
    size_t forward = shared.used;
    if (training) {
        shared.used = 0;
        unit_layout_backward(model, unit, &backward, &shared, &recomputed, &leaves);
    }
    size_t most = shared.used > forward ? shared.used : forward;
    *out = (struct unit_bytes){(int64_t)frame.used, (int64_t)backward.used, (int64_t)most};
}
