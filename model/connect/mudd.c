/* mudd.c - the connector of MUDDFormer: keys and reads, parameters, memory, cost. */
#include "model/connect/mudd.h"

#include <math.h>
#include <stdio.h>

/* ---- keys and reads ---- */

static status_t mudd_add_read(struct model *model, int unit, int key, enum mudd_tag tag)
{
    struct read read = {.unit = unit,
                        .key = key,
                        /* Before direct uses: the aggregate's ways, then the generator's path. */
                        .order = (int)tag - (int)TAG_NORM,
                        .kind = READ_LEAVES,
                        .made = -1,
                        .tag = (int)tag,
                        .what = tag == TAG_AGGREGATE ? "aggregate of" : "generator of"};
    return graph_add_read(&model->graph, &read);
}

/* `unit` makes the key `made` of `key`: that comes after all other reads. */
static status_t mudd_add_made(struct model *model, int unit, int key, int made, enum mudd_tag tag)
{
    struct read read = {.unit = unit,
                        .key = key,
                        .order = (int)tag,
                        .kind = READ_MAKES,
                        .made = made,
                        .tag = (int)tag,
                        .what = tag == TAG_NORM ? "norm" : "summary"};
    return graph_add_read(&model->graph, &read);
}

static status_t mudd_add_reads(struct model *model, int i)
{
    int unit = residual_reader(i), newest = mudd_raw_key(model, i);
    const struct consumer *consumer = mudd_consumer(model, unit);
    if (!consumer) {
        return residual_add_direct(model, unit, newest);
    }
    for (size_t j = 0; j < consumer->n; j++) {
        TRY(mudd_add_read(model, unit, consumer->key[j], TAG_AGGREGATE));
    }
    if (consumer->K > 0) {
        TRY(mudd_add_read(model, unit, newest, TAG_GENERATOR));
    }
    bool some_direct = !consumer->shared && consumer->C < WAYS_MAX;
    return some_direct || consumer->plus ? residual_add_direct(model, unit, newest) : STATUS_OK;
}

/* The keys that the embedding (layer 0) or a layer's FFN makes: X_j, or R_j and of that the normed X_j; of
 * the X_j of a block a mean, which is no layer's output. */
static status_t mudd_add_keys(struct model *model, int layer)
{
    int unit = residual_maker(layer), block = mudd_block_ending(model, layer);
    connect_set_key(model, layer, "X", layer, unit, 1);
    if (mudd_prenorm(model)) {
        int raw = mudd_raw_key(model, layer);
        connect_set_key(model, raw, "R", layer, unit, 0);
        TRY(mudd_add_made(model, unit, raw, layer, TAG_NORM));
    }
    if (block >= 0) {
        int S = (int)model->config.dense_pattern.block_size;
        int summary = mudd_summary_key(model, block);
        connect_set_key(model, summary, "S", block, unit, 2);
        model->graph.key[summary].plain = false;
        model->graph.key[summary].plain_bytes = 0;
        for (int j = block * S + 1; j <= layer; j++) {
            TRY(mudd_add_made(model, unit, j, summary, TAG_SUMMARY));
        }
    }
    return layer > 0 ? residual_add_mid(model, layer) : STATUS_OK;
}

static status_t mudd_fill_graph(struct model *model)
{
    for (int i = 0; i <= model->config.n_layer; i++) {
        TRY(mudd_add_keys(model, i));
        TRY(mudd_add_reads(model, i));
    }
    return STATUS_OK;
}

static int mudd_inputs(const struct model *model, int unit)
{
    const struct consumer *consumer = mudd_consumer(model, unit);
    return consumer && !consumer->shared ? INPUTS : 1;
}

/* ---- parameters ---- */

static void mudd_add_consumer_params(struct param_list *list, const struct consumer *consumer)
{
    const struct model_config *config = &list->model->config;
    int index = consumer->layer - 1;
    int64_t ways = (int64_t)consumer->C, n = (int64_t)consumer->n, K = (int64_t)consumer->K;
    bool both = config->mudd_prenorm && config->mudd_postnorm;
    param_add(list, PARAM_DENSE_B, ways, n, both ? INIT_ZERO : INIT_LAST_COLUMN, 0, "dense_bs.%d",
              index)
        ->decay = false;
    if (K > 0) {
        if (config->mudd_prenorm) {
            param_add(list, PARAM_DENSE_NORM, config->dim, 0, INIT_ONE, 0,
                      "dynamic_dense.%d.norm.weight", index);
        }
        param_add(list, PARAM_DENSE_W1, K, config->dim, INIT_NORMAL,
                  1.0 / sqrt((double)config->dim), "dynamic_dense.%d.w1.weight", index);
        param_add(list, PARAM_DENSE_W2, ways * n, K, INIT_ZERO, 0, "dynamic_dense.%d.w2.weight",
                  index);
    }
    if (config->mudd_postnorm) {
        param_add(list, PARAM_POSTNORM, config->dim, 0, INIT_SMALL, 0, "mudd_postnorms.%d.weight",
                  index);
    }
}

