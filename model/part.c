/* part.c - a run of units with its memory: made once, then only pointed at. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/model_internal.h"

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

static bool part_has(const struct part *part, int unit)
{
    return unit >= part->first_unit && unit < part->first_unit + part->units;
}

/* ---- creation ---- */

static status_t part_arena(const struct part *part, struct arena *arena, size_t size,
                           const char *what)
{
    return arena_create_on(arena, part->device, MEMORY_DEVICE, part->ctx.stream, size, what);
}

/* Between the host and wherever the part lives, done on return. */
status_t part_fetch(const struct part *part, void *dst, const void *src, size_t bytes)
{
    if (!part->device) {
        memcpy(dst, src, bytes);
        return STATUS_OK;
    }
    TRY(device_copy(part->device, dst, src, bytes, part->ctx.stream));
    return device_stream_sync(part->device, part->ctx.stream);
}

static status_t create_parameters(struct part *part, const struct part *weights_of)
{
    const struct model *model = part->model;
    part->first_param = model->unit_param[part->first_unit];
    part->params = model->unit_param[part->first_unit + part->units] - part->first_param;
    part->offset = calloc((size_t)part->params + 1, sizeof *part->offset);
    if (!part->offset) {
        return FAIL(STATUS_NOMEM, "no memory for a table of %d parameters", part->params);
    }
    size_t total = 0, alignment = ARENA_ALIGN / sizeof(float);
    for (int p = 0; p < part->params; p++) {
        part->offset[p] = total;
        size_t count = (size_t)model->param[part->first_param + p].count;
        total += (count + alignment - 1) / alignment * alignment;
    }
    part->offset[part->params] = total;
    size_t bytes = total * sizeof(float);
    if (weights_of) {
        CHECK(weights_of->first_param == part->first_param && weights_of->params == part->params &&
                  !part->training,
              "weights are shared by parts of the same units, gradients are not");
        part->weights = weights_of->weights;
        return STATUS_OK;
    }
    TRY(part_arena(part, &part->parameter_arena, bytes * (part->training ? 4 : 1),
                   "parameters and optimizer state"));
    part->weights = arena_alloc(&part->parameter_arena, bytes);
    if (part->training) {
        part->gradients = arena_alloc(&part->parameter_arena, bytes);
        part->first_moment = arena_alloc(&part->parameter_arena, bytes);
        part->second_moment = arena_alloc(&part->parameter_arena, bytes);
    }
    return STATUS_OK;
}

static void lay_frames(struct part *part, struct arena *arena, bool bind)
{
    struct stash ignored;
    for (int f = 0; f < part->frames; f++) {
        for (int u = 0; u < part->units; u++) {
            struct stash *stash = bind ? &part->frame[f].stash[u] : &ignored;
            stash_layout(part->model, part->first_unit + u, part->training, arena, stash);
        }
    }
}

static void lay_backward(struct part *part, struct arena *arena, bool bind)
{
    struct backward ignored;
    for (int u = 0; part->training && u < part->units; u++) {
        backward_layout(part->model, part->first_unit + u, arena,
                        bind ? &part->backward[u] : &ignored);
    }
}

/* Which of a unit's tensors is the key. */
static void *product_of(const struct stash *stash, enum key_kind kind)
{
    switch (kind) {
    case KEY_HIDDEN:
        return stash->key_normed ? stash->key_normed : stash->out;
    case KEY_SUMMARY:
        return stash->summary;
    case KEY_MID:
    case KEY_RAW:
        break;
    }
    return stash->out;
}

