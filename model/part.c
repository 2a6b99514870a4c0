/* part.c - a run of units with its memory: made once, then only pointed at. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/connect/connect.h"

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

/* Bytes that the largest unit shares with the others. */
static size_t shared_bytes(const struct part *part)
{
    size_t most = 0;
    for (int u = 0; u < part->units; u++) {
        const struct unit *unit = &part->model->graph.unit[part->first_unit + u];
        size_t own = (size_t)(part->training ? unit->training.shared : unit->evaluation.shared);
        most = max_size(own, most);
    }
    return most;
}

/* Walks all units: first, in any arena, what they take turns in, then what is theirs. */
static void lay_units(struct part *part, struct arena *frames, struct arena *backward, bool bind)
{
    struct stash stash, again;
    struct backward back;
    struct arena *of_shared = part->training ? backward : frames;
    size_t size = shared_bytes(part);
    struct arena shared = {.base = arena_alloc(of_shared, size), .size = bind ? size : 0};
    struct homes homes = {frames, backward, &shared};
    for (int f = 0; f < part->frames; f++) {
        for (int u = 0; u < part->units; u++) {
            shared.used = 0;
            stash_layout(part->model, part->first_unit + u, part->training, &homes,
                         bind ? &part->frame[f].stash[u] : &stash);
        }
    }
    struct arena nowhere;
    struct homes after = {&nowhere, backward, &shared};
    for (int u = 0; part->training && u < part->units; u++) {
        shared.used = 0;
        arena_init_measure(&nowhere);
        stash_layout(part->model, part->first_unit + u, true, &after, &again);
        backward_layout(part->model, part->first_unit + u, &after,
                        bind ? &part->backward[u] : &back);
    }
}

