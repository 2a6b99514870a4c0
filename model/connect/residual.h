/* residual.h - private to model/: the residual stream of a plain transformer, X_j after each layer and H_i
 * inside it. Other connectors use it where a unit mixes nothing.
 *
 *     H_i = Attn(N(X_{i-1})) + X_{i-1},   X_i = FFN(Nf(H_i)) + H_i
 *     parallel   X_i = H_i + FFN(Nf(X_{i-1}))
 */
#ifndef MODEL_RESIDUAL_H
#define MODEL_RESIDUAL_H

#include "model/connect/connect.h"

/* Reads; connectors that use the stream begin their own tags with RESIDUAL_TAGS. */
enum residual_tag {
    TAG_DIRECT, /* some inputs of the unit, or what it adds to its output, are the key itself */
    TAG_MID,    /* H_i by its FFN, whose B forms the gradient whole */
    RESIDUAL_TAGS
};

/* Keys X_0..X_L have the numbers 0..L, H_1..H_L the next ones. */
int residual_mid(const struct model *model, int layer);
int residual_keys(const struct model *model);
/* Unit that makes X_j, and the one whose inputs come after layer j. */
int residual_maker(int j);
int residual_reader(int j);

/* H_i, and its FFN's read of it. */
MUST_USE status_t residual_add_mid(struct model *model, int layer);
MUST_USE status_t residual_add_direct(struct model *model, int unit, int key);

/* Fills out->dinput, but for the inputs whose gradient has a place elsewhere ([INPUTS]; NULL = none). Gives
 * [N, D] of an attention, of xR with a parallel FFN's path in it, which connectors keep; NULL without. */
void *residual_layout(const struct layout *layout, const bool *elsewhere, struct backward *out);

/* FFN: adds H_i to its output. */
void residual_add_mid_output(struct part *part, int unit, int frame);
/* FFN: dH_i (with the residual's part in it), or a place of its own in a parallel one. */
void *residual_ffn_input_gradient(struct part *part, int unit, const void *doutput,
                                  bool *out_accumulate);
/* Gradient of the tensor that an attention adds to its output: dH_i; with a parallel FFN, whose path
 * leads there too, `place` after residual_join. */
const void *residual_stream_gradient(const struct part *part, int unit, const void *place);
void residual_join(struct part *part, int unit, void *place);

/* ---- a key's gradient as a sum of tensors, in the order of the calls ---- */

struct gathering {
    struct part *part;
    void *dkey;
    size_t N, D;
    bool started; /* dkey holds a sum already: received, or of the calls so far */
};
void gathering_begin(struct gathering *gathering, struct part *part, int key);
void gathering_add(struct gathering *gathering, const void *tensor);

#endif
