/* config_check.c - models that make no sense, and those that cannot be done. */
#include <math.h>
#include <string.h>

#include "base/log.h"
#include "model/config_file.h"
#include "model/connect/sources.h"

static bool is_mudd(const struct model_config *config)
{
    return config->dense_type == DENSE_QKVR || config->dense_type == DENSE_L;
}

static status_t check_given(const struct model_config *config, const char *source)
{
    const struct {
        const char *name;
        int64_t value;
    } given[] = {
        {"n_layer", config->n_layer},   {"n_head", config->n_head},
        {"dim", config->dim},           {"vocab_size", config->vocab_size},
        {"head_dim", config->head_dim}, {"block_size", config->block_size},
    };

    for (size_t i = 0; i < sizeof given / sizeof given[0]; i++) {
        if (given[i].value < 1) {
            return FAIL(STATUS_INVALID,
                        "%sthe model has no %s: set model.%s, or give `model` a config.json",
                        source, given[i].name, given[i].name);
        }
    }
    return STATUS_OK;
}

static status_t check_heads(const struct model_config *config, const char *source)
{
    long long heads = (long long)config->n_head, width = (long long)config->head_dim;
    long long groups = (long long)config->n_local_heads, dim = (long long)config->dim;
    double rotary = (double)config->head_dim * config->rotary_pct;

    if (heads * width != dim) {
        return FAIL(
            STATUS_INVALID,
            "%smodel: n_head %lld x head_dim %lld must make dim %lld; choose an n_head that "
            "divides dim and leave head_dim out",
            source, heads, width, dim);
    }
    if (groups < 1 || heads % groups != 0) {
        return FAIL(STATUS_INVALID, "%smodel: n_local_heads %lld must divide n_head %lld", source,
                    groups, heads);
    }
    if ((int64_t)rotary < 2 || (int64_t)rotary % 2 != 0) {
        return FAIL(STATUS_INVALID,
                    "%smodel: rotary turns pairs, so head_dim x rotary_pct must be even and at "
                    "least 2, not %g; choose an even head_dim (it is %lld) and a rotary_pct that "
                    "turns an even number of its elements",
                    source, rotary, width);
    }
    return STATUS_OK;
}

static status_t check_ffn(const struct model_config *config, const char *source)
{
    if (config->intermediate_size < 1 || model_ffn_width(config, 1) < 1) {
        return FAIL(STATUS_INVALID,
                    "%smodel: intermediate_size %lld leaves the first layer no FFN: widths are "
                    "multiples of 128 and the first is %s; take 256 or more",
                    source, (long long)config->intermediate_size,
                    config->ffn_scale_with_layer ? "half of it" : "all of it");
    }
    return STATUS_OK;
}

static status_t check_ways(const char *key, const char *ways, const char *source)
{
    for (size_t i = 0; ways[i] != '\0'; i++) {
        if (strchr("qkvr", ways[i]) == NULL || strchr(&ways[i + 1], ways[i]) != NULL) {
            return FAIL(STATUS_INVALID, "%smodel: %s takes letters of qkvr, each once, not '%.40s'",
                        source, key, ways);
        }
    }
    return STATUS_OK;
}

/* Patterns that say twice which keys are read. */
static status_t check_pattern(const struct model_config *config, const char *source)
{
    bool dilation = config->dense_pattern.key_dilation > 1;
    bool window = config->dense_pattern.window > 0;
    bool blocks = config->dense_pattern.block_size > 0;

    bool sources = config->dense_pattern.sources[0] != '\0';

    if (sources && (dilation || window || blocks || config->dense_pattern.query_period > 1 ||
                    config->dense_ways[0] != '\0' || config->dense_type == DENSE_L)) {
        return FAIL(STATUS_INVALID,
                    "%sdense: sources says exactly who reads what; leave key_dilation, window, "
                    "block_size, query_period, dense_ways and dense_type l out beside it",
                    source);
    }
    if (dilation + window + blocks > 1) {
        return FAIL(
            STATUS_INVALID,
            "%sdense: key_dilation, window and block_size each say which keys are read; "
            "choose one (any of them goes with query_period), or list the reads of a combination "
            "in dense.sources",
            source);
    }
    for (int i = 1; sources && config->dense && i <= config->n_layer; i++) {
        int ways, reads[config->n_layer + 1];
        TRY(sources_read(config->dense_pattern.sources, config->n_layer, i, source, reads, &ways));
    }
    return STATUS_OK;
}

/* Is one of the ways between layers post-normed? With one way for all, that one counts as r. */
static bool norms_a_way(const struct model_config *config)
{
    const char *normed = config->mudd_postnorm_ways[0] ? config->mudd_postnorm_ways : "r";
    const char *formed = config->dense_type == DENSE_L   ? "r"
                         : config->dense_ways[0] != '\0' ? config->dense_ways
                                                         : "qkvr";
    return strpbrk(normed, formed) != NULL;
}

