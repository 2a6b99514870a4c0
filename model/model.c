/* model.c - from a configuration to tables: consumers, units, keys, reads. */
#include "model/model.h"

#include <stdlib.h>
#include <string.h>

#include "model/model_internal.h"
#include "model/sources.h"

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

static bool block_means(const struct model_config *config)
{
    return config->dense && config->dense_pattern.block_size > 0 &&
           config->dense_pattern.block_summary == SUMMARY_MEAN;
}

/* Blocks that some consumer reads through a summary: all but the one that the last layer is in. */
static int finished_blocks(const struct model_config *config)
{
    int64_t S = config->dense_pattern.block_size;
    return config->dense && S > 0 ? (int)((config->n_layer - 1) / S) : 0;
}

int model_raw_key(const struct model *model, int j)
{
    int L = (int)model->config.n_layer;
    CHECK(j >= 0 && j <= L, "no key of layer %d", j);
    return model_prenorm(model) ? 2 * L + 1 + j : model_hidden_key(model, j);
}

int model_summary_key(const struct model *model, int block)
{
    int L = (int)model->config.n_layer;
    int S = (int)model->config.dense_pattern.block_size;
    CHECK(block >= 0 && block < finished_blocks(&model->config), "no summary of block %d", block);
    if (!block_means(&model->config)) {
        return model_hidden_key(model, (block + 1) * S);
    }
    return 2 * L + 1 + (model_prenorm(model) ? L + 1 : 0) + block;
}

bool model_prenorm(const struct model *model)
{
    return model->config.dense && model->config.mudd_prenorm;
}

bool model_postnorm(const struct model *model)
{
    return model->config.dense && model->config.mudd_postnorm;
}