static status_t create_frames(struct part *part)
{
    const struct graph *graph = &part->model->graph;
    part->frame = calloc((size_t)part->frames, sizeof *part->frame);
    part->backward = calloc((size_t)part->units, sizeof *part->backward);
    part->key_gradient = calloc((size_t)graph->keys, sizeof *part->key_gradient);
    if (!part->frame || !part->backward || !part->key_gradient) {
        return FAIL(STATUS_NOMEM, "no memory for the tables of %d frames", part->frames);
    }
    for (int f = 0; f < part->frames; f++) {
        struct frame *frame = &part->frame[f];
        frame->stash = calloc((size_t)part->units, sizeof *frame->stash);
        frame->recomputed = calloc((size_t)part->units, sizeof *frame->recomputed);
        frame->key = calloc((size_t)graph->keys, sizeof *frame->key);
        if (!frame->stash || !frame->recomputed || !frame->key) {
            return FAIL(STATUS_NOMEM, "no memory for the tables of frame %d", f);
        }
    }
    struct arena frames, backward;
    arena_init_measure(&frames);
    arena_init_measure(&backward);
    lay_units(part, &frames, &backward, false);
    TRY(part_arena(part, &part->frame_arena, frames.used, "activation frames"));
    TRY(part_arena(part, &part->backward_arena, backward.used, "backward memory"));
    lay_units(part, &part->frame_arena, &part->backward_arena, true);
    for (int f = 0; f < part->frames; f++) {
        for (int u = 0; u < part->units; u++) {
            part->frame[f].recomputed[u] = part->frame[f].stash[u];
            stash_recomputed(part->model, &part->backward[u], &part->frame[f].recomputed[u]);
        }
        for (int k = 0; k < graph->keys; k++) {
            if (part_has(part, graph->key[k].producer)) {
                part->frame[f].key[k] = part->model->connector->key(
                    part->model, k, part_stash(part, graph->key[k].producer, f));
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

static status_t create_constants(struct part *part)
{
    for (int u = 0; u < part->units; u++) {
        size_t count;
        const float *values = connect_constants(part->model, part->first_unit + u, &count);
        if (values) {
            TRY(part_fetch(part, part->constants[u], values, count * sizeof *values));
        }
    }
    return STATUS_OK;
}

/* Everything beside parameters, frames and backward; sizes first, then places. */
static void lay_workspace(struct part *part, const struct kernel_limits *limits, size_t R,
                          struct arena *arena)
{
    size_t N = limits->B * limits->T, element = dtype_size(part->model->dtype);
    size_t width =
        max_size(max_size(limits->D, limits->H * limits->E), max_size(limits->F, limits->K));
    bool head = part_has(part, part->model->graph.units - 1);
    size_t logits = head ? part->head_rows * limits->V : 0;
    bool beside = part->training && element != sizeof(float);
    part->ctx.workspace_bytes = kernels_workspace(part->kernels, limits);
    part->ctx.workspace = arena_alloc(arena, part->ctx.workspace_bytes);
    part->scratch[0] = arena_alloc(arena, N * width * element);
    part->scratch[1] = arena_alloc(arena, N * width * element);
    part->cosine = arena_alloc(arena, limits->T * (R / 2) * sizeof(float));
    part->sine = arena_alloc(arena, limits->T * (R / 2) * sizeof(float));
    part->squares = arena_alloc(arena, (size_t)part->store.params * sizeof(double));
    part->logits = arena_alloc(arena, logits * sizeof(float));
    part->dlogits = beside ? arena_alloc(arena, logits * element) : part->logits;
    for (int u = 0; u < part->units; u++) {
        size_t count;
        connect_constants(part->model, part->first_unit + u, &count);
        part->constants[u] = arena_alloc(arena, count * sizeof(float));
    }
}

static size_t rotary_width(const struct part *part, const struct kernel_limits *limits)
{
    return (size_t)((double)limits->E * part->model->config.rotary_pct);
}

static status_t measure_workspace(struct part *part, struct kernel_limits *limits, size_t *out)
{
    struct arena measure;
    model_limits(part->model, part->ctx.threads, limits);
    size_t N = limits->B * limits->T, rows = head_chunk_rows(part->model->dtype);
    part->head_rows = N < rows ? N : rows;
    part->constants = calloc((size_t)part->units, sizeof *part->constants);
    if (!part->constants) {
        return FAIL(STATUS_NOMEM, "no memory for the constants of %d units", part->units);
    }
    arena_init_measure(&measure);
    lay_workspace(part, limits, rotary_width(part, limits), &measure);
    *out = measure.used;
    return STATUS_OK;
}

static status_t create_workspace(struct part *part)
{
    struct kernel_limits limits;
    size_t size;
    TRY(measure_workspace(part, &limits, &size));
    size_t R = rotary_width(part, &limits);
    TRY(part_arena(part, &part->workspace_arena, size, "workspace"));
    lay_workspace(part, &limits, R, &part->workspace_arena);
    TRY(create_constants(part));
    return create_rotary(part, limits.T, R);
}

/* No memory but for tables. */
static void part_init(struct part *part, const struct part_options *options)
{
    const int *param = options->model->unit_param;
    *part = (struct part){
        .model = options->model,
        .kernels = options->kernels,
        .device = options->device,
        .ctx = {.threads = options->threads, .stream = options->stream, .trace = options->trace},
        .first_unit = options->first_unit,
        .units = options->units,
        .frames = options->frames,
        .training = options->training,
        .open = -1};
    part->store = (struct store){.model = options->model,
                                 .device = options->device,
                                 .stream = options->stream,
                                 .first = param[options->first_unit],
                                 .params = param[options->first_unit + options->units] -
                                           param[options->first_unit]};
    part_forward_only(part, !options->training);
}

status_t part_workspace(const struct part_options *options, int64_t *out)
{
    struct part part;
    struct kernel_limits limits;
    size_t size = 0;
    part_init(&part, options);
    status_t status = measure_workspace(&part, &limits, &size);
    free(part.constants);
    *out = (int64_t)size;
    return status;
}

status_t part_create(const struct part_options *options, struct part **out)
{
    status_t status = STATUS_OK;
    struct part *part = calloc(1, sizeof *part);
    if (!part) {
        return FAIL(STATUS_NOMEM, "no memory for a part of the model");
    }
    part_init(part, options);
    CHECK(part->kernels->dtype == part->model->dtype, "%s operations for a model in %s",
          dtype_name(part->kernels->dtype), dtype_name(part->model->dtype));
    TRY_GOTO(store_create(&part->store, part->training), destroy_part);
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
        free(part->frame[f].recomputed);
        free(part->frame[f].key);
    }
    free(part->frame);
    free(part->backward);
    free(part->key_gradient);
    free(part->constants);
    store_destroy(&part->store);
    arena_destroy(&part->frame_arena);
    arena_destroy(&part->backward_arena);
    arena_destroy(&part->workspace_arena);
    free(part);
}

void part_forward_only(struct part *part, bool only)
{
    CHECK(only || part->training, "a backward on a part made for evaluation");
    part->forward_only = only;
}

/* ---- lookups ---- */

struct stash *part_stash(const struct part *part, int unit, int frame)
{
    CHECK(part_has(part, unit), "unit %d is not of this part", unit);
    CHECK(frame >= 0 && frame < part->frames, "no frame %d", frame);
    return &part->frame[frame].stash[unit - part->first_unit];
}

struct stash *part_recomputed(const struct part *part, int unit, int frame)
{
    CHECK(part_has(part, unit), "unit %d is not of this part", unit);
    CHECK(frame >= 0 && frame < part->frames, "no frame %d", frame);
    return &part->frame[frame].recomputed[unit - part->first_unit];
}

struct backward *part_backward_of(const struct part *part, int unit)
{
    CHECK(part_has(part, unit), "unit %d is not of this part", unit);
    return &part->backward[unit - part->first_unit];
}

struct norm_shape unit_norm(const struct part *part, const struct unit_shape *shape)
{
    return (struct norm_shape){shape->norm, shape->N, shape->D,
                               (float)part->model->config.norm_eps};
}

struct norm_shape unit_rms_norm(const struct part *part, const struct unit_shape *shape)
{
    return (struct norm_shape){NORM_RMS, shape->N, shape->D, (float)part->model->config.norm_eps};
}

const void *part_at(const struct part *part, const void *tensor, size_t count)
{
    const unsigned char *bytes = tensor;
    return bytes ? bytes + count * dtype_size(part->model->dtype) : NULL;
}

const float *part_constants(const struct part *part, int unit)
{
    CHECK(part_has(part, unit), "unit %d is not of this part", unit);
    return part->constants[unit - part->first_unit];
}

void part_memory(const struct part *part, struct part_memory *out)
{
    int64_t room = (int64_t)store_total(&part->store), single = (int64_t)sizeof(float);
    bool masters = part->training && store_rounds(&part->store);
    out->parameters =
        room * (int64_t)dtype_size(part->model->dtype) + (masters ? room * single : 0);
    out->gradients = part->training ? room * single : 0;
    out->optimizer = 2 * out->gradients;
    out->frames = (int64_t)part->frame_arena.used;
    out->backward = (int64_t)part->backward_arena.used;
    out->workspace = (int64_t)part->workspace_arena.used;
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
