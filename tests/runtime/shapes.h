/* shapes.h - small models of every kind, for tests of whole steps. */
#ifndef TESTS_RUNTIME_SHAPES_H
#define TESTS_RUNTIME_SHAPES_H

#include <stdlib.h>

#include "base/rng.h"
#include "runtime/trainer.h"

enum { SHAPE_KEYS = 8 };

struct shape {
    const char *name;
    int64_t B, T;
    int microbatches;
    const char *keys[SHAPE_KEYS]; /* on top of the small model below */
    bool documents;               /* several in a sequence, kept apart */
};

#define SMALL                                                                                      \
    "model.n_layer=4", "model.n_head=2", "model.dim=24", "model.intermediate_size=256",            \
        "model.vocab_size=37", "model.block_size=64"

#define BLOCKS_MEAN "dense.block_summary=mean"
#define PRENORM "model.mudd_prenorm=true"
#define POSTNORM "model.mudd_postnorm=true"
#define DEPTH "model.dense_type=depth_attention"
#define HYPER "model.dense_type=hyper"
#define PYTHIA "model.model_type=muddpythia", "model.use_linear_bias=true", "model.rotary_pct=0.5"

static const struct shape shapes[] = {
    {"full", 1, 16, 4, {NULL}, false},
    {"full, two odd sequences", 2, 19, 3, {NULL}, false},
    {"full, fewer microbatches than stages", 1, 16, 2, {NULL}, false},
    {"key dilation 2", 1, 16, 4, {"dense.key_dilation=2"}, false},
    {"key dilation 2, five layers", 2, 16, 4, {"model.n_layer=5", "dense.key_dilation=2"}, false},
    {"no dense connections", 1, 16, 4, {"model.dense=false"}, false},
    {"no QK-norm, two query heads a key",
     1,
     16,
     4,
     {"model.use_qk_norm=false", "model.n_head=4", "model.n_local_heads=2", "model.sepln=false"},
     false},
    {"static weights", 1, 16, 4, {"model.dynamic_dense=false"}, false},
    {"one way for all", 1, 16, 4, {"model.dense_type=l"}, false},
    {"no way q", 1, 16, 4, {"model.dense_ways=kvr"}, false},
    {"way r only, residue of the query",
     1,
     16,
     4,
     {"model.dense_ways=r", "dense.key_dilation=2", "dense.key_residue=query"},
     false},
    {"window", 1, 16, 4, {"dense.window=2"}, false},
    {"query period 2", 1, 16, 4, {"dense.query_period=2"}, false},
    {"documents", 2, 16, 4, {NULL}, true},
    {"blocks, mean", 1, 16, 4, {"model.n_layer=5", "dense.block_size=2", BLOCKS_MEAN}, false},
    {"blocks, last", 1, 16, 4, {"model.n_layer=5", "dense.block_size=2"}, false},
    {"blocks of three, period",
     1,
     16,
     3,
     {"model.n_layer=7", "dense.block_size=3", "dense.query_period=2", BLOCKS_MEAN},
     false},
    {"blocks of one, mean",
     1,
     16,
     3,
     {"model.n_layer=7", "dense.block_size=1", BLOCKS_MEAN},
     false},
    {"sources", 1, 16, 4, {"dense.sources=2:v=0; 3:r=1,2; 3:k=0; 4=0,2", "dense.inner=8"}, false},
    {"sources, not of the head", 1, 16, 4, {"dense.sources=3:vr=0"}, false},
    {"PrePostNorm", 1, 16, 4, {PRENORM, POSTNORM}, false},
    {"PrePostNorm of the paper, dilated",
     1,
     16,
     4,
     {PRENORM, POSTNORM, "model.mudd_postnorm_ways=qkvr", "dense.key_dilation=2"},
     false},
    {"prenorm, blocks, way k missing",
     1,
     16,
     4,
     {PRENORM, "model.dense_ways=qvr", "dense.block_size=2", BLOCKS_MEAN},
     false},
    {"postnorm, period, one way",
     1,
     16,
     4,
     {POSTNORM, "dense.query_period=2", "model.dense_type=l"},
     false},
    {"prenorm, period, static",
     1,
     16,
     4,
     {PRENORM, POSTNORM, "dense.query_period=3", "model.dynamic_dense=false"},
     false},
    {"Pythia family", 1, 16, 4, {PYTHIA, "model.use_parallel_residual=true"}, false},
    {"Pythia family, one norm, documents",
     1,
     16,
     4,
     {PYTHIA, "model.use_parallel_residual=true", "model.sepln=false", POSTNORM},
     true},
    {"Pythia family, one after the other", 1, 16, 4, {PYTHIA, "dense.key_dilation=2"}, false},
    {"Pythia", 1, 16, 4, {PYTHIA, "model.use_parallel_residual=true", "model.dense=false"}, false},
    {"depth attention", 1, 16, 4, {DEPTH}, false},
    {"depth attention, blocks of two",
     1,
     16,
     4,
     {DEPTH, "model.n_layer=5", "model.depth_attention_block=2"},
     false},
    {"hyper-connections, mhc", 1, 16, 4, {HYPER}, false},
    {"hyper-connections, dynamic, three streams",
     2,
     16,
     4,
     {HYPER, "model.hyper_kind=dynamic", "model.hyper_streams=3"},
     true},
    {"hyper-connections, static, five streams, Pythia family",
     1,
     16,
     3,
     {HYPER, PYTHIA, "model.hyper_kind=static", "model.hyper_streams=5"},
     false},
    {"depth attention, blocks of one, Pythia family, documents",
     1,
     16,
     3,
     {DEPTH, PYTHIA, "model.depth_attention_block=1"},
     true},
};

