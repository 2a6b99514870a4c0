/* whole.c - tensors put together from the ranks of a tensor group (parallel.tp), each of which has a part. */
#include <stdlib.h>
#include <string.h>

#include "runtime/trainer.h"

/* Of each rank `count` values [tp][count]; own: this one's. Collective in the tensor group. malloc'ed. */
static status_t gather_parts(const struct trainer *trainer, const float *own, size_t count,
                             float **out)
{
    struct group *group = trainer->mesh.tensor;
    size_t all = count * (size_t)trainer->mesh.tp;
    *out = malloc(all * sizeof **out);
    status_t status =
        *out ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for %zu values of all parts", all);
    status = group_agree(group, status);
    if (status == STATUS_OK) {
        status = group_allgather(group, own, count * sizeof *own, *out);
    }
    if (status != STATUS_OK) {
        free(*out);
        *out = NULL;
    }
    return status;
}

/* The words of the parts side by side, [rows, V]: of each [rows, `each`], of the last one the rest, in room for
 * rows * each. */
static void join_words(const float *parts, size_t rows, size_t each, size_t V, float *out)
{
    for (size_t first = 0; first < V; first += each) {
        size_t words = V - first < each ? V - first : each;
        for (size_t row = 0; row < rows; row++) {
            memcpy(out + row * V + first, parts + rows * first + row * words, words * sizeof *out);
        }
    }
}

status_t trainer_logits(struct trainer *trainer, struct part *part, int frame, int64_t first,
                        int64_t rows, float *out)
{
    size_t tp = (size_t)trainer->mesh.tp, V = (size_t)trainer->model->config.vocab_size;
    size_t each = (V + tp - 1) / tp;
    float *parts;
    status_t status = part_logits(part, frame, first, rows, out);
    if (tp == 1) {
        return status;
    }
    TRY(group_agree(trainer->mesh.tensor, status));
    TRY(gather_parts(trainer, out, (size_t)rows * each, &parts));
    join_words(parts, (size_t)rows, each, V, out);
    free(parts);
    return STATUS_OK;
}

status_t trainer_gradient(const struct trainer *trainer, int param, float *out)
{
    const struct part *part = trainer->workers.train->part;
    const struct param *of = &trainer->model->param[param];
    struct slice own = slice_whole(trainer->model, STORE_GRADIENTS, param);
    float *parts;
    status_t status = part_read(part, &own, out);
    if (of->local == of->count) {
        return status;
    }
    TRY(group_agree(trainer->mesh.tensor, status));
    TRY(gather_parts(trainer, out, (size_t)of->local, &parts));
    for (int r = 0; r < trainer->mesh.tp; r++) {
        param_join(of, trainer->mesh.tp, r, parts + (size_t)r * (size_t)of->local, out);
    }
    free(parts);
    return STATUS_OK;
}
