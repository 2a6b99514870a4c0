/* hyper.c - hyper-connections (arXiv 2409.19606; with doubly stochastic mixing mHC, arXiv 2512.24880): n residual
 * streams that every sub-layer reads, mixes and writes with weights of its own. docs/model.md has the formulas.
 *
 * The streams are one key a unit, [N, n, D]: what a cut ships is one message of n tensors, and the key has one
 * reader, whose B forms its gradient. After the embedding the streams are equal: there the key is one tensor, of
 * which the first unit makes n.
 *
 *     F      what the generators make of the streams (z), the weights p, M, o of every token, h = p H;
 *            then f(h), then the new streams M H + o f
 *     B      df = o dH'; through f to dh; dp, dM, do; from these to the generators and to dH in its place
 *     W      adds what B has summed up of the connector's parameters: it does not read the streams again
 */
#include <math.h>

#include "model/connect/residual.h"

enum { TAG_STREAMS = RESIDUAL_TAGS };

enum block { PRE, RES, POST, BLOCKS };
enum {
    PARAM_HYPER = PARAM_CONNECT,          /* by block: pre, res, post or their biases */
    PARAM_HYPER_W = PARAM_HYPER + BLOCKS, /* the generators */
    PARAM_HYPER_SCALE = PARAM_HYPER_W + BLOCKS
};

struct hyper_stash {
    void *expanded; /* [N, n, D] unit 1: the streams made of X_0 */
    float *rstd;    /* [N] (mhc), [N, n] (dynamic) */
    float *z;       /* [N, W] three blocks, of p, M and o */
    float *weights; /* [N, W] */
    void *mixed;    /* [N, D] h */
    void *streams;  /* [N, n, D] the key that this unit makes */
};

struct hyper_backward {
    void *dstreams;    /* [N, n, D] unit 1: gradient of `expanded` */
    void *doutput;     /* [N, D] df */
    float *dweights;   /* [N, W] */
    float *dz;         /* as z */
    float *factor;     /* [N, n] */
    float *dparams;    /* [W + 3] this microbatch's: pre, res, post, scales */
    float *dw[BLOCKS]; /* and of the generators' weights */
};

_Static_assert(sizeof(struct hyper_stash) <= CONNECT_POINTERS * sizeof(void *), "room");
_Static_assert(sizeof(struct hyper_backward) <= CONNECT_POINTERS * sizeof(void *), "room");

static struct hyper_stash *hyper_stash_of(const struct stash *stash)
{
    return (struct hyper_stash *)stash->connect;
}

static struct hyper_backward *hyper_backward_of(const struct part *part, int unit)
{
    return (struct hyper_backward *)part_backward_of(part, unit)->connect;
}

/* ---- what a unit has ---- */

/* Sizes that follow from the configuration. */
struct hyper_shape {
    enum hyper_kind kind;
    size_t N, D, n;
    size_t W;           /* weights of a token: 2 n + n^2 */
    size_t rows, width; /* that a generator's norm and weights see: [N, n D] or [N n, D] */
    size_t each;        /* numbers of p that a row gives: n, or 1 */
};

static struct hyper_shape hyper_shape(const struct model *model)
{
    size_t N = (size_t)model->rows, D = (size_t)model->config.dim;
    size_t n = (size_t)model->config.hyper_streams;
    bool mhc = model->config.hyper_kind == HYPER_MHC;
    return (struct hyper_shape){.kind = (enum hyper_kind)model->config.hyper_kind,
                                .N = N,
                                .D = D,
                                .n = n,
                                .W = 2 * n + n * n,
                                .rows = mhc ? N : N * n,
                                .width = mhc ? n * D : D,
                                .each = mhc ? n : 1};
}

static int hyper_last(const struct model *model)
{
    return 2 * (int)model->config.n_layer;
}

/* An attention or FFN, and not the embedding or the head. */
static bool hyper_mixes(const struct model *model, int unit)
{
    return unit >= 1 && unit <= hyper_last(model);
}

/* Unit 1 reads X_0 as it is. With M doubly stochastic it could do nothing where the streams are equal, nor where
 * only their sum is read. */