static status_t create_frames(struct part *part)
{
    const struct graph *graph = &part->model->graph;
    struct arena measure;
    part->frame = calloc((size_t)part->frames, sizeof *part->frame);
    part->backward = calloc((size_t)part->units, sizeof *part->backward);
    part->key_gradient = calloc((size_t)graph->keys, sizeof *part->key_gradient);
    if (!part->frame || !part->backward || !part->key_gradient) {
        return FAIL(STATUS_NOMEM, "no memory for the tables of %d frames", part->frames);
    }
    for (int f = 0; f < part->frames; f++) {
        part->frame[f].stash = calloc((size_t)part->units, sizeof *part->frame[f].stash);
        part->frame[f].key = calloc((size_t)graph->keys, sizeof *part->frame[f].key);
        if (!part->frame[f].stash || !part->frame[f].key) {
            return FAIL(STATUS_NOMEM, "no memory for the tables of frame %d", f);
        }
    }
    arena_init_measure(&measure);
    lay_frames(part, &measure, false);
    TRY(part_arena(part, &part->frame_arena, measure.used, "activation frames"));
    lay_frames(part, &part->frame_arena, true);
    arena_init_measure(&measure);
    lay_backward(part, &measure, false);
    TRY(part_arena(part, &part->backward_arena, measure.used, "backward memory"));
    lay_backward(part, &part->backward_arena, true);
    for (int f = 0; f < part->frames; f++) {
        for (int k = 0; k < graph->keys; k++) {
            if (part_has(part, graph->key[k].producer)) {
                part->frame[f].key[k] =
                    product_of(part_stash(part, graph->key[k].producer, f), graph->key[k].kind);
            }
        }
    }
    return STATUS_OK;
}

/* Angles in double, the table in float: theta(t, d) = t * base^(-2d/R). */
static void fill_rotary(const struct part *part, size_t T, size_t R, float *cosine, float *sine)
{
    for (size_t t = 0; t < T; t++) {
        for (size_t d = 0; d < R / 2; d++) {
            double exponent = -2.0 * (double)d / (double)R;
            double angle = (double)t * pow(part->model->config.rope_base, exponent);
            cosine[t * (R / 2) + d] = (float)cos(angle);
            sine[t * (R / 2) + d] = (float)sin(angle);
        }
    }
}

static status_t create_rotary(struct part *part, size_t T, size_t R)
{
    size_t count = T * (R / 2);
    float *table = malloc(2 * count * sizeof *table);
    if (!table) {
        return FAIL(STATUS_NOMEM, "no memory for a rotary table of %zu positions", T);
    }
    fill_rotary(part, T, R, table, table + count);
    status_t status = part_fetch(part, part->cosine, table, count * sizeof *table);
    if (status == STATUS_OK) {
        status = part_fetch(part, part->sine, table + count, count * sizeof *table);
    }
    free(table);
    return status;
}

static const struct consumer *masked_consumer(const struct part *part, int u)
{
    struct unit_shape shape;
    unit_shape(part->model, part->first_unit + u, &shape);
    return shape.consumer && shape.consumer->exists && shape.consumer->mask ? shape.consumer : NULL;
}

static status_t create_masks(struct part *part, struct arena *arena)
{
    for (int u = 0; u < part->units; u++) {
        const struct consumer *consumer = masked_consumer(part, u);
        if (consumer) {
            size_t bytes = (size_t)(consumer->ways * consumer->n) * sizeof(float);
            part->mask[u] = arena_alloc(arena, bytes);
            TRY(part_fetch(part, part->mask[u], consumer->mask, bytes));
        }
    }
    return STATUS_OK;
}

static size_t mask_bytes(const struct part *part)
{
    size_t bytes = 0;
    for (int u = 0; u < part->units; u++) {
        const struct consumer *consumer = masked_consumer(part, u);
        bytes +=
            consumer ? (size_t)(consumer->ways * consumer->n) * sizeof(float) + ARENA_ALIGN : 0;
    }
    return bytes;
}

