/* layout.h - private to model/: the memory of a unit for one microbatch.
 *
 * It has two halves: struct stash is filled by F, struct backward by B (one for each
 * microbatch between its B and its W). Both are laid out by one function each, walked once to measure and once to
 * bind; cost.c measures with the same functions, so the memory table cannot disagree with the memory.
 *
 * Where a tensor lives follows from who reads it after F, and from what is formed again:
 *
 *     lifetime                                               none     selective  full      evaluation
 *     KEY    keys; what a later unit reads besides         frame    frame      frame     frame
 *     CORE   projections, attention, gate and up, the      frame    frame      shared    shared
 *            generator; statistics of norms
 *     CHEAP  mixed inputs, normed inputs, queries and      frame    shared     shared    shared
 *            keys after norm and rotation, the activation
 *     ALONE  what F or B uses within itself: the head's    shared   shared     shared    shared
 *            norm
 *     UNTIL_GRAD   what B leaves for GRAD                         backward backward   backward
 *     UNTIL_W    what B leaves for W                            backward backward   shared
 *
 * With full recomputation and W not at once, B forms CORE, CHEAP and UNTIL_W in backward memory of the unit's
 * own, where they stay until W.
 *
 * CHEAP is two thirds of an attention's frame and two fifths of an FFN's, and costs memory traffic alone:
 * no matrix product is run twice, nor attention. The units of a part take turns in its shared memory. What is
 * formed again for W or GRAD (normed inputs, the activation; in full the weights A) must outlive the next
 * turn: B forms it in the unit's own memory of one microbatch.
 *
 * B writes a gradient over the tensor that it is the gradient of where nothing reads that tensor any more
 * and it lasts until the gradient's reader: over gate and up, over queries and keys before QK-norm, and
 * (nothing formed again) over the mixed inputs. A microbatch between B and W then costs little more than
 * one between F and B.
 */
#ifndef MODEL_LAYOUT_H
#define MODEL_LAYOUT_H

#include "base/arena.h"
#include "model/shape.h"

enum lifetime { KEY, CORE, CHEAP, ALONE, UNTIL_GRAD, UNTIL_W };

/* Room for the pointers of a connector's own struct, which it lays over it (connect_stash_of). */
enum { CONNECT_POINTERS = 32 };

/* A: shape->tokens, all of a microbatch; N: those of this part of tensor parallelism. */
struct stash {
    void *out;                       /* [N, D] the unit's output; NULL for the head */
    void *connect[CONNECT_POINTERS]; /* the connector's */
    /* attention (head: normed[0], mean[0], rstd[0] only) */
    void *normed[INPUTS]; /* [N, D]; all the same buffer where they share input and norm */
    float *mean[INPUTS], *rstd[INPUTS]; /* [N] */
    void *q_raw, *k_raw;                /* [A, H, E], [A, G, E] before QK-norm (with it only) */
    float *q_rstd, *k_rstd;             /* [A*H], [A*G] */
    void *q, *k, *v, *attended;         /* [A, H, E], [A, G, E] x 2, [A, H, E] */
    float *lse;                         /* [B, H, T] */
    /* FFN */
    /* [A, F]. B writes the gradients of gate and up over these: nothing else reads them after it. */
    void *gate, *up, *activated;
};

struct backward {
    void *connect[CONNECT_POINTERS];
    /* [N, D] gradients of the unit's inputs; shared like them. NULL where the connector has another
     * place for it. */
    void *dinput[INPUTS];
    /* [A, H, E], [A, G, E] x 2, of the projections' outputs. With QK-norm dq and dk are NULL: its backward
     * writes them over the stash's q_raw and k_raw, which nothing reads after it. */
    void *dq, *dk, *dv;
    float *dscale[INPUTS];      /* [D] this microbatch's share of the norm scales' gradients */
    float *dbias[INPUTS];       /* [D] and of the norms' biases (LayerNorm) */
    float *dq_scale, *dk_scale; /* [E] */
    void
        *doutput; /* [A, D] gathered from the parts of tensor parallelism; NULL where each has it */
    /* Formed by B for W, instead of the stash's: [N, D], [A, F] (selective; the head's always). */
    void *normed[INPUTS];
    void *activated;
    void *dlogits; /* [A, V], the head's */
};

/* Where a unit's tensors may live. */
struct homes {
    struct arena *frame;    /* of each microbatch in flight */
    struct arena *backward; /* of the microbatch in backward */
    struct arena *shared;   /* of whichever unit runs; the stash first, then what B leaves for W */
};

/* A walk over one unit's tensors. */
struct layout {
    const struct model *model;
    const struct unit_shape *shape;
    int unit;
    bool training;
    const struct homes *homes;
};
void *layout_tensor(const struct layout *layout, enum lifetime lifetime, size_t rows,
                    size_t columns);
float *layout_floats(const struct layout *layout, enum lifetime lifetime, size_t count);

void stash_layout(const struct model *model, int unit, bool training, const struct homes *homes,
                  struct stash *out);
/* What B leaves for GRAD and W, and (full recomputation) what it forms again for itself and them: in
 * `shared` if the model's W follows B at once, else in memory of the unit's own. *out_recomputed has NULL where
 * nothing is formed again. */
void unit_layout_backward(const struct model *model, int unit, struct arena *backward,
                          struct arena *shared, struct stash *out_recomputed, struct backward *out);
/* Turns the stash that F writes into the one that B (which forms some of it again), GRAD and W see. */
void stash_view(const struct model *model, const struct stash *recomputed,
                const struct backward *backward, struct stash *stash);
void unit_measure(const struct model *model, int unit, bool training, struct unit_bytes *out);

#endif
