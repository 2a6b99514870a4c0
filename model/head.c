/* head.c - the final norm, logits and loss.
 *
 *     F   the connector's input; in a forward that no backward follows also norm, logits and loss
 *     B   norm, logits, loss, and down again to the gradient of the input
 *     W   the gradient of the output matrix
 *
 * Training needs the logits for their gradient alone, so B makes them: between F and B a microbatch keeps
 * nothing of the vocabulary's width, however many microbatches are in flight. B keeps the logits' gradient
 * for W, which need not follow at once: the gradient that the stage before waits for goes first. The
 * logits themselves, in float32, exist for a chunk of rows at a time.
 *
 * With tensor parallelism the norm sees the rows of this part, products and loss see all rows, of this part's words;
 * the parts exchange three sums a row, with which each finds the whole loss.
 */
#include "model/connect/connect.h"
#include "model/tp.h"

enum { INPUTS_ROOM, GRADIENT_ROOM }; /* of rows of all parts */

/* bf16 runs on GPUs, where products of few rows waste the card. */
size_t head_chunk_rows(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? 1024 : 128;
}

/* Rows of the chunk that begins at row `first`. */
static size_t chunk_rows(const struct part *part, const struct unit_shape *shape, size_t first)
{
    size_t remaining = shape->tokens - first;
    return remaining < part->head_rows ? remaining : part->head_rows;
}

static void form_normed(struct part *part, const struct unit_shape *shape, int unit, int frame,
                        struct stash *stash)
{
    struct norm_shape norm = unit_norm(part, shape);
    part->kernels->norm_forward(&part->ctx, &norm, stash->normed[0], stash->mean[0], stash->rstd[0],
                                connect_input(part, unit, frame, 0),
                                unit_weight(part, unit, PARAM_FINAL_NORM, 0),
                                unit_bias(part, unit, PARAM_FINAL_NORM, 0));
}

/* The part's own sums of a chunk, and those of all parts. */
static void exchange_sums(struct part *part, const float *logits, const int32_t *targets,
                          size_t rows)
{
    size_t count = rows * 3;
    float *own = part->sums + (size_t)part->model->tp * count;
    part->kernels->xent_sums(&part->ctx, own, logits, targets, tp_first_word(part), rows,
                             tp_words(part));
    tp_gather_sums(part, own, part->sums, count);
}

/* Adds the loss of the chunk at row `first`. dlogits: NULL, or where its gradient goes, which may be where
 * the logits are. */
static void chunk_loss(struct part *part, int unit, int frame, const void *normed, size_t first,
                       float *logits, void *dlogits)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    const struct frame *of = &part->now->frame[frame];
    size_t rows = chunk_rows(part, shape, first), tp = (size_t)part->model->tp;
    size_t words = tp_words(part);
    part->kernels->logits_forward(&part->ctx, logits, part_at(part, normed, first * shape->D),
                                  unit_weight(part, unit, PARAM_OUTPUT, 0), rows, shape->D, words);
    if (tp == 1) {
        part->kernels->xent(&part->ctx, of->loss, dlogits, logits, of->targets + first,
                            of->loss_scale, rows, words);
        return;
    }
    exchange_sums(part, logits, of->targets + first, rows);
    part->kernels->xent_joined(&part->ctx, of->loss, dlogits, logits, part->sums, tp,
                               of->targets + first, tp_first_word(part), of->loss_scale, rows,
                               words);
}

/* The normed input of all rows; part_logits finds it there too. */
static const void *gather_normed(struct part *part, const struct stash *stash)
{
    tp_gather_begin(part, stash->normed[0], INPUTS_ROOM);
    tp_gather_end(part);
    return tp_all(part, stash->normed[0], INPUTS_ROOM);
}

void head_forward(struct part *part, int unit, int frame)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    const struct frame *of = &part->now->frame[frame];
    struct stash *stash = part_stash(part, unit, frame);
    connect_forward(part, unit, frame, stash);
    if (!part->forward_only) {
        return;
    }
    form_normed(part, shape, unit, frame, stash);
    const void *normed = gather_normed(part, stash);
    part->kernels->zero(&part->ctx, of->loss, sizeof *of->loss);
    for (size_t first = 0; of->targets && first < shape->tokens; first += part->head_rows) {
        chunk_loss(part, unit, frame, normed, first, part->logits, NULL);
    }
}

