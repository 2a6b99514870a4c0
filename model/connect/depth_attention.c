/* depth_attention.c - Attention Residuals (arXiv 2603.15031): every sub-layer attends to the outputs of those
 * before it, token by token. docs/model.md has the formulas.
 *
 * Unit u makes one key, number u: its output v_u, or with blocks the sum of its block so far, which after the
 * block's last unit is the block's. So a stage gets one tensor of the block that a cut divides, and one of
 * each finished block.
 *
 *     F      alpha from the scores of all sources, then the mix; nothing but the mix is kept
 *     B      forms alpha again while it reads the sources for their gradients: alpha, a and b (kernels'
 *            depth_backward) stay for GRAD, the gradients of query and scale for W
 *     GRAD   three steps a reader: it reads the source again
 */
#include "model/connect/residual.h"

enum { TAG_SOURCE = RESIDUAL_TAGS, TAG_SUM };

enum { PARAM_QUERY = PARAM_CONNECT, PARAM_SOURCE_NORM };

struct depth_stash {
    void *mixed; /* [N, D] h_u */
};

struct depth_backward {
    float *coefficients;    /* [N, 3, n] */
    float *dquery, *dscale; /* [D] this microbatch's */
};

_Static_assert(sizeof(struct depth_stash) <= CONNECT_POINTERS * sizeof(void *), "room");
_Static_assert(sizeof(struct depth_backward) <= CONNECT_POINTERS * sizeof(void *), "room");

static struct depth_stash *depth_stash_of(const struct stash *stash)
{
    return (struct depth_stash *)stash->connect;
}

static struct depth_backward *depth_backward_of(const struct part *part, int unit)
{
    return (struct depth_backward *)part_backward_of(part, unit)->connect;
}

/* ---- keys and reads ---- */

static int depth_last(const struct model *model)
{
    return 2 * (int)model->config.n_layer; /* the last FFN */
}

/* Units whose outputs are one source: of S layers, or one. */
static int depth_block(const struct model *model)
{
    int S = (int)model->config.depth_attention_block;
    return S > 0 ? 2 * S : 1;
}

/* Is the key, once its unit has made it, complete? */
static bool depth_ends_block(const struct model *model, int unit)
{
    return unit % depth_block(model) == 0 || unit == depth_last(model);
}

/* Does the unit add its output to what its block has already? */
static bool depth_adds(const struct model *model, int unit)
{
    int block = depth_block(model);
    return unit > 0 && unit <= depth_last(model) && (unit - 1) % block != 0;
}

/* Sources of the unit, ascending: finished blocks, and its own block's sum so far. */
static int depth_sources(const struct model *model, int unit, int *out)
{
    int count = 0;
    for (int u = 0; u < unit; u++) {
        if (depth_ends_block(model, u) || (u == unit - 1 && depth_adds(model, unit))) {
            out[count++] = u;
        }
    }
    return count;
}

static int depth_keys(const struct model *model)
{
    return depth_last(model) + 1;
}

static status_t depth_add_read(struct model *model, int unit, int key, int tag)
{
    struct read read = {.unit = unit,
                        .key = key,
                        .order = tag,
                        .kind = tag == TAG_SUM ? READ_MAKES : READ_LEAVES,
                        .made = tag == TAG_SUM ? unit : -1,
                        .rereads = tag == TAG_SOURCE,
                        .tag = tag,
                        .what = tag == TAG_SUM ? "sum" : "source of"};
    return graph_add_read(&model->graph, &read);
}

static status_t depth_fill_graph(struct model *model)
{
    int source[KEYS_MOST];
    for (int unit = 0; unit <= depth_last(model); unit++) {
        connect_set_key(model, unit, "V", unit, unit, 0);
    }
    TRY(residual_add_direct(model, 1, 0));
    for (int unit = 2; unit <= depth_last(model) + 1; unit++) {
        int sources = depth_sources(model, unit, source);
        for (int s = 0; s < sources; s++) {
            TRY(depth_add_read(model, unit, source[s], TAG_SOURCE));
        }
        TRY(depth_adds(model, unit) ? depth_add_read(model, unit, unit - 1, TAG_SUM) : STATUS_OK);
    }
    return STATUS_OK;
}

static int depth_inputs(const struct model *model, int unit)
{
    (void)model;
    (void)unit;
    return 1;
}

/* ---- parameters, cost ---- */