static bool hyper_has(const struct model *model, int unit, enum block block)
{
    bool ends = unit == 1 || unit == hyper_last(model);
    return hyper_mixes(model, unit) &&
           (block == PRE   ? unit >= 2
            : block == RES ? model->config.hyper_kind != HYPER_MHC || !ends
                           : true);
}

static bool hyper_generates(const struct model *model)
{
    return model->config.hyper_kind != HYPER_STATIC;
}

/* Of a block of z, and of a row of weights or dparams. */
static size_t block_numbers(const struct hyper_shape *shape, enum block block)
{
    return block == RES ? shape->n * shape->n : shape->n;
}

static size_t block_before(const struct hyper_shape *shape, enum block block)
{
    return block == PRE ? 0 : block == RES ? shape->n : shape->n + shape->n * shape->n;
}

/* Rows of the block's generator. */
static size_t generator_rows(const struct hyper_shape *shape, enum block block)
{
    return block == RES ? shape->each * shape->n : shape->each;
}

/* ---- keys and reads ---- */

static int hyper_keys(const struct model *model)
{
    return hyper_last(model) + 1;
}

static status_t hyper_fill_graph(struct model *model)
{
    for (int unit = 0; unit <= hyper_last(model); unit++) {
        struct read read = {.unit = unit + 1,
                            .key = unit,
                            .order = TAG_STREAMS,
                            .kind = READ_FORMS,
                            .made = -1,
                            .tag = TAG_STREAMS,
                            .what = "backward of"};
        connect_set_key(model, unit, unit > 0 ? "H" : "X", unit, unit, 0);
        model->graph.key[unit].bytes *= unit > 0 ? model->config.hyper_streams : 1;
        TRY(graph_add_read(&model->graph, &read));
    }
    return STATUS_OK;
}

static int hyper_inputs(const struct model *model, int unit)
{
    (void)model;
    (void)unit;
    return 1;
}

/* ---- parameters ---- */

static const char *const block_name[] = {"pre", "res", "post"};

static void hyper_add_learned(struct param_list *list, enum block block)
{
    int64_t n = list->model->config.hyper_streams;
    bool mhc = list->model->config.hyper_kind == HYPER_MHC;
    const char *bias = mhc ? "_b" : "";
    int index = list->unit - 1;
    if (block == RES) {
        param_add(list, PARAM_HYPER + RES, n, n, INIT_DIAGONAL, mhc ? 8 : 1, "hyper.%d.res%s",
                  index, bias)
            ->decay = false;
        return;
    }
    enum param_init init = mhc || block == POST ? INIT_VALUE : INIT_ELEMENT;
    double value = block == POST ? (mhc ? 0 : 1) : mhc ? -log((double)(n - 1)) : index % (int)n;
    param_add(list, PARAM_HYPER + (int)block, n, 0, init, value, "hyper.%d.%s%s", index,
              block_name[block], bias);
}

static void hyper_add_generator(struct param_list *list, enum block block)
{
    const struct hyper_shape shape = hyper_shape(list->model);
    bool mhc = shape.kind == HYPER_MHC;
    int64_t rows = (int64_t)generator_rows(&shape, block), width = (int64_t)shape.width;
    int index = list->unit - 1;
    if (mhc) {
        param_add(list, PARAM_HYPER_W + (int)block, rows, width, INIT_NORMAL,
                  1.0 / sqrt((double)width), "hyper.%d.%s_w", index, block_name[block]);
    } else {
        bool vector = block != RES;
        param_add(list, PARAM_HYPER_W + (int)block, vector ? width : rows, vector ? 0 : width,
                  INIT_ZERO, 0, "hyper.%d.%s_w", index, block_name[block]);
    }
    param_add(list, PARAM_HYPER_SCALE + (int)block, 1, 0, INIT_VALUE, 0.01, "hyper.%d.%s_scale",
              index, block_name[block]);
}

static void hyper_params(struct param_list *list)
{
    for (enum block block = PRE; block < BLOCKS; block++) {
        if (hyper_has(list->model, list->unit, block)) {
            hyper_add_learned(list, block);
            if (hyper_generates(list->model)) {
                hyper_add_generator(list, block);
            }
        }
    }
}

