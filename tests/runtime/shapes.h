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
};

#define SMALL                                                                                      \
    "model.n_layer=4", "model.n_head=2", "model.dim=24", "model.intermediate_size=256",            \
        "model.vocab_size=37", "model.block_size=64"

static const struct shape shapes[] = {
    {"full", 1, 16, 4, {NULL}},
    {"full, two odd sequences", 2, 19, 3, {NULL}},
    {"full, fewer microbatches than stages", 1, 16, 2, {NULL}},
    {"key dilation 2", 1, 16, 4, {"dense.key_dilation=2"}},
    {"key dilation 2, five layers", 2, 16, 4, {"model.n_layer=5", "dense.key_dilation=2"}},
    {"no dense connections", 1, 16, 4, {"model.dense=false"}},
    {"no QK-norm, two query heads a key",
     1,
     16,
     4,
     {"model.use_qk_norm=false", "model.n_head=4", "model.n_local_heads=2", "model.sepln=false"}},
    {"static weights", 1, 16, 4, {"model.dynamic_dense=false"}},
    {"one way for all", 1, 16, 4, {"model.dense_type=l"}},
    {"no way q", 1, 16, 4, {"model.dense_ways=kvr"}},
    {"way r only, residue of the query",
     1,
     16,
     4,
     {"model.dense_ways=r", "dense.key_dilation=2", "dense.key_residue=query"}},
    {"window", 1, 16, 4, {"dense.window=2"}},
    {"query period 2", 1, 16, 4, {"dense.query_period=2"}},
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
        float *weight = part_weight(part, p);
        for (int64_t i = 0; i < param->count; i++) {
            bool last = param->init == INIT_LAST_COLUMN && (i + 1) % param->shape[1] == 0;
            double centre = param->init == INIT_ONE || last ? 1 : 0;
            weight[i] = (float)(centre + 0.15 * rng_normal(1, stream, (uint64_t)i));
        }
    }
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
