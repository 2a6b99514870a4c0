/* mudd_gradient.c - a key's gradient gathered from its readers, in the order that the plan says. */
#include "model/connect/mudd.h"
#include "model/params.h"

/* Terms of consecutive aggregates, added in one pass over the key. */
struct mudd_terms {
    struct gathering sum;
    size_t count;
    struct mudd_term *term;
};

static void mudd_terms_flush(struct mudd_terms *terms)
{
    struct gathering *sum = &terms->sum;
    if (terms->count > 0) {
        sum->part->kernels->mudd_backward_key(&sum->part->ctx, sum->dkey, sum->started, terms->term,
                                              terms->count, sum->N, sum->D);
        sum->started = true;
        terms->count = 0;
    }
}

static void mudd_add_tensor(struct mudd_terms *terms, const void *tensor)
{
    mudd_terms_flush(terms);
    gathering_add(&terms->sum, tensor);
}

static void mudd_add_aggregate(struct mudd_terms *terms, const struct read *read)
{
    struct part *part = terms->sum.part;
    const struct consumer *consumer = mudd_consumer(part->model, read->unit);
    size_t column = 0;
    while (column < consumer->n && consumer->key[column] != read->key) {
        column++;
    }
    CHECK(column < consumer->n, "unit %d does not read key %d", read->unit, read->key);
    struct mudd_term *term = &terms->term[terms->count++];
    *term = (struct mudd_term){.way_stride = consumer->n, .ways = consumer->C};
    if (consumer->K > 0) {
        const struct stash *stash = part_backward_stash(part, read->unit);
        term->weights = mudd_stash_of(stash)->weights + column;
        term->row_stride = consumer->C * consumer->n;
    } else { /* in bf16 the values before rounding */
        int param = unit_param(part->model, read->unit, PARAM_DENSE_B, 0, false);
        term->weights = part_values(part, STORE_WEIGHTS, param) + column;
    }
    for (size_t c = 0; c < consumer->C; c++) {
        term->dout[c] = mudd_mixed_gradient(part, consumer, c);
    }
}

/* Ways that take the key itself (alone, or plus their aggregate), in the order q, k, v, r. Inputs that
 * share a norm have one gradient. */
static void mudd_add_direct(struct mudd_terms *terms, int unit)
{
    struct part *part = terms->sum.part;
    const struct unit_shape *shape = unit_shape(part->model, unit);
    const struct consumer *consumer = mudd_consumer(part->model, unit);
    if (shape->kind == UNIT_HEAD || (consumer && consumer->shared)) {
        mudd_add_tensor(terms, mudd_way_gradient(part, unit, WAY_R));
        return;
    }
    for (int way = WAY_Q; way <= WAY_R; way++) {
        bool same = way > WAY_Q && way < WAY_R && shape->shared_input;
        bool direct = !mudd_way_is_mixed(consumer, way) || consumer->plus;
        if (direct && !same) {
            mudd_add_tensor(terms, mudd_way_gradient(part, unit, way));
        }
    }
}

/* The key's normed form was made by the reading unit. */
static void mudd_add_norm(struct mudd_terms *terms, const struct read *read, int frame)
{
    struct gathering *sum = &terms->sum;
    mudd_terms_flush(terms);
    mudd_norm_gradient(sum->part, read->unit, frame, sum->dkey, sum->started,
                       sum->part->key_gradient[read->made]);
    sum->started = true;
}

/* The key is one of those whose mean the reading unit made. */
static void mudd_add_summary(struct mudd_terms *terms, const struct read *read)
{
    struct gathering *sum = &terms->sum;
    struct part *part = sum->part;
    size_t count = sum->N * sum->D;
    float share = 1.0f / (float)part->model->config.dense_pattern.block_size;
    mudd_terms_flush(terms);
    if (!sum->started) {
        part->kernels->zero(&part->ctx, sum->dkey, count * dtype_size(part->model->dtype));
    }
    part->kernels->scale_add(&part->ctx, sum->dkey, part->key_gradient[read->made], share, count);
    sum->started = true;
}

static void mudd_add_read_gradient(struct mudd_terms *terms, const struct read *read, int frame)
{
    switch (read->tag) {
    case TAG_AGGREGATE:
        mudd_add_aggregate(terms, read);
        break;
    case TAG_GENERATOR:
        mudd_add_tensor(terms, mudd_backward_of(terms->sum.part, read->unit)->dgenerator);
        break;
    case TAG_DIRECT:
        mudd_add_direct(terms, read->unit);
        break;
    case TAG_NORM:
        mudd_add_norm(terms, read, frame);
        break;
    case TAG_SUMMARY:
        mudd_add_summary(terms, read);
        break;
    default:
        CHECK(false, "an addition with tag %d", read->tag);
    }
}

void mudd_add_gradient(struct part *part, const struct key_sum *sum)
{
    struct mudd_term term[sum->count > 0 ? sum->count : 1];
    struct mudd_terms terms = {.term = term};
    gathering_begin(&terms.sum, part, sum->key);
    for (int a = 0; a < sum->count; a++) {
        int read = sum->adds[a].read;
        if (read == ADD_RECEIVED) {
            terms.sum.started = true;
        } else if (read == ADD_PARTIAL) {
            mudd_add_tensor(&terms, sum->partial);
        } else {
            mudd_add_read_gradient(&terms, &part->model->graph.read[read], sum->frame);
        }
    }
    mudd_terms_flush(&terms);
}
