/* model_internal.h - private to model/: steps of model_create, and what the units of a part share.
 *
 * A unit's memory of one microbatch has two halves: struct stash is filled by F, struct backward by B
 * (one per part, since one microbatch is in backward at a time). Both are laid out by one function each
 * (stash_layout, backward_layout), walked once to measure and once to bind; cost.c measures with the same
 * functions, so the memory table cannot disagree with the memory.
 */
#ifndef MODEL_MODEL_INTERNAL_H
#define MODEL_MODEL_INTERNAL_H

#include "base/arena.h"
#include "model/model.h"

enum unit_kind { UNIT_EMBED, UNIT_ATTENTION, UNIT_FFN, UNIT_HEAD };
enum key_kind {
    KEY_HIDDEN,  /* X_j */
    KEY_MID,     /* H_i, between attention and FFN of layer i */
    KEY_SUMMARY, /* mean of a block of layers */
    KEY_RAW      /* X_i beside its normed key (PrePostNorm) */
};
enum key_kind model_key_kind(const struct model *model, int key);

/* What a read of a key is: its tag in the graph. */
enum read_tag {
    TAG_AGGREGATE, /* by the ways of the unit's aggregate */
    TAG_GENERATOR, /* makes the aggregate's weights */
    TAG_DIRECT,    /* by ways that take the key itself */
    TAG_MID,       /* by an FFN */
    TAG_NORM,      /* normed into the hidden key */
    TAG_SUMMARY    /* enters a block's mean */
};

MUST_USE status_t shapes_fill(struct model *model);
MUST_USE status_t params_fill(struct model *model);
MUST_USE status_t cost_fill(struct model *model);
bool model_prenorm(
    const struct model *model); /* keys are normed; X_i itself is a key of kind raw */
bool model_postnorm(const struct model *model); /* ways are X_i plus the aggregate */
/* Graph key of what ways take as X_i itself: raw with prenorm, else X_i. */
int model_raw_key(const struct model *model, int j);
int model_summary_key(const struct model *model, int block);
/* Block whose mean the FFN of `layer` forms, or -1. */
int model_block_ending(const struct model *model, int layer);

/* Tokens of the head's chunk: logits of no more rows than this exist at once. The output's gradient is
 * added up chunk by chunk, so the chunk belongs to the order of additions: by the dtype alone. */
size_t head_chunk_rows(enum dtype dtype);
enum { INPUTS = 3 }; /* Q, K, V inputs of an attention; the head uses the first */

/* What an aggregate keeps of a microbatch. */
struct mudd_stash {
    void *normed;               /* [N, D] RMSNorm(X_i), the generator's input */
    float *rstd;                /* [N] */
    void *inner;                /* [N, K] before GELU */
    void *hidden;               /* [N, K] after it */
    float *weights;             /* [N, C*n] A_i */
    void *mixed[WAYS_MAX];      /* C x [N, D], the aggregates */
    void *formed[WAYS_MAX];     /* C x [N, D], the ways: the same, or X_i plus (normed) aggregate */
    float *post_rstd[WAYS_MAX]; /* [N], of ways with a post-norm */
};

struct stash {
    void *out;        /* [N, D] X_j or H_i, the unit's output; NULL for the head */
    void *key_normed; /* [N, D] the key that others read, with prenorm */
    float *key_rstd;  /* [N] */
    void *summary;    /* [N, D] mean of the block that this FFN ends */
    struct mudd_stash mudd;
    /* attention (head: normed[0], mean[0], rstd[0] only) */
    void *normed
        [INPUTS]; /* [N, D] normed inputs; all the same buffer where they share input and norm */
    float *mean[INPUTS], *rstd[INPUTS]; /* [N] */
    void *q_raw, *k_raw;                /* [N, H, E], [N, G, E] before QK-norm (with it only) */
    float *q_rstd, *k_rstd;             /* [N*H], [N*G] */
    void *q, *k, *v, *attended;         /* [N, H, E], [N, G, E] x 2, [N, H, E] */
    float *lse;                         /* [B, H, T] */
    /* FFN */
    void *gate, *up, *product; /* [N, F] */
    /* head */
    void *dnormed; /* [N, D] gradient of the normed input, made by the forward */
};

