/* shape.h - private to model/: what each unit is and how large, from the configuration, once a model. */
#ifndef MODEL_SHAPE_H
#define MODEL_SHAPE_H

#include "model/model.h"

enum unit_kind { UNIT_EMBED, UNIT_ATTENTION, UNIT_FFN, UNIT_HEAD };

enum { INPUTS = 3 }; /* Q, K, V of an attention; FFN and head use the first */

struct unit_shape {
    enum unit_kind kind;
    int layer; /* 1..L; 0 for the embedding, L + 1 for the head */
    /* Of a part of tensor parallelism (model.h): N tokens between exchanges; H, G, F its heads and columns; V its words, of which the last
     * part may have fewer (tp_words). */
    size_t N, B, T, D, H, G, E, F, V;
    size_t tokens;       /* B T, which products, attention and the loss see */
    size_t R;            /* rotary width */
    bool shared_input;   /* Q, K, V have one input and one norm; FFN and head have one anyway */
    bool separate_norms; /* attention_norms.0/1/2 */
    bool fused;          /* wqkv */
    bool qk_norm;
    enum norm_kind norm; /* of the inputs, FFN and head */
    bool bias;           /* linears have one */
    bool gelu;           /* FFN: GELU instead of SwiGLU */
    bool parallel;       /* FFN reads the attention's residual input instead of its output */
};

const struct unit_shape *unit_shape(const struct model *model, int unit);
/* Fills model->shape; the connector's tables are there already. */
MUST_USE status_t shapes_fill(struct model *model);

/* The FFN width and the like of the largest unit, for the kernels' workspace. */
void model_limits(const struct model *model, int threads, struct kernel_limits *out);

#endif
