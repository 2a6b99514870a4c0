/* mudd_consumer.c - who reads which keys in which ways: dense_pattern turned into consumers. */
#include <stdlib.h>
#include <string.h>

#include "model/connect/mudd.h"
#include "model/connect/sources.h"

static bool consumer_has_means(const struct model_config *config)
{
    return config->dense_pattern.block_size > 0 &&
           config->dense_pattern.block_summary == SUMMARY_MEAN;
}

/* Blocks that some consumer reads through a summary: all but the one that the last layer is in. */
static int consumer_blocks(const struct model_config *config)
{
    int64_t S = config->dense_pattern.block_size;
    return S > 0 ? (int)((config->n_layer - 1) / S) : 0;
}

int mudd_raw_key(const struct model *model, int j)
{
    int L = (int)model->config.n_layer;
    CHECK(j >= 0 && j <= L, "no key of layer %d", j);
    return mudd_prenorm(model) ? residual_keys(model) + j : j;
}

int mudd_summary_key(const struct model *model, int block)
{
    int L = (int)model->config.n_layer;
    int S = (int)model->config.dense_pattern.block_size;
    CHECK(block >= 0 && block < consumer_blocks(&model->config), "no summary of block %d", block);
    if (!consumer_has_means(&model->config)) {
        return (block + 1) * S;
    }
    return residual_keys(model) + (mudd_prenorm(model) ? L + 1 : 0) + block;
}

int mudd_keys(const struct model *model)
{
    int L = (int)model->config.n_layer;
    return residual_keys(model) + (mudd_prenorm(model) ? L + 1 : 0) +
           (consumer_has_means(&model->config) ? consumer_blocks(&model->config) : 0);
}

bool mudd_prenorm(const struct model *model)
{
    return model->config.mudd_prenorm;
}

int mudd_block_ending(const struct model *model, int layer)
{
    int64_t S = model->config.dense_pattern.block_size;
    if (!consumer_has_means(&model->config) || layer < 1 || layer % S != 0) {
        return -1;
    }
    int block = (int)(layer / S) - 1;
    return block < consumer_blocks(&model->config) ? block : -1;
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
    return i % period == 0 || i == config->n_layer;
}

static void consumer_push(struct consumer *consumer, int key)
{
    consumer->key[consumer->n++] = key;
}

/* X_0, one summary of each finished block before the consumer's own, then the own block's layers. */
static void consumer_fill_blocks(const struct model *model, int i, struct consumer *out)
{
    int S = (int)model->config.dense_pattern.block_size;
    int block = i == model->config.n_layer ? consumer_blocks(&model->config) : i / S;
    consumer_push(out, 0);
    for (int c = 0; c < block; c++) {
        int key = mudd_summary_key(model, c);
        if (key != i) {
            consumer_push(out, key);
        }
    }
    for (int j = block * S + 1; j < i; j++) {
        consumer_push(out, j);
    }
}

static void consumer_fill_keys(const struct model *model, int i, struct consumer *out)
{
    if (pattern_reads_embedding(&model->config, i)) {
        consumer_push(out, 0);
    }
    for (int j = 1; j < i; j++) {
        if (pattern_reads(&model->config, i, j)) {
            consumer_push(out, j);
        }
    }
}

/* Reads as dense_pattern.sources lists them. */
static status_t consumer_fill_sources(const struct model *model, int i, struct consumer *out)
{
    int L = (int)model->config.n_layer, ways, reads[L + 1];
    TRY(sources_read(model->config.dense_pattern.sources, L, i, "", reads, &ways));
    out->exists = ways != 0;
    for (int way = WAY_Q; way <= WAY_R; way++) {
        if (ways & 1 << way) {
            out->way[out->C++] = way;
        }
    }
    for (int j = 0; j <= i; j++) {
        if (reads[j]) {
            consumer_push(out, j);
        }
    }
    out->shared = out->exists && i == L;
    out->mask = calloc(out->C * out->n + 1, sizeof *out->mask);
    if (!out->mask) {
        return FAIL(STATUS_NOMEM, "no memory for the sources of consumer %d", i);
    }
    for (size_t c = 0; c < out->C; c++) {
        for (size_t j = 0; j < out->n; j++) {
            out->mask[c * out->n + j] = reads[out->key[j]] & 1 << out->way[c] ? 1.0f : 0.0f;
        }
    }
    return STATUS_OK;
}