static status_t create_workspace(struct part *part)
{
    struct kernel_limits limits;
    model_limits(part->model, part->ctx.threads, &limits);
    size_t N = limits.B * limits.T;
    size_t R = (size_t)((double)limits.E * part->model->config.rotary_pct);
    size_t width = max_size(max_size(limits.D, limits.H * limits.E), max_size(limits.F, limits.K));
    size_t scratch = N * width * dtype_size(part->model->dtype);
    size_t table = limits.T * (R / 2) * sizeof(float);
    size_t logits = (size_t)HEAD_CHUNK * limits.V * sizeof(float);
    bool head = part_has(part, part->model->graph.units - 1);
    size_t kernel_bytes = kernels_workspace(part->kernels, &limits);
    size_t total = kernel_bytes + 2 * scratch + 2 * table + (head ? logits : 0) + 8 * ARENA_ALIGN +
                   (size_t)part->params * sizeof(double) + mask_bytes(part);
    struct arena *arena = &part->workspace_arena;
    TRY(part_arena(part, arena, total, "workspace"));
    part->ctx.workspace = arena_alloc(arena, kernel_bytes);
    part->ctx.workspace_bytes = kernel_bytes;
    part->scratch[0] = arena_alloc(arena, scratch);
    part->scratch[1] = arena_alloc(arena, scratch);
    part->cosine = arena_alloc(arena, table);
    part->sine = arena_alloc(arena, table);
    part->squares = arena_alloc(arena, (size_t)part->params * sizeof(double));
    part->logits = head ? arena_alloc(arena, logits) : NULL;
    part->mask = calloc((size_t)part->units, sizeof *part->mask);
    if (!part->mask) {
        return FAIL(STATUS_NOMEM, "no memory for %d masks", part->units);
    }
    TRY(create_masks(part, arena));
    return create_rotary(part, limits.T, R);
}

status_t part_create(const struct part_options *options, struct part **out)
{
    status_t status = STATUS_OK;
    struct part *part = calloc(1, sizeof *part);
    if (!part) {
        return FAIL(STATUS_NOMEM, "no memory for a part of the model");
    }
    part->model = options->model;
    part->kernels = options->kernels;
    part->device = options->device;
    part->ctx = (struct kernel_ctx){
        .threads = options->threads, .stream = options->stream, .trace = options->trace};
    part->first_unit = options->first_unit;
    part->units = options->units;
    part->frames = options->frames;
    part->training = options->training;
    TRY_GOTO(create_parameters(part, options->weights_of), destroy_part);
    TRY_GOTO(create_frames(part), destroy_part);
    TRY_GOTO(create_workspace(part), destroy_part);
    *out = part;
    return STATUS_OK;

destroy_part:
    part_destroy(part);
    return status;
}

void part_destroy(struct part *part)
{
    if (!part) {
        return;
    }
    for (int f = 0; part->frame && f < part->frames; f++) {
        free(part->frame[f].stash);
        free(part->frame[f].key);
    }
    free(part->frame);
    free(part->backward);
    free(part->key_gradient);
    free(part->mask);
    free(part->offset);
    arena_destroy(&part->parameter_arena);
    arena_destroy(&part->frame_arena);
    arena_destroy(&part->backward_arena);
    arena_destroy(&part->workspace_arena);
    free(part);
}

/* ---- lookups ---- */

struct stash *part_stash(const struct part *part, int unit, int frame)
{
    CHECK(part_has(part, unit), "unit %d is not of this part", unit);
    CHECK(frame >= 0 && frame < part->frames, "no frame %d", frame);
    return &part->frame[frame].stash[unit - part->first_unit];
}

struct backward *part_back(const struct part *part, int unit)
{
    CHECK(part_has(part, unit), "unit %d is not of this part", unit);
    return &part->backward[unit - part->first_unit];
}

bool part_owns(const struct part *part, int param)
{
    return param >= part->first_param && param < part->first_param + part->params;
}

float *part_weight(const struct part *part, int param)
{
    CHECK(part_owns(part, param), "parameter %d is not of this part", param);
    return part->weights + part->offset[param - part->first_param];
}

float *part_gradient(const struct part *part, int param)
{
    CHECK(part_owns(part, param) && part->training, "no gradient of parameter %d here", param);
    return part->gradients + part->offset[param - part->first_param];
}

static int unit_find(const struct part *part, int unit, enum param_role role, int index, bool bias)
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

const float *unit_weight(const struct part *part, int unit, enum param_role role, int index)
{
    int param = unit_find(part, unit, role, index, false);
    return param < 0 ? NULL : part_weight(part, param);
}

