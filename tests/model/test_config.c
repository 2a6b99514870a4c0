/* test_config.c - config.json: what is read, what is derived, what is refused and how. */
#include "tests/test.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "model/model.h"

enum { MESSAGE = 4096 };
static char message[MESSAGE];
static char file[256];

static int setup(void **state)
{
    (void)state;
    snprintf(file, sizeof file, "test_config.%d.json", (int)getpid());
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(file);
    return 0;
}

static status_t load_text(const char *text, struct model_config *out)
{
    FILE *stream = fopen(file, "w");
    assert_non_null(stream);
    fputs(text, stream);
    fclose(stream);
    message[0] = '\0';
    log_capture(message, sizeof message);
    status_t status = model_config_load(file, NULL, NULL, out);
    log_capture(NULL, 0);
    return status;
}

static void assert_says(const char *words)
{
    if (strstr(message, words) == NULL) {
        fail_msg("'%s' is missing in: %s", words, message);
    }
}

#define SMALL "\"n_layer\": 4, \"n_head\": 2, \"dim\": 32, \"intermediate_size\": 256"

#define DEPTH "{" SMALL ", \"dense_type\": \"depth_attention\""
#define SOURCES(list) "{" SMALL ", \"dense_pattern\": {\"sources\": \"" list "\"}}"

static status_t load_entries(struct config_entry *model, size_t models, struct config_entry *dense,
                             size_t denses, struct model_config *out)
{
    struct config_entries model_keys = {model, models}, dense_keys = {dense, denses};

    message[0] = '\0';
    log_capture(message, sizeof message);
    status_t status = model_config_load("", &model_keys, &dense_keys, out);
    log_capture(NULL, 0);
    return status;
}

static void test_golden_cases(void **state)
{
    struct model_config config;

    (void)state;
    assert_ok(model_config_load(TEST_FOLDER "/golden/muddformer-k2-tiny", NULL, NULL, &config));
    assert_int_equal(config.n_layer, 5);
    assert_int_equal(config.n_local_heads, 2);
    assert_int_equal(config.dense_pattern.key_dilation, 2);
    assert_true(config.dense && config.dynamic_dense && config.sepln && config.round64);
    assert_true(config.ffn_scale_with_layer);
    assert_true(config.norm_eps == 1e-6);
    assert_ok(model_config_load(TEST_FOLDER "/golden/transformerpp-tiny/config.json", NULL, NULL,
                                &config));
    assert_false(config.dense);
    assert_false(config.sepln);
}

static void test_derived(void **state)
{
    struct model_config config;

    (void)state;
    assert_ok(load_text("{\"n_layer\": 32, \"n_head\": 32, \"dim\": 2560, \"torch_dtype\": \"x\","
                        " \"rope_base\": 1e4, \"n_local_heads\": null, \"auto_map\": {}}",
                        &config));
    assert_string_equal(message, "");
    assert_int_equal(config.head_dim, 80);
    assert_int_equal(config.n_local_heads, 32);
    assert_int_equal(config.intermediate_size, 6912);
    assert_int_equal(config.vocab_size, 50432);
}

static void test_ffn_width(void **state)
{
    struct model_config config;

    (void)state;
    assert_ok(load_text("{" SMALL "}", &config));
    assert_int_equal(model_ffn_width(&config, 1), 128);
    assert_int_equal(model_ffn_width(&config, 4), 384);
    assert_ok(load_text("\xef\xbb\xbf{" SMALL "}\r\n", &config)); /* as some editors write it */
    config.intermediate_size = 640; /* 320 is 2.5 * 128: the tie goes to the even 2 */
    assert_int_equal(model_ffn_width(&config, 1), 256);
    config.ffn_scale_with_layer = false;
    assert_int_equal(model_ffn_width(&config, 1), 640);
    config.ffn_scale_with_layer = true;
    config.n_layer = 1;
    assert_int_equal(model_ffn_width(&config, 1), 256);
}