static void depth_params(struct param_list *list)
{
    int64_t D = list->model->config.dim;
    if (list->unit >= 2) {
        param_add(list, PARAM_QUERY, D, 0, INIT_ZERO, 0, "depth_attention.%d.query",
                  list->unit - 1);
        param_add(list, PARAM_SOURCE_NORM, D, 0, INIT_ONE, 0, "depth_attention.%d.norm.weight",
                  list->unit - 1);
    }
}

/* A multiply-add per element counted as two FLOPs: forward a score, a square and the mix; backward those two
 * sums again, dalpha, the gradient of the query, and three steps for the source's own gradient. */
static void depth_flops(const struct model *model, int unit, struct connect_flops *out)
{
    int source[KEYS_MOST];
    const struct unit_shape *shape = unit_shape(model, unit);
    if (unit >= 2) {
        double once = 2.0 * (double)(shape->N * shape->D) * depth_sources(model, unit, source);
        out->forward = 3.0 * once;
        out->backward = 7.0 * once;
        out->selective = out->forward;
    }
}

/* ---- memory ---- */

static void depth_stash_layout(const struct layout *layout, struct stash *out)
{
    const struct unit_shape *shape = layout->shape;
    if (layout->unit >= 2) {
        depth_stash_of(out)->mixed = layout_tensor(layout, CHEAP, shape->N, shape->D);
    }
}

/* With nothing formed again B writes the gradient of the mix over it. */
static bool depth_gradient_over_input(const struct model *model, int unit)
{
    return model->recompute == RECOMPUTE_NONE && unit >= 2;
}

static void depth_backward_layout(const struct layout *layout, struct backward *out)
{
    const struct unit_shape *shape = layout->shape;
    struct depth_backward *own = (struct depth_backward *)out->connect;
    int source[KEYS_MOST];
    if (layout->unit >= 1 && !depth_gradient_over_input(layout->model, layout->unit)) {
        out->dinput[0] = layout_tensor(layout, UNTIL_GRAD, shape->N, shape->D);
    }
    if (layout->unit >= 2) {
        size_t n = (size_t)depth_sources(layout->model, layout->unit, source);
        own->coefficients = layout_floats(layout, UNTIL_GRAD, shape->N * 3 * n);
        own->dquery = layout_floats(layout, UNTIL_W, shape->D);
        own->dscale = layout_floats(layout, UNTIL_W, shape->D);
    }
}

static void *depth_key(const struct model *model, int key, const struct stash *stash)
{
    (void)model;
    (void)key;
    return stash->out;
}

/* ---- operations ---- */

static size_t depth_find_sources(const struct part *part, int unit, int frame,
                                 const void *out[KEYS_MOST])
{
    int source[KEYS_MOST];
    int sources = depth_sources(part->model, unit, source);
    for (int s = 0; s < sources; s++) {
        out[s] = part_read_key(part, frame, source[s]);
    }
    return (size_t)sources;
}

static void depth_mix(struct part *part, int unit, int frame, struct stash *stash)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    const void *key[KEYS_MOST];
    if (unit < 2) {
        return;
    }
    size_t n = depth_find_sources(part, unit, frame, key);
    part->kernels->depth_forward(&part->ctx, depth_stash_of(stash)->mixed, key,
                                 unit_weight(part, unit, PARAM_QUERY, 0),
                                 unit_weight(part, unit, PARAM_SOURCE_NORM, 0),
                                 unit_rms_norm(part, shape).eps, shape->N, shape->D, n);
}

static const void *depth_input(const struct part *part, int unit, int frame, int way)
{
    (void)way;
    return unit == 1 ? part_read_key(part, frame, 0)
                     : depth_stash_of(part_view(part, unit, frame))->mixed;
}

static void depth_output(struct part *part, int unit, int frame)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    void *out = part_stash(part, unit, frame)->out;
    if (depth_adds(part->model, unit)) {
        part->kernels->add(&part->ctx, out, part_read_key(part, frame, unit - 1), out,
                           shape->N * shape->D);
    }
}

static const void *depth_output_gradient(const struct part *part, int unit)
{
    return part->key_gradient[unit];
}

static void *depth_mix_gradient(const struct part *part, int unit)
{
    return depth_gradient_over_input(part->model, unit)
               ? depth_stash_of(part_backward_stash(part, unit))->mixed
               : part_backward_of(part, unit)->dinput[0];
}

static void *depth_input_gradient(struct part *part, int unit, int way, bool *out_accumulate)
{
    (void)way;
    *out_accumulate = false;
    return depth_mix_gradient(part, unit);
}

