/* residual.c - the connector of models without dense connections. */
#include "model/connect/residual.h"

#include <string.h>

/* ---- tables ---- */

int residual_mid(const struct model *model, int layer)
{
    CHECK(layer >= 1 && layer <= model->config.n_layer, "no key H_%d", layer);
    return (int)model->config.n_layer + layer;
}

int residual_keys(const struct model *model)
{
    return 2 * (int)model->config.n_layer + 1;
}

int residual_maker(int j)
{
    return 2 * j;
}

int residual_reader(int j)
{
    return 2 * j + 1;
}

status_t residual_add_direct(struct model *model, int unit, int key)
{
    struct read read = {.unit = unit,
                        .key = key,
                        .order = TAG_DIRECT,
                        .kind = READ_LEAVES,
                        .made = -1,
                        .tag = TAG_DIRECT,
                        .what = "direct use of"};
    return graph_add_read(&model->graph, &read);
}

status_t residual_add_mid(struct model *model, int layer)
{
    int attention = residual_reader(layer - 1), key = residual_mid(model, layer);
    struct read read = {.unit = attention + 1,
                        .key = key,
                        .order = TAG_MID,
                        .kind = READ_FORMS,
                        .made = -1,
                        .tag = TAG_MID,
                        .what = "backward of"};
    connect_set_key(model, key, "H", layer, attention, 0);
    /* Its FFN would need a second tensor of the attention's. */
    model->graph.unit[attention + 1].may_start = !model->config.use_parallel_residual;
    return graph_add_read(&model->graph, &read);
}

static status_t residual_fill_graph(struct model *model)
{
    int L = (int)model->config.n_layer;
    for (int j = 0; j <= L; j++) {
        connect_set_key(model, j, "X", j, residual_maker(j), 0);
        TRY(residual_add_direct(model, residual_reader(j), j));
        TRY(j > 0 ? residual_add_mid(model, j) : STATUS_OK);
    }
    return STATUS_OK;
}

static int residual_inputs(const struct model *model, int unit)
{
    (void)model;
    (void)unit;
    return 1;
}

/* The official modules carry weights of the dense connections that they do not use. */
static void residual_params(struct param_list *list)
{
    const struct unit_shape *shape = unit_shape(list->model, list->unit);
    bool last = shape->kind == UNIT_HEAD;
    if (last || (shape->kind == UNIT_ATTENTION && shape->layer > 1)) {
        int consumer = shape->layer - 1;
        int ways = last || list->model->config.dense_type == DENSE_L ? 1 : WAYS_MAX;
        param_add(list, PARAM_CONNECT, ways, consumer + 1, INIT_LAST_COLUMN, 0, "dense_bs.%d",
                  consumer - 1)
            ->trained = false;
    }
}

/* ---- memory ---- */

struct residual_backward {
    void *dstream; /* [N, D], with a parallel FFN */
};
_Static_assert(sizeof(struct residual_backward) <= CONNECT_POINTERS * sizeof(void *), "room");

static struct residual_backward *residual_back(const struct part *part, int unit)
{
    return (struct residual_backward *)part_backward_of(part, unit)->connect;
}

void *residual_layout(const struct layout *layout, const bool *elsewhere, struct backward *out)
{
    const struct unit_shape *shape = layout->shape;
    bool place = shape->kind == UNIT_ATTENTION || shape->kind == UNIT_HEAD ||
                 (shape->kind == UNIT_FFN && shape->parallel);
    for (int c = 0; c < INPUTS && place; c++) {
        bool own = c == 0 || (shape->kind == UNIT_ATTENTION && !shape->shared_input);
        if (elsewhere && elsewhere[c]) {
            continue;
        }
        out->dinput[c] =
            own ? layout_tensor(layout, UNTIL_GRAD, shape->N, shape->D) : out->dinput[0];
    }
    return shape->kind == UNIT_ATTENTION && shape->parallel
               ? layout_tensor(layout, UNTIL_GRAD, shape->N, shape->D)
               : NULL;
}

static void residual_backward_layout(const struct layout *layout, struct backward *out)
{
    ((struct residual_backward *)out->connect)->dstream = residual_layout(layout, NULL, out);
}

static void *residual_key(const struct model *model, int key, const struct stash *stash)
{
    (void)model;
    (void)key;
    return stash->out;
}

/* ---- operations ---- */

static const void *residual_input(const struct part *part, int unit, int frame, int way)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    bool mid = shape->kind == UNIT_FFN && !shape->parallel;
    (void)way;
    return part_read_key(part, frame,
                         mid ? residual_mid(part->model, shape->layer) : shape->layer - 1);
}

void residual_add_mid_output(struct part *part, int unit, int frame)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    void *out = part_stash(part, unit, frame)->out;
    part->kernels->add(&part->ctx, out, out,
                       part_read_key(part, frame, residual_mid(part->model, shape->layer)),
                       shape->N * shape->D);
}

