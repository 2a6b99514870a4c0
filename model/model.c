/* model.c - from a configuration to tables: consumers, units, keys, reads. */
#include "model/model.h"

#include <stdlib.h>
#include <string.h>

#include "model/model_internal.h"

int model_hidden_key(const struct model *model, int j)
{
    CHECK(j >= 0 && j <= model->config.n_layer, "no key X_%d", j);
    return j;
}

int model_mid_key(const struct model *model, int i)
{
    CHECK(i >= 1 && i <= model->config.n_layer, "no key H_%d", i);
    return (int)model->config.n_layer + i;
}

/* Does consumer i read X_j (0 < j < i)? X_0 and X_i are always read. */
static bool pattern_reads(const struct model_config *config, int64_t i, int64_t j)
{
    int64_t k = config->dense_pattern.key_dilation;
    int64_t residue = config->dense_pattern.key_residue == RESIDUE_QUERY ? i % k : 0;
    bool dilated = j % k == residue;
    int64_t window = config->dense_pattern.window;
    return dilated && (window == 0 || j > i - window);
}

/* X_0 is read by every pattern but DenseFormer's, whose residue class may leave it out. */
static bool pattern_reads_embedding(const struct model_config *config, int64_t i)
{
    int64_t k = config->dense_pattern.key_dilation;
    return config->dense_pattern.key_residue == RESIDUE_FIXED || i % k == 0;
}

static bool consumer_exists(const struct model_config *config, int64_t i)
{
    int64_t period = config->dense_pattern.query_period;
    return config->dense && (i % period == 0 || i == config->n_layer);
}

static status_t consumer_fill(const struct model_config *config, int i, struct consumer *out)
{
    int L = (int)config->n_layer;
    out->layer = i;
    out->unit = i < L ? 2 * i + 1 : 2 * L + 1;
    out->exists = consumer_exists(config, i);
    if (!out->exists) {
        return STATUS_OK;
    }
    out->shared = i == L || config->dense_type == DENSE_L;
    if (out->shared) {
        out->ways = 1;
        out->way[0] = WAY_R;
    } else {
        const char *kept = config->dense_ways[0] ? config->dense_ways : "qkvr";
        for (int way = WAY_Q; way <= WAY_R; way++) {
            if (strchr(kept, "qkvr"[way])) {
                out->way[out->ways++] = way;
            }
        }
    }
    out->key = malloc((size_t)(i + 1) * sizeof *out->key);
    if (!out->key) {
        return FAIL(STATUS_NOMEM, "no memory for the keys of consumer %d", i);
    }
    if (pattern_reads_embedding(config, i)) {
        out->key[out->n++] = 0;
    }
    for (int j = 1; j < i; j++) {
        if (pattern_reads(config, i, j)) {
            out->key[out->n++] = j;
        }
    }
    out->key[out->n++] = i;
    if (config->dynamic_dense) {
        int64_t inner = (int64_t)out->ways * out->n;
        if (config->expand_last && i == L) {
            inner *= 4;
        }
        if (config->round64) {
            inner = (inner / 64 + 1) * 64;
        }
        out->inner = inner;
    }
    return STATUS_OK;
}

static void graph_set_read(struct graph *graph, int unit, int key, int use)
{
    uint16_t *cell = &graph->reads[unit * graph->keys + key];
    *cell = (uint16_t)(*cell | use);
}

/* How the unit that consumer i feeds reads keys. */
static void graph_fill_consumer(struct graph *graph, const struct consumer *consumer)
{
    int unit = consumer->unit;
    int newest = consumer->layer;
    if (!consumer->exists) {
        graph_set_read(graph, unit, newest, READ_DIRECT);
        return;
    }
    int ways = 0;
    for (int c = 0; c < consumer->ways; c++) {
        ways |= 1 << consumer->way[c];
    }
    for (int j = 0; j < consumer->n; j++) {
        graph_set_read(graph, unit, consumer->key[j], ways);
    }
    if (consumer->inner > 0) {
        graph_set_read(graph, unit, newest, READ_GENERATOR);
    }
    if (!consumer->shared && consumer->ways < WAYS_MAX) {
        graph_set_read(graph, unit, newest, READ_DIRECT);
    }
}

static void graph_fill(struct model *model)
{
    struct graph *graph = &model->graph;
    int L = (int)model->config.n_layer;
    int64_t key_bytes = model->B * model->T * model->config.dim * (int64_t)dtype_size(model->dtype);
    graph->unit[0] = (struct unit){.kind = UNIT_EMBED, .layer = 0, .may_start = true};
    graph->key[0] = (struct key){KEY_HIDDEN, 0, 0, key_bytes};
    for (int i = 1; i <= L; i++) {
        int attention = 2 * i - 1, ffn = 2 * i;
        graph->unit[attention] =
            (struct unit){.kind = UNIT_ATTENTION, .layer = i, .may_start = true};
        graph->unit[ffn] = (struct unit){.kind = UNIT_FFN,
                                         .layer = i,
                                         .may_start = !model->config.use_parallel_residual};
        graph->key[model_hidden_key(model, i)] = (struct key){KEY_HIDDEN, i, ffn, key_bytes};
        graph->key[model_mid_key(model, i)] = (struct key){KEY_MID, i, attention, key_bytes};
        graph_set_read(graph, ffn, model_mid_key(model, i), READ_MID);
    }
    graph->unit[2 * L + 1] = (struct unit){.kind = UNIT_HEAD, .layer = L + 1, .may_start = true};
    graph_set_read(graph, 1, model_hidden_key(model, 0), READ_DIRECT);
    for (int i = 1; i <= L; i++) {
        graph_fill_consumer(graph, &model->consumer[i]);
    }
}

status_t model_create(const struct model_config *config, int64_t B, int64_t T, enum dtype dtype,
                      struct model **out)
{
    status_t status = STATUS_OK;
    int L = (int)config->n_layer;
    struct model *model = calloc(1, sizeof *model);
    if (!model) {
        return FAIL(STATUS_NOMEM, "no memory for the model's tables");
    }
    model->config = *config;
    model->B = B;
    model->T = T;
    model->dtype = dtype;
    model->graph.units = 2 * L + 2;
    model->graph.keys = 2 * L + 1;
    model->consumer = calloc((size_t)L + 1, sizeof *model->consumer);
    model->graph.unit = calloc((size_t)model->graph.units, sizeof *model->graph.unit);
    model->graph.key = calloc((size_t)model->graph.keys, sizeof *model->graph.key);
    model->graph.reads = calloc((size_t)model->graph.units * (size_t)model->graph.keys,
                                sizeof *model->graph.reads);
    if (!model->consumer || !model->graph.unit || !model->graph.key || !model->graph.reads) {
        status = FAIL(STATUS_NOMEM, "no memory for the tables of %d layers", L);
        goto destroy_model;
    }
    for (int i = 1; i <= L; i++) {
        TRY_GOTO(consumer_fill(config, i, &model->consumer[i]), destroy_model);
    }
    graph_fill(model);
    TRY_GOTO(params_fill(model), destroy_model);
    TRY_GOTO(cost_fill(model), destroy_model);
    *out = model;
    return STATUS_OK;

destroy_model:
    model_destroy(model);
    return status;
}

void model_destroy(struct model *model)
{
    if (!model) {
        return;
    }
    for (int i = 1; model->consumer && i <= model->config.n_layer; i++) {
        free(model->consumer[i].key);
    }
    free(model->consumer);
    free(model->graph.unit);
    free(model->graph.key);
    free(model->graph.reads);
    free(model->param);
    free(model->unit_param);
    free(model);
}
