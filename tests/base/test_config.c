/* test_config.c - every refusal with its place and hint; files, arguments and the way back. */
#include "tests/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/config.h"
#include "base/log.h"

static char path[64];

static int file_create(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "/tmp/test_config_XXXXXX");
    int descriptor = mkstemp(path);
    return descriptor < 0 ? -1 : close(descriptor);
}

static int file_remove(void **state)
{
    (void)state;
    return unlink(path);
}

static void file_write(const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, strlen(text), file), strlen(text));
    assert_int_equal(fclose(file), 0);
}

static void load(const char *text, struct run_config *out)
{
    file_write(text);
    assert_ok(config_load(path, 0, NULL, 0, out));
}

/* The message must begin with the place (after the path) and contain the hint. */
static void assert_file_refused(const char *text, const char *place, const char *hint)
{
    struct run_config config = {.seed = 42};
    char lines[2048], expected[256];

    file_write(text);
    log_capture(lines, sizeof lines);
    status_t status = config_load(path, 0, NULL, 0, &config);
    log_capture(NULL, 0);
    snprintf(expected, sizeof expected, "%s%s", path, place);
    if (status != STATUS_INVALID || strncmp(lines, expected, strlen(expected)) != 0 ||
        strstr(lines, hint) == NULL) {
        fail_msg("for\n%s\nexpected %s ... %s\nbut got (%s) %s", text, expected, hint,
                 status_name(status), lines);
    }
    assert_int_equal(config.seed, 42); /* untouched */
}

static void assert_argument_refused(char *text, const char *message)
{
    struct run_config config;
    char lines[2048];
    char *args[] = {"seed=5", text};

    log_capture(lines, sizeof lines);
    status_t status = config_load(NULL, 2, args, 3, &config);
    log_capture(NULL, 0);
    assert_status(status, STATUS_INVALID);
    if (strstr(lines, message) == NULL) {
        fail_msg("expected %s but got %s", message, lines);
    }
}

static void test_defaults(void **state)
{
    (void)state;
    struct run_config config;

    assert_ok(config_load(NULL, 0, NULL, 0, &config));
    assert_string_equal(config.source, "");
    assert_string_equal(config.model, "");
    assert_int_equal(config.seed, 1);
    assert_int_equal(config.device, DEVICE_CHOICE_AUTO);
    assert_string_equal(config.parallel.schedule, "1f1b");
    assert_string_equal(config.parallel.transport, "auto");
    assert_string_equal(config.parallel.partition, "auto");
    assert_int_equal(config.logging.level, LOG_INFO);
    assert_true(config.optimizer.lr == 3e-4);
    assert_true(config.health.deadline_s == 600);
    config_free(&config);
}

static void test_file(void **state)
{
    (void)state;
    struct run_config config;

    load("# a comment\n"
         "model: configs/small\n"
         "seed: 7\n"
         "dense: {way: qkvr, key_dilation: 2}\n"
         "data:\n"
         "  train: 'a file.bin'\n"
         "parallel:\n"
         "  pp: 4\n"
         "  schedule: gpipe\n"
         "  partition: [5, 4, 4, 5]\n"
         "optimizer: {lr: 1e-3, steps: 50}\n"
         "logging:\n",
         &config);
    assert_string_equal(config.source, path);
    assert_string_equal(config.model, "configs/small");
    assert_int_equal(config.seed, 7);
    assert_int_equal(config.dense_keys.count, 2);
    assert_string_equal(config.dense_keys.entry[1].key, "key_dilation");
    assert_string_equal(config.dense_keys.entry[1].value, "2");
    assert_int_equal(config.dense_keys.entry[1].where.line, 4);
    assert_int_equal(config.dense_keys.entry[1].where.column, 20);
    assert_string_equal(config.data.train, "a file.bin");
    assert_int_equal(config.parallel.pp, 4);
    assert_string_equal(config.parallel.schedule, "gpipe");
    assert_string_equal(config.parallel.partition, "5,4,4,5");
    assert_true(config.optimizer.lr == 1e-3);
    config_free(&config);
}

