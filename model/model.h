/* model.h - the door of model/: MUDDFormer and its relatives in terms of kernels. Knows no rank.
 *
 * config   what config.json says, checked (config.c)
 * model    the tables made from it: units, keys, who reads what, parameters (model.c, params.c)
 * part     the units of a rank with their memory, on one device (part.c)
 * weights  official Hugging Face folders in and out (safetensors.c, hf.c)
 *
 * Sources: MUDDFormer (arXiv 2502.12170v2) and its official PyTorch modules, whose conventions and
 * names are followed exactly; docs/model.md writes the formulas out. Letters as in kernels.h; L layers,
 * consumer i (1..L) = the aggregate after layer i, which feeds layer i+1 (i = L: the final norm).
 */
#ifndef MODEL_MODEL_H
#define MODEL_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/config.h"
#include "base/device.h"
#include "base/status.h"
#include "kernels/kernels.h"
#include "schedule/schedule.h"

/* ---- config ---- */

enum model_type { MODEL_MUDDFORMER, MODEL_MUDDPYTHIA };
/* How layers read across depth: MUDDFormer's aggregates, with four ways or one for all four inputs; Attention
 * Residuals; hyper-connections. */
enum dense_type { DENSE_QKVR, DENSE_L, DENSE_DEPTH_ATTENTION, DENSE_HYPER };
enum key_residue { RESIDUE_FIXED, RESIDUE_QUERY }; /* j = 0 mod k, or j = i mod k (DenseFormer) */
enum block_summary { SUMMARY_LAST, SUMMARY_MEAN };

enum { WAY_Q, WAY_K, WAY_V, WAY_R };

/* Keys of the official config.json, then those of this project (docs/config.md has the table). */
struct model_config {
    int model_type; /* enum model_type */
    int64_t n_layer, n_head, n_local_heads, head_dim, dim, intermediate_size;
    int64_t vocab_size, block_size;
    double norm_eps, rope_base, rotary_pct;
    bool dense, dynamic_dense, sepln, expand_last, round64, use_qk_norm;
    bool use_linear_bias, use_parallel_residual, tie_word_embeddings;
    int dense_type;                 /* enum dense_type */
    char dense_ways[CONFIG_STRING]; /* subset of "qkvr"; "" = all */
    bool ffn_scale_with_layer;
    bool mudd_prenorm, mudd_postnorm;
    char mudd_postnorm_ways[CONFIG_STRING]; /* subset of "qkvr" */
    int64_t depth_attention_block;          /* layers; 0 = every sub-layer is a source */
    int64_t hyper_streams;
    int hyper_kind; /* enum hyper_kind */
    struct {
        int64_t key_dilation;        /* 1 = full */
        int key_residue;             /* enum key_residue */
        int64_t query_period;        /* 1 = every layer */
        int64_t window;              /* 0 = off */
        int64_t block_size;          /* 0 = off */
        int block_summary;           /* enum block_summary */
        int64_t inner;               /* K of every generator; 0 = by the official rule */
        char sources[CONFIG_STRING]; /* "10:vr=0,7; 11:r=0,9": exactly these reads (sources.c) */
    } dense_pattern;
};

/* The option table of config.json; nested keys as "dense_pattern.key_dilation". */
extern const struct option model_options[];
extern const size_t model_options_count;

/* `path`: a config.json or a folder that holds one; "" = defaults. Then the entries (model_keys as
 * is, dense_keys below dense_pattern; either may be NULL), then derived defaults (n_local_heads 0 ->
 * n_head, head_dim 0 -> dim / n_head, intermediate_size 0 -> 8 dim / 3 rounded up to 256), then
 * model_config_validate. Keys of config.json that are not the model's business (torch_dtype,
 * auto_map, ...) are ignored; wrong types, ranges and duplicates are refused with file and place. */
MUST_USE status_t model_config_load(const char *path, const struct config_entries *model_keys,
                                    const struct config_entries *dense_keys,
                                    struct model_config *out);
/* Refuses what makes no sense (heads that do not divide, odd rotary width, ...) and what this version
 * cannot do yet, with the reason and the nearest that works. */
