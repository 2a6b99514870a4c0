/* part_memory.c - frames and backward memories of a part's stages: made once, then only pointed at. */
#include <stdlib.h>
#include <string.h>

#include "model/connect/connect.h"

static status_t no_memory(const char *what)
{
    return FAIL(STATUS_NOMEM, "no memory for the tables of %s", what);
}

/* ---- tables ---- */

static status_t create_frame(const struct part *part, struct stage_memory *stage,
                             struct frame *frame)
{
    frame->stash = calloc((size_t)stage->units, sizeof *frame->stash);
    frame->key = calloc((size_t)part->model->graph.keys, sizeof *frame->key);
    return frame->stash && frame->key ? STATUS_OK : no_memory("a frame");
}

static status_t create_backward(const struct part *part, struct stage_memory *stage,
                                struct backward_memory *memory)
{
    memory->unit = calloc((size_t)stage->units, sizeof *memory->unit);
    memory->recomputed = calloc((size_t)stage->units, sizeof *memory->recomputed);
    memory->view = calloc((size_t)stage->units, sizeof *memory->view);
    memory->key_gradient = calloc((size_t)part->model->graph.keys, sizeof *memory->key_gradient);
    return memory->unit && memory->recomputed && memory->view && memory->key_gradient
               ? STATUS_OK
               : no_memory("a backward memory");
}

static status_t create_stage(struct part *part, int index, const struct part_stage *from)
{
    struct stage_memory *stage = &part->stage[index];
    *stage = (struct stage_memory){
        .units = from->units, .frames = from->frames, .backwards = from->backwards};
    stage->unit = malloc((size_t)from->units * sizeof *stage->unit);
    stage->frame = calloc((size_t)from->frames, sizeof *stage->frame);
    stage->backward = calloc((size_t)from->backwards + 1, sizeof *stage->backward);
    if (!stage->unit || !stage->frame || !stage->backward) {
        return no_memory("a stage");
    }
    for (int u = 0; u < from->units; u++) {
        stage->unit[u] = from->unit[u];
        part->stage_of[from->unit[u]] = index;
        part->place_of[from->unit[u]] = u;
    }
    for (int f = 0; f < stage->frames; f++) {
        TRY(create_frame(part, stage, &stage->frame[f]));
    }
    for (int b = 0; b < stage->backwards; b++) {
        TRY(create_backward(part, stage, &stage->backward[b]));
    }
    return STATUS_OK;
}

static status_t create_tables(struct part *part, const struct part_options *options)
{
    size_t units = (size_t)part->model->graph.units;
    part->stage = calloc((size_t)options->stages, sizeof *part->stage);
    part->stage_of = malloc(units * sizeof *part->stage_of);
    part->place_of = calloc(units, sizeof *part->place_of);
    if (!part->stage || !part->stage_of || !part->place_of) {
        return no_memory("a part");
    }
    part->stages = options->stages;
    for (size_t u = 0; u < units; u++) {
        part->stage_of[u] = -1;
    }
    for (int s = 0; s < options->stages; s++) {
        TRY(create_stage(part, s, &options->stage[s]));
    }
    return STATUS_OK;
}

/* ---- memory ---- */

/* Bytes that the largest unit shares with the others. */
static size_t shared_bytes(const struct part *part)
{
    size_t most = 0;
    for (int u = 0; u < part->model->graph.units; u++) {
        const struct unit *unit = &part->model->graph.unit[u];
        size_t own = (size_t)(part->training ? unit->training.shared : unit->evaluation.shared);
        most = part_has(part, u) && own > most ? own : most;
    }
    return most;
}

/* What has been taken of an arena since it had `begin` bytes used. */
static struct audit_range range_since(const struct arena *arena, size_t begin)
{
    const unsigned char *base = arena->base;
    return (struct audit_range){base ? base + begin : NULL, arena->used - begin};
}

