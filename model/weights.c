/* weights.c - the parameters of a part: weights, gradients, moments, and the copies that operations read. */
#include <stdlib.h>
#include <string.h>

#include "model/model_internal.h"

size_t param_room(const struct model *model, int param)
{
    size_t alignment = ARENA_ALIGN / dtype_size(model->dtype);
    return ((size_t)model->param[param].count + alignment - 1) / alignment * alignment;
}

static bool rounds(const struct part *part)
{
    return part->model->dtype != DTYPE_F32;
}

static size_t total_room(const struct part *part)
{
    return part->offset[part->params];
}

static status_t create_offsets(struct part *part)
{
    const struct model *model = part->model;
    part->offset = calloc((size_t)part->params + 1, sizeof *part->offset);
    if (!part->offset) {
        return FAIL(STATUS_NOMEM, "no memory for a table of %d parameters", part->params);
    }
    for (int p = 0; p < part->params; p++) {
        part->offset[p + 1] = part->offset[p] + param_room(model, part->first_param + p);
    }
    return STATUS_OK;
}

status_t part_create_weights(struct part *part)
{
    TRY(create_offsets(part));
    size_t master = total_room(part) * sizeof(float);
    size_t read = total_room(part) * dtype_size(part->model->dtype);
    size_t total = read;
    if (part->training) {
        total += 3 * master + (rounds(part) ? master : 0);
    }
    struct arena *arena = &part->parameter_arena;
    TRY(arena_create_on(arena, part->device, MEMORY_DEVICE, part->ctx.stream, total,
                        part->training ? "parameters and optimizer state" : "parameters"));
    part->read = arena_alloc(arena, read);
    part->weights = rounds(part) ? NULL : part->read;
    if (part->training) {
        part->weights = rounds(part) ? arena_alloc(arena, master) : part->weights;
        part->gradients = arena_alloc(arena, master);
        part->first_moment = arena_alloc(arena, master);
        part->second_moment = arena_alloc(arena, master);
    }
    return STATUS_OK;
}

void part_memory(const struct part *part, struct part_memory *out)
{
    int64_t room = (int64_t)total_room(part), single = (int64_t)sizeof(float);
    out->parameters = room * (int64_t)dtype_size(part->model->dtype);
    out->parameters += part->training && rounds(part) ? room * single : 0;
    out->gradients = part->training ? room * single : 0;
    out->optimizer = 2 * out->gradients;
    out->frames = (int64_t)part->frame_arena.used;
    out->backward = (int64_t)part->backward_arena.used;
    out->workspace = (int64_t)part->workspace_arena.used;
}

/* ---- lookups ---- */

bool part_owns(const struct part *part, int param)
{
    return param >= part->first_param && param < part->first_param + part->params;
}

static float *place(const struct part *part, float *arena, int param)
{
    CHECK(part_owns(part, param), "parameter %d is not of this part", param);
    CHECK(arena, "this part has no such values of parameter %d", param);
    return arena + part->offset[param - part->first_param];
}

float *part_weight(const struct part *part, int param)
{
    return place(part, part->weights, param);
}

float *part_gradient(const struct part *part, int param)
{
    return place(part, part->gradients, param);
}

const void *part_at(const struct part *part, const void *tensor, size_t count)
{
    const unsigned char *bytes = tensor;
    return bytes ? bytes + count * dtype_size(part->model->dtype) : NULL;
}

static void *part_read(const struct part *part, int param)
{
    CHECK(part_owns(part, param), "parameter %d is not of this part", param);
    size_t offset = part->offset[param - part->first_param];
    return (unsigned char *)part->read + offset * dtype_size(part->model->dtype);
}

int unit_param(const struct part *part, int unit, enum param_role role, int index, bool bias)
{
    const struct model *model = part->model;
    for (int p = model->unit_param[unit]; p < model->unit_param[unit + 1]; p++) {
        const struct param *param = &model->param[p];
        if (param->role == role && param->index == index && param->bias == bias) {
            return p;
        }
    }
    return -1;
}

const void *unit_weight(const struct part *part, int unit, enum param_role role, int index)
{
    int param = unit_param(part, unit, role, index, false);
    return param < 0 ? NULL : part_read(part, param);
}

float *unit_gradient(const struct part *part, int unit, enum param_role role, int index)
{
    int param = unit_param(part, unit, role, index, false);
    return param < 0 ? NULL : part_gradient(part, param);
}

const void *unit_bias(const struct part *part, int unit, enum param_role role, int index)
{
    int param = unit_param(part, unit, role, index, true);
    return param < 0 ? NULL : part_read(part, param);
}