struct backward {
    float *dweights;  /* [N, C*n] dA */
    void *dinner;     /* [N, K] */
    void *dgenerator; /* [N, D] the generator's path into X_i */
    void *
        dinput[INPUTS]; /* [N, D] gradients of the inputs of Q, K, V (head: [0]); shared likewise */
    void *dq, *dk, *dv; /* [N, H, E], [N, G, E] x 2, of the projections' outputs */
    void *dresidual;    /* [N, D] of xR, with parallel residual */
    void *dmixed[WAYS_MAX];  /* C x [N, D] gradients of aggregates under a post-norm */
    void *dgate, *dup;       /* [N, F] */
    float *dscale[INPUTS];   /* [D] this microbatch's share of the norm scales' gradients */
    float *dbias[INPUTS];    /* [D] and of the norms' biases (LayerNorm) */
    float *dgenerator_scale; /* [D] of the generator's norm, with prenorm */
    float *dpost_scale[WAYS_MAX], *dkey_scale; /* [D] */
    float *dq_scale, *dk_scale;                /* [E] */
    /* formed again: what W reads (selective), and GRAD (full), instead of the stash's */
    void *normed[INPUTS], *generator_normed; /* [N, D] */
    float *weights;                          /* [N, C*n] */
};

/* Shapes of one attention, FFN or head, from the tables. */
struct unit_shape {
    enum unit_kind kind;
    int layer;                       /* 1..L; 0 for the embedding, L+1 for the head */
    const struct consumer *consumer; /* that feeds it; NULL for embed, FFN and layer 1 */
    size_t N, B, T, D, H, G, E, F, V, C, n, K;
    bool shared_input;   /* Q, K, V have one input and one norm */
    bool separate_norms; /* attention_norms.0/1/2 */
    bool fused;          /* wqkv */
    bool qk_norm;
    enum norm_kind norm; /* of the inputs, FFN and head */
    bool bias;           /* linears have one */
    bool gelu;           /* FFN: GELU instead of SwiGLU */
    bool parallel;       /* FFN reads xR instead of H_i */
    bool post[WAYS_MAX]; /* way c of the aggregate has a post-norm */
    bool plus;           /* ways are X_i plus the aggregate */
    size_t R;            /* rotary width */
};
const struct unit_shape *unit_shape(const struct model *model, int unit);
/* The FFN width and the like of the largest unit, for the kernels' workspace. */
void model_limits(const struct model *model, int threads, struct kernel_limits *out);

/* Where a unit's tensors may live (layout.c says which live where). */
struct homes {
    struct arena *frame;    /* of each microbatch in flight */
    struct arena *backward; /* of the microbatch in backward */
    struct arena *shared;   /* of whichever unit runs; the stash first, then what B leaves for W */
};
void stash_layout(const struct model *model, int unit, bool training, const struct homes *homes,
                  struct stash *out);
void backward_layout(const struct model *model, int unit, const struct homes *homes,
                     struct backward *out);
/* Turns the stash that F writes into the one that B (which forms some of it again), GRAD and W see. */
void stash_again(const struct backward *back, struct stash *stash);
void unit_measure(const struct model *model, int unit, bool training, struct unit_bytes *out);
/* Elements from a parameter's start to the next one's. */
size_t param_room(const struct model *model, int param);

/* ---- inside a part ---- */

struct frame {
    struct stash *stash; /* [units of the part] as F sees it */
    struct stash *again; /* [units of the part] as B, GRAD and W see it; NULL without training */
    void **key;          /* [keys of the graph] */
    const int32_t *inputs, *targets, *first, *position;
};

struct part {
    const struct model *model;
    const struct kernels *kernels; /* or `timed`, of which ctx knows these */
    struct kernels timed;
    struct kernel_ctx ctx;
    struct device *device; /* NULL = the host */
    int first_unit, units, frames;
    bool training;
    bool forward_only; /* now, though it may have been made for training */
    int first_param, params;
    size_t *offset; /* [params] elements from the start of each of the arenas below */
    float *weights, *gradients, *first_moment, *second_moment;
    void *read; /* weights as operations read them: `weights` themselves, or rounded copies; without
                   these copies' float32 (evaluation in bf16) `weights` is NULL */
    struct frame *frame;
    struct backward *backward; /* [units] */
    void **key_gradient;       /* [keys] of the microbatch in backward */
    float *cosine, *sine;      /* [T, R/2] rotary table */
    void *scratch[2];          /* [N, max(D, H*E, F, K)] */
    float **mask;              /* [units] of consumers with sources, where the part lives */
    double *squares;           /* [params] where the part lives */
    float *logits;             /* [head_rows, V], part with the head */
    void *dlogits;             /* the same of the dtype; in float32 the logits' own place */
    size_t head_rows;          /* head_chunk_rows, or all if they are fewer */
    int open;                  /* recompute full: unit whose W is due; else -1 */
    struct arena parameter_arena, frame_arena, backward_arena, workspace_arena;
};