/* What is set and has no effect, because something else is not as it would have to be. */
static void warn_unused(const struct model_config *config, const char *source)
{
    const struct {
        bool unused;
        const char *what;
    } rules[] = {
        {config->dense_pattern.key_residue == RESIDUE_QUERY &&
             config->dense_pattern.key_dilation == 1,
         "dense: key_residue is not used: it says which keys key_dilation keeps, and that is 1"},
        {config->dense_pattern.block_summary == SUMMARY_MEAN &&
             config->dense_pattern.block_size == 0,
         "dense: block_summary is not used: it says what stands for a block, and block_size is 0"},
        {config->dense_pattern.inner > 0 && !config->dynamic_dense,
         "dense: inner is not used: it is the width of the weight generators, and with "
         "dynamic_dense false there are none"},
        {config->mudd_postnorm_ways[0] != '\0' && !config->mudd_postnorm,
         "model: mudd_postnorm_ways is not used: it says which ways mudd_postnorm norms, and that "
         "is false"},
        {config->mudd_postnorm && !norms_a_way(config),
         "model: mudd_postnorm_ways names no way that is formed, so none is normed; dense_ways and "
         "dense_type say which are"},
    };

    if (!config->dense) {
        if (config->dense_pattern.key_dilation > 1 || config->dense_pattern.query_period > 1 ||
            config->dense_pattern.window > 0 || config->dense_pattern.block_size > 0 ||
            config->dense_pattern.inner > 0 || config->dense_pattern.sources[0] != '\0' ||
            config->dense_ways[0] != '\0') {
            log_warn("%smodel.dense is false: the pattern of dense connections is not used",
                     source);
        }
        return;
    }
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        if (rules[i].unused) {
            log_warn("%s%s", source, rules[i].what);
        }
    }
}

/* Patterns larger than the model: well defined, and hardly what was meant. */
static void warn_large(const struct model_config *config, const char *source)
{
    const struct {
        const char *name, *effect;
        int64_t value, least;
    } rules[] = {
        {"key_dilation", "no key but X_0 and the newest is read",
         config->dense_pattern.key_dilation, 2},
        {"query_period", "only the last layer has an aggregate", config->dense_pattern.query_period,
         2},
        {"window", "every key is read, as without it", config->dense_pattern.window, 1},
        {"block_size", "every key is read, as without it", config->dense_pattern.block_size, 1},
    };

    for (size_t i = 0; i < sizeof rules / sizeof rules[0] && config->dense; i++) {
        if (rules[i].value >= rules[i].least && rules[i].value >= config->n_layer) {
            log_warn("%sdense: %s %lld in %lld layers: %s; choose less than %lld", source,
                     rules[i].name, (long long)rules[i].value, (long long)config->n_layer,
                     rules[i].effect, (long long)config->n_layer);
        }
    }
}

static status_t check_dense(const struct model_config *config, const char *source)
{
    TRY(check_ways("dense_ways", config->dense_ways, source));
    TRY(check_ways("mudd_postnorm_ways", config->mudd_postnorm_ways, source));
    if (config->dense && config->dense_type == DENSE_L && config->dense_ways[0] != '\0') {
        return FAIL(STATUS_INVALID,
                    "%smodel: dense_type l forms one way for all inputs, so dense_ways must be "
                    "empty, not '%.8s'",
                    source, config->dense_ways);
    }
    TRY(check_pattern(config, source));
    if (log_rank() <= 0) {
        warn_unused(config, source);
        warn_large(config, source);
    }
    return STATUS_OK;
}

/* ---- models whose layers read across depth in another way than MUDD ---- */