enum { SHAPES = sizeof shapes / sizeof shapes[0] };

/* `args` come after the shape's own keys. */
static inline void shape_load(const struct shape *shape, int count, char *const *args,
                              struct run_config *out_run, struct model_config *out_model)
{
    char *all[32] = {SMALL, "parallel.transport=threads"};
    int n = 7;
    for (int i = 0; i < SHAPE_KEYS && shape->keys[i]; i++) {
        all[n++] = (char *)(uintptr_t)shape->keys[i];
    }
    for (int i = 0; i < count; i++) {
        all[n++] = args[i];
    }
    assert_ok(config_load(NULL, n, all, 1, out_run));
    assert_ok(model_config_load("", &out_run->model_keys, &out_run->dense_keys, out_model));
}

/* Weights far from the initial values, which leave most dense connections at zero. */
static inline void shape_stir(const struct model *model, struct part *part)
{
    for (int p = 0; p < model->params; p++) {
        const struct param *param = &model->param[p];
        uint64_t stream = rng_stream(param->name);
        if (!part_owns(part, p)) {
            continue;
        }
        float *weight = part_values(part, STORE_WEIGHTS, p);
        for (int64_t i = 0; i < param->count; i++) {
            double centre = param->init == INIT_NORMAL ? 0 : (double)param_initial(param, 1, i);
            centre = centre > 1 ? 1 : centre; /* 8 on a diagonal hides what is beside it */
            weight[i] = (float)(centre + 0.15 * rng_normal(1, stream, (uint64_t)i));
        }
    }
}

/* Starts of documents a few tokens long; NULL where a sequence is one. */
static inline int32_t *shape_documents(const struct shape *shape)
{
    int64_t count = shape->microbatches * shape->B * shape->T;
    if (!shape->documents) {
        return NULL;
    }
    int32_t *first = calloc((size_t)count, sizeof *first);
    assert_non_null(first);
    for (int64_t i = 0; i < count; i++) {
        int64_t t = i % shape->T;
        bool starts = t == 0 || rng_below(3, rng_stream("documents"), (uint64_t)i, 5) == 0;
        first[i] = starts ? (int32_t)t : first[i - 1];
    }
    return first;
}

static inline int32_t *shape_tokens(const char *name, int64_t count, int64_t vocab)
{
    int32_t *tokens = calloc((size_t)count, sizeof *tokens);
    assert_non_null(tokens);
    for (int64_t i = 0; i < count; i++) {
        tokens[i] = (int32_t)rng_below(2, rng_stream(name), (uint64_t)i, (uint64_t)vocab);
    }
    return tokens;
}

#endif