static void consumer_fill_ways(const struct model_config *config, int i, struct consumer *out)
{
    out->shared = i == config->n_layer || config->dense_type == DENSE_L;
    if (out->shared) {
        out->C = 1;
        out->way[0] = WAY_R;
        return;
    }
    const char *kept = config->dense_ways[0] ? config->dense_ways : "qkvr";
    for (int way = WAY_Q; way <= WAY_R; way++) {
        if (strchr(kept, "qkvr"[way])) {
            out->way[out->C++] = way;
        }
    }
}

static void consumer_fill_pattern(const struct model *model, int i, struct consumer *out)
{
    const struct model_config *config = &model->config;
    out->exists = consumer_exists(config, i);
    if (!out->exists) {
        return;
    }
    consumer_fill_ways(config, i, out);
    if (config->dense_pattern.block_size > 0) {
        consumer_fill_blocks(model, i, out);
    } else {
        consumer_fill_keys(model, i, out);
    }
    consumer_push(out, i);
}

static size_t consumer_inner(const struct model_config *config, const struct consumer *consumer)
{
    size_t inner = consumer->C * consumer->n;
    if (config->dense_pattern.inner > 0) {
        return (size_t)config->dense_pattern.inner;
    }
    if (config->expand_last && consumer->layer == config->n_layer) {
        inner *= 4;
    }
    return config->round64 ? (inner / 64 + 1) * 64 : inner;
}

static void consumer_fill_postnorm(const struct model_config *config, struct consumer *out)
{
    const char *normed = config->mudd_postnorm_ways[0] ? config->mudd_postnorm_ways : "r";
    out->plus = config->mudd_postnorm && out->exists;
    for (size_t c = 0; out->plus && c < out->C; c++) {
        out->post[c] = strchr(normed, "qkvr"[out->way[c]]) != NULL;
    }
}

static status_t consumer_fill(const struct model *model, int i, struct consumer *out)
{
    const struct model_config *config = &model->config;
    out->layer = i;
    out->unit = residual_reader(i);
    out->key = malloc((size_t)(i + 2) * sizeof *out->key); /* means of single keys: i + 2 columns */
    if (!out->key) {
        return FAIL(STATUS_NOMEM, "no memory for the keys of consumer %d", i);
    }
    if (config->dense_pattern.sources[0]) {
        TRY(consumer_fill_sources(model, i, out));
    } else {
        consumer_fill_pattern(model, i, out);
    }
    if (config->dynamic_dense && out->exists) {
        out->K = consumer_inner(config, out);
    }
    consumer_fill_postnorm(config, out);
    return STATUS_OK;
}

status_t mudd_create(struct model *model)
{
    int L = (int)model->config.n_layer;
    struct consumer *consumer = calloc((size_t)L + 1, sizeof *consumer);
    model->connect = consumer;
    if (!consumer) {
        return FAIL(STATUS_NOMEM, "no memory for the consumers of %d layers", L);
    }
    for (int i = 1; i <= L; i++) {
        TRY(consumer_fill(model, i, &consumer[i]));
    }
    return STATUS_OK;
}

void mudd_destroy(struct model *model)
{
    struct consumer *consumer = model->connect;
    for (int i = 1; consumer && i <= model->config.n_layer; i++) {
        free(consumer[i].key);
        free(consumer[i].mask);
    }
    free(consumer);
}

/* Attention of layer i + 1 and head follow consumer i; of layer 1 there is none. */
const struct consumer *mudd_consumer(const struct model *model, int unit)
{
    const struct consumer *consumer = model->connect;
    int i = unit % 2 == 1 ? unit / 2 : 0;
    return i > 0 && consumer[i].exists ? &consumer[i] : NULL;
}