static bool mudd_makes_keys(const struct unit_shape *shape)
{
    return shape->kind == UNIT_EMBED || shape->kind == UNIT_FFN;
}

static void mudd_params(struct param_list *list)
{
    const struct consumer *consumer = mudd_consumer(list->model, list->unit);
    if (consumer) {
        mudd_add_consumer_params(list, consumer);
    }
    if (mudd_prenorm(list->model) && mudd_makes_keys(unit_shape(list->model, list->unit))) {
        param_add(list, PARAM_PRENORM, list->model->config.dim, 0, INIT_ONE, 0,
                  "mudd_prenorms.%d.weight", list->layer);
    }
}

/* ---- cost ---- */

/* One multiply-add per element counted as two FLOPs: once forward, once for dA, once for the gradients of
 * keys. */
static void mudd_flops(const struct model *model, int unit, struct connect_flops *out)
{
    const struct unit_shape *shape = unit_shape(model, unit);
    const struct consumer *consumer = mudd_consumer(model, unit);
    if (!consumer) {
        return;
    }
    double columns = (double)(consumer->C * consumer->n), N = (double)shape->N;
    double mix = 2.0 * N * (double)shape->D * columns;
    double generator = 2.0 * N * (double)consumer->K * ((double)shape->D + columns);
    out->forward = mix + generator;
    out->backward = 2.0 * mix + generator;
    out->weight = generator;
    out->selective = mix;
}

static void mudd_limits(const struct model *model, int unit, struct kernel_limits *out)
{
    const struct consumer *consumer = mudd_consumer(model, unit);
    if (consumer) {
        size_t columns = consumer->C * consumer->n;
        out->K = consumer->K > out->K ? consumer->K : out->K;
        out->Cn = columns > out->Cn ? columns : out->Cn;
        out->keys = consumer->n > out->keys ? consumer->n : out->keys;
    }
}

static const float *mudd_constants(const struct model *model, int unit, size_t *out_count)
{
    const struct consumer *consumer = mudd_consumer(model, unit);
    if (!consumer || !consumer->mask) {
        return NULL;
    }
    *out_count = consumer->C * consumer->n;
    return consumer->mask;
}

/* ---- memory ---- */

_Static_assert(sizeof(struct mudd_stash) <= CONNECT_POINTERS * sizeof(void *), "room");
_Static_assert(sizeof(struct mudd_backward) <= CONNECT_POINTERS * sizeof(void *), "room");

static void mudd_consumer_layout(const struct layout *l, const struct consumer *consumer,
                                 struct mudd_stash *out)
{
    const struct unit_shape *shape = l->shape;
    if (consumer->K > 0) {
        out->normed = layout_tensor(l, CHEAP, shape->N, shape->D);
        out->rstd = layout_floats(l, CORE, shape->N);
        out->hidden = layout_tensor(l, CORE, shape->N, consumer->K);
        out->inner = layout_tensor(l, CORE, shape->N, consumer->K);
        out->weights = layout_floats(l, CORE, shape->N * consumer->C * consumer->n);
    }
    for (size_t c = 0; c < consumer->C; c++) {
        bool post = consumer->post[c], residual = consumer->way[c] == WAY_R;
        enum lifetime way = shape->parallel && residual ? KEY : CHEAP; /* the FFN reads it too */
        out->mixed[c] = layout_tensor(l, post ? CHEAP : way, shape->N, shape->D);
        out->formed[c] = post ? layout_tensor(l, way, shape->N, shape->D) : out->mixed[c];
        out->post_rstd[c] = post ? layout_floats(l, CHEAP, shape->N) : NULL;
    }
}

static void mudd_stash_layout(const struct layout *l, struct stash *stash)
{
    const struct unit_shape *shape = l->shape;
    const struct consumer *consumer = mudd_consumer(l->model, l->unit);
    struct mudd_stash *out = mudd_stash_of(stash);
    if (consumer) {
        mudd_consumer_layout(l, consumer, out);
    }
    if (mudd_makes_keys(shape) && mudd_prenorm(l->model)) {
        out->key_normed = layout_tensor(l, KEY, shape->N, shape->D);
        out->key_rstd = layout_floats(l, KEY, shape->N);
    }
    if (shape->kind == UNIT_FFN && mudd_block_ending(l->model, shape->layer) >= 0) {
        out->summary = layout_tensor(l, KEY, shape->N, shape->D);
    }
}