/* In every spelling and for every key. */
static void test_null(void **state)
{
    static const char *const nulls[] = {"", "~", "null", "Null", "NULL"};
    char text[256], expected[512], found[512];
    struct run_config config, defaults;

    (void)state;
    assert_ok(config_load(NULL, 0, NULL, 0, &defaults));
    for (size_t i = 0; i < config_options_count; i++) {
        const struct option *option = &config_options[i];
        snprintf(text, sizeof text, "%s: %s\n", option->name, nulls[i % 5]);
        load(text, &config);
        option_print(option, &defaults, expected, sizeof expected);
        assert_string_equal(option_print(option, &config, found, sizeof found), expected);
        config_free(&config);
    }
    load("model: ~\ndense: null\ndata:\nlogging: {run: ''}\n", &config);
    assert_string_equal(config.model, "");
    assert_string_equal(config.logging.run, "");
    config_free(&config);
    config_free(&defaults);
}

static void test_model_mapping(void **state)
{
    (void)state;
    struct run_config config;

    load("model:\n"
         "  dim: 64\n"
         "  rope_base: null\n"
         "  dense_pattern: {way: qkvr}\n",
         &config);
    assert_string_equal(config.model, "");
    assert_int_equal(config.model_keys.count, 2);
    assert_string_equal(config.model_keys.entry[0].key, "dim");
    assert_string_equal(config.model_keys.entry[1].value, "null");
    /* The long name of dense.way. */
    assert_int_equal(config.dense_keys.count, 1);
    assert_string_equal(config.dense_keys.entry[0].key, "way");
    assert_int_equal(config.dense_keys.entry[0].where.line, 4);
    config_free(&config);
}

/* Two names of one key: the last one counts, whichever it is; both in one file are a slip. */
static void test_two_names(void **state)
{
    struct run_config config;
    char *one[] = {"dense.way=a", "model.dense_pattern.way=b"};
    char *other[] = {"model.dense_pattern.way=b", "dense.way=a"};
    (void)state;
    assert_ok(config_load(NULL, 2, one, 1, &config));
    assert_int_equal(config.dense_keys.count, 1);
    assert_string_equal(config.dense_keys.entry[0].value, "b");
    config_free(&config);
    assert_ok(config_load(NULL, 2, other, 1, &config));
    assert_string_equal(config.dense_keys.entry[0].value, "a");
    config_free(&config);
    assert_file_refused("model: {dense_pattern: {way: a}}\n"
                        "dense: {way: b}\n",
                        ":2:9: way is given at ", ":1:25 already");
}

static void test_arguments_override(void **state)
{
    (void)state;
    struct run_config config;
    char *args[] = {"seed=9",        "model.dim=128", "model.n_layer=3",
                    "dense.way=qkv", "seed=10",       "data.train=a=b"};

    file_write("seed: 7\nmodel: {dim: 64}\ndense: {way: qkvr}\n");
    assert_ok(config_load(path, 6, args, 2, &config));
    assert_int_equal(config.seed, 10);
    assert_string_equal(config.data.train, "a=b");
    assert_int_equal(config.model_keys.count, 2);
    assert_string_equal(config.model_keys.entry[0].value, "128");
    assert_string_equal(config.model_keys.entry[0].where.file, "");
    assert_int_equal(config.model_keys.entry[0].where.line, 3);
    assert_string_equal(config.model_keys.entry[1].key, "n_layer");
    assert_int_equal(config.dense_keys.count, 1);
    assert_string_equal(config.dense_keys.entry[0].value, "qkv");
    config_free(&config);
}

static void test_model_argument_replaces(void **state)
{
    (void)state;
    struct run_config config;
    char *args[] = {"model.n_layer=3", "model=other"};

    file_write("model: {dim: 64, n_layer: 2, n_head: 4}\n");
    assert_ok(config_load(path, 2, args, 2, &config));
    assert_string_equal(config.model, "other");
    assert_int_equal(config.model_keys.count, 1);
    assert_string_equal(config.model_keys.entry[0].value, "3");
    config_free(&config);
}