float *unit_bias_gradient(const struct part *part, int unit, enum param_role role, int index)
{
    int param = unit_param(part, unit, role, index, true);
    return param < 0 ? NULL : part_gradient(part, param);
}

void accumulate_bias(struct part *part, int unit, enum param_role role, int index,
                     const float *dbias, size_t width)
{
    float *gradient = unit_bias_gradient(part, unit, role, index);
    if (gradient) {
        part->kernels->accumulate_f32(&part->ctx, gradient, dbias, width);
    }
}

/* ---- in and out ---- */

status_t part_read_weight(const struct part *part, int param, float *out)
{
    size_t count = (size_t)part->model->param[param].count;
    return part_fetch(part, out, place(part, part->weights, param), count * sizeof *out);
}

status_t part_read_gradient(const struct part *part, int param, float *out)
{
    size_t count = (size_t)part->model->param[param].count;
    return part_fetch(part, out, place(part, part->gradients, param), count * sizeof *out);
}

/* Rounds on the way, a workspace at a time, where there is no place for float32. */
static status_t write_rounded(struct part *part, int param, const float *in)
{
    size_t count = (size_t)part->model->param[param].count;
    size_t most = part->ctx.workspace_bytes / ARENA_ALIGN * (ARENA_ALIGN / sizeof *in);
    unsigned char *read = part_read(part, param);
    CHECK(most > 0, "a workspace of %zu bytes", part->ctx.workspace_bytes);
    for (size_t done = 0; done < count; done += most) {
        size_t some = count - done < most ? count - done : most;
        TRY(part_fetch(part, part->ctx.workspace, in + done, some * sizeof *in));
        part->kernels->from_f32(&part->ctx, read + done * dtype_size(part->model->dtype),
                                part->ctx.workspace, some);
    }
    return STATUS_OK;
}

/* What operations read of it, after its float32 values changed. */
static void round_weight(struct part *part, int param)
{
    if (rounds(part)) {
        part->kernels->from_f32(&part->ctx, part_read(part, param), part_weight(part, param),
                                (size_t)part->model->param[param].count);
    }
}

status_t part_write_weight(struct part *part, int param, const float *in)
{
    size_t count = (size_t)part->model->param[param].count;
    if (!part->weights) {
        return write_rounded(part, param, in);
    }
    TRY(part_fetch(part, part_weight(part, param), in, count * sizeof *in));
    round_weight(part, param);
    return STATUS_OK;
}

status_t part_init_weights(struct part *part, uint64_t seed)
{
    for (int p = part->first_param; p < part->first_param + part->params; p++) {
        const struct param *param = &part->model->param[p];
        float *weight = malloc((size_t)param->count * sizeof *weight);
        if (!weight) {
            return FAIL(STATUS_NOMEM, "no memory for the initial values of %s", param->name);
        }
#pragma omp parallel for num_threads(part->ctx.threads) schedule(static)
        for (int64_t i = 0; i < param->count; i++) {
            weight[i] = param_initial(param, seed, i);
        }
        status_t status = part_write_weight(part, p, weight);
        free(weight);
        TRY(status);
    }
    return STATUS_OK;
}

/* ---- whole-part operations ---- */

void part_zero_gradients(struct part *part)
{
    part->kernels->zero(&part->ctx, part->gradients, total_room(part) * sizeof(float));
}

status_t part_gradient_squares(struct part *part, double *out)
{
    part->kernels->zero(&part->ctx, part->squares, (size_t)part->params * sizeof(double));
    for (int p = 0; p < part->params; p++) {
        const struct param *param = &part->model->param[part->first_param + p];
        if (param->trained) {
            part->kernels->sum_squares(&part->ctx, &part->squares[p],
                                       part->gradients + part->offset[p], (size_t)param->count);
        }
    }
    size_t bytes = (size_t)part->params * sizeof(double);
    return part->device ? device_copy(part->device, out, part->squares, bytes, part->ctx.stream)
                        : part_fetch(part, out, part->squares, bytes);
}

void part_adamw(struct part *part, const struct adamw_args *args)
{
    for (int p = 0; p < part->params; p++) {
        const struct param *param = &part->model->param[part->first_param + p];
        if (!param->trained) {
            continue;
        }
        struct adamw_args own = *args;
        own.weight_decay = param->decay ? args->weight_decay : 0.0f;
        size_t offset = part->offset[p];
        part->kernels->adamw(&part->ctx, &own, part->weights + offset, part->first_moment + offset,
                             part->second_moment + offset, part->gradients + offset,
                             (size_t)param->count);
        round_weight(part, part->first_param + p);
    }
}
