/* tp.c - tensor parallelism: who has what of a parameter, and the exchanges of rows. */
#include "model/tp.h"

#include <stdio.h>
#include <string.h>

#include "model/connect/connect.h"

/* Rows of a section that a part has; only a vocabulary need not divide. */
static int64_t section_rows(int64_t rows, int tp, int tp_rank)
{
    int64_t each = (rows + tp - 1) / tp, left = rows - tp_rank * each;
    return left < each ? left : each;
}

/* ---- what must divide ---- */

/* What tp does not divide, as "model.n_head is 6"; NULL if it divides all. */
static const char *undivided(const struct model_config *config, const struct model_use *use, int tp,
                             char *buffer, size_t size)
{
    const struct {
        const char *key;
        int64_t value;
    } must[] = {{"model.n_head is", config->n_head},
                {"model.n_local_heads (heads of keys and values) is", config->n_local_heads},
                {"the tokens of a microbatch, data.micro_batch times data.seq_len, are",
                 use->tp_replicate ? 0 : use->B * use->T}};
    for (size_t i = 0; i < sizeof must / sizeof must[0]; i++) {
        if (must[i].value % tp != 0) {
            snprintf(buffer, size, "%s %lld", must[i].key, (long long)must[i].value);
            return buffer;
        }
    }
    for (int layer = 1; layer <= config->n_layer; layer++) {
        int64_t width = model_ffn_width(config, layer);
        if (width % tp != 0) {
            snprintf(buffer, size, "the FFN of layer %d is %lld wide", layer, (long long)width);
            return buffer;
        }
    }
    if ((tp - 1) * section_rows(config->vocab_size, tp, 0) >= config->vocab_size) {
        snprintf(buffer, size, "model.vocab_size is %lld", (long long)config->vocab_size);
        return buffer; /* the last part would have no word */
    }
    return NULL;
}

status_t tp_check(const struct model_config *config, const struct model_use *use)
{
    char why[160], other[160];
    int tp = use->tp > 0 ? use->tp : 1, nearest = tp;
    if (!undivided(config, use, tp, why, sizeof why)) {
        return STATUS_OK;
    }
    while (undivided(config, use, nearest, other, sizeof other)) {
        nearest--;
    }
    return FAIL(
        STATUS_UNSUPPORTED,
        "%s, which parallel.tp=%d does not divide; the nearest that divides all of this model is "
        "parallel.tp=%d",
        why, tp, nearest);
}

/* ---- parameters ---- */

int64_t tp_run(const struct param *param, int tp, int tp_rank, int64_t local, int64_t *out_whole)
{
    int64_t width = param->shape[1], own = width / tp, local_row = 0, row = 0;
    if (tp == 1 || param->split == SPLIT_NONE) {
        *out_whole = local;
        return param->count - local;
    }
    if (param->split == SPLIT_IN) {
        *out_whole = local / own * width + tp_rank * own + local % own;
        return own - local % own;
    }
    for (int s = 0; s < PARAM_SECTIONS; s++) {
        int64_t rows = section_rows(param->section[s], tp, tp_rank);
        int64_t first = row + tp_rank * section_rows(param->section[s], tp, 0);
        if (local < (local_row + rows) * width) {
            *out_whole = (first - local_row) * width + local;
            return (local_row + rows) * width - local;
        }
        local_row += rows;
        row += param->section[s];
    }
    CHECK(false, "element %lld of %s, of which a part has %lld", (long long)local, param->name,
          (long long)param_local(param, tp, tp_rank));
    return 0;
}

int64_t param_local(const struct param *param, int tp, int tp_rank)
{
    int64_t rows = 0;
    if (param->split != SPLIT_OUT || tp == 1) {
        return param->local;
    }
    for (int s = 0; s < PARAM_SECTIONS; s++) {
        rows += section_rows(param->section[s], tp, tp_rank);
    }
    return rows * param->shape[1];
}

size_t tp_first_word(const struct part *part)
{
    int64_t each = section_rows(part->model->config.vocab_size, part->model->tp, 0);
    return (size_t)(part->store.tp_rank * each);
}

size_t tp_words(const struct part *part)
{
    return (size_t)section_rows(part->model->config.vocab_size, part->model->tp,
                                part->store.tp_rank);
}

