/* part_store.c - what a part does with its parameters: slices in and out, look-ups of units, the optimizer. */
#include <stdlib.h>
#include <string.h>

#include "model/params.h"
#include "model/tp.h"

static void slice_check(const struct part *part, const struct slice *slice)
{
    int64_t count = part->model->param[slice->param].local;
    CHECK(slice->begin >= 0 && slice->count >= 0 && slice->begin + slice->count <= count,
          "elements %lld.. of %s, which has %lld", (long long)slice->begin,
          part->model->param[slice->param].name, (long long)count);
}

bool part_owns(const struct part *part, int param)
{
    return store_owns(&part->store, param);
}

/* Of what every part of tensor parallelism has the first one answers for all. */
struct slice part_share(const struct part *part, enum store_kind kind, int param)
{
    struct slice own = store_own(&part->store, kind, param);
    bool other = part->store.tp_rank > 0 && part->model->param[param].split == SPLIT_NONE;
    own.count = other ? 0 : own.count;
    return own;
}

float *part_slice(const struct part *part, const struct slice *slice)
{
    return store_slice(&part->store, slice);
}

float *part_values(const struct part *part, enum store_kind kind, int param)
{
    return store_values(&part->store, kind, param);
}

const float *part_all_values(const struct part *part, enum store_kind kind, size_t *out_count)
{
    *out_count = store_kind_total(&part->store, kind);
    return part->store.values[kind];
}

void model_share_counts(const struct model *model, int unit, size_t *counts)
{
    for (int share = 0; share < model->shares; share++) {
        counts[share] = store_share_room(model, unit);
    }
}

void part_bucket(const struct part *part, int unit, struct part_bucket *out)
{
    const struct store *store = &part->store;
    int first = part->model->unit_param[unit];
    for (int p = first; p < part->model->unit_param[unit + 1]; p++) {
        bool before = store->offset[store->place[p]] < store->offset[store->place[first]];
        first = before ? p : first;
    }
    *out = (struct part_bucket){
        .gradients = part->training ? part_values(part, STORE_GRADIENTS, first) : NULL,
        .weights = store_read(&part->store, first),
        .element = dtype_size(part->model->dtype)};
}

status_t part_read(const struct part *part, const struct slice *slice, float *out)
{
    slice_check(part, slice);
    return part_fetch(part, out, part_slice(part, slice), (size_t)slice->count * sizeof *out);
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
        part->kernels->from_f32(&part->ctx,
                                read + (size_t)slice->begin * dtype_size(part->model->dtype),
                                part_slice(part, slice), (size_t)slice->count);
    }
}

/* What of a slice this part has. */
static struct slice kept_of(const struct part *part, const struct slice *slice)
{
    struct slice kept = *slice;
    if (store_is_shared(&part->store, slice->kind)) {
        struct slice own = store_own(&part->store, slice->kind, slice->param);
        int64_t end = slice->begin + slice->count, own_end = own.begin + own.count;
        kept.begin = slice->begin > own.begin ? slice->begin : own.begin;
        end = end < own_end ? end : own_end;
        kept.count = end > kept.begin ? end - kept.begin : 0;
    }
    return kept;
}

/* Values of a slice [count]; of kinds of which the part has its share alone the rest is left out. */
static status_t write_slice(struct part *part, const struct slice *slice, const float *in)
{
    slice_check(part, slice);
    bool weights = slice->kind == STORE_WEIGHTS;
    if (weights &&
        (!part->store.values[STORE_WEIGHTS] || store_is_shared(&part->store, STORE_WEIGHTS))) {
        TRY(write_rounded(part, slice, in));
    }
    if (weights && !part->store.values[STORE_WEIGHTS]) {
        return STATUS_OK;
    }
    struct slice kept = kept_of(part, slice);
    if (kept.count == 0) {
        return STATUS_OK;
    }
    TRY(part_fetch(part, part_slice(part, &kept), in + (kept.begin - slice->begin),
                   (size_t)kept.count * sizeof *in));
    if (weights) {
        round_slice(part, &kept);
    }
    return STATUS_OK;
}

status_t part_write(struct part *part, enum store_kind kind, int param, const float *in)
{
    const struct param *of = &part->model->param[param];
    struct slice here = slice_whole(part->model, kind, param);
    if (of->local == of->count) {
        return write_slice(part, &here, in);
    }
    float *values = calloc((size_t)of->local, sizeof *values);
    if (!values) {
        return FAIL(STATUS_NOMEM, "no memory for this part's values of %s", of->name);
    }
    int64_t whole, run, count = param_local(of, part->model->tp, part->store.tp_rank);
    for (int64_t local = 0; local < count; local += run) {
        run = tp_run(of, part->model->tp, part->store.tp_rank, local, &whole);
        memcpy(values + local, in + whole, (size_t)run * sizeof *values);
    }
    status_t status = write_slice(part, &here, values);
    free(values);
    return status;
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

/* Initial values of a run of a parameter: element `whole` and those behind it. */
static void init_run(const struct part *part, const struct param *param, uint64_t seed,
                     int64_t whole, int64_t run, float *out)
{
#pragma omp parallel for num_threads(part->ctx.threads) schedule(static)
    for (int64_t e = 0; e < run; e++) {
        out[e] = param_initial(param, seed, whole + e);
    }
}

status_t part_init_weights(struct part *part, uint64_t seed)
{
    const struct store *store = &part->store;
    for (int i = 0; i < store->params; i++) {
        int p = store->param[i];
        const struct param *param = &part->model->param[p];
        struct slice whole = slice_whole(part->model, STORE_WEIGHTS, p);
        float *weight = calloc((size_t)param->local, sizeof *weight);
        if (!weight) {
            return FAIL(STATUS_NOMEM, "no memory for the initial values of %s", param->name);
        }
        int64_t from, run, count = param_local(param, part->model->tp, store->tp_rank);
        for (int64_t local = 0; local < count; local += run) {
            run = tp_run(param, part->model->tp, store->tp_rank, local, &from);
            init_run(part, param, seed, from, run, weight + local);
        }
        status_t status = write_slice(part, &whole, weight);
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
        struct slice own = part_share(part, STORE_GRADIENTS, store->param[i]);
        if (part->model->param[own.param].trained && own.count > 0) {
            part->kernels->sum_squares(&part->ctx, &part->squares[i], store_slice(store, &own),
                                       (size_t)own.count);
        }
    }
    size_t bytes = (size_t)store->params * sizeof(double);
    return part->device ? device_copy(part->device, out, part->squares, bytes, part->ctx.stream)
                        : part_fetch(part, out, part->squares, bytes);
}

/* The values of `kind` that go with a slice of weights. */
static float *beside(const struct part *part, const struct slice *weights, enum store_kind kind)
{
    struct slice slice = *weights;
    slice.kind = kind;
    return part_slice(part, &slice);
}

void part_adamw(struct part *part, const struct adamw_args *args)
{
    const struct store *store = &part->store;
    for (int i = 0; i < store->params; i++) {
        struct slice share = store_own(store, STORE_WEIGHTS, store->param[i]);
        const struct param *param = &part->model->param[share.param];
        if (!param->trained || share.count == 0) {
            continue;
        }
        struct adamw_args own = *args;
        own.weight_decay = param->decay ? args->weight_decay : 0.0f;
        part->kernels->adamw(&part->ctx, &own, part_slice(part, &share),
                             beside(part, &share, STORE_FIRST_MOMENT),
                             beside(part, &share, STORE_SECOND_MOMENT),
                             beside(part, &share, STORE_GRADIENTS), (size_t)share.count);
        round_slice(part, &share);
    }
}