MUST_USE status_t model_config_validate(const struct model_config *config);
/* Writes config.json with the official names; load reads it back to the same struct. print: its text. */
void model_config_print(const struct model_config *config, FILE *file);
MUST_USE status_t model_config_save(const struct model_config *config, const char *path);
/* Width of layer i's FFN, i from 1: F, or round128(F * ((i-1)/(L-1) + 0.5)), ties to even. */
int64_t model_ffn_width(const struct model_config *config, int layer);

/* ---- model: tables ---- */

/* Roles of a unit's own parameters; those of its connector have numbers from PARAM_CONNECT on. */
enum param_role {
    PARAM_EMBED,
    PARAM_ATTN_NORM,
    PARAM_WQ,
    PARAM_WK,
    PARAM_WV,
    PARAM_WQKV,
    PARAM_WO,
    PARAM_Q_NORM,
    PARAM_K_NORM,
    PARAM_FFN_NORM,
    PARAM_W1,
    PARAM_W2,
    PARAM_W3,
    PARAM_FINAL_NORM,
    PARAM_OUTPUT,
    PARAM_CONNECT
};
enum param_init {
    INIT_ZERO,
    INIT_ONE,
    INIT_SMALL, /* 1e-3, scales of post-norms */
    INIT_NORMAL,
    INIT_LAST_COLUMN, /* a[c, last] = 1 */
    INIT_VALUE,       /* all the same */
    INIT_DIAGONAL,    /* 0 beside it */
    INIT_ELEMENT      /* 1 in one element, 0 in the others */
};

/* How the parts of tensor parallelism divide a parameter [out, in]. */
enum param_split {
    SPLIT_NONE, /* each has all of it */
    SPLIT_OUT,  /* each has some outputs: of every section so many rows, or elements of a bias */
    SPLIT_IN    /* each has some inputs: columns */
};

enum { PARAM_NAME = 80, PARAM_SECTIONS = 3 };

struct param {
    char name[PARAM_NAME]; /* in files */
    uint64_t stream;       /* rng_stream(name) */
    int role;              /* enum param_role, or from PARAM_CONNECT on the connector's */
    bool bias;             /* the bias that goes with role's weight */
    int index;             /* attention_norms.{0,1,2}; else 0 */
    int unit, layer;       /* unit that owns it */
    int dims;              /* 1 or 2 */
    int64_t shape[2];      /* [out, in] */
    int64_t count;
    enum param_split split;
    /* SPLIT_OUT: rows divided each on its own (q, k, v in one weight); their sum is shape[0]. */
    int64_t section[PARAM_SECTIONS];
    int64_t local; /* elements that a part has room for: count / tp, or count (param_local) */
    bool summed;   /* its gradient is the sum of what the parts form, of their rows or heads */
    enum param_init init;
    /* INIT_NORMAL: standard deviation; INIT_VALUE, INIT_DIAGONAL: the value; INIT_ELEMENT: the element. */
    double init_value;
    bool decay;   /* weight decay: two or more dimensions, but for connectors' own constants */
    bool trained; /* false: kept and exported unchanged, optional on import (dense_bs without
                         dense connections) */
};

struct connector;  /* model/connect/connect.h: how units read across depth */
struct unit_shape; /* model/shape.h */

struct model {
    struct model_config config;
    struct graph graph; /* its bytes and costs are for microbatches of B x T tokens */
    const struct connector *connector;
    void *connect;            /* the connector's tables */
    struct unit_shape *shape; /* [units] */
    struct param *param;      /* unit order */
    int params;
    int *unit_param; /* [units + 1] first parameter of each unit */
    int64_t B, T;
    int tp;          /* 1 or more */
    bool split_rows; /* keys are divided among the parts by tokens; with one part false */
    int64_t rows;    /* tokens that a part has of a key: B T / tp, or B T */
    enum dtype dtype;
    enum recompute_choice recompute;
    bool weights_at_once;
    int shares; /* 1 or more */
};

