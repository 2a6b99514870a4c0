/* mudd.h - private to model/: the depth aggregate of MUDDFormer (docs/model.md has the formulas).
 *
 *     A_i = GELU(RMSNorm(X_i) W1^T) W2^T + a_i,   xbar_i^c = sum_j A_i[c, j] X_j
 *
 * mudd_consumer.c says who reads which keys, mudd.c fills the tables, mudd_operations.c computes,
 * mudd_gradient.c gathers the gradients of keys. Units that no consumer feeds take X_i itself, as in
 * residual.h.
 */
#ifndef MODEL_MUDD_H
#define MODEL_MUDD_H

#include "model/connect/residual.h"

/* Consumer i (1..L): the aggregate after layer i, which feeds layer i + 1 (i = L: the final norm). */
struct consumer {
    bool exists;         /* false: every way takes X_i itself */
    int layer;           /* i */
    int unit;            /* the attention of layer i + 1, or the head */
    size_t C;            /* ways */
    int way[WAYS_MAX];   /* WAY_* of each formed way; the final one and dense_type l: one, WAY_R */
    bool shared;         /* one way feeds all inputs (dense_type l, final) */
    size_t n;            /* keys read */
    int *key;            /* [n] graph key of each column; the last one is X_i */
    size_t K;            /* inner width of the generator; 0 = static weights */
    float *mask;         /* [C*n] 1 where a way reads a key, else 0; NULL = all do */
    bool plus;           /* ways are X_i plus the aggregate */
    bool post[WAYS_MAX]; /* way c of the aggregate has a post-norm */
};

/* model->connect: [L + 1], index = layer; [0] unused. */
MUST_USE status_t mudd_create(struct model *model);
void mudd_destroy(struct model *model);
/* The consumer that feeds the unit; NULL where it mixes nothing. */
const struct consumer *mudd_consumer(const struct model *model, int unit);

bool mudd_prenorm(const struct model *model); /* keys are normed; X_i itself is a key too, R_i */
/* Key of what ways take as X_i itself: R_j with prenorm, else X_j. */
int mudd_raw_key(const struct model *model, int j);
int mudd_summary_key(const struct model *model, int block);
/* Block whose mean the FFN of `layer` forms, or -1. */
int mudd_block_ending(const struct model *model, int layer);
int mudd_keys(const struct model *model);

enum mudd_tag {
    TAG_AGGREGATE = RESIDUAL_TAGS, /* by the ways of the unit's aggregate */
    TAG_GENERATOR,                 /* makes the aggregate's weights */
    TAG_NORM,                      /* normed into the key that others read */
    TAG_SUMMARY                    /* enters a block's mean */
};

enum mudd_role { /* of parameters */
                 PARAM_DENSE_B = PARAM_CONNECT,
                 PARAM_DENSE_W1,
                 PARAM_DENSE_W2,
                 PARAM_DENSE_NORM,
                 PARAM_PRENORM,
                 PARAM_POSTNORM
};

/* What F keeps of a microbatch. */
struct mudd_stash {
    void *normed;               /* [N, D] RMSNorm(X_i), the generator's input */
    float *rstd;                /* [N] */
    void *inner;                /* [N, K] before GELU */
    void *hidden;               /* [N, K] after it */
    float *weights;             /* [N, C*n] A_i */
    void *mixed[WAYS_MAX];      /* C x [N, D], the aggregates */
    void *formed[WAYS_MAX];     /* C x [N, D], the ways: the same, or X_i plus (normed) aggregate */
    float *post_rstd[WAYS_MAX]; /* [N], of ways with a post-norm */
    void *key_normed;           /* [N, D] the key that others read, with prenorm */
    float *key_rstd;            /* [N] */
    void *summary;              /* [N, D] mean of the block that this FFN ends */
};

/* What B leaves. */
struct mudd_backward {
    void *dstream;           /* [N, D] of xR, with a parallel FFN */
    float *dweights;         /* [N, C*n] dA */
    void *dinner;            /* [N, K] */
    void *dgenerator;        /* [N, D] the generator's path into X_i */
    void *dmixed[WAYS_MAX];  /* C x [N, D] gradients of aggregates under a post-norm */
    float *dgenerator_scale; /* [D] of the generator's norm, with prenorm */
    float *dpost_scale[WAYS_MAX], *dkey_scale; /* [D] */
    void *generator_normed; /* [N, D] formed again for W (selective), instead of the stash's */
    float *weights;         /* [N, C*n] formed again for GRAD (full) */
};

static inline struct mudd_stash *mudd_stash_of(const struct stash *stash)
{
    return (struct mudd_stash *)stash->connect;
}

static inline struct mudd_backward *mudd_backward_of(const struct part *part, int unit)
{
    return (struct mudd_backward *)part_backward_of(part, unit)->connect;
}

/* ---- mudd_operations.c ---- */

void mudd_forward(struct part *part, int unit, int frame, struct stash *stash);
void mudd_recompute(struct part *part, int unit, int frame, struct stash *stash);
const void *mudd_input(const struct part *part, int unit, int frame, int way);
void mudd_output(struct part *part, int unit, int frame);
const void *mudd_output_gradient(const struct part *part, int unit);
void *mudd_input_gradient(struct part *part, int unit, int way, bool *out_accumulate);
void mudd_backward(struct part *part, int unit, int frame);
void mudd_weight_gradient(struct part *part, int unit, int frame);

/* Is the unit's way formed by its consumer? */
bool mudd_way_is_mixed(const struct consumer *consumer, int way);
/* Does B write the gradient of the unit's input over the input? Where the frame keeps the way (nothing
 * formed again) and nothing but the unit's norm reads it after F. way: of an attention's inputs. */
bool mudd_gradient_over_input(const struct model *model, const struct consumer *consumer, int way);
/* Gradient of the tensor that a way is: an input's, or for R that of the stream. */
const void *mudd_way_gradient(const struct part *part, int unit, int way);
/* Gradient of the aggregate of the consumer's c-th way: the way's own, or what its post-norm lets by. */
const void *mudd_mixed_gradient(const struct part *part, const struct consumer *consumer, size_t c);
/* dkey (+)= the path through the norm of the key that the unit made. */
void mudd_norm_gradient(struct part *part, int unit, int frame, void *dkey, bool accumulate,
                        const void *dnormed);

/* ---- mudd_gradient.c ---- */

void mudd_add_gradient(struct part *part, const struct key_sum *sum);

#endif