static void lay_frames(struct part *part, struct stage_memory *stage, const struct homes *homes)
{
    for (int f = 0; f < stage->frames; f++) {
        size_t begin = homes->frame->used;
        for (int u = 0; u < stage->units; u++) {
            homes->shared->used = 0;
            stash_layout(part->model, stage->unit[u], part->training, homes,
                         &stage->frame[f].stash[u]);
        }
        stage->frame[f].own = range_since(homes->frame, begin);
    }
}

static void lay_backwards(struct part *part, struct stage_memory *stage, struct arena *backward,
                          struct arena *shared)
{
    for (int b = 0; b < stage->backwards; b++) {
        size_t begin = backward->used;
        for (int u = 0; u < stage->units; u++) {
            struct backward_memory *memory = &stage->backward[b];
            shared->used = 0;
            unit_layout_backward(part->model, stage->unit[u], backward, shared,
                                 &memory->recomputed[u], &memory->unit[u]);
        }
        stage->backward[b].own = range_since(backward, begin);
    }
}

/* Walks all units, first to measure, then to bind: in any arena first what they take turns in, then what
 * is theirs. */
static void lay_stages(struct part *part, struct arena *frames, struct arena *backward, bool bind)
{
    struct arena *of_shared = part->training ? backward : frames;
    size_t size = shared_bytes(part);
    struct arena shared = {.base = arena_alloc(of_shared, size), .size = bind ? size : 0};
    struct homes homes = {frames, backward, &shared};
    for (int s = 0; s < part->stages; s++) {
        lay_frames(part, &part->stage[s], &homes);
        lay_backwards(part, &part->stage[s], backward, &shared);
    }
}

static status_t create_arena(const struct part *part, struct arena *arena, size_t size,
                             const char *what)
{
    return arena_create_on(arena, part->device, MEMORY_DEVICE, part->ctx.stream, size, what);
}

/* The keys that the stage's own units make. */
static void find_keys(const struct part *part, struct stage_memory *stage)
{
    const struct graph *graph = &part->model->graph;
    for (int f = 0; f < stage->frames; f++) {
        for (int k = 0; k < graph->keys; k++) {
            int producer = graph->key[k].producer;
            if (part_has(part, producer) && &part->stage[part->stage_of[producer]] == stage) {
                stage->frame[f].key[k] = part->model->connector->key(
                    part->model, k, &stage->frame[f].stash[part->place_of[producer]]);
            }
        }
    }
}

status_t part_create_stages(struct part *part, const struct part_options *options)
{
    struct arena frames, backward;
    TRY(create_tables(part, options));
    arena_init_measure(&frames);
    arena_init_measure(&backward);
    lay_stages(part, &frames, &backward, false);
    TRY(create_arena(part, &part->frame_arena, frames.used, "activation frames"));
    TRY(create_arena(part, &part->backward_arena, backward.used, "backward memory"));
    lay_stages(part, &part->frame_arena, &part->backward_arena, true);
    for (int s = 0; s < part->stages; s++) {
        find_keys(part, &part->stage[s]);
    }
    return STATUS_OK;
}

void part_destroy_stages(struct part *part)
{
    for (int s = 0; part->stage && s < part->stages; s++) {
        struct stage_memory *stage = &part->stage[s];
        for (int f = 0; stage->frame && f < stage->frames; f++) {
            free(stage->frame[f].stash);
            free(stage->frame[f].key);
        }
        for (int b = 0; stage->backward && b < stage->backwards; b++) {
            free(stage->backward[b].unit);
            free(stage->backward[b].recomputed);
            free(stage->backward[b].view);
            free(stage->backward[b].key_gradient);
        }
        free(stage->unit);
        free(stage->frame);
        free(stage->backward);
    }
    free(part->stage);
    free(part->stage_of);
    free(part->place_of);
    arena_destroy(&part->frame_arena);
    arena_destroy(&part->backward_arena);
}
