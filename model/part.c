/* part.c - the units of a rank: workspace, and what operations look up. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/connect/connect.h"
#include "model/tp.h"

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

bool part_has(const struct part *part, int unit)
{
    return part->stage_of[unit] >= 0;
}

/* ---- creation ---- */

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
    for (int u = 0; u < part->model->graph.units; u++) {
        size_t count;
        const float *values = connect_constants(part->model, u, &count);
        if (values && part->constants[u]) {
            TRY(part_fetch(part, part->constants[u], values, count * sizeof *values));
        }
    }
    return STATUS_OK;
}

static bool options_have(const struct part_options *options, int unit)
{
    for (int s = 0; s < options->stages; s++) {
        for (int u = 0; u < options->stage[s].units; u++) {
            if (options->stage[s].unit[u] == unit) {
                return true;
            }
        }
    }
    return false;
}

/* Everything beside parameters, frames and backward; sizes first, then places. */
static void lay_workspace(struct part *part, const struct part_options *options,
                          const struct kernel_limits *limits, size_t R, struct arena *arena)
{
    const struct model *model = part->model;
    size_t tokens = limits->B * limits->T, rows = (size_t)model->rows, tp = (size_t)model->tp;
    size_t element = dtype_size(model->dtype);
    size_t scratch = max_size(rows * max_size(limits->D, limits->K),
                              tokens * max_size(limits->H * limits->E, limits->F));
    bool head = options_have(options, model->graph.units - 1);
    size_t logits = head ? part->head_rows * limits->V : 0;
    size_t sums = head && tp > 1 ? (tp + 1) * part->head_rows * 3 : 0;
    part->ctx.workspace_bytes = kernels_workspace(part->kernels, limits);
    part->ctx.workspace = arena_alloc(arena, part->ctx.workspace_bytes);
    part->scratch[0] = arena_alloc(arena, scratch * element);
    part->scratch[1] = arena_alloc(arena, scratch * element);
    part->scratch[2] =
        arena_alloc(arena, part->training ? tokens * limits->G * limits->E * element : 0);
    for (int i = 0; i < tp_rooms(model); i++) {
        part->room[i] = arena_alloc(arena, tokens * limits->D * element);
    }
    part->cosine = arena_alloc(arena, limits->T * (R / 2) * sizeof(float));
    part->sine = arena_alloc(arena, limits->T * (R / 2) * sizeof(float));
    part->squares = arena_alloc(arena, (size_t)part->store.params * sizeof(double));
    part->logits = arena_alloc(arena, logits * sizeof(float));
    part->sums = arena_alloc(arena, sums * sizeof(float));
    for (int u = 0; u < part->model->graph.units; u++) {
        size_t count = 0;
        if (options_have(options, u)) {
            connect_constants(part->model, u, &count);
        }
        part->constants[u] = arena_alloc(arena, count * sizeof(float));
    }
}

static size_t rotary_width(const struct part *part, const struct kernel_limits *limits)
{
    return (size_t)((double)limits->E * part->model->config.rotary_pct);
}

static status_t measure_workspace(struct part *part, const struct part_options *options,
                                  struct kernel_limits *limits, size_t *out)
{
    struct arena measure;
    int units = part->model->graph.units;
    model_limits(part->model, part->ctx.threads, limits);
    if (part->device && device_kind(part->device) != DEVICE_HOST && limits->keys > KEYS_MOST) {
        return FAIL(
            STATUS_UNSUPPORTED,
            "an aggregate of %zu keys, and on GPUs operations read at most %d: let it read "
            "fewer (dense.key_dilation, dense.window or dense.block_size), or use device=cpu",
            limits->keys, KEYS_MOST);
    }
    size_t N = limits->B * limits->T, rows = head_chunk_rows(part->model->dtype);
    part->head_rows = N < rows ? N : rows;
    part->constants = calloc((size_t)units, sizeof *part->constants);
    if (!part->constants) {
        return FAIL(STATUS_NOMEM, "no memory for the constants of %d units", units);
    }
    arena_init_measure(&measure);
    lay_workspace(part, options, limits, rotary_width(part, limits), &measure);
    *out = measure.used;
    return STATUS_OK;
}