/* What B forms again where the shared memory would not keep it until W (selective) or GRAD (full). */
static void mudd_recomputed_layout(const struct layout *l, const struct consumer *consumer,
                                   struct mudd_backward *out)
{
    const struct unit_shape *shape = l->shape;
    if (consumer->K > 0 && l->model->recompute == RECOMPUTE_SELECTIVE) {
        out->generator_normed = layout_tensor(l, UNTIL_GRAD, shape->N, shape->D);
    }
    if (consumer->K > 0 && l->model->recompute == RECOMPUTE_FULL) {
        out->weights = layout_floats(l, UNTIL_GRAD, shape->N * consumer->C * consumer->n);
    }
}

static void mudd_consumer_backward_layout(const struct layout *l, const struct consumer *consumer,
                                          struct mudd_backward *out)
{
    const struct unit_shape *shape = l->shape;
    mudd_recomputed_layout(l, consumer, out);
    out->dweights = layout_floats(l, UNTIL_W, shape->N * consumer->C * consumer->n);
    for (size_t c = 0; c < consumer->C; c++) {
        bool post = consumer->post[c];
        out->dmixed[c] = post ? layout_tensor(l, UNTIL_GRAD, shape->N, shape->D) : NULL;
        out->dpost_scale[c] = post ? layout_floats(l, UNTIL_W, shape->D) : NULL;
    }
    if (consumer->K > 0) {
        out->dinner = layout_tensor(l, UNTIL_W, shape->N, consumer->K);
        out->dgenerator = layout_tensor(l, UNTIL_GRAD, shape->N, shape->D);
        out->dgenerator_scale = mudd_prenorm(l->model) ? layout_floats(l, UNTIL_W, shape->D) : NULL;
    }
}

static void mudd_backward_layout(const struct layout *l, struct backward *backward)
{
    const struct unit_shape *shape = l->shape;
    const struct consumer *consumer = mudd_consumer(l->model, l->unit);
    struct mudd_backward *out = (struct mudd_backward *)backward->connect;
    bool normed = mudd_makes_keys(shape) && mudd_prenorm(l->model); /* its GRAD comes before B */
    out->dkey_scale = normed ? layout_floats(l, UNTIL_GRAD, shape->D) : NULL;
    if (consumer) {
        mudd_consumer_backward_layout(l, consumer, out);
    }
    bool elsewhere[INPUTS];
    for (int way = 0; way < INPUTS; way++) {
        elsewhere[way] = mudd_gradient_over_input(l->model, consumer, way);
    }
    out->dstream = residual_layout(l, elsewhere, backward);
}

static void mudd_stash_view(const struct backward *backward, struct stash *stash)
{
    const struct mudd_backward *from = (const struct mudd_backward *)backward->connect;
    struct mudd_stash *out = mudd_stash_of(stash);
    out->normed = from->generator_normed ? from->generator_normed : out->normed;
    out->weights = from->weights ? from->weights : out->weights;
}

static void *mudd_key(const struct model *model, int key, const struct stash *stash)
{
    const struct mudd_stash *own = mudd_stash_of(stash);
    int L = (int)model->config.n_layer;
    if (key <= L) {
        return own->key_normed ? own->key_normed : stash->out;
    }
    bool summary = key >= residual_keys(model) + (mudd_prenorm(model) ? L + 1 : 0);
    return summary ? own->summary : stash->out;
}

const struct connector mudd_connector = {
    .name = "mudd",
    .create = mudd_create,
    .destroy = mudd_destroy,
    .keys = mudd_keys,
    .fill_graph = mudd_fill_graph,
    .inputs = mudd_inputs,
    .params = mudd_params,
    .flops = mudd_flops,
    .limits = mudd_limits,
    .constants = mudd_constants,
    .stash_layout = mudd_stash_layout,
    .backward_layout = mudd_backward_layout,
    .stash_view = mudd_stash_view,
    .key = mudd_key,
    .forward = mudd_forward,
    .recompute = mudd_recompute,
    .input = mudd_input,
    .output = mudd_output,
    .output_gradient = mudd_output_gradient,
    .input_gradient = mudd_input_gradient,
    .backward = mudd_backward,
    .add_gradient = mudd_add_gradient,
    .weight_gradient = mudd_weight_gradient,
};