/* The connector's input, where the layout did not keep it since the forward. */
static void form_input(struct part *part, int unit, int frame, struct stash *stash)
{
    if (part->model->recompute == RECOMPUTE_SELECTIVE) {
        connect_recompute(part, unit, frame, stash);
    } else if (part->model->recompute == RECOMPUTE_FULL) {
        connect_forward(part, unit, frame, stash);
    }
}

/* From the normed input to the loss and back: the gradients of the logits, and (in dnormed, [tokens, D], this part's
 * rows of it) of the normed input. */
static void loss_backward(struct part *part, int unit, int frame, void *dnormed)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    const struct frame *of = &part->now->frame[frame];
    const void *normed = gather_normed(part, part_backward_stash(part, unit));
    size_t element = dtype_size(part->model->dtype), words = tp_words(part);
    part->kernels->zero(&part->ctx, of->loss, sizeof *of->loss);
    for (size_t first = 0; first < shape->tokens; first += part->head_rows) {
        unsigned char *dlogits = part_backward_of(part, unit)->dlogits, *dinput = dnormed;
        dlogits += first * words * element;
        dinput += first * shape->D * element;
        float *logits = element == sizeof(float) ? (float *)(void *)dlogits : part->logits;
        chunk_loss(part, unit, frame, normed, first, logits, dlogits);
        part->kernels->linear_backward_input(&part->ctx, dinput, false, dlogits,
                                             unit_weight(part, unit, PARAM_OUTPUT, 0),
                                             chunk_rows(part, shape, first), shape->D, words);
    }
    tp_reduce_begin(part, dnormed);
    tp_reduce_end(part);
}

void head_backward(struct part *part, int unit, int frame)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    struct stash *stash = part_backward_stash(part, unit);
    struct backward *backward = part_backward_of(part, unit);
    struct norm_shape norm = unit_norm(part, shape);
    void *dnormed = tp_partial(part, GRADIENT_ROOM, part->scratch[1]);
    bool accumulate;
    form_input(part, unit, frame, stash);
    form_normed(part, shape, unit, frame, stash);
    loss_backward(part, unit, frame, dnormed);
    void *dinput = connect_input_gradient(part, unit, 0, &accumulate);
    part->kernels->norm_backward(&part->ctx, &norm, dinput, accumulate, backward->dscale[0],
                                 backward->dbias[0], tp_own_rows(part, dnormed),
                                 connect_input(part, unit, frame, 0), stash->mean[0],
                                 stash->rstd[0], unit_weight(part, unit, PARAM_FINAL_NORM, 0));
    connect_backward(part, unit, frame);
}

void head_weight_gradient(struct part *part, int unit, int frame)
{
    const struct unit_shape *shape = unit_shape(part->model, unit);
    const struct backward *backward = part_backward_of(part, unit);
    const void *normed = gather_normed(part, part_backward_stash(part, unit));
    part->kernels->linear_backward_weight(&part->ctx, unit_gradient(part, unit, PARAM_OUTPUT, 0),
                                          NULL, backward->dlogits, normed, shape->tokens, shape->D,
                                          tp_words(part));
    part->kernels->accumulate_f32(&part->ctx, unit_gradient(part, unit, PARAM_FINAL_NORM, 0),
                                  backward->dscale[0], shape->D);
    unit_accumulate_bias(part, unit, PARAM_FINAL_NORM, 0, backward->dbias[0], shape->D);
    connect_weight_gradient(part, unit, frame);
}

/* A chunk at a time, as for the loss. */
status_t part_logits(struct part *part, int frame, int64_t first, int64_t rows, float *out)
{
    int unit = part->model->graph.units - 1;
    const struct unit_shape *shape = unit_shape(part->model, unit);
    part->now = &part->stage[part->stage_of[unit]];
    const void *normed = tp_all(part, part_view(part, unit, frame)->normed[0], INPUTS_ROOM);
    int64_t most = (int64_t)part->head_rows;
    size_t words = tp_words(part);
    for (int64_t done = 0; done < rows; done += most) {
        size_t chunk = (size_t)(rows - done < most ? rows - done : most);
        size_t row = (size_t)(first + done);
        part->kernels->logits_forward(
            &part->ctx, part->logits, part_at(part, normed, row * shape->D),
            unit_weight(part, unit, PARAM_OUTPUT, 0), chunk, shape->D, words);
        TRY(part_fetch(part, out + (size_t)done * words, part->logits,
                       chunk * words * sizeof *out));
    }
    return STATUS_OK;
}