float *unit_gradient(const struct part *part, int unit, enum param_role role, int index)
{
    int param = unit_find(part, unit, role, index, false);
    return param < 0 ? NULL : part_gradient(part, param);
}

const float *unit_bias(const struct part *part, int unit, enum param_role role, int index)
{
    int param = unit_find(part, unit, role, index, true);
    return param < 0 ? NULL : part_weight(part, param);
}

float *unit_bias_gradient(const struct part *part, int unit, enum param_role role, int index)
{
    int param = unit_find(part, unit, role, index, true);
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

struct norm_shape unit_norm(const struct part *part, const struct unit_shape *shape)
{
    return (struct norm_shape){shape->norm, shape->N, shape->D,
                               (float)part->model->config.norm_eps};
}

void part_set_tokens(struct part *part, int frame, const int32_t *inputs, const int32_t *targets)
{
    part->frame[frame].inputs = inputs;
    part->frame[frame].targets = targets;
}

void part_set_documents(struct part *part, int frame, const int32_t *first, const int32_t *position)
{
    part->frame[frame].first = first;
    part->frame[frame].position = position;
}

void part_set_key(struct part *part, int frame, int key, void *where)
{
    CHECK(!part_has(part, part->model->graph.key[key].producer), "key %d is made here", key);
    part->frame[frame].key[key] = where;
}

const void *part_key(const struct part *part, int frame, int key)
{
    CHECK(part->frame[frame].key[key], "key %d is not here", key);
    return part->frame[frame].key[key];
}

void part_set_key_gradient(struct part *part, int key, void *where)
{
    part->key_gradient[key] = where;
}

/* ---- whole-part operations ---- */

static float *part_place(const struct part *part, float *arena, int param)
{
    CHECK(part_owns(part, param), "parameter %d is not of this part", param);
    return arena + part->offset[param - part->first_param];
}

status_t part_read_weight(const struct part *part, int param, float *out)
{
    size_t count = (size_t)part->model->param[param].count;
    return part_fetch(part, out, part_place(part, part->weights, param), count * sizeof *out);
}

status_t part_write_weight(struct part *part, int param, const float *in)
{
    size_t count = (size_t)part->model->param[param].count;
    return part_fetch(part, part_place(part, part->weights, param), in, count * sizeof *in);
}

status_t part_read_gradient(const struct part *part, int param, float *out)
{
    size_t count = (size_t)part->model->param[param].count;
    return part_fetch(part, out, part_place(part, part->gradients, param), count * sizeof *out);
}

status_t part_init_weights(struct part *part, uint64_t seed)
{
    for (int p = part->first_param; p < part->first_param + part->params; p++) {
        const struct param *param = &part->model->param[p];
        float *weight = malloc((size_t)param->count * sizeof *weight);
        if (!weight) {
            return FAIL(STATUS_NOMEM, "no memory for the initial values of %s", param->name);
        }
        for (int64_t i = 0; i < param->count; i++) {
            weight[i] = param_initial(param, seed, i);
        }
        status_t status = part_write_weight(part, p, weight);
        free(weight);
        TRY(status);
    }
    return STATUS_OK;
}

void part_zero_gradients(struct part *part)
{
    part->kernels->zero(&part->ctx, part->gradients, part->offset[part->params] * sizeof(float));
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
    }
}

void part_time(struct part *part, struct timeline *timeline)
{
    if (part->ctx.timeline) {
        part->kernels = part->ctx.timed;
    }
    part->ctx.timeline = timeline;
    part->ctx.timed = part->kernels;
    if (timeline) {
        kernels_time(part->kernels, &part->timed);
        part->kernels = &part->timed;
    }
}

void part_memory(const struct part *part, struct part_memory *out)
{
    int64_t each = (int64_t)(part->offset[part->params] * sizeof(float));
    out->parameters = each;
    out->gradients = part->training ? each : 0;
    out->optimizer = part->training ? 2 * each : 0;
    out->frames = (int64_t)part->frame_arena.size;
    out->backward = (int64_t)part->backward_arena.size;
    out->workspace = (int64_t)part->workspace_arena.size;
}