void param_join(const struct param *param, int tp, int tp_rank, const float *local, float *out)
{
    int64_t whole, run;
    for (int64_t at = 0; at < param_local(param, tp, tp_rank); at += run) {
        run = tp_run(param, tp, tp_rank, at, &whole);
        memcpy(out + whole, local + at, (size_t)run * sizeof *out);
    }
}

bool part_piece(const struct part *part, enum store_kind kind, int param, int64_t most, int64_t *at,
                struct piece *out)
{
    const struct param *of = &part->model->param[param];
    struct slice share = part_share(part, kind, param);
    int64_t left = share.count - *at, most_here = left < most ? left : most, count;
    if (left <= 0) {
        return false;
    }
    out->here = share;
    out->here.begin += *at;
    int64_t run = tp_run(of, part->model->tp, part->store.tp_rank, out->here.begin, &out->begin);
    bool columns = of->split == SPLIT_IN && part->model->tp > 1;
    if (columns && run == of->shape[1] / part->model->tp && most_here >= run) {
        count = most_here / run * run; /* whole rows */
    } else {
        count = most_here < run ? most_here : run;
        run = count;
    }
    out->here.count = count;
    out->run = run;
    out->stride = columns ? of->shape[1] : run;
    *at += count;
    return true;
}

/* ---- exchanges ---- */

int tp_rooms(const struct model *model)
{
    int rooms = model->tp > 1 ? 2 : 0; /* the head's inputs and their gradient */
    for (int u = 0; rooms > 0 && u < model->graph.units; u++) {
        const struct unit_shape *shape = unit_shape(model, u);
        rooms = shape->kind == UNIT_ATTENTION && !shape->shared_input ? INPUTS : rooms;
    }
    return rooms;
}

/* Elements of a tensor of rows of width D that this part has. */
static size_t own_count(const struct part *part)
{
    return (size_t)part->model->rows * (size_t)part->model->config.dim;
}

static void *room_of(const struct part *part, int which)
{
    CHECK(part->room[which], "no room %d for the rows of all parts", which);
    return part->room[which];
}

static void end(struct part *part)
{
    part->tp.end(part->tp.arg);
}

static void gather(struct part *part, const void *tensor, void *out)
{
    part->tp.gather(part->tp.arg, tensor, out, own_count(part), dtype_size(part->model->dtype));
}

void tp_gather_begin(struct part *part, const void *tensor, int which)
{
    if (part->model->split_rows) {
        gather(part, tensor, room_of(part, which));
    }
}

void tp_gather_end(struct part *part)
{
    if (part->model->split_rows) {
        end(part);
    }
}

void tp_gather_sums(struct part *part, const float *own, float *out, size_t count)
{
    part->tp.gather(part->tp.arg, own, out, count, sizeof *own);
    end(part);
}

void tp_reduce_begin(struct part *part, void *tensor)
{
    if (part->model->split_rows) {
        part->tp.scatter(part->tp.arg, tensor, own_count(part), part->model->dtype);
    } else if (part->model->tp > 1) {
        part->tp.sum(part->tp.arg, tensor, own_count(part), part->model->dtype);
    }
}

void tp_reduce_end(struct part *part)
{
    if (part->model->tp > 1) {
        end(part);
    }
}

const void *tp_all(const struct part *part, const void *tensor, int which)
{
    return part->model->split_rows ? room_of(part, which) : tensor;
}

void *tp_partial(const struct part *part, int which, void *alone)
{
    return part->model->tp > 1 ? room_of(part, which) : alone;
}

void *tp_own_rows(const struct part *part, void *tensor)
{
    size_t before = part->model->split_rows ? (size_t)part->store.tp_rank * own_count(part) : 0;
    return (unsigned char *)tensor + before * dtype_size(part->model->dtype);
}

/* ---- the output of a unit ---- */

void tp_sum_output(struct part *part, const struct unit_shape *shape, const struct stash *stash)
{
    void *partial = tp_partial(part, 0, stash->out);
    if (partial != stash->out) {
        tp_reduce_begin(part, partial);
        tp_reduce_end(part);
        part->kernels->copy(&part->ctx, stash->out, tp_own_rows(part, partial),
                            shape->N * shape->D);
    }
}