static void depth_backward(struct part *part, int unit, int frame)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    const struct depth_backward *backward = depth_backward_of(part, unit);
    const void *key[KEYS_MOST];
    if (unit < 2) {
        return;
    }
    size_t n = depth_find_sources(part, unit, frame, key);
    part->kernels->depth_backward(&part->ctx, backward->coefficients, backward->dquery,
                                  backward->dscale, depth_mix_gradient(part, unit), key,
                                  unit_weight(part, unit, PARAM_QUERY, 0),
                                  unit_weight(part, unit, PARAM_SOURCE_NORM, 0),
                                  unit_rms_norm(part, shape).eps, shape->N, shape->D, n);
}

static void depth_weight_gradient(struct part *part, int unit, int frame)
{
    const struct depth_backward *backward = depth_backward_of(part, unit);
    size_t D = unit_shape(part->model, unit)->D;
    (void)frame;
    if (unit >= 2) {
        part->kernels->accumulate_f32(&part->ctx, unit_gradient(part, unit, PARAM_QUERY, 0),
                                      backward->dquery, D);
        part->kernels->accumulate_f32(&part->ctx, unit_gradient(part, unit, PARAM_SOURCE_NORM, 0),
                                      backward->dscale, D);
    }
}

/* ---- key gradients ---- */

/* Terms of consecutive readers, added in one pass over the key. */
struct depth_terms {
    struct gathering sum;
    const void *key;
    size_t count;
    struct depth_term *term;
};

static void depth_terms_flush(struct depth_terms *terms)
{
    struct gathering *sum = &terms->sum;
    if (terms->count > 0) {
        sum->part->kernels->depth_backward_key(&sum->part->ctx, sum->dkey, sum->started,
                                               terms->term, terms->count, terms->key, sum->N,
                                               sum->D);
        sum->started = true;
        terms->count = 0;
    }
}

static void depth_add_tensor(struct depth_terms *terms, const void *tensor)
{
    depth_terms_flush(terms);
    gathering_add(&terms->sum, tensor);
}

static void depth_add_source(struct depth_terms *terms, const struct read *read)
{
    const struct part *part = terms->sum.part;
    int source[KEYS_MOST], column = 0;
    int n = depth_sources(part->model, read->unit, source);
    while (column < n && source[column] != read->key) {
        column++;
    }
    CHECK(column < n, "unit %d does not read key %d", read->unit, read->key);
    terms->term[terms->count++] = (struct depth_term){
        .coefficients = depth_backward_of(part, read->unit)->coefficients + column,
        .n = (size_t)n,
        .dout = depth_mix_gradient(part, read->unit),
        .query = unit_weight(part, read->unit, PARAM_QUERY, 0),
        .scale = unit_weight(part, read->unit, PARAM_SOURCE_NORM, 0)};
}

static void depth_add_read_gradient(struct depth_terms *terms, const struct read *read)
{
    const struct part *part = terms->sum.part;
    switch (read->tag) {
    case TAG_SOURCE:
        depth_add_source(terms, read);
        break;
    case TAG_DIRECT:
        depth_add_tensor(terms, depth_mix_gradient(part, read->unit));
        break;
    case TAG_SUM:
        depth_add_tensor(terms, part->key_gradient[read->made]);
        break;
    default:
        CHECK(false, "an addition with tag %d", read->tag);
    }
}

static void depth_add_gradient(struct part *part, const struct key_sum *sum)
{
    struct depth_term term[sum->count > 0 ? sum->count : 1];
    struct depth_terms terms = {.term = term, .key = part_read_key(part, sum->frame, sum->key)};
    gathering_begin(&terms.sum, part, sum->key);
    for (int a = 0; a < sum->count; a++) {
        int read = sum->adds[a].read;
        if (read == ADD_RECEIVED) {
            terms.sum.started = true;
        } else if (read == ADD_PARTIAL) {
            depth_add_tensor(&terms, sum->partial);
        } else {
            depth_add_read_gradient(&terms, &part->model->graph.read[read]);
        }
    }
    depth_terms_flush(&terms);
}

const struct connector depth_attention_connector = {
    .name = "depth_attention",
    .keys = depth_keys,
    .fill_graph = depth_fill_graph,
    .inputs = depth_inputs,
    .params = depth_params,
    .flops = depth_flops,
    .stash_layout = depth_stash_layout,
    .backward_layout = depth_backward_layout,
    .key = depth_key,
    .forward = depth_mix,
    .recompute = depth_mix,
    .input = depth_input,
    .output = depth_output,
    .output_gradient = depth_output_gradient,
    .input_gradient = depth_input_gradient,
    .backward = depth_backward,
    .add_gradient = depth_add_gradient,
    .weight_gradient = depth_weight_gradient,
};