static void test_names_refused(void **state)
{
    (void)state;
    assert_file_refused("seed: 1\nsede: 2\n", ":2:1: ", "unknown key sede; did you mean seed?");
    assert_file_refused("parallel:\n  microbatch: 2\n", ":2:3: ", "parallel.microbatches?");
    assert_file_refused("pp: 2\n", ":1:1: ", "did you mean parallel.pp?");
    assert_file_refused("learning_rate_of_adam: 2\n", ":1:1: ", "; `muddpipe --help-config` lists");
    assert_file_refused("paralel: {pp: 2}\n", ":1:1: ", "unknown group paralel; the groups are");
    assert_file_refused("optimiser:\n  lr: 1\n", ":1:1: ", "unknown group optimiser");
    assert_file_refused("parallel: 4\n", ":1:1: ", "parallel is a group");
    assert_file_refused("sede: ~\n", ":1:1: ", "did you mean seed?");
    assert_file_refused("seed: {a: 1}\n", ":1:1: ", "seed takes a value, not keys");
}

static void test_values_refused(void **state)
{
    (void)state;
    assert_file_refused("seed: one\n",
                        ":1:7: ", "seed must be an integer of at least 0, not 'one'");
    assert_file_refused("seed: -1\n", ":1:7: ", "not '-1'");
    assert_file_refused("seed: 1.5\n", ":1:7: ", "an integer");
    assert_file_refused("seed: 99999999999999999999\n",
                        ":1:7: ", "an integer of at most 9223372036854775807, not");
    assert_file_refused("optimizer: {lr: 1e30}\n",
                        ":1:17: ", "a number of at most 9.223372037e+18, not '1e30'");
    assert_file_refused("optimizer: {lr: -1e30}\n", ":1:17: ", "a number of at least 0, not");
    assert_file_refused("optimizer: {lr: 1e400}\n",
                        ":1:17: ", "a finite number of at least 0, not '1e400'");
    assert_file_refused("seed: ' 1'\n", ":1:7: ", "an integer");
    assert_file_refused("seed: [1]\n", ":1:7: ", "takes one value, not a list");
    assert_file_refused("parallel:\n  prefetch: 65\n", ":2:13: ", "an integer from 0 to 64");
    assert_file_refused("optimizer: {steps: 0}\n", ":1:20: ", "an integer of at least 1");
    assert_file_refused("optimizer: {lr: nan}\n", ":1:17: ", "a number of at least 0");
    assert_file_refused("optimizer: {lr: inf}\n", ":1:17: ", "a number");
    assert_file_refused("optimizer: {beta1: 1.1}\n", ":1:20: ", "of at least 0 and below 1");
    assert_file_refused("optimizer: {beta1: 1}\n", ":1:20: ", "below 1 (at 1 the moment");
    assert_file_refused("optimizer: {beta2: 1.0}\n", ":1:20: ", "below 1 (at 1 the moment");
    assert_file_refused("optimizer: {beta2: 0.99999999999}\n", ":1:20: ", "below 1 (");
    assert_file_refused("optimizer: {eps: 0}\n", ":1:18: ", "above 0 and at most 1 (a weight");
    assert_file_refused("optimizer: {eps: 1e-60}\n", ":1:18: ", "above 0");
    assert_file_refused("optimizer: {eps: 2}\n", ":1:18: ", "at most 1");
    assert_file_refused("optimizer: {lr: fast}\n", ":1:17: ", "not 'fast'");
    assert_file_refused("parallel: {schedule: 1F1B}\n",
                        ":1:22: ", "one of gpipe|1f1b|interleaved|zb-h1|zb-v");
    assert_file_refused("parallel: {schedule: gp}\n", ":1:22: ", "not 'gp'");
    assert_file_refused("parallel: {schedule: gp}\n", ":1:22: ", "or the path of a file");
    assert_file_refused("parallel: {partition: [a, [b]]}\n", ":1:27: ", "only hold plain values");
}

