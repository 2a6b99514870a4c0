/* unit.c - forward, backward and weight gradients of any unit: one switch each. */
#include "model/connect/connect.h"
#include "model/tp.h"

/* From here on operations work in the unit's stage, and (slot >= 0) in that backward memory. */
static void unit_enter(struct part *part, int unit, int slot)
{
    CHECK(part_has(part, unit), "unit %d is not of this part", unit);
    part->now = &part->stage[part->stage_of[unit]];
    part->backward = slot >= 0 ? &part->now->backward[slot] : NULL;
    part->key_gradient = slot >= 0 ? part->backward->key_gradient : NULL;
}

/* A part of tensor parallelism has some words; the sum over parts has the rows of all. */
static void embed_forward(struct part *part, int unit, int frame, const int32_t *inputs)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    struct stash *stash = part_stash(part, unit, frame);
    CHECK(inputs, "frame %d has no input tokens", frame);
    part->kernels->embed_forward(&part->ctx, tp_partial(part, 0, stash->out),
                                 unit_weight(part, unit, PARAM_EMBED, 0), inputs,
                                 tp_first_word(part), tp_words(part), shape->tokens, shape->D);
    tp_sum_output(part, shape, stash);
    connect_output(part, unit, frame);
}

static void embed_weight_gradient(struct part *part, int unit, int frame)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    const void *doutput = connect_output_gradient(part, unit);
    tp_gather_begin(part, doutput, 0);
    tp_gather_end(part);
    part->kernels->embed_backward(&part->ctx, unit_gradient(part, unit, PARAM_EMBED, 0),
                                  tp_all(part, doutput, 0), part->now->frame[frame].inputs,
                                  tp_first_word(part), tp_words(part), shape->tokens, shape->D);
    connect_weight_gradient(part, unit, frame);
}

void part_forward(struct part *part, int unit, int frame)
{
    const struct model *model = part->model;
    unit_enter(part, unit, -1);
    switch (unit_shape(model, unit)->kind) {
    case UNIT_EMBED:
        embed_forward(part, unit, frame, part->now->frame[frame].inputs);
        break;
    case UNIT_ATTENTION:
        attention_forward(part, unit, frame);
        break;
    case UNIT_FFN:
        ffn_forward(part, unit, frame);
        break;
    case UNIT_HEAD:
        head_forward(part, unit, frame);
        break;
    }
}

void part_backward(struct part *part, int unit, int frame, int slot)
{
    CHECK(!part->forward_only, "backward after forwards that have none");
    unit_enter(part, unit, slot);
    int place = part->place_of[unit];
    struct stash *view = &part->backward->view[place];
    *view = *part_stash(part, unit, frame);
    stash_view(part->model, &part->backward->recomputed[place], &part->backward->unit[place], view);
    if (part->model->recompute == RECOMPUTE_FULL && part->model->weights_at_once) {
        CHECK(part->open < 0, "B of unit %d before W of unit %d", unit, part->open);
        part->open = unit;
    }
    switch (unit_shape(part->model, unit)->kind) {
    case UNIT_EMBED: /* tokens have no gradient */
        break;
    case UNIT_ATTENTION:
        attention_backward(part, unit, frame);
        break;
    case UNIT_FFN:
        ffn_backward(part, unit, frame);
        break;
    case UNIT_HEAD:
        head_backward(part, unit, frame);
        break;
    }
}

void part_weight_gradient(struct part *part, int unit, int frame, int slot)
{
    const struct model *model = part->model;
    bool at_once = model->recompute == RECOMPUTE_FULL && model->weights_at_once;
    CHECK(!at_once || part->open == unit, "W of unit %d does not follow its B", unit);
    unit_enter(part, unit, slot);
    part->open = -1;
    switch (unit_shape(model, unit)->kind) {
    case UNIT_EMBED:
        embed_weight_gradient(part, unit, frame);
        break;
    case UNIT_ATTENTION:
        attention_weight_gradient(part, unit, frame);
        break;
    case UNIT_FFN:
        ffn_weight_gradient(part, unit, frame);
        break;
    case UNIT_HEAD:
        head_weight_gradient(part, unit, frame);
        break;
    }
}

void part_key_gradient(struct part *part, const struct key_sum *sum)
{
    for (int a = 0; a < sum->count; a++) {
        CHECK(a == 0 || sum->adds[a].read != ADD_RECEIVED, "a received sum comes first");
    }
    unit_enter(part, part->stage[sum->stage].unit[0], sum->slot);
    part->model->connector->add_gradient(part, sum);
}
