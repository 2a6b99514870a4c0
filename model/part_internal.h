/* part_internal.h - private to model/: a part from inside, for the units and connectors that work in it. */
#ifndef MODEL_PART_INTERNAL_H
#define MODEL_PART_INTERNAL_H

#include "model/layout.h"
#include "model/store.h"

struct frame {
    struct stash *stash; /* [units of the stage] as F sees it */
    const void **key;    /* [keys of the graph] */
    const int32_t *inputs, *targets, *first, *position;
    float loss_scale;
    double *loss;
    struct audit_range own; /* its memory */
};

/* A microbatch from its B to its W. */
struct backward_memory {
    struct backward *unit;    /* [units of the stage] */
    struct stash *recomputed; /* [units] what B forms again in memory of its own; NULLs elsewhere */
    struct stash *view;       /* [units] as B, GRAD and W see it, from B on */
    void **key_gradient;      /* [keys of the graph] */
    struct audit_range own;   /* its memory, without what units take turns in */
};

struct stage_memory {
    int *unit; /* [units] */
    int units, frames, backwards;
    struct frame *frame;
    struct backward_memory *backward;
};

struct part {
    const struct model *model;
    const struct kernels
        *kernels; /* that operations run: `plain`, or a table of the two around it */
    const struct kernels *plain;
    struct kernels timed, audited;
    struct kernel_ctx ctx;
    struct device *device; /* NULL = the host */
    struct stage_memory *stage;
    int stages;
    int *stage_of,
        *place_of; /* [units of the graph] index in `stage`, -1; place in the stage's list */
    bool training;
    bool forward_only; /* now, though it may have been made for training */
    struct store store;
    /* What the operation under way works in. */
    struct stage_memory *now;
    struct backward_memory *backward; /* NULL in a forward */
    void **key_gradient;              /* backward->key_gradient */
    float *cosine, *sine;             /* [T, R/2] rotary table */
    /* The largest of [N, D], [N, K], [tokens, H*E], [tokens, F], twice; [tokens, G, E] (training) */
    void *scratch[3];
    void *room[INPUTS]; /* [tokens, D] rows of all parts (tp.h); NULL where there is one */
    float *sums;        /* [tp + 1][head_rows][3] of the loss: of all parts, and of this one */
    struct tp_exchange tp;
    float **constants; /* [units of the graph] the connector's, where the part lives */
    double *squares;   /* [params] where the part lives */
    float *logits;     /* [head_rows, V], part with the head */
    size_t head_rows;  /* head_chunk_rows, or all if they are fewer */
    int open;          /* recompute full, weights at once: unit whose W is due; else -1 */
    struct arena frame_arena, backward_arena, workspace_arena;
};

/* Copies between the host and wherever the part lives; done on return. */
MUST_USE status_t part_fetch(const struct part *part, void *dst, const void *src, size_t bytes);

bool part_has(const struct part *part, int unit);
/* part_memory.c: everything of `stage` and the arenas for it. */
MUST_USE status_t part_create_stages(struct part *part, const struct part_options *options);
void part_destroy_stages(struct part *part);

/* Of the stage under way. As F sees it; as B, GRAD and W of the microbatch under way do; whichever of the
 * two the operation under way is. */
struct stash *part_stash(const struct part *part, int unit, int frame);
struct stash *part_backward_stash(const struct part *part, int unit);
struct stash *part_view(const struct part *part, int unit, int frame);
struct backward *part_backward_of(const struct part *part, int unit);
const void *part_read_key(const struct part *part, int frame, int key);
/* Element `count` of a tensor of the part's dtype; NULL of NULL. */
const void *part_at(const struct part *part, const void *tensor, size_t count);
/* Constants of the unit that its connector gave, where the part lives; NULL = none. */
const float *part_constants(const struct part *part, int unit);

/* Weight as operations read it, gradient of the unit's parameter with this role; NULL if the unit has
 * none such. */
const void *unit_weight(const struct part *part, int unit, int role, int index);
float *unit_gradient(const struct part *part, int unit, int role, int index);
/* Bias that goes with a role's weight; NULL if there is none. */
const void *unit_bias(const struct part *part, int unit, int role, int index);
float *unit_bias_gradient(const struct part *part, int unit, int role, int index);
/* Adds a norm's bias gradient of one microbatch [width]; nothing where the norm has no bias. */
void unit_accumulate_bias(struct part *part, int unit, int role, int index, const float *dbias,
                          size_t width);
/* Norms of inputs, FFN and head: rows of width D. RMSNorm of such rows, whatever the model's norm is. */
struct norm_shape unit_norm(const struct part *part, const struct unit_shape *shape);
struct norm_shape unit_rms_norm(const struct part *part, const struct unit_shape *shape);

/* ---- the units ---- */

/* Tokens of the head's chunk: logits of no more rows than this exist at once. */
size_t head_chunk_rows(enum dtype dtype);

void attention_forward(struct part *part, int unit, int frame);
void attention_backward(struct part *part, int unit, int frame);
void attention_weight_gradient(struct part *part, int unit, int frame);
void ffn_forward(struct part *part, int unit, int frame);
void ffn_backward(struct part *part, int unit, int frame);
void ffn_weight_gradient(struct part *part, int unit, int frame);
void head_forward(struct part *part, int unit, int frame);
void head_backward(struct part *part, int unit, int frame);
void head_weight_gradient(struct part *part, int unit, int frame);

#endif