static status_t create_workspace(struct part *part, const struct part_options *options)
{
    struct kernel_limits limits;
    size_t size;
    TRY(measure_workspace(part, options, &limits, &size));
    size_t R = rotary_width(part, &limits);
    TRY(arena_create_on(&part->workspace_arena, part->device, MEMORY_DEVICE, part->ctx.stream, size,
                        "workspace"));
    lay_workspace(part, options, &limits, R, &part->workspace_arena);
    TRY(create_constants(part));
    return create_rotary(part, limits.T, R);
}

/* No memory but for the list of parameters. */
static status_t part_init(struct part *part, const struct part_options *options)
{
    const struct model *model = options->model;
    *part = (struct part){
        .model = model,
        .kernels = options->kernels,
        .plain = options->kernels,
        .device = options->device,
        .ctx = {.threads = options->threads, .stream = options->stream, .trace = options->trace},
        .training = options->training,
        .store = {.model = model,
                  .device = options->device,
                  .stream = options->stream,
                  .share = options->share,
                  .tp_rank = options->tp_rank},
        .tp = options->tp,
        .open = -1};
    part_forward_only(part, !options->training);
    CHECK(options->tp_rank >= 0 && options->tp_rank < model->tp, "part %d of %d", options->tp_rank,
          model->tp);
    CHECK(options->share >= 0 && options->share < model->shares, "share %d of %d", options->share,
          model->shares);
    part->store.param = calloc((size_t)model->params + 1, sizeof *part->store.param);
    if (!part->store.param) {
        return FAIL(STATUS_NOMEM, "no memory for a list of %d parameters", model->params);
    }
    for (int p = 0; p < model->params; p++) {
        if (options_have(options, model->param[p].unit)) {
            part->store.param[part->store.params++] = p;
        }
    }
    return STATUS_OK;
}

status_t part_workspace(const struct part_options *options, int64_t *out)
{
    struct part part;
    struct kernel_limits limits;
    size_t size = 0;
    TRY(part_init(&part, options));
    status_t status = measure_workspace(&part, options, &limits, &size);
    free(part.constants);
    free(part.store.param);
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
    TRY_GOTO(part_init(part, options), destroy_part);
    CHECK(part->kernels->dtype == part->model->dtype, "%s operations for a model in %s",
          dtype_name(part->kernels->dtype), dtype_name(part->model->dtype));
    TRY_GOTO(store_create(&part->store, part->training), destroy_part);
    TRY_GOTO(part_create_stages(part, options), destroy_part);
    TRY_GOTO(create_workspace(part, options), destroy_part);
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
    part_destroy_stages(part);
    free(part->constants);
    store_destroy(&part->store);
    arena_destroy(&part->workspace_arena);
    free(part);
}

void part_forward_only(struct part *part, bool only)
{
    CHECK(only || part->training, "a backward on a part made for evaluation");
    part->forward_only = only;
}

/* ---- lookups ---- */

static int part_place(const struct part *part, int unit)
{
    CHECK(part_has(part, unit) && &part->stage[part->stage_of[unit]] == part->now,
          "unit %d is not of the stage under way", unit);
    return part->place_of[unit];
}

struct stash *part_stash(const struct part *part, int unit, int frame)
{
    int place = part_place(part, unit);
    CHECK(frame >= 0 && frame < part->now->frames, "no frame %d", frame);
    return &part->now->frame[frame].stash[place];
}

struct stash *part_backward_stash(const struct part *part, int unit)
{
    return &part->backward->view[part_place(part, unit)];
}