int model_block_ending(const struct model *model, int layer)
{
    int64_t S = model->config.dense_pattern.block_size;
    if (!block_means(&model->config) || layer < 1 || layer % S != 0) {
        return -1;
    }
    int block = (int)(layer / S) - 1;
    return block < finished_blocks(&model->config) ? block : -1;
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

static void push_key(struct consumer *consumer, int key)
{
    consumer->key[consumer->n++] = key;
}

/* X_0, one summary of each finished block before the consumer's own, then the own block's layers. */
static void push_block_keys(const struct model *model, int i, struct consumer *out)
{
    int S = (int)model->config.dense_pattern.block_size;
    int block = i == model->config.n_layer ? finished_blocks(&model->config) : i / S;
    push_key(out, model_hidden_key(model, 0));
    for (int c = 0; c < block; c++) {
        int key = model_summary_key(model, c);
        if (key != model_hidden_key(model, i)) {
            push_key(out, key);
        }
    }
    for (int j = block * S + 1; j < i; j++) {
        push_key(out, model_hidden_key(model, j));
    }
}

static void push_pattern_keys(const struct model *model, int i, struct consumer *out)
{
    if (pattern_reads_embedding(&model->config, i)) {
        push_key(out, model_hidden_key(model, 0));
    }
    for (int j = 1; j < i; j++) {
        if (pattern_reads(&model->config, i, j)) {
            push_key(out, model_hidden_key(model, j));
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
            out->way[out->ways++] = way;
        }
    }
    for (int j = 0; j <= i; j++) {
        if (reads[j]) {
            push_key(out, model_hidden_key(model, j));
        }
    }
    out->shared = out->exists && i == L;
    out->mask = calloc((size_t)(out->ways * out->n) + 1, sizeof *out->mask);
    if (!out->mask) {
        return FAIL(STATUS_NOMEM, "no memory for the sources of consumer %d", i);
    }
    for (int c = 0; c < out->ways; c++) {
        for (int j = 0; j < out->n; j++) {
            out->mask[c * out->n + j] = reads[out->key[j]] & 1 << out->way[c] ? 1.0f : 0.0f;
        }
    }
    return STATUS_OK;
}

static void consumer_fill_ways(const struct model_config *config, int i, struct consumer *out)
{
    out->shared = i == config->n_layer || config->dense_type == DENSE_L;
    if (out->shared) {
        out->ways = 1;
        out->way[0] = WAY_R;
        return;
    }
    const char *kept = config->dense_ways[0] ? config->dense_ways : "qkvr";
    for (int way = WAY_Q; way <= WAY_R; way++) {
        if (strchr(kept, "qkvr"[way])) {
            out->way[out->ways++] = way;
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
        push_block_keys(model, i, out);
    } else {
        push_pattern_keys(model, i, out);
    }
    push_key(out, model_hidden_key(model, i));
}

static int64_t generator_width(const struct model_config *config, const struct consumer *consumer)
{
    int64_t inner = (int64_t)consumer->ways * consumer->n;
    if (config->dense_pattern.inner > 0) {
        return config->dense_pattern.inner;
    }
    if (config->expand_last && consumer->layer == config->n_layer) {
        inner *= 4;
    }
    return config->round64 ? (inner / 64 + 1) * 64 : inner;
}

static status_t consumer_fill(const struct model *model, int i, struct consumer *out)
{
    const struct model_config *config = &model->config;
    int L = (int)config->n_layer;
    out->layer = i;
    out->unit = i < L ? 2 * i + 1 : 2 * L + 1;
    out->key = malloc((size_t)(i + 2) * sizeof *out->key); /* means of single keys: i + 2 columns */
    if (!out->key) {
        return FAIL(STATUS_NOMEM, "no memory for the keys of consumer %d", i);
    }
    if (config->dense && config->dense_pattern.sources[0]) {
        TRY(consumer_fill_sources(model, i, out));
    } else {
        consumer_fill_pattern(model, i, out);
    }
    if (config->dynamic_dense && out->exists) {
        out->inner = generator_width(config, out);
    }
    return STATUS_OK;
}

static status_t add_read(struct model *model, int unit, int key, enum read_tag tag)
{
    static const struct {
        enum read_kind kind;
        const char *what;
    } reads[] = {[TAG_AGGREGATE] = {READ_LEAVES, "aggregate of"},
                 [TAG_GENERATOR] = {READ_LEAVES, "generator of"},
                 [TAG_DIRECT] = {READ_LEAVES, "direct use of"},
                 [TAG_MID] = {READ_FORMS, "backward of"}};
    struct read read = {.unit = unit,
                        .key = key,
                        .order = tag,
                        .kind = reads[tag].kind,
                        .made = -1,
                        .tag = tag,
                        .what = reads[tag].what};
    return graph_add_read(&model->graph, &read);
}

/* `unit` makes the key `made` of `key`. */
static status_t add_made(struct model *model, int unit, int key, int made, enum read_tag tag)
{
    struct read read = {.unit = unit,
                        .key = key,
                        .order = tag,
                        .kind = READ_MAKES,
                        .made = made,
                        .tag = tag,
                        .what = tag == TAG_NORM ? "norm" : "summary"};
    return graph_add_read(&model->graph, &read);
}

/* How the unit that consumer i feeds reads keys. */
static status_t graph_fill_consumer(struct model *model, const struct consumer *consumer)
{
    int unit = consumer->unit, raw = model_raw_key(model, consumer->layer);
    if (!consumer->exists) {
        return add_read(model, unit, raw, TAG_DIRECT);
    }
    for (int j = 0; j < consumer->n; j++) {
        TRY(add_read(model, unit, consumer->key[j], TAG_AGGREGATE));
    }
    if (consumer->inner > 0) {
        TRY(add_read(model, unit, raw, TAG_GENERATOR));
    }
    bool some_direct = !consumer->shared && consumer->ways < WAYS_MAX;
    if (some_direct || model_postnorm(model)) {
        TRY(add_read(model, unit, raw, TAG_DIRECT));
    }
    return STATUS_OK;
}

static void set_key(struct model *model, int key, const char *letter, int index, int producer,
                    int order)
{
    struct key *out = &model->graph.key[key];
    *out = (struct key){.producer = producer,
                        .order = order,
                        .plain = letter[0] != 'S', /* a summary is no layer's output */
                        .bytes = model->B * model->T * model->config.dim *
                                 (int64_t)dtype_size(model->dtype)};
    snprintf(out->name, sizeof out->name, "%s_%d", letter, index);
}

enum key_kind model_key_kind(const struct model *model, int key)
{
    static const char letter[] = "XHSR"; /* in the order of enum key_kind */
    return (enum key_kind)(strchr(letter, model->graph.key[key].name[0]) - letter);
}

/* The keys that the embedding (layer 0) or a layer's FFN makes: the raw one, of that the normed one, of
 * several of those a mean. */
static status_t graph_fill_products(struct model *model, int layer)
{
    int unit = 2 * layer, hidden = model_hidden_key(model, layer);
    set_key(model, hidden, "X", layer, unit, 1);
    if (model_prenorm(model)) {
        int raw = model_raw_key(model, layer);
        set_key(model, raw, "R", layer, unit, 0);
        TRY(add_made(model, unit, raw, hidden, TAG_NORM));
    }
    int block = model_block_ending(model, layer);
    if (block >= 0) {
        int S = (int)model->config.dense_pattern.block_size;
        int summary = model_summary_key(model, block);
        set_key(model, summary, "S", block, unit, 2);
        for (int j = block * S + 1; j <= layer; j++) {
            TRY(add_made(model, unit, model_hidden_key(model, j), summary, TAG_SUMMARY));
        }
    }
    if (layer > 0) {
        set_key(model, model_mid_key(model, layer), "H", layer, unit - 1, 0);
        TRY(add_read(model, unit, model_mid_key(model, layer), TAG_MID));
    }
    return STATUS_OK;
}

static void graph_fill_unit(struct model *model, int unit)
{
    static const char *const name[] = {"embed", "attn", "ffn", "head"};
    const struct unit_shape *shape = unit_shape(model, unit);
    struct unit *out = &model->graph.unit[unit];
    bool layer = shape->kind == UNIT_ATTENTION || shape->kind == UNIT_FFN;
    out->layer = layer ? shape->layer : 0;
    out->may_start = shape->kind != UNIT_FFN || !shape->parallel;
    if (layer) {
        snprintf(out->name, sizeof out->name, "%s %d", name[shape->kind], shape->layer);
    } else {
        snprintf(out->name, sizeof out->name, "%s", name[shape->kind]);
    }
}

static status_t graph_fill(struct model *model)
{
    int L = (int)model->config.n_layer;
    for (int unit = 0; unit < model->graph.units; unit++) {
        graph_fill_unit(model, unit);
    }
    for (int i = 0; i <= L; i++) {
        TRY(graph_fill_products(model, i));
    }
    TRY(add_read(model, 1, model_raw_key(model, 0), TAG_DIRECT));
    for (int i = 1; i <= L; i++) {
        TRY(graph_fill_consumer(model, &model->consumer[i]));
    }
    graph_finish(&model->graph);
    return STATUS_OK;
}

/* X_0..X_L, H_1..H_L, the raw outputs if keys are normed, the means of finished blocks. */
static int graph_key_count(const struct model *model)
{
    int L = (int)model->config.n_layer;
    return 2 * L + 1 + (model_prenorm(model) ? L + 1 : 0) +
           (block_means(&model->config) ? finished_blocks(&model->config) : 0);
}

status_t model_create(const struct model_config *config, const struct model_use *use,
                      struct model **out)
{
    status_t status = STATUS_OK;
    int L = (int)config->n_layer;
    struct model *model = calloc(1, sizeof *model);
    if (!model) {
        return FAIL(STATUS_NOMEM, "no memory for the model's tables");
    }
    model->config = *config;
    model->B = use->B;
    model->T = use->T;
    model->dtype = use->dtype;
    model->recompute = use->recompute;
    model->consumer = calloc((size_t)L + 1, sizeof *model->consumer);
    if (!model->consumer) {
        status = FAIL(STATUS_NOMEM, "no memory for the tables of %d layers", L);
        goto destroy_model;
    }
    TRY_GOTO(graph_init(&model->graph, 2 * L + 2, graph_key_count(model)), destroy_model);
    for (int i = 1; i <= L; i++) {
        TRY_GOTO(consumer_fill(model, i, &model->consumer[i]), destroy_model);
    }
    TRY_GOTO(shapes_fill(model), destroy_model);
    TRY_GOTO(graph_fill(model), destroy_model);
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
        free(model->consumer[i].mask);
    }
    free(model->consumer);
    graph_fini(&model->graph);
    free(model->shape);
    free(model->param);
    free(model->unit_param);
    free(model);
}