const void *tp_bias(const struct part *part, int unit, int role)
{
    return part->store.tp_rank == 0 ? unit_bias(part, unit, role, 0) : NULL;
}

float *tp_bias_gradient(const struct part *part, int unit, int role)
{
    return part->store.tp_rank == 0 ? unit_bias_gradient(part, unit, role, 0) : NULL;
}

const void *tp_gather_output_gradient(struct part *part, int unit)
{
    if (part->model->split_rows) {
        gather(part, connect_output_gradient(part, unit), part_backward_of(part, unit)->doutput);
        end(part);
    }
    return tp_output_gradient(part, unit);
}

const void *tp_output_gradient(const struct part *part, int unit)
{
    return part->model->split_rows ? part_backward_of(part, unit)->doutput
                                   : connect_output_gradient(part, unit);
}

/* ---- gradients of what every part has ---- */

size_t model_sum_count(const struct model *model, int unit, int share)
{
    size_t begin;
    return store_sum_run(model, unit, share, &begin);
}

size_t part_sum_count(const struct part *part, int unit)
{
    return part_has(part, unit) ? model_sum_count(part->model, unit, part->store.share) : 0;
}

void part_sum_gradients(struct part *part)
{
    for (int u = 0; u < part->model->graph.units; u++) {
        size_t count = part_sum_count(part, u), begin;
        if (count > 0) {
            struct part_bucket bucket;
            part_bucket(part, u, &bucket);
            store_sum_run(part->model, u, part->store.share, &begin);
            part->tp.sum(part->tp.arg, bucket.gradients + begin, count, DTYPE_F32);
            end(part);
        }
    }
}

/* ---- what moves ---- */

/* Gathers and sums of rows of width D in F, B and W of a unit. */
struct moves {
    int forward, backward, weight;
};

static struct moves moves_of(const struct model *model, const struct unit_shape *shape)
{
    int inputs = shape->kind == UNIT_ATTENTION && !shape->shared_input ? INPUTS : 1;
    int gathered = model->split_rows ? inputs : 0, output = model->split_rows;
    int again = model->recompute == RECOMPUTE_FULL ? gathered : 0;
    switch (shape->kind) {
    case UNIT_EMBED:
        return (struct moves){1, 0, output};
    case UNIT_ATTENTION:
    case UNIT_FFN:
        return (struct moves){gathered + 1, again + output + inputs, gathered};
    case UNIT_HEAD:
        return (struct moves){0, gathered + 1, gathered};
    }
    return (struct moves){0};
}

/* A gather, or a sum of which each part gets its rows, brings what others have of a tensor; a sum of which each gets all
 * brings its part of every addend, and the others' sums. */
static int64_t move_bytes(const struct model *model, const struct unit_shape *shape, int tp_rank)
{
    int64_t all = (int64_t)(shape->tokens * shape->D), tp = model->tp;
    int64_t element = (int64_t)dtype_size(model->dtype), own = all / tp + (tp_rank < all % tp);
    return (model->split_rows ? all - all / tp : (tp - 1) * own + all - own) * element;
}

void model_tp_bytes(const struct model *model, int unit, int tp_rank, struct tp_bytes *out)
{
    const struct unit_shape *shape = unit_shape(model, unit);
    struct moves moves = moves_of(model, shape);
    int64_t each = move_bytes(model, shape, tp_rank);
    *out = (struct tp_bytes){moves.forward * each, moves.backward * each, moves.weight * each};
    if (shape->kind == UNIT_HEAD) { /* the sums of the loss */
        out->backward +=
            (int64_t)(model->tp - 1) * (int64_t)shape->tokens * 3 * (int64_t)sizeof(float);
    }
}

int model_tp_exchanges(const struct model *model, int unit, bool training)
{
    const struct unit_shape *shape = unit_shape(model, unit);
    struct moves moves = moves_of(model, shape);
    size_t rows = head_chunk_rows(model->dtype);
    int chunks = (int)((shape->tokens + rows - 1) / rows); /* of the loss */
    if (model->tp == 1) {
        return 0;
    }
    int head = shape->kind == UNIT_HEAD ? chunks + (training ? 0 : model->split_rows) : 0;
    return moves.forward + (training ? moves.backward + moves.weight : 0) + head;
}