/* Keys of MUDD that are set: they mean nothing to these. */
static status_t check_neutral(const struct model_config *config, const char *source)
{
    const bool pattern = config->dense_pattern.key_dilation > 1 ||
                         config->dense_pattern.key_residue != RESIDUE_FIXED ||
                         config->dense_pattern.query_period > 1 ||
                         config->dense_pattern.window > 0 || config->dense_pattern.block_size > 0 ||
                         config->dense_pattern.block_summary != SUMMARY_LAST ||
                         config->dense_pattern.inner > 0 || config->dense_pattern.sources[0];
    const struct {
        bool set;
        const char *key;
    } flags[] = {
        {config->dynamic_dense, "dynamic_dense"},
        {config->sepln, "sepln"},
        {config->expand_last, "expand_last"},
        {config->round64, "round64"},
        {config->ffn_scale_with_layer, "ffn_scale_with_layer"},
    };
    const struct {
        bool set;
        const char *what;
    } rules[] = {
        {!config->dense, "needs model.dense=true"},
        {config->use_parallel_residual,
         "has no residual stream that attention and FFN could share: set "
         "model.use_parallel_residual=false"},
        {config->dense_ways[0] != '\0', "has no ways: leave model.dense_ways empty"},
        {config->mudd_prenorm || config->mudd_postnorm || config->mudd_postnorm_ways[0] != '\0',
         "does not go with PrePostNorm: leave the keys model.mudd_prenorm, mudd_postnorm and "
         "mudd_postnorm_ways out"},
        {pattern, "does not go with dense_pattern, which says what MUDD's aggregates read: leave "
                  "its keys out"},
    };

    const char *name = config->dense_type == DENSE_HYPER ? "hyper" : "depth_attention";
    char all[256] = "";
    size_t used = 0;
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        if (rules[i].set) {
            return FAIL(STATUS_INVALID, "%smodel: dense_type %s %s", source, name, rules[i].what);
        }
    }
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++) {
        if (flags[i].set) {
            used +=
                (size_t)snprintf(all + used, sizeof all - used, " model.%s=false", flags[i].key);
        }
    }
    return used == 0 ? STATUS_OK
                     : FAIL(STATUS_INVALID,
                            "%smodel: dense_type %s has one norm and one width for all layers, and "
                            "none of MUDD's weight generators: set%s",
                            source, name, all);
}

/* Sources of the final norm, which reads most: sub-layers, or sums of blocks; and the embedding. */
static status_t check_sources_count(const struct model_config *config, const char *source)
{
    int64_t S = config->depth_attention_block, L = config->n_layer;
    int64_t sources = 1 + (S > 0 ? (L + S - 1) / S : 2 * L);
    if (config->dense_type != DENSE_DEPTH_ATTENTION) {
        return STATUS_OK;
    }
    if (sources > KEYS_MOST) {
        return FAIL(STATUS_UNSUPPORTED,
                    "%smodel: depth_attention would read %lld sources in %lld layers, and reads at "
                    "most %d: set model.depth_attention_block to sum finished blocks of that many "
                    "layers",
                    source, (long long)sources, (long long)L, KEYS_MOST);
    }
    return STATUS_OK;
}

static void warn_other_connector(const struct model_config *config, const char *source)
{
    if (config->dense_type != DENSE_DEPTH_ATTENTION && config->depth_attention_block > 0) {
        log_warn("%smodel: depth_attention_block is not used: dense_type is not depth_attention",
                 source);
    }
    if (config->dense_type != DENSE_HYPER &&
        (config->hyper_streams != 4 || config->hyper_kind != HYPER_MHC)) {
        log_warn("%smodel: hyper_streams and hyper_kind are not used: dense_type is not hyper",
                 source);
    }
    if (config->dense_type == DENSE_DEPTH_ATTENTION &&
        config->depth_attention_block >= config->n_layer) {
        log_warn("%smodel: depth_attention_block %lld in %lld layers: one block, so that every "
                 "sub-layer reads the embedding and the sum so far alone; choose less than %lld",
                 source, (long long)config->depth_attention_block, (long long)config->n_layer,
                 (long long)config->n_layer);
    }
}

/* The GELU family has biases, rotary on a part of the head and parallel residual; the other has not. */
static status_t check_family(const struct model_config *config, const char *source)
{
    if (config->tie_word_embeddings) {
        return FAIL(STATUS_UNSUPPORTED,
                    "%smodel: tie_word_embeddings is not supported: embedding and head live on "
                    "different stages and would have to exchange the gradient of one matrix; set "
                    "model.tie_word_embeddings=false",
                    source);
    }
    if (config->model_type == MODEL_MUDDFORMER &&
        (config->use_linear_bias || config->use_parallel_residual || config->rotary_pct < 1.0)) {
        return FAIL(STATUS_UNSUPPORTED,
                    "%smodel: use_linear_bias, use_parallel_residual and rotary_pct below 1 belong "
                    "to model_type muddpythia; set them to false, false and 1, or choose that "
                    "model_type",
                    source);
    }
    if (is_mudd(config) && !config->dense && (config->mudd_prenorm || config->mudd_postnorm)) {
        return FAIL(STATUS_INVALID,
                    "%smodel: mudd_prenorm and mudd_postnorm are about dense connections, which "
                    "model.dense=false leaves out; set both to false",
                    source);
    }
    return STATUS_OK;
}

status_t config_check(const struct model_config *config, const char *source)
{
    TRY(check_given(config, source));
    TRY(check_family(config, source));
    TRY(check_heads(config, source));
    TRY(check_ffn(config, source));
    if (log_rank() <= 0) {
        warn_other_connector(config, source);
    }
    TRY(check_sources_count(config, source));
    return is_mudd(config) ? check_dense(config, source) : check_neutral(config, source);
}

status_t model_config_validate(const struct model_config *config)
{
    return config_check(config, "");
}