/* ---- cost ---- */

/* Two FLOPs a multiply-add: generators, the read, the mix and the write; backward their gradients. */
static void hyper_flops(const struct model *model, int unit, struct connect_flops *out)
{
    const struct hyper_shape s = hyper_shape(model);
    double once = 2.0 * (double)(s.N * s.D), n = (double)s.n, generator = 0;
    for (enum block block = PRE; block < BLOCKS; block++) {
        if (hyper_generates(model) && hyper_has(model, unit, block)) {
            generator += 2.0 * (double)(s.rows * s.width * generator_rows(&s, block));
        }
    }
    if (hyper_mixes(model, unit)) {
        out->forward = generator + once * (n * n + 2.0 * n);
        out->backward = 2.0 * generator + once * (2.0 * n * n + 5.0 * n);
        out->selective = once * n;
    } else if (unit > hyper_last(model)) {
        out->forward = out->backward = out->selective = once * n;
    }
}

static void hyper_limits(const struct model *model, int unit, struct kernel_limits *out)
{
    const struct hyper_shape s = hyper_shape(model);
    (void)unit;
    out->Cn = s.n * s.n > out->Cn ? s.n * s.n : out->Cn;
    out->K = s.W + 3 > out->K ? s.W + 3 : out->K;
}

/* ---- memory ---- */

static void *streams_tensor(const struct layout *layout, enum lifetime lifetime)
{
    const struct hyper_shape s = hyper_shape(layout->model);
    return layout_tensor(layout, lifetime, s.N, s.n * s.D);
}

static void hyper_stash_layout(const struct layout *layout, struct stash *stash)
{
    const struct hyper_shape s = hyper_shape(layout->model);
    struct hyper_stash *out = hyper_stash_of(stash);
    int unit = layout->unit;
    if (hyper_mixes(layout->model, unit)) {
        out->expanded = unit == 1 ? streams_tensor(layout, CHEAP) : NULL;
        if (hyper_generates(layout->model)) {
            out->rstd = layout_floats(layout, CORE, s.rows);
            out->z = layout_floats(layout, CORE, s.N * s.W);
        }
        out->weights = layout_floats(layout, CORE, s.N * s.W);
        out->streams = streams_tensor(layout, KEY);
    }
    out->mixed = unit >= 2 ? layout_tensor(layout, CHEAP, s.N, s.D) : NULL;
}

/* With nothing formed again B writes the gradient of h over it. */
static bool hyper_gradient_over_input(const struct model *model, int unit)
{
    return model->recompute == RECOMPUTE_NONE && unit >= 2;
}

static void hyper_backward_layout(const struct layout *layout, struct backward *backward)
{
    const struct model *model = layout->model;
    const struct hyper_shape s = hyper_shape(model);
    struct hyper_backward *out = (struct hyper_backward *)backward->connect;
    int unit = layout->unit;
    if (unit >= 1 && !hyper_gradient_over_input(model, unit)) {
        backward->dinput[0] = layout_tensor(layout, UNTIL_GRAD, s.N, s.D);
    }
    if (!hyper_mixes(model, unit)) {
        return;
    }
    out->dstreams = unit == 1 ? streams_tensor(layout, UNTIL_W) : NULL;
    out->doutput = layout_tensor(layout, UNTIL_GRAD, s.N, s.D);
    out->dweights = layout_floats(layout, UNTIL_W, s.N * s.W);
    out->dparams = layout_floats(layout, UNTIL_W, s.W + 3);
    if (hyper_generates(model)) {
        out->dz = layout_floats(layout, UNTIL_W, s.N * s.W);
        out->factor = layout_floats(layout, UNTIL_W, s.N * s.n);
    }
    for (enum block block = PRE; block < BLOCKS; block++) {
        bool own = hyper_generates(model) && hyper_has(model, unit, block);
        out->dw[block] =
            own ? layout_floats(layout, UNTIL_W, generator_rows(&s, block) * s.width) : NULL;
    }
}