/* How a model is used: its tables count costs and bytes for that. */
struct model_use {
    int64_t B, T; /* of a microbatch */
    /* Of activations, keys, their gradients, and weights as operations read them. */
    enum dtype dtype;
    enum recompute_choice recompute;
    bool weights_at_once; /* W of a unit follows its B, as plan_options.weights_at_once */
    int tp;               /* parts that compute every unit together; 0: 1 */
    bool tp_replicate;    /* each of them has all keys, instead of some tokens of each */
    /* Parts with the same units beside each other, each of which keeps its share of the optimizer's state and,
     * in bf16, of the float32 weights; 0: 1. */
    int shares;
};
/* STATUS_UNSUPPORTED where use->tp does not divide what it has to, with the nearest that does. */
MUST_USE status_t model_create(const struct model_config *config, const struct model_use *use,
                               struct model **out);
void model_destroy(struct model *model);
int64_t model_parameter_count(const struct model *model); /* trained only */
/* What the dense connections add: parameters, and FLOPs of a microbatch's forward, beside those of the
 * attention and FFN layers without them. */
struct model_dense_cost {
    int64_t parameters, layer_parameters;
    double flops, layer_flops;
};
void model_dense_cost(const struct model *model, struct model_dense_cost *out);
const struct param *model_find_param(const struct model *model, const char *name);
/* Elements that part tp_rank of tp has: param->local, but for the last part of a vocabulary that tp does not divide. */
int64_t param_local(const struct param *param, int tp, int tp_rank);
/* Puts what part tp_rank of tp has, [param_local], where it belongs in the whole parameter [count]. */
void param_join(const struct param *param, int tp, int tp_rank, const float *local, float *out);
/* Initial value of one element (counter-based: seed, name, index). */
float param_initial(const struct param *param, uint64_t seed, int64_t index);

/* ---- part: the units of a rank, with memory ----
 *
 * Weights, their gradients and the optimizer's state are float32. In bf16 operations read rounded copies
 * of the weights, made anew whenever the weights change; a part for evaluation has the copies alone.
 *
 * model->recompute says what a training part keeps of a microbatch from F to B and W:
 *     none        everything
 *     selective   not what is large and cheap to form again (layout.h has the list)
 *     full        the keys that it makes; B forms everything else again, in memory that units take turns
 *                 in if W follows B at once (model->weights_at_once), else in memory until W
 * Bits do not depend on it.
 */

struct part;

/* ---- tensor parallelism ----
 *
 * With model->tp > 1 as many parts compute each unit together. A part has H/tp heads, G/tp heads of keys and values,
 * F/tp columns of an FFN and V/tp words of the vocabulary (rounded up; the last one the rest), and, between operations, rows = B T / tp tokens of
 * everything else: keys, aggregates, norms, gradients of keys. Part r has the rows [r rows, (r + 1) rows) of the
 * B T of a microbatch. Or (model_use.tp_replicate) each has all rows of these and makes them by itself. (Shoeybi et al., arXiv 1909.08053; sequence parallelism: Korthikanti et al., 2205.05198.)
 *
 * Within an operation the parts exchange rows, by functions that their owner gives:
 *
 *     attention   F: gather the normed inputs of q, k, v     scatter the output
 *                 B: gather the output's gradient            scatter the inputs' gradients
 *                 W: gather the normed inputs again
 *     FFN         the same with one input
 *     head        the same without an output; gather three sums a token for the loss
 *     embedding   F: scatter the output                      W: gather its gradient
 *
 * Where each has all rows nothing is gathered but the sums of the loss, and what is scattered is added up whole.
 *
 * Exchanges are begun in one order, the same in all parts, and ended in that order; several are under way.
 */
enum { TP_UNDER_WAY = 8 };