static void test_yaml_refused(void **state)
{
    (void)state;
    assert_file_refused("seed: 1\nseed: 2\n", ":2:1: ", "was given before, in line 1");
    assert_file_refused("data: {}\nseed: 2\ndata: {}\n", ":3:1: ", "in line 1");
    assert_file_refused("parallel: {pp: 1}\nparallel.pp: 2\n", ":2:1: ", "in line 1");
    assert_file_refused("seed: &x 1\n", ":1:7: ", "anchors");
    assert_file_refused("seed: *x\n", ":1:7: ", "aliases");
    assert_file_refused("data: &d {}\n", ":1:7: ", "anchors");
    assert_file_refused("data:\n\ttrain: x\n", ":2:1: ", "a tab? indent with spaces");
    assert_file_refused("data: {train: x\nseed: 1\n", ":", "not YAML");
    assert_file_refused("data:\n  train: x\n seed: 1\n", ":3:2: ", "not YAML");
    assert_file_refused("- a\n", ":1:1: ", "must be a mapping");
    assert_file_refused("hello\n", ":1:1: ", "must be a mapping");
    assert_file_refused("seed: 1\n---\nseed: 2\n", ":2:1: ", "a second document");
    assert_file_refused("? [a]\n: 1\n", ":1:3: ", "a key must be a word");
    assert_file_refused("model: {'a: b': 1}\n", ":1:9: ", "'a: b' is not a key");
    assert_file_refused("seed: \"\\0\"\n", ":1:7: ", "NUL");
    assert_file_refused("data: {train: \"\xff\"}\n", ": ", "UTF-8");
}

static void test_long_texts_refused(void **state)
{
    (void)state;
    char text[10000];

    snprintf(text, sizeof text, "data: {train: %09000d}\n", 1);
    assert_file_refused(text, ":1:15: ", "longer than 8191 bytes");
    snprintf(text, sizeof text, "model: {a%0200d: 1}\n", 1);
    assert_file_refused(text, ":1:9: ", "longer than 95 bytes");
    snprintf(text, sizeof text, "model: {a%080d: {b%080d: 1}}\n", 1, 1);
    assert_file_refused(text, ":1:93: ", "too long or too deep");
    assert_file_refused("model: {a: {b: {c: {d: {e: {f: {g: {h: {i: 1}}}}}}}}}\n",
                        ":1:37: ", "too deep");
}

static void test_files_refused(void **state)
{
    (void)state;
    struct run_config config;
    char lines[512];

    log_capture(lines, sizeof lines);
    assert_status(config_load("/nonexistent.yaml", 0, NULL, 0, &config), STATUS_IO);
    log_capture(NULL, 0);
    assert_string_equal(lines, "/nonexistent.yaml: cannot open: No such file or directory\n");
}

static void test_empty_file(void **state)
{
    (void)state;
    struct run_config config;

    load("", &config);
    config_free(&config);
    load("# only a comment\n", &config);
    config_free(&config);
    load("---\nseed: 3\n...\n", &config);
    assert_int_equal(config.seed, 3);
    config_free(&config);
}

static void test_arguments_refused(void **state)
{
    (void)state;
    assert_argument_refused("seed", "argument 4: 'seed' is not of the form key.path=value");
    assert_argument_refused("=1", "argument 4: '=1' is not of the form");
    assert_argument_refused("sed=1", "argument 4: unknown key sed; did you mean seed?");
    assert_argument_refused("seed=", "argument 4: seed must be an integer of at least 0, not ''");
    assert_argument_refused("parallel=4", "argument 4: parallel is a group");
    assert_argument_refused("dense=x", "argument 4: dense is a group");
    assert_argument_refused("model.=4", "argument 4: '' is not a key");
    assert_argument_refused("dense.a b=4", "argument 4: 'a b' is not a key");
    assert_argument_refused("parallel.schedule=zb", "one of gpipe|1f1b|interleaved|zb-h1|zb-v, or");
}

static void assert_same_entries(const struct config_entries *a, const struct config_entries *b)
{
    assert_int_equal(a->count, b->count);
    for (size_t i = 0; i < a->count; i++) {
        assert_string_equal(a->entry[i].key, b->entry[i].key);
        assert_string_equal(a->entry[i].value, b->entry[i].value);
    }
}

