/* part_store.c - what a part does with its parameters: slices in and out, look-ups of units, the optimizer. */
#include <stdlib.h>

#include "model/params.h"
#include "model/part_internal.h"

static void slice_check(const struct part *part, const struct slice *slice)
{
    int64_t count = part->model->param[slice->param].count;
    CHECK(slice->begin >= 0 && slice->count >= 0 && slice->begin + slice->count <= count,
          "elements %lld.. of %s, which has %lld", (long long)slice->begin,
          part->model->param[slice->param].name, (long long)count);
}

bool part_owns(const struct part *part, int param)
{
    return store_owns(&part->store, param);
}

float *part_values(const struct part *part, enum store_kind kind, int param)
{
    return store_values(&part->store, kind, param);
}

const float *part_all_values(const struct part *part, enum store_kind kind, size_t *out_count)
{
    *out_count = store_total(&part->store);
    return part->store.values[kind];
}

status_t part_read(const struct part *part, const struct slice *slice, float *out)
{
    slice_check(part, slice);
    return part_fetch(part, out, part_values(part, slice->kind, slice->param) + slice->begin,
                      (size_t)slice->count * sizeof *out);
}

/* Rounds on the way, a workspace at a time, where there is no place for float32. */
static status_t write_rounded(struct part *part, const struct slice *slice, const float *in)
{
    size_t size = dtype_size(part->model->dtype), count = (size_t)slice->count;
    size_t most = part->ctx.workspace_bytes / ARENA_ALIGN * (ARENA_ALIGN / sizeof *in);
    unsigned char *read = store_read(&part->store, slice->param);
    CHECK(most > 0, "a workspace of %zu bytes", part->ctx.workspace_bytes);
    read += (size_t)slice->begin * size;
    for (size_t done = 0; done < count; done += most) {
        size_t some = count - done < most ? count - done : most;
        TRY(part_fetch(part, part->ctx.workspace, in + done, some * sizeof *in));
        part->kernels->from_f32(&part->ctx, read + done * size, part->ctx.workspace, some);
    }
    return STATUS_OK;
}

/* What operations read of it, after its float32 values changed. */
static void round_slice(struct part *part, const struct slice *slice)
{
    if (store_rounds(&part->store)) {
        unsigned char *read = store_read(&part->store, slice->param);
        part->kernels->from_f32(
            &part->ctx, read + (size_t)slice->begin * dtype_size(part->model->dtype),
            part_values(part, STORE_WEIGHTS, slice->param) + slice->begin, (size_t)slice->count);
    }
}

status_t part_write(struct part *part, const struct slice *slice, const float *in)
{
    slice_check(part, slice);
    if (slice->kind == STORE_WEIGHTS && !part->store.values[STORE_WEIGHTS]) {
        return write_rounded(part, slice, in);
    }
    TRY(part_fetch(part, part_values(part, slice->kind, slice->param) + slice->begin, in,
                   (size_t)slice->count * sizeof *in));
    if (slice->kind == STORE_WEIGHTS) {
        round_slice(part, slice);
    }
    return STATUS_OK;
}

/* ---- what units look up ---- */

const void *unit_weight(const struct part *part, int unit, int role, int index)
{
    int param = unit_param(part->model, unit, role, index, false);
    return param < 0 ? NULL : store_read(&part->store, param);
}

float *unit_gradient(const struct part *part, int unit, int role, int index)
{
    int param = unit_param(part->model, unit, role, index, false);
    return param < 0 ? NULL : part_values(part, STORE_GRADIENTS, param);
}

const void *unit_bias(const struct part *part, int unit, int role, int index)
{
    int param = unit_param(part->model, unit, role, index, true);
    return param < 0 ? NULL : store_read(&part->store, param);
}

float *unit_bias_gradient(const struct part *part, int unit, int role, int index)
{
    int param = unit_param(part->model, unit, role, index, true);
    return param < 0 ? NULL : part_values(part, STORE_GRADIENTS, param);
}

void unit_accumulate_bias(struct part *part, int unit, int role, int index, const float *dbias,
                          size_t width)
{
    float *gradient = unit_bias_gradient(part, unit, role, index);
    if (gradient) {
        part->kernels->accumulate_f32(&part->ctx, gradient, dbias, width);
    }
}

/* ---- all parameters of a part ---- */

status_t part_init_weights(struct part *part, uint64_t seed)
{
    const struct store *store = &part->store;
    for (int i = 0; i < store->params; i++) {
        int p = store->param[i];
        const struct param *param = &part->model->param[p];
        struct slice whole = slice_whole(part->model, STORE_WEIGHTS, p);
        float *weight = malloc((size_t)param->count * sizeof *weight);
        if (!weight) {
            return FAIL(STATUS_NOMEM, "no memory for the initial values of %s", param->name);
        }
#pragma omp parallel for num_threads(part->ctx.threads) schedule(static)
        for (int64_t e = 0; e < param->count; e++) {
            weight[e] = param_initial(param, seed, e);
        }
        status_t status = part_write(part, &whole, weight);
        free(weight);
        TRY(status);
    }
    return STATUS_OK;
}

void part_zero_gradients(struct part *part)
{
    part->kernels->zero(&part->ctx, part->store.values[STORE_GRADIENTS],
                        store_total(&part->store) * sizeof(float));
}

status_t part_gradient_squares(struct part *part, double *out)
{
    const struct store *store = &part->store;
    part->kernels->zero(&part->ctx, part->squares, (size_t)store->params * sizeof(double));
    for (int i = 0; i < store->params; i++) {
        const struct param *param = &part->model->param[store->param[i]];
        if (param->trained) {
            part->kernels->sum_squares(&part->ctx, &part->squares[i],
                                       store_values(store, STORE_GRADIENTS, store->param[i]),
                                       (size_t)param->count);
        }
    }
    size_t bytes = (size_t)store->params * sizeof(double);
    return part->device ? device_copy(part->device, out, part->squares, bytes, part->ctx.stream)
                        : part_fetch(part, out, part->squares, bytes);
}

void part_adamw(struct part *part, const struct adamw_args *args)
{
    const struct store *store = &part->store;
    for (int i = 0; i < store->params; i++) {
        int p = store->param[i];
        const struct param *param = &part->model->param[p];
        if (!param->trained) {
            continue;
        }
        struct slice whole = slice_whole(part->model, STORE_WEIGHTS, p);
        struct adamw_args own = *args;
        own.weight_decay = param->decay ? args->weight_decay : 0.0f;
        part->kernels->adamw(&part->ctx, &own, store_values(store, STORE_WEIGHTS, p),
                             store_values(store, STORE_FIRST_MOMENT, p),
                             store_values(store, STORE_SECOND_MOMENT, p),
                             store_values(store, STORE_GRADIENTS, p), (size_t)param->count);
        round_slice(part, &whole);
    }
}