static void test_refused_values(void **state)
{
    static const struct {
        const char *text, *words;
        status_t status;
    } cases[] = {
        {"{}", "model.n_layer", STATUS_INVALID},
        {"[1]", "an array", STATUS_INVALID},
        {"{" SMALL ",\n \"n_head\": 3}", "n_head", STATUS_INVALID}, /* twice */
        {"{" SMALL ",\n  \"norm_eps\": \"small\"}", ":2:3: norm_eps must be a number",
         STATUS_INVALID},
        {"{" SMALL ", \"dense\": 1}", "dense must be true or false", STATUS_INVALID},
        {"{" SMALL ", \"vocab_size\": 0}", "vocab_size must be an integer from 1", STATUS_INVALID},
        {"{" SMALL ", \"head_dim\": 12}", "head_dim", STATUS_INVALID},
        {"{" SMALL ", \"n_local_heads\": 3}", "must divide", STATUS_INVALID},
        {"{" SMALL ", \"model_type\": \"llama\"}", "muddformer|muddpythia", STATUS_INVALID},
        {"{" SMALL ", \"use_linear_bias\": true}", "belong to model_type muddpythia",
         STATUS_UNSUPPORTED},
        {"{" SMALL ", \"dense\": false, \"mudd_prenorm\": true}", "about dense connections",
         STATUS_INVALID},
        {"{" SMALL ", \"tie_word_embeddings\": true}", "stages", STATUS_UNSUPPORTED},
        {"{" SMALL ", \"dense_pattern\": {\"block_size\": 2, \"window\": 2}}", "choose one",
         STATUS_INVALID},
        {"{" SMALL ", \"dense_pattern\": {\"block_size\": 2, \"key_dilation\": 2}}",
         "in dense.sources", STATUS_INVALID},
        {"{" SMALL ", \"dense_pattern\": {\"sources\": \"2=1\", \"window\": 2}}",
         "sources says exactly", STATUS_INVALID},
        {SOURCES("  "), "character 3: expected a consumer", STATUS_INVALID},
        {SOURCES("2=0,1,0"), "character 7: this key is named twice", STATUS_INVALID},
        {SOURCES("2:vr=0; 3=0; 2:r=1,0"), "character 20: this key is named twice", STATUS_INVALID},
        {SOURCES("2:rvr=0"), "character 5: this way is named twice", STATUS_INVALID},
        {SOURCES("2=3"), "a key before or of that layer, 0 to 2", STATUS_INVALID},
        {SOURCES("5=0"), "a consumer, 1 to 4", STATUS_INVALID},
        {SOURCES("4:v=0"), "the last layer has one way, r", STATUS_INVALID},
        {"{" SMALL ",\n \"window_size\": 256}", ":2:2: window_size is 256, and here attention",
         STATUS_UNSUPPORTED},
        {"{" SMALL ", \"dense_pattern\": 3}", "must be an object", STATUS_INVALID},
        {"{" SMALL ", \"block_size\": 8,\n \"dense_pattern\": {\n  \"key_dilatoin\": 2}}",
         ":3:3: unknown key dense_pattern.key_dilatoin; did you mean dense_pattern.key_dilation?",
         STATUS_INVALID},
        {"{" SMALL ", \"dense_pattern\": {\"window\": 2, \"key_dilation\": 2}}", "choose one",
         STATUS_INVALID},
        {"{" SMALL ", \"dense_ways\": \"qq\"}", "dense_ways", STATUS_INVALID},
        {"{" SMALL ", \"dense_ways\": \"q\", \"dense_type\": \"l\"}", "dense_type l",
         STATUS_INVALID},
        {"{\"n_layer\": 2, \"n_head\": 2, \"dim\": 6}", "even", STATUS_INVALID},
        {DEPTH ", \"dense\": false}", "depth_attention needs model.dense=true", STATUS_INVALID},
        {DEPTH ", \"dynamic_dense\": true}", "set model.dynamic_dense=false", STATUS_INVALID},
        {DEPTH ", \"sepln\": true}", "set model.sepln=false", STATUS_INVALID},
        {DEPTH ", \"expand_last\": true}", "set model.expand_last=false", STATUS_INVALID},
        {DEPTH ", \"round64\": true}", "set model.round64=false", STATUS_INVALID},
        {DEPTH ", \"ffn_scale_with_layer\": true}", "set model.ffn_scale_with_layer=false",
         STATUS_INVALID},
        {DEPTH ", \"sepln\": true, \"round64\": true}", "set model.sepln=false model.round64=false",
         STATUS_INVALID},
        {DEPTH ", \"dense_ways\": \"q\"}", "has no ways", STATUS_INVALID},
        {DEPTH ", \"mudd_prenorm\": true}", "does not go with PrePostNorm", STATUS_INVALID},
        {DEPTH ", \"mudd_postnorm_ways\": \"r\"}", "does not go with PrePostNorm", STATUS_INVALID},
        {DEPTH ", \"dense_pattern\": {\"window\": 2}}", "does not go with dense_pattern",
         STATUS_INVALID},
        {DEPTH ", \"dense_pattern\": {\"block_summary\": \"mean\"}}",
         "does not go with dense_pattern", STATUS_INVALID},
        {DEPTH ", \"model_type\": \"muddpythia\", \"use_parallel_residual\": true}",
         "set model.use_parallel_residual=false", STATUS_INVALID},
        {DEPTH ", \"depth_attention_block\": -1}", "depth_attention_block must be an integer",
         STATUS_INVALID},
        {"{\"n_layer\": 128, \"n_head\": 2, \"dim\": 32, \"dense_type\": \"depth_attention\"}",
         "would read 257 sources in 128 layers", STATUS_UNSUPPORTED},
        {"{\"n_layer\": 2, \"n_head\": 2, \"dim\": 8, \"intermediate_size\": 100}", "no FFN",
         STATUS_INVALID},
    };
    struct model_config config;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        status_t status = load_text(cases[i].text, &config);
        if (status != cases[i].status) {
            fail_msg("%s: %s instead of %s", cases[i].text, status_name(status),
                     status_name(cases[i].status));
        }
        assert_says(cases[i].words);
    }
}