static void residual_output(struct part *part, int unit, int frame)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    void *out = part_stash(part, unit, frame)->out;
    if (shape->kind == UNIT_ATTENTION) {
        part->kernels->add(&part->ctx, out, out, part_read_key(part, frame, shape->layer - 1),
                           shape->N * shape->D);
    } else if (shape->kind == UNIT_FFN) {
        residual_add_mid_output(part, unit, frame);
    }
}

static const void *residual_output_gradient(const struct part *part, int unit)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    int key =
        shape->kind == UNIT_ATTENTION ? residual_mid(part->model, shape->layer) : shape->layer;
    return part->key_gradient[key];
}

void *residual_ffn_input_gradient(struct part *part, int unit, const void *doutput,
                                  bool *out_accumulate)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    void *dmid = part->key_gradient[residual_mid(part->model, shape->layer)];
    CHECK(dmid && doutput, "the gradients of layer %d have no place", shape->layer);
    part->kernels->copy(&part->ctx, dmid, doutput, shape->N * shape->D);
    *out_accumulate = !shape->parallel;
    return shape->parallel ? part_backward_of(part, unit)->dinput[0] : dmid;
}

static void *residual_input_gradient(struct part *part, int unit, int way, bool *out_accumulate)
{
    if (unit_shape(part->model, unit)->kind == UNIT_FFN) {
        return residual_ffn_input_gradient(part, unit, residual_output_gradient(part, unit),
                                           out_accumulate);
    }
    *out_accumulate = false;
    return part_backward_of(part, unit)->dinput[way];
}

const void *residual_stream_gradient(const struct part *part, int unit, const void *place)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    return place ? place : part->key_gradient[residual_mid(part->model, shape->layer)];
}

void residual_join(struct part *part, int unit, void *place)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    part->kernels->add(&part->ctx, place,
                       part->key_gradient[residual_mid(part->model, shape->layer)],
                       part_backward_of(part, unit + 1)->dinput[0], shape->N * shape->D);
}

static void residual_backward_inputs(struct part *part, int unit, int frame)
{
    (void)frame;
    if (unit_shape(part->model, unit)->kind == UNIT_ATTENTION &&
        residual_back(part, unit)->dstream) {
        residual_join(part, unit, residual_back(part, unit)->dstream);
    }
}

/* ---- key gradients ---- */

void gathering_begin(struct gathering *gathering, struct part *part, int key)
{
    *gathering = (struct gathering){.part = part,
                                    .dkey = part->key_gradient[key],
                                    .N = (size_t)part->model->rows,
                                    .D = (size_t)part->model->config.dim};
    CHECK(gathering->dkey, "the gradient of key %d has no place", key);
}

void gathering_add(struct gathering *gathering, const void *tensor)
{
    const struct kernels *kernels = gathering->part->kernels;
    const struct kernel_ctx *ctx = &gathering->part->ctx;
    size_t count = gathering->N * gathering->D;
    if (gathering->started) {
        kernels->add(ctx, gathering->dkey, gathering->dkey, tensor, count);
    } else {
        kernels->copy(ctx, gathering->dkey, tensor, count);
    }
    gathering->started = true;
}

/* An attention's one input and the stream that it adds to its output are both the key. */
static void residual_add_read(struct gathering *gathering, int unit)
{
    struct part *part = gathering->part;
    gathering_add(gathering, part_backward_of(part, unit)->dinput[0]);
    if (unit_shape(part->model, unit)->kind == UNIT_ATTENTION) {
        void *dstream = residual_back(part, unit)->dstream;
        gathering_add(gathering, residual_stream_gradient(part, unit, dstream));
    }
}

static void residual_add_gradient(struct part *part, const struct key_sum *sum)
{
    struct gathering gathering;
    gathering_begin(&gathering, part, sum->key);
    for (int a = 0; a < sum->count; a++) {
        int read = sum->adds[a].read;
        if (read == ADD_RECEIVED) {
            gathering.started = true;
        } else if (read == ADD_PARTIAL) {
            gathering_add(&gathering, sum->partial);
        } else {
            residual_add_read(&gathering, part->model->graph.read[read].unit);
        }
    }
}

const struct connector residual_connector = {
    .name = "residual",
    .keys = residual_keys,
    .fill_graph = residual_fill_graph,
    .inputs = residual_inputs,
    .params = residual_params,
    .backward_layout = residual_backward_layout,
    .key = residual_key,
    .input = residual_input,
    .output = residual_output,
    .output_gradient = residual_output_gradient,
    .input_gradient = residual_input_gradient,
    .backward = residual_backward_inputs,
    .add_gradient = residual_add_gradient,
};