static void *hyper_key(const struct model *model, int key, const struct stash *stash)
{
    (void)model;
    return key == 0 ? stash->out : hyper_stash_of(stash)->streams;
}

/* ---- forward ---- */

/* The streams that the unit reads [N, n, D]. */
static const void *hyper_streams(const struct part *part, int unit, int frame,
                                 const struct stash *stash)
{
    return unit == 1 ? hyper_stash_of(stash)->expanded : part_read_key(part, frame, unit - 1);
}

/* out[t, s] = x[t] for every stream. */
static void hyper_expand(struct part *part, void *out, const void *x)
{
    const struct hyper_shape s = hyper_shape(part->model);
    part->kernels->streams_mix(&part->ctx, out, false, NULL, false, NULL, NULL, x, NULL, NULL, 0,
                               s.N, s.D, s.n);
}

static void hyper_generate(struct part *part, int unit, const void *streams,
                           struct hyper_stash *stash)
{
    const struct kernels *kernels = part->kernels;
    const struct hyper_shape s = hyper_shape(part->model);
    struct norm_shape norm = {NORM_RMS, s.rows, s.width, (float)part->model->config.norm_eps};
    kernels->norm_forward(&part->ctx, &norm, NULL, NULL, stash->rstd, streams, NULL, NULL);
    for (enum block block = PRE; block < BLOCKS; block++) {
        if (hyper_has(part->model, unit, block)) {
            kernels->mudd_weights_forward(&part->ctx, stash->z + s.N * block_before(&s, block),
                                          streams,
                                          unit_weight(part, unit, PARAM_HYPER_W + (int)block, 0),
                                          NULL, s.rows, s.width, generator_rows(&s, block));
        }
    }
}

static const void *learned(const struct part *part, int unit, enum block block)
{
    return unit_weight(part, unit, PARAM_HYPER + (int)block, 0);
}

static const void *scale_of(const struct part *part, int unit, enum block block)
{
    return unit_weight(part, unit, PARAM_HYPER_SCALE + (int)block, 0);
}

static void hyper_weigh(struct part *part, int unit, struct hyper_stash *stash)
{
    const struct hyper_shape s = hyper_shape(part->model);
    part->kernels->hyper_weights_forward(
        &part->ctx, stash->weights, stash->z, stash->rstd, learned(part, unit, PRE),
        learned(part, unit, RES), learned(part, unit, POST), scale_of(part, unit, PRE),
        scale_of(part, unit, RES), scale_of(part, unit, POST), s.kind, s.N, s.n);
}

/* What the unit's own computation reads: h, or in unit 1 the streams that its mix reads. */
static void hyper_read(struct part *part, int unit, int frame, struct stash *stash)
{
    const struct hyper_shape s = hyper_shape(part->model);
    struct hyper_stash *own = hyper_stash_of(stash);
    if (unit == 1) {
        hyper_expand(part, own->expanded, part_read_key(part, frame, 0));
    } else {
        part->kernels->streams_sum(&part->ctx, own->mixed, own->weights, s.W,
                                   hyper_streams(part, unit, frame, stash), s.N, s.D, s.n);
    }
}

static void hyper_forward(struct part *part, int unit, int frame, struct stash *stash)
{
    struct hyper_stash *own = hyper_stash_of(stash);
    if (unit == 1) { /* made first: the generators read them */
        hyper_read(part, unit, frame, stash);
    }
    if (hyper_mixes(part->model, unit)) {
        if (hyper_generates(part->model)) {
            hyper_generate(part, unit, hyper_streams(part, unit, frame, stash), own);
        }
        hyper_weigh(part, unit, own);
    }
    if (unit != 1) {
        hyper_read(part, unit, frame, stash);
    }
}

static const void *hyper_input(const struct part *part, int unit, int frame, int way)
{
    (void)way;
    return unit == 1 ? part_read_key(part, frame, 0)
                     : hyper_stash_of(part_view(part, unit, frame))->mixed;
}

static const float *weights_at(const struct hyper_shape *shape, const float *weights,
                               enum block block)
{
    return weights + block_before(shape, block);
}