/* What belongs to MUDD is off by itself where the model has another connector, wherever that is said. */
static void test_connectors(void **state)
{
    struct model_config config;
    static struct config_entry keys[] = {{.key = "dim", .value = "32"},
                                         {.key = "n_head", .value = "2"},
                                         {.key = "n_layer", .value = "4"},
                                         {.key = "dense_type", .value = "depth_attention"}};

    (void)state;
    assert_ok(load_text(DEPTH "}", &config));
    assert_int_equal(config.dense_type, DENSE_DEPTH_ATTENTION);
    assert_false(config.dynamic_dense || config.sepln || config.round64 || config.expand_last);
    assert_false(config.ffn_scale_with_layer);
    assert_ok(load_entries(keys, 4, NULL, 0, &config));
    assert_false(config.dynamic_dense || config.sepln || config.ffn_scale_with_layer);
    assert_ok(load_text(DEPTH ", \"depth_attention_block\": 2}", &config));
    assert_int_equal(config.depth_attention_block, 2);
}

/* Every read of 40 layers, written out. */
static void test_long_list_of_sources(void **state)
{
    struct model_config config;
    char text[8192];
    int length = snprintf(text, sizeof text,
                          "{\"n_layer\": 40, \"n_head\": 2, \"dim\": 32, \"dense_pattern\": "
                          "{\"sources\": \"");

    (void)state;
    for (int i = 1; i <= 40; i++) {
        for (int j = 0; j < i; j++) {
            length += j > 0 ? snprintf(text + length, sizeof text - (size_t)length, ",%d", j)
                            : snprintf(text + length, sizeof text - (size_t)length, "%s%d=0",
                                       i > 1 ? ";" : "", i);
        }
    }
    snprintf(text + length, sizeof text - (size_t)length, "\"}}");
    assert_ok(load_text(text, &config));
    assert_int_equal(strlen(config.dense_pattern.sources), 2215);
}

static void test_slip_is_pointed_out(void **state)
{
    struct model_config config;

    (void)state;
    assert_ok(load_text("{" SMALL ", \"vocab_sise\": 7}", &config));
    assert_int_equal(config.vocab_size, 50432);
}

static void test_entries(void **state)
{
    struct config_entry model[] = {{"n_layer", "8", {"run.yaml", 3, 4}},
                                   {"n_head", "4", {"run.yaml", 4, 4}},
                                   {"dim", "64", {"run.yaml", 5, 4}}};
    struct config_entry dense[] = {{"key_dilation", "4", {"", 7, 0}}};
    struct model_config config;

    (void)state;
    assert_ok(load_entries(model, 3, dense, 1, &config));
    assert_int_equal(config.n_layer, 8);
    assert_int_equal(config.dense_pattern.key_dilation, 4);
    strcpy(dense[0].key, "key_dilution");
    assert_status(load_entries(model, 3, dense, 1, &config), STATUS_INVALID);
    assert_says("argument 7");
    assert_says("dense.key_dilation");
    strcpy(model[2].value, "wide");
    assert_status(load_entries(model, 3, NULL, 0, &config), STATUS_INVALID);
    assert_says("run.yaml:5:4");
}