struct tp_exchange {
    /* in [count] of each part -> out [tp * count], in their order. */
    void (*gather)(void *arg, const void *in, void *out, size_t count, size_t element);
    /* inout [tp * count] in each part -> at this part's place, [count], the sum of theirs. */
    void (*scatter)(void *arg, void *inout, size_t count, enum dtype dtype);
    /* inout [count] in each part -> the sum of theirs. */
    void (*sum)(void *arg, void *inout, size_t count, enum dtype dtype);
    /* Until the oldest exchange that has not been ended is done. One that failed leaves garbage; whoever gave the
     * functions knows of it. */
    void (*end)(void *arg);
    void *arg;
};

/* Payload that part tp_rank receives of the others in F, B and W of a unit for one microbatch. */
struct tp_bytes {
    int64_t forward, backward, weight;
};
void model_tp_bytes(const struct model *model, int unit, int tp_rank, struct tp_bytes *out);
/* Exchanges of a unit for one microbatch: in F, B and W, or in a forward that no backward follows; 0 with one part. */
int model_tp_exchanges(const struct model *model, int unit, bool training);
/* Elements of a unit's gradients that parts with this share add up over each other once a step (param->summed). 0:
 * none, as with one part. */
size_t model_sum_count(const struct model *model, int unit, int share);

/* One of the rank's stages: its units share frames and backward memories. */
struct part_stage {
    const int *unit; /* [units] ascending; borrowed until part_create returns */
    int units;
    int frames;    /* activation frames */
    int backwards; /* microbatches between B and W; 0 without training */
};

struct part_options {
    const struct model *model;      /* borrowed */
    const struct kernels *kernels;  /* borrowed */
    const struct part_stage *stage; /* [stages] units ascending */
    int stages;
    bool training; /* gradients, optimizer state and backward memory too */
    int threads;
    int share;             /* of model->shares */
    int tp_rank;           /* of model->tp */
    struct tp_exchange tp; /* with model->tp > 1 */
    struct trace *trace;   /* borrowed, may be NULL */
    struct device *device; /* borrowed; NULL = the host */
    void *stream;          /* of the device: everything here runs in its order */
};

MUST_USE status_t part_create(const struct part_options *options, struct part **out);
void part_destroy(struct part *part);
/* Bytes that a part would take beside what plan_memory tells. */
MUST_USE status_t part_workspace(const struct part_options *options, int64_t *out);
/* Whether the forwards from now on have no backward: the head then leaves gradients alone. */
void part_forward_only(struct part *part, bool only);
MUST_USE status_t part_init_weights(struct part *part, uint64_t seed);

/* Values that a part keeps of each of its parameters, float32. Named as checkpoints name them. */
enum store_kind {
    STORE_WEIGHTS, /* not of a part for evaluation in bf16 */
    STORE_GRADIENTS,
    STORE_FIRST_MOMENT,
    STORE_SECOND_MOMENT,
    STORE_KINDS
};
const char *store_kind_name(enum store_kind kind);

/* A run of elements of one parameter's values, as the part has them: of param_local. */
struct slice {
    enum store_kind kind;
    int param;
    int64_t begin, count; /* elements */
};
struct slice slice_whole(const struct model *model, enum store_kind kind, int param);

bool part_owns(const struct part *part, int param);
/* What this part answers for of a parameter: its share, or all of it. Shares are disjoint and leave nothing out. A
 * count of 0: nothing. */
struct slice part_share(const struct part *part, enum store_kind kind, int param);
/* A run of that, and where it belongs in the whole parameter: runs of `run` elements, the first at `begin`, `stride`
 * from one to the next. */
struct piece {
    struct slice here;
    int64_t begin, run, stride;
};
/* Goes through part_share in pieces of `most` elements at most: the one that begins at element *at of the share. False
 * at its end. */
bool part_piece(const struct part *part, enum store_kind kind, int param, int64_t most, int64_t *at,
                struct piece *out);
/* Where it lives: values [count] of a slice of a parameter of this part, or of all of one (CHECKs that it is one,
 * and that the part has them). In bf16 change weights by part_write, which rounds. */
float *part_slice(const struct part *part, const struct slice *slice);
float *part_values(const struct part *part, enum store_kind kind, int param);
/* All values of a kind that this part has, room between parameters included, in one block: part_slice points into
 * it. */