static void hyper_output(struct part *part, int unit, int frame)
{
    const struct hyper_shape s = hyper_shape(part->model);
    const struct stash *stash = part_stash(part, unit, frame);
    const struct hyper_stash *own = hyper_stash_of(stash);
    if (hyper_mixes(part->model, unit)) {
        part->kernels->streams_mix(
            &part->ctx, own->streams, false, weights_at(&s, own->weights, RES), false,
            hyper_streams(part, unit, frame, stash), weights_at(&s, own->weights, POST), stash->out,
            NULL, NULL, s.W, s.N, s.D, s.n);
    }
}

/* ---- backward ---- */

static const void *hyper_output_gradient(const struct part *part, int unit)
{
    return unit == 0 ? part->key_gradient[0] : hyper_backward_of(part, unit)->doutput;
}

/* From the new streams' gradient to that of f, and to dM and do. */
static void hyper_output_backward(struct part *part, int unit, int frame)
{
    const struct kernels *kernels = part->kernels;
    const struct hyper_shape s = hyper_shape(part->model);
    const struct stash *stash = part_backward_stash(part, unit);
    const struct hyper_stash *own = hyper_stash_of(stash);
    const struct hyper_backward *backward = hyper_backward_of(part, unit);
    const void *dstreams = part->key_gradient[unit];
    if (hyper_mixes(part->model, unit)) {
        kernels->streams_sum(&part->ctx, backward->doutput, weights_at(&s, own->weights, POST), s.W,
                             dstreams, s.N, s.D, s.n);
        kernels->streams_dots(&part->ctx, backward->dweights + block_before(&s, RES),
                              backward->dweights + block_before(&s, POST), s.W, dstreams,
                              hyper_streams(part, unit, frame, stash), stash->out, s.N, s.D, s.n);
    }
}

static void *hyper_mixed_gradient(const struct part *part, int unit)
{
    return hyper_gradient_over_input(part->model, unit)
               ? hyper_stash_of(part_backward_stash(part, unit))->mixed
               : part_backward_of(part, unit)->dinput[0];
}

static void *hyper_input_gradient(struct part *part, int unit, int way, bool *out_accumulate)
{
    (void)way;
    *out_accumulate = false;
    return hyper_mixed_gradient(part, unit);
}

/* Through the generators: dstreams begins with their share, and their weights' gradients are summed up. */
static void hyper_backward_generators(struct part *part, int unit, const void *streams,
                                      void *dstreams)
{
    const struct kernels *kernels = part->kernels;
    const struct hyper_shape s = hyper_shape(part->model);
    const struct hyper_backward *backward = hyper_backward_of(part, unit);
    bool accumulate = false;
    for (enum block block = PRE; block < BLOCKS; block++) {
        size_t rows = generator_rows(&s, block);
        const float *dz = backward->dz + s.N * block_before(&s, block);
        if (!hyper_has(part->model, unit, block)) {
            continue;
        }
        kernels->mudd_weights_backward_input(&part->ctx, dstreams, accumulate, dz,
                                             unit_weight(part, unit, PARAM_HYPER_W + (int)block, 0),
                                             s.rows, s.width, rows);
        kernels->zero(&part->ctx, backward->dw[block], rows * s.width * sizeof(float));
        kernels->mudd_weights_backward_weight(&part->ctx, backward->dw[block], NULL, dz, streams,
                                              s.rows, s.width, rows);
        accumulate = true;
    }
}