/* Copies between the host and wherever the part lives; done on return. */
MUST_USE status_t part_fetch(const struct part *part, void *dst, const void *src, size_t bytes);
/* weights.c */
MUST_USE status_t part_create_weights(struct part *part);

/* As F sees it; as B, GRAD and W do. */
struct stash *part_stash(const struct part *part, int unit, int frame);
struct stash *part_again(const struct part *part, int unit, int frame);
struct backward *part_back(const struct part *part, int unit);
/* Weight as operations read it, gradient of the unit's parameter with this role; NULL if the unit has
 * none such. */
const void *unit_weight(const struct part *part, int unit, enum param_role role, int index);
float *unit_gradient(const struct part *part, int unit, enum param_role role, int index);
/* Rows [first, ..) of wq/wk/wv, wherever they live (fused or not); way = WAY_Q/K/V. */
const void *projection_weight(const struct part *part, const struct unit_shape *shape, int unit,
                              int way);
float *projection_gradient(const struct part *part, const struct unit_shape *shape, int unit,
                           int way);

/* Bias that goes with a role's weight; NULL if there is none. */
const void *unit_bias(const struct part *part, int unit, enum param_role role, int index);
float *unit_bias_gradient(const struct part *part, int unit, enum param_role role, int index);
/* Element `count` of a tensor of the part's dtype; NULL of NULL. */
const void *part_at(const struct part *part, const void *tensor, size_t count);
/* Parameter with this role, -1 if the unit has none such. */
int unit_param(const struct part *part, int unit, enum param_role role, int index, bool bias);
/* Norms of inputs, FFN and head, with what they keep. */
struct norm_shape unit_norm(const struct part *part, const struct unit_shape *shape);
/* Adds a norm's bias gradient of one microbatch [width]; nothing where the norm has no bias. */
void accumulate_bias(struct part *part, int unit, enum param_role role, int index,
                     const float *dbias, size_t width);

void products_forward(struct part *part, int unit, int frame);
void products_norm_backward(struct part *part, int unit, int frame, void *dkey, bool accumulate,
                            const void *dnormed);
void products_weight_gradient(struct part *part, int unit);

void mudd_forward(struct part *part, const struct unit_shape *shape, int frame,
                  struct mudd_stash *stash);
/* Forms what selective recomputation drops of it: mixed, formed and normed. */
void mudd_form_again(struct part *part, const struct unit_shape *shape, int frame,
                     struct mudd_stash *stash);
void mudd_backward(struct part *part, const struct unit_shape *shape, int unit, int frame);
void mudd_weight_gradient(struct part *part, const struct unit_shape *shape, int unit, int frame);
/* The tensor that way `way` of the unit takes: the aggregate's, or X_i itself. */
const void *way_input(const struct part *part, const struct unit_shape *shape, int unit, int frame,
                      int way);
/* Gradient of that tensor: dinput, or for R the gradient of H_i. */
const void *way_gradient(const struct part *part, const struct unit_shape *shape, int unit,
                         int way);
bool way_mixed(const struct unit_shape *shape, int way);
/* Gradient of the aggregate of the consumer's c-th way: the way's own, or what its post-norm lets by. */
const void *mixed_gradient(const struct part *part, const struct unit_shape *shape, int unit,
                           size_t c);

void attention_forward(struct part *part, int unit, int frame);
void attention_backward(struct part *part, int unit, int frame);
void attention_weight_gradient(struct part *part, int unit, int frame);
void ffn_forward(struct part *part, int unit, int frame);
void ffn_backward(struct part *part, int unit, int frame);
void ffn_weight_gradient(struct part *part, int unit, int frame);
void head_forward(struct part *part, int unit, int frame, float loss_scale, double *out_loss);
void head_backward(struct part *part, int unit, int frame);
void head_weight_gradient(struct part *part, int unit, int frame);

#endif