/* Keys of other families: what says the same passes, what says something else is refused with ours. */
static void test_foreign(void **state)
{
    static const char *const same[] = {
        "\"rope_theta\": 10000.0",
        "\"rope_theta\": 1e4, \"rope_base\": 10000",
        "\"num_key_value_heads\": 2",
        "\"hidden_size\": 32, \"num_hidden_layers\": 4",
        "\"rms_norm_eps\": 1e-6",
        "\"rope_scaling\": {\"type\": \"default\"}",
        "\"rope_scaling\": null, \"sliding_window\": null",
        "\"rope_parameters\": {\"rope_theta\": 10000, \"rope_type\": \"default\"}",
        "\"hidden_act\": \"silu\", \"attention_bias\": false",
        "\"num_experts\": 1",
        "\"use_sliding_window\": false, \"sliding_window\": 4096",
        "\"logits_scaling\": 1.0",
        "\"rope_theta\": 500000, \"rope_base\": 500000"};
    static const struct {
        const char *keys, *words;
    } other[] = {
        {"\"rope_theta\": 500000",
         "rope_theta is 500000, which here is called rope_base, and that is 10000"},
        {"\"num_key_value_heads\": 1",
         "num_key_value_heads is 1, which here is called n_local_heads"},
        {"\"rope_parameters\": {\"rope_theta\": 1e6}", "rope_theta is 1000000"},
        {"\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4}",
         "rope_type is yarn, and here positions"},
        {"\"rope_scaling\": {\"type\": \"linear\"}", "type is linear"},
        {"\"hidden_act\": \"gelu\"", "hidden_act is gelu, and here the FFN is SwiGLU"},
        {"\"sliding_window\": 4096",
         "sliding_window is 4096, and here attention sees the whole sequence"},
        {"\"attention_bias\": true",
         "attention_bias is true, which here is called use_linear_bias"},
        {"\"final_logit_softcapping\": 30.0", "logits and scores are not capped"},
        {"\"num_local_experts\": 8", "a layer has one FFN"},
        {"\"no_rope_layers\": [1, 1, 0]", "no_rope_layers is something of several parts"},
        {"\"embedding_multiplier\": 12", "nothing is multiplied there"},
    };
    char text[512];
    struct model_config config;
    (void)state;
    for (size_t i = 0; i < sizeof same / sizeof same[0]; i++) {
        snprintf(text, sizeof text, "{" SMALL ", %s}", same[i]);
        assert_ok(load_text(text, &config));
    }
    for (size_t i = 0; i < sizeof other / sizeof other[0]; i++) {
        snprintf(text, sizeof text, "{" SMALL ", %s}", other[i].keys);
        assert_true(load_text(text, &config) != STATUS_OK);
        assert_says(other[i].words);
    }
    /* What the command line says counts. */
    struct config_entry model[] = {{"rope_base", "500000", {"", 4, 0}}};
    struct config_entries keys = {model, 1};
    assert_true(load_text("{" SMALL ", \"rope_theta\": 500000}", &config) != STATUS_OK);
    assert_ok(model_config_load(file, &keys, NULL, &config));
}

/* The connector that the command line names decides what is off by default, not the file's. */
static void test_connector_replaced(void **state)
{
    struct config_entry model[] = {{"dense_type", "qkvr", {"", 4, 0}}};
    struct config_entries keys = {model, 1};
    struct model_config config;

    (void)state;
    assert_ok(load_text(DEPTH "}", &config));
    assert_false(config.dynamic_dense);
    assert_ok(model_config_load(file, &keys, NULL, &config));
    assert_true(config.dynamic_dense);
    assert_true(config.sepln);
    strcpy(model[0].value, "null");
    assert_ok(model_config_load(file, &keys, NULL, &config));
    assert_false(config.dynamic_dense);
    assert_ok(load_text("{" SMALL "}", &config));
    strcpy(model[0].value, "hyper");
    assert_ok(model_config_load(file, &keys, NULL, &config));
    assert_false(config.sepln);
    assert_ok(load_text(DEPTH ", \"dynamic_dense\": false}", &config));
    strcpy(model[0].value, "qkvr");
    assert_ok(model_config_load(file, &keys, NULL, &config));
    assert_false(config.dynamic_dense);
    assert_true(config.sepln);
}

static void test_save_and_load(void **state)
{
    struct model_config config, again;

    (void)state;
    assert_ok(load_text("{" SMALL ", \"dense_ways\": \"kvr\", \"rope_base\": 12345.678901234567,"
                        " \"norm_eps\": 1e-5, \"dense_pattern\": {\"query_period\": 2}}",
                        &config));
    assert_ok(model_config_save(&config, file));
    assert_ok(model_config_load(file, NULL, NULL, &again));
    assert_memory_equal(&config, &again, sizeof config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_cases),
        cmocka_unit_test(test_derived),
        cmocka_unit_test(test_ffn_width),
        cmocka_unit_test(test_refused_values),
        cmocka_unit_test(test_long_list_of_sources),
        cmocka_unit_test(test_connectors),
        cmocka_unit_test(test_slip_is_pointed_out),
        cmocka_unit_test(test_entries),
        cmocka_unit_test(test_foreign),
        cmocka_unit_test(test_connector_replaced),
        cmocka_unit_test(test_save_and_load),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