const float *part_all_values(const struct part *part, enum store_kind kind, size_t *out_count);
/* What parts with other shares of a unit exchange: in each, one after the other, the values that share 0, 1 .. has.
 * Where the part lives. */
struct part_bucket {
    float *gradients; /* [sum of counts] */
    void *weights;    /* [sum of counts] as operations read them, `element` bytes each */
    size_t element;
};
void part_bucket(const struct part *part, int unit, struct part_bucket *out);
/* counts [model->shares] elements, all the same. */
void model_share_counts(const struct model *model, int unit, size_t *counts);
/* A slice to the host; waits for what was enqueued. out [count]. */
MUST_USE status_t part_read(const struct part *part, const struct slice *slice, float *out);
/* Takes what the part has of a parameter from the values of all of it, [param->count] on the host. Written weights
 * become what operations read, also in a part for evaluation. */
MUST_USE status_t part_write(struct part *part, enum store_kind kind, int param, const float *in);

/* In what follows `stage` is an index of part_options.stage, `frame` one of its frames, `slot` one of its
 * backward memories; those of `unit` are of the unit's stage.
 *
 * Tokens of a frame's microbatch (where the part lives): inputs, targets [B*T] (borrowed until the frame is
 * reused). Inputs are looked at by the embedding, targets by the head; either may be NULL elsewhere. */
void part_set_tokens(struct part *part, int stage, int frame, const int32_t *inputs,
                     const int32_t *targets);
/* Where the head puts the loss of the frame's microbatch (where the part lives): *out = sum over tokens of
 * -log p(target), made by the head's F if no backward follows, else by its B. Gradients are those of the
 * loss times `scale`. */
void part_set_loss(struct part *part, int stage, int frame, float scale, double *out);
/* Document starts of the frame's microbatch: first[t] = position in its sequence where token t's document
 * begins; attention sees first[t]..t; position[t] = t mod T - first[t]. NULL = one document. [B*T],
 * borrowed like the tokens. */
void part_set_documents(struct part *part, int stage, int frame, const int32_t *first,
                        const int32_t *position);
/* Where a key of a frame's microbatch is: of the stage's own units by itself, else where it landed, or where
 * another stage has it. */
void part_set_key(struct part *part, int stage, int frame, int key, const void *where);
const void *part_key(const struct part *part, int stage, int frame, int key);
/* Where the gradient of a key is formed for the microbatch in a backward memory. */
void part_set_key_gradient(struct part *part, int stage, int slot, int key, void *where);

/* Forward of a unit. */
void part_forward(struct part *part, int unit, int frame);
/* Gradients of a unit's inputs, from those of its outputs (part_key_gradient formed before). */
void part_backward(struct part *part, int unit, int frame, int slot);
/* Adds the microbatch's weight gradients of a unit. */
void part_weight_gradient(struct part *part, int unit, int frame, int slot);
/* A key's gradient on a stage. */
struct key_sum {
    int stage, frame, slot, key;
    const struct add
        *adds; /* [count] in this order, the first onto zero unless a sum was received */
    int count;
    const void *partial; /* [N, D] for ADD_PARTIAL */
};
void part_key_gradient(struct part *part, const struct key_sum *sum);
/* To the host: logits f32, [rows, words of this part], of rows [first, first + rows) of the head's last
 * operation, which was of this frame: an F that no backward follows, or a B. The inputs of the head's product have
 * been gathered then. */
MUST_USE status_t part_logits(struct part *part, int frame, int64_t first, int64_t rows,
                              float *out);

void part_zero_gradients(struct part *part);
/* Adds up over the parts of tensor parallelism the gradients that are `summed`, of this share. All parts, after the
 * microbatches of a step. */
void part_sum_gradients(struct part *part);
/* model_sum_count of a unit of this part; 0 of another's. */
size_t part_sum_count(const struct part *part, int unit);
/* Sum of squares of each parameter's gradient, of its share, in the order of the table; untrained ones give 0, and so
 * does what another part of tensor parallelism answers for.
 * out [number of this part's parameters]; on a GPU pinned memory that the stream fills. */
