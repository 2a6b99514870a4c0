/* connect.h - private to model/: what a unit reads across depth, and how it mixes it.
 *
 * A connector is one const table. Attention, FFN and head ask it for their inputs, hand it the gradients
 * of these, and know no other word of it; the plan knows it by the keys and reads that it puts into the
 * graph. So another kind of connection is a file here and a row in connect.c.
 *
 *     F      forward, then the unit's own computation from `input`, then output
 *     B      recompute, output_backward, then from output_gradient to input_gradient, then backward
 *     GRAD   add_gradient
 *     W      weight_gradient
 */
#ifndef MODEL_CONNECT_H
#define MODEL_CONNECT_H

#include "model/layout.h"
#include "model/params.h"
#include "model/part_internal.h"

/* FLOPs of a microbatch. */
struct connect_flops {
    double forward, backward, weight;
    double selective; /* of what B forms again with selective recomputation */
};

/* NULL stands for nothing to do where a member says "optional". Call through connect_* below. */
struct connector {
    const char *name;

    /* ---- tables ---- */

    /* model->connect, from the configuration alone. Optional, both. */
    status_t (*create)(struct model *model);
    void (*destroy)(struct model *model);
    int (*keys)(const struct model *model);
    /* Keys and reads; the units are there, the shapes too. */
    status_t (*fill_graph)(struct model *model);
    /* Distinct inputs of an attention: 3 (Q, K and V have each their own) or 1. */
    int (*inputs)(const struct model *model, int unit);
    /* The unit's parameters of the connector; roles from PARAM_CONNECT on. */
    void (*params)(struct param_list *list);
    /* Adds what the connector costs in the unit. Optional. */
    void (*flops)(const struct model *model, int unit, struct connect_flops *out);
    /* Raises what the unit needs of workspace. Optional. */
    void (*limits)(const struct model *model, int unit, struct kernel_limits *out);
    /* Numbers [*out_count] that the unit's operations read, of the host; NULL = none. Optional. */
    const float *(*constants)(const struct model *model, int unit, size_t *out_count);

    /* ---- memory ---- */

    /* Fills out->connect. Optional. */
    void (*stash_layout)(const struct layout *layout, struct stash *out);
    /* Fills out->dinput and out->connect. */
    void (*backward_layout)(const struct layout *layout, struct backward *out);
    /* As stash_view of layout.h, for stash->connect. Optional. */
    void (*stash_view)(const struct backward *backward, struct stash *stash);
    /* Where the key lies in the stash of the unit that makes it. */
    void *(*key)(const struct model *model, int key, const struct stash *stash);

    /* ---- operations ---- */

    /* Forms the unit's inputs. `stash`: as F sees it, or (full recomputation) as B does. Optional. */
    void (*forward)(struct part *part, int unit, int frame, struct stash *stash);
    /* What selective recomputation dropped of that. Optional. */
    void (*recompute)(struct part *part, int unit, int frame, struct stash *stash);
    /* The tensor [N, D] that the unit's norm reads. way: WAY_Q, WAY_K, WAY_V of an attention, 0 of the
     * others. */
    const void *(*input)(const struct part *part, int unit, int frame, int way);
    /* The unit's own output is in stash->out: forms its keys. */
    void (*output)(struct part *part, int unit, int frame);
    /* [N, D] of the unit's own output, valid until W. */
    const void *(*output_gradient)(const struct part *part, int unit);
    /* Forms that from the gradients of the unit's keys. Optional: where it is one of these. */
    void (*output_backward)(struct part *part, int unit, int frame);
    /* Where the unit writes the gradient of an input; *out_accumulate: adds to what is there. */
    void *(*input_gradient)(struct part *part, int unit, int way, bool *out_accumulate);
    /* The gradients of all inputs are there: what they lead to. Optional. */
    void (*backward)(struct part *part, int unit, int frame);
    /* The additions to a key's gradient, in the plan's order. */
    void (*add_gradient)(struct part *part, const struct key_sum *sum);
    /* Adds this microbatch's gradients of the connector's parameters. Optional. */
    void (*weight_gradient)(struct part *part, int unit, int frame);
};

extern const struct connector residual_connector, mudd_connector, depth_attention_connector,
    hyper_connector;

/* The one that a model with this configuration has. */
const struct connector *connector_find(const struct model_config *config);

/* Fills in a key of [N, D] elements: "X" and 3 give the name X_3. */
void connect_set_key(struct model *model, int key, const char *letter, int index, int producer,
                     int order);

/* The members of the model's connector, with nothing to do where it has none. */
void connect_flops(const struct model *model, int unit, struct connect_flops *out);
void connect_limits(const struct model *model, int unit, struct kernel_limits *out);
const float *connect_constants(const struct model *model, int unit, size_t *out_count);
void connect_stash_layout(const struct layout *layout, struct stash *out);
void connect_stash_view(const struct model *model, const struct backward *backward,
                        struct stash *stash);
void connect_forward(struct part *part, int unit, int frame, struct stash *stash);
void connect_recompute(struct part *part, int unit, int frame, struct stash *stash);
const void *connect_input(const struct part *part, int unit, int frame, int way);
void connect_output(struct part *part, int unit, int frame);
const void *connect_output_gradient(const struct part *part, int unit);
void connect_output_backward(struct part *part, int unit, int frame);
void *connect_input_gradient(struct part *part, int unit, int way, bool *out_accumulate);
void connect_backward(struct part *part, int unit, int frame);
void connect_weight_gradient(struct part *part, int unit, int frame);

#endif
