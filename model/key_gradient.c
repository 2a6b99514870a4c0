/* key_gradient.c - gather a key's gradient from its readers, in the order that the plan says. */
#include "model/model_internal.h"

/* Terms of consecutive aggregates, added in one pass over the key. */
struct gathering {
    struct part *part;
    void *dkey;
    size_t N, D;
    bool started; /* dkey holds a sum already */
    size_t count;
    struct mudd_term *terms;
};

static void flush_terms(struct gathering *gathering)
{
    if (gathering->count > 0) {
        gathering->part->kernels->mudd_backward_key(&gathering->part->ctx, gathering->dkey,
                                                    gathering->started, gathering->terms,
                                                    gathering->count, gathering->N, gathering->D);
        gathering->started = true;
        gathering->count = 0;
    }
}

static void add_tensor(struct gathering *gathering, const void *tensor)
{
    const struct kernels *kernels = gathering->part->kernels;
    const struct kernel_ctx *ctx = &gathering->part->ctx;
    size_t count = gathering->N * gathering->D;
    flush_terms(gathering);
    if (gathering->started) {
        kernels->add(ctx, gathering->dkey, gathering->dkey, tensor, count);
    } else {
        kernels->copy(ctx, gathering->dkey, tensor, count);
    }
    gathering->started = true;
}

static void add_aggregate(struct gathering *gathering, int unit, int key, int frame)
{
    struct part *part = gathering->part;
    const struct unit_shape *shape = unit_shape(part->model, unit);
    size_t column = 0;
    while (column < shape->n && shape->consumer->key[column] != key) {
        column++;
    }
    CHECK(column < shape->n, "unit %d does not read key %d", unit, key);
    struct mudd_term *term = &gathering->terms[gathering->count++];
    *term = (struct mudd_term){.way_stride = shape->n, .ways = shape->C};
    if (shape->K > 0) {
        term->weights = part_again(part, unit, frame)->mudd.weights + column;
        term->row_stride = shape->C * shape->n;
    } else { /* in bf16 the values before rounding */
        int param = unit_param(part, unit, PARAM_DENSE_B, 0, false);
        term->weights = part_weight(part, param) + column;
    }
    for (size_t c = 0; c < shape->C; c++) {
        term->dout[c] = mixed_gradient(part, shape, unit, c);
    }
}

/* Ways that take the key itself (alone, or plus their aggregate), in the order q, k, v, r. */
static void add_direct(struct gathering *gathering, int unit)
{
    struct part *part = gathering->part;
    const struct unit_shape *shape = unit_shape(part->model, unit);
    bool one = shape->kind == UNIT_HEAD || (shape->consumer && shape->consumer->shared);
    if (one) {
        add_tensor(gathering, part_back(part, unit)->dinput[0]);
        return;
    }
    for (int way = WAY_Q; way <= WAY_R; way++) {
        bool again = way > WAY_Q && way < WAY_R && shape->shared_input;
        if ((!way_mixed(shape, way) || shape->plus) && !again) {
            add_tensor(gathering, way_gradient(part, shape, unit, way));
        }
    }
}

/* The key's normed form was made by `unit`. */
static void add_norm(struct gathering *gathering, int unit, int made, int frame)
{
    flush_terms(gathering);
    products_norm_backward(gathering->part, unit, frame, gathering->dkey, gathering->started,
                           gathering->part->key_gradient[made]);
    gathering->started = true;
}

/* The key is one of those whose mean is the summary `made`. */
static void add_summary(struct gathering *gathering, int made)
{
    struct part *part = gathering->part;
    size_t count = gathering->N * gathering->D;
    float share = 1.0f / (float)part->model->config.dense_pattern.block_size;
    flush_terms(gathering);
    if (!gathering->started) {
        part->kernels->zero(&part->ctx, gathering->dkey, count * dtype_size(part->model->dtype));
    }
    part->kernels->scale_add(&part->ctx, gathering->dkey, part->key_gradient[made], share, count);
    gathering->started = true;
}

static void add_read(struct gathering *gathering, const struct read *read, int frame)
{
    switch ((enum read_tag)read->tag) {
    case TAG_AGGREGATE:
        add_aggregate(gathering, read->unit, read->key, frame);
        break;
    case TAG_GENERATOR:
        add_tensor(gathering, part_back(gathering->part, read->unit)->dgenerator);
        break;
    case TAG_DIRECT:
        add_direct(gathering, read->unit);
        break;
    case TAG_NORM:
        add_norm(gathering, read->unit, read->made, frame);
        break;
    case TAG_SUMMARY:
        add_summary(gathering, read->made);
        break;
    case TAG_MID: /* the FFN's B forms it */
        break;
    }
}

void part_key_gradient(struct part *part, int key, int frame, const struct add *adds, int count)
{
    struct mudd_term terms[count > 0 ? count : 1];
    struct gathering gathering = {.part = part,
                                  .dkey = part->key_gradient[key],
                                  .N = (size_t)(part->model->B * part->model->T),
                                  .D = (size_t)part->model->config.dim,
                                  .terms = terms};
    CHECK(gathering.dkey, "the gradient of key %d has no place", key);
    for (int a = 0; a < count; a++) {
        if (adds[a].read == ADD_RECEIVED) {
            CHECK(a == 0, "a received sum comes first");
            gathering.started = true;
        } else {
            add_read(&gathering, &part->model->graph.read[adds[a].read], frame);
        }
    }
    flush_terms(&gathering);
}