MUST_USE status_t part_gradient_squares(struct part *part, double *out);
/* AdamW on the share of every trained parameter, and what operations read of it. */
void part_adamw(struct part *part, const struct adamw_args *args);
/* From now on the part's operations are spans of the timeline (base/timeline.h); NULL: no more. */
void part_time(struct part *part, struct timeline *timeline);
/* From now on the part's operations run twice (kernels/audit.h); NULL: once again. */
void part_audit(struct part *part, struct audit *audit);
/* The memory that belongs to one frame, and to one backward memory, and to nothing else. */
struct audit_range part_frame_range(const struct part *part, int stage, int frame);
struct audit_range part_backward_range(const struct part *part, int stage, int slot);

/* Bytes this part holds: parameters, gradients, optimizer, frames, backward, workspace. */
struct part_memory {
    int64_t parameters, gradients, optimizer, frames, backward, workspace;
};
void part_memory(const struct part *part, struct part_memory *out);

/* ---- weights: safetensors and Hugging Face folders ---- */

struct tensor_file; /* a safetensors file mapped read-only, or a sharded set */

enum tensor_dtype { TENSOR_F32, TENSOR_F16, TENSOR_BF16, TENSOR_F64, TENSOR_I32, TENSOR_I64 };
struct tensor {
    const char *name;
    enum tensor_dtype dtype;
    int dims;
    int64_t shape[8];
    const void *data; /* little-endian, not aligned */
    int64_t count;
};

/* `path`: a .safetensors file, a model.safetensors.index.json, or a folder that holds either. */
MUST_USE status_t tensor_file_open(const char *path, struct tensor_file **out);
void tensor_file_close(struct tensor_file *file);
int tensor_file_count(const struct tensor_file *file);
void tensor_file_at(const struct tensor_file *file, int i, struct tensor *out);
bool tensor_file_find(const struct tensor_file *file, const char *name, struct tensor *out);
const char *tensor_file_path(const struct tensor_file *file);
/* Tells apart weights: names, dtypes, shapes and the 4096 bytes at each of four places of every tensor. One
 * file or several shards are the same. */
uint64_t tensor_file_fingerprint(const struct tensor_file *file);
/* Converts to float (F32, F16, BF16, F64 exact or rounded to nearest); STATUS_INVALID for integers. */
MUST_USE status_t tensor_to_float(const struct tensor *tensor, float *out);

/* A safetensors file written by several ranks: everyone makes the same plan of names, shapes and dtypes, one
 * rank calls tensor_writer_create (writes header, sets the size), then each opens it and writes its own
 * tensors anywhere in any order. Values come as float; BF16 is rounded to nearest, ties to even. */
struct tensor_entry {
    char name[PARAM_NAME + 8];
    int dims;
    int64_t shape[4];
    enum tensor_dtype dtype; /* TENSOR_F32 (what 0 is) or TENSOR_BF16 */
};
MUST_USE status_t tensor_writer_create(const char *path, const struct tensor_entry *entries,
                                       int count);
MUST_USE status_t tensor_writer_write(const char *path, const struct tensor_entry *entries,
                                      int count, int index, const float *data);
/* `count` values of one tensor: runs of `run`, the first at `begin`, `stride` from one to the next. */
struct tensor_runs {
    int index;
    size_t begin, count, run, stride;
};
MUST_USE status_t tensor_writer_write_runs(const char *path, const struct tensor_entry *entries,
                                           int count, const struct tensor_runs *runs,
                                           const float *data);

/* Every trained parameter must be there with the right shape, and the file must hold no tensor that the model
 * does not know (STATUS_INVALID names the tensor, what was expected, what was found). */
MUST_USE status_t model_check_tensors(const struct model *model, const struct tensor_file *file);
/* Copies this part's parameters out of the file, after that check of all of it. */
MUST_USE status_t part_import(struct part *part, const struct tensor_file *file);
/* The entries of the whole model's model.safetensors; *out is malloc'ed, [model->params]. */
MUST_USE status_t model_entries(const struct model *model, struct tensor_entry **out);

#endif