/* dH = [generators] + M^T dH' + p dh + [factor H]. */
static void hyper_backward_streams(struct part *part, int unit, int frame, void *dstreams)
{
    const struct kernels *kernels = part->kernels;
    const struct hyper_shape s = hyper_shape(part->model);
    const struct stash *stash = part_backward_stash(part, unit);
    const struct hyper_stash *own = hyper_stash_of(stash);
    const struct hyper_backward *backward = hyper_backward_of(part, unit);
    const void *streams = hyper_streams(part, unit, frame, stash);
    bool generates = hyper_generates(part->model);
    if (unit >= 2) {
        kernels->streams_dots(&part->ctx, NULL, backward->dweights, s.W, streams, NULL,
                              hyper_mixed_gradient(part, unit), s.N, s.D, s.n);
    }
    kernels->hyper_weights_backward(&part->ctx, backward->dz, backward->factor, backward->dparams,
                                    backward->dweights, own->z, own->rstd, learned(part, unit, PRE),
                                    learned(part, unit, RES), learned(part, unit, POST),
                                    scale_of(part, unit, PRE), scale_of(part, unit, RES),
                                    scale_of(part, unit, POST), s.kind, s.width, s.N, s.n);
    if (generates) {
        hyper_backward_generators(part, unit, streams, dstreams);
    }
    kernels->streams_mix(&part->ctx, dstreams, generates, weights_at(&s, own->weights, RES), true,
                         part->key_gradient[unit], own->weights,
                         unit >= 2 ? hyper_mixed_gradient(part, unit) : NULL, backward->factor,
                         streams, s.W, s.N, s.D, s.n);
}

static void hyper_backward(struct part *part, int unit, int frame)
{
    const struct hyper_shape s = hyper_shape(part->model);
    void *dkey = unit >= 1 ? part->key_gradient[unit - 1] : NULL;
    if (unit > hyper_last(part->model)) {
        hyper_expand(part, dkey, hyper_mixed_gradient(part, unit));
    } else if (unit >= 2) {
        hyper_backward_streams(part, unit, frame, dkey);
    } else if (unit == 1) {
        void *dstreams = hyper_backward_of(part, unit)->dstreams;
        hyper_backward_streams(part, unit, frame, dstreams);
        part->kernels->streams_sum(&part->ctx, dkey, NULL, 0, dstreams, s.N, s.D, s.n);
        part->kernels->add(&part->ctx, dkey, dkey, hyper_mixed_gradient(part, unit), s.N * s.D);
    }
}

/* B of the reader has formed the gradient; it may have come from another rank. */
static void hyper_add_gradient(struct part *part, const struct key_sum *sum)
{
    (void)part;
    CHECK(sum->count == 1 && sum->adds[0].read == ADD_RECEIVED,
          "%d additions to the gradient of key %d", sum->count, sum->key);
}

static void hyper_weight_gradient(struct part *part, int unit, int frame)
{
    const struct kernels *kernels = part->kernels;
    const struct hyper_shape s = hyper_shape(part->model);
    const struct hyper_backward *backward = hyper_backward_of(part, unit);
    (void)frame;
    for (enum block block = PRE; block < BLOCKS; block++) {
        if (!hyper_has(part->model, unit, block)) {
            continue;
        }
        kernels->accumulate_f32(&part->ctx, unit_gradient(part, unit, PARAM_HYPER + (int)block, 0),
                                backward->dparams + block_before(&s, block),
                                block_numbers(&s, block));
        if (backward->dw[block]) {
            kernels->accumulate_f32(&part->ctx,
                                    unit_gradient(part, unit, PARAM_HYPER_SCALE + (int)block, 0),
                                    backward->dparams + s.W + block, 1);
            kernels->accumulate_f32(&part->ctx,
                                    unit_gradient(part, unit, PARAM_HYPER_W + (int)block, 0),
                                    backward->dw[block], generator_rows(&s, block) * s.width);
        }
    }
}

/* Selective recomputation keeps z and the weights. */
const struct connector hyper_connector = {
    .name = "hyper",
    .keys = hyper_keys,
    .fill_graph = hyper_fill_graph,
    .inputs = hyper_inputs,
    .params = hyper_params,
    .flops = hyper_flops,
    .limits = hyper_limits,
    .stash_layout = hyper_stash_layout,
    .backward_layout = hyper_backward_layout,
    .key = hyper_key,
    .forward = hyper_forward,
    .recompute = hyper_read,
    .input = hyper_input,
    .output = hyper_output,
    .output_gradient = hyper_output_gradient,
    .output_backward = hyper_output_backward,
    .input_gradient = hyper_input_gradient,
    .backward = hyper_backward,
    .add_gradient = hyper_add_gradient,
    .weight_gradient = hyper_weight_gradient,
};