static void assert_round_trip(const char *text)
{
    struct run_config config, again;
    char first[512], second[512];

    load(text, &config);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    config_print(&config, file);
    assert_int_equal(fclose(file), 0);
    assert_ok(config_load(path, 0, NULL, 0, &again));

    for (size_t i = 0; i < config_options_count; i++) {
        option_print(&config_options[i], &config, first, sizeof first);
        option_print(&config_options[i], &again, second, sizeof second);
        assert_string_equal(first, second);
    }
    assert_true(config.optimizer.lr == again.optimizer.lr);
    assert_same_entries(&config.model_keys, &again.model_keys);
    assert_same_entries(&config.dense_keys, &again.dense_keys);
    config_free(&config);
    config_free(&again);
}

static void test_round_trip(void **state)
{
    (void)state;
    assert_round_trip("");
    assert_round_trip("model: {dim: 64, dense_pattern: {way: qkvr}, act: null, s: 'a: b # c'}\n"
                      "seed: 9223372036854775807\noptimizer: {lr: 0.1234567890123456789}\n");
    assert_round_trip("model: 'null'\nmodel.dim: 5\ndense: {a: '', b: '~', c: '[x]'}\n"
                      "parallel: {partition: [1, 2]}\n");
    assert_round_trip("data: {train: \"q\\\"b\\\\n\\n\\x01 \xc3\xa9\", valid: '- x'}\n"
                      "logging: {sample_prompt: 'Once upon a time: '}\n");
}

static void test_help_names_every_key(void **state)
{
    (void)state;
    char *text = NULL;
    size_t size = 0;
    FILE *file = open_memstream(&text, &size);

    option_help(config_options, config_options_count, "", file);
    assert_int_equal(fclose(file), 0);
    for (size_t i = 0; i < config_options_count; i++) {
        assert_non_null(strstr(text, config_options[i].name));
        assert_non_null(strstr(text, config_options[i].help));
    }
    free(text);
}

struct flags {
    bool on;
    double scale;
};

static void test_own_table(void **state)
{
    (void)state;
    static const struct option table[] = {
        {.name = "on", .type = OPTION_BOOL, .offset = offsetof(struct flags, on), .help = ""},
        {.name = "scale",
         .type = OPTION_REAL,
         .offset = offsetof(struct flags, scale),
         .min = -1,
         .max = 1,
         .help = ""},
    };
    struct location where = {.line = 1};
    struct flags flags = {0};
    char lines[256], text[64];

    assert_ok(option_set(table, 2, &flags, "model.", "on", "Yes", &where));
    assert_true(flags.on);
    assert_ok(option_set(table, 2, &flags, "model.", "on", "off", &where));
    assert_false(flags.on);
    assert_ok(option_set(table, 2, &flags, "model.", "scale", "0.1", &where));
    assert_string_equal(option_print(&table[1], &flags, text, sizeof text), "0.1");
    log_capture(lines, sizeof lines);
    assert_status(option_set(table, 2, &flags, "model.", "scal", "1", &where), STATUS_INVALID);
    assert_status(option_set(table, 2, &flags, "model.", "on", "maybe", &where), STATUS_INVALID);
    log_capture(NULL, 0);
    assert_string_equal(lines, "argument 1: unknown key model.scal; did you mean model.scale?\n"
                               "argument 1: model.on must be true or false, not 'maybe'\n");
}

int main(void)
{
    option_names_set("parallel.schedule", "gpipe|1f1b|interleaved|zb-h1|zb-v");
    option_names_set("parallel.transport", "auto|ipc|ucx|nccl|mpi|threads");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_null),
        cmocka_unit_test(test_model_mapping),
        cmocka_unit_test(test_two_names),
        cmocka_unit_test(test_arguments_override),
        cmocka_unit_test(test_model_argument_replaces),
        cmocka_unit_test(test_names_refused),
        cmocka_unit_test(test_values_refused),
        cmocka_unit_test(test_yaml_refused),
        cmocka_unit_test(test_long_texts_refused),
        cmocka_unit_test(test_files_refused),
        cmocka_unit_test(test_empty_file),
        cmocka_unit_test(test_arguments_refused),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_help_names_every_key),
        cmocka_unit_test(test_own_table),
    };
    return cmocka_run_group_tests(tests, file_create, file_remove);
}