struct stash *part_view(const struct part *part, int unit, int frame)
{
    return part->backward ? part_backward_stash(part, unit) : part_stash(part, unit, frame);
}

struct backward *part_backward_of(const struct part *part, int unit)
{
    return &part->backward->unit[part_place(part, unit)];
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
    return part->constants[unit];
}

void part_memory(const struct part *part, struct part_memory *out)
{
    int64_t room = (int64_t)store_total(&part->store), single = (int64_t)sizeof(float);
    int64_t share = (int64_t)store_kind_total(&part->store, STORE_FIRST_MOMENT) * single;
    bool masters = part->training && store_rounds(&part->store);
    out->parameters = room * (int64_t)dtype_size(part->model->dtype) + (masters ? share : 0);
    out->gradients = part->training ? room * single : 0;
    out->optimizer = part->training ? 2 * share : 0;
    out->frames = (int64_t)part->frame_arena.used;
    out->backward = (int64_t)part->backward_arena.used;
    out->workspace = (int64_t)part->workspace_arena.used;
}

static struct frame *part_frame(const struct part *part, int stage, int frame)
{
    CHECK(stage >= 0 && stage < part->stages, "no stage %d", stage);
    CHECK(frame >= 0 && frame < part->stage[stage].frames, "no frame %d", frame);
    return &part->stage[stage].frame[frame];
}

void part_set_tokens(struct part *part, int stage, int frame, const int32_t *inputs,
                     const int32_t *targets)
{
    struct frame *of = part_frame(part, stage, frame);
    of->inputs = inputs;
    of->targets = targets;
}

void part_set_loss(struct part *part, int stage, int frame, float scale, double *out)
{
    struct frame *of = part_frame(part, stage, frame);
    of->loss_scale = scale;
    of->loss = out;
}

void part_set_documents(struct part *part, int stage, int frame, const int32_t *first,
                        const int32_t *position)
{
    struct frame *of = part_frame(part, stage, frame);
    of->first = first;
    of->position = position;
}

void part_set_key(struct part *part, int stage, int frame, int key, const void *where)
{
    CHECK(part->stage_of[part->model->graph.key[key].producer] != stage, "key %d is made here",
          key);
    part_frame(part, stage, frame)->key[key] = where;
}

const void *part_key(const struct part *part, int stage, int frame, int key)
{
    const void *where = part_frame(part, stage, frame)->key[key];
    CHECK(where, "key %d is not here", key);
    return where;
}

const void *part_read_key(const struct part *part, int frame, int key)
{
    CHECK(part->now->frame[frame].key[key], "key %d is not here", key);
    return part->now->frame[frame].key[key];
}

void part_set_key_gradient(struct part *part, int stage, int slot, int key, void *where)
{
    CHECK(slot >= 0 && slot < part->stage[stage].backwards, "no backward memory %d", slot);
    part->stage[stage].backward[slot].key_gradient[key] = where;
}

/* The part's own operations; those that record themselves around them; those that run twice around these. */
static void choose_kernels(struct part *part)
{
    part->kernels = part->plain;
    if (part->ctx.timeline) {
        part->ctx.timed = part->kernels;
        kernels_time(part->kernels, &part->timed);
        part->kernels = &part->timed;
    }
    if (part->ctx.audit) {
        part->ctx.audited = part->kernels;
        kernels_audit(part->kernels, &part->audited);
        part->kernels = &part->audited;
    }
}

void part_time(struct part *part, struct timeline *timeline)
{
    part->ctx.timeline = timeline;
    choose_kernels(part);
}

void part_audit(struct part *part, struct audit *audit)
{
    part->ctx.audit = audit;
    choose_kernels(part);
}

struct audit_range part_frame_range(const struct part *part, int stage, int frame)
{
    return part->stage[stage].frame[frame].own;
}

struct audit_range part_backward_range(const struct part *part, int stage, int slot)
{
    return part->stage[stage].backward[slot].own;
}
