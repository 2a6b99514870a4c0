/* test_hf.c - official weights into a part and out again; files that do not fit the model. */
#include "tests/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "model/model.h"

static char message[4096], file_name[64];

struct fixture {
    struct model *model;
    struct part *part;
};

static int setup(void **state)
{
    (void)state;
    snprintf(file_name, sizeof file_name, "test_hf.%d.safetensors", (int)getpid());
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(file_name);
    return 0;
}

static void open_case(const char *folder, struct fixture *out)
{
    struct model_config config;
    const struct kernels *kernels = NULL;

    assert_ok(model_config_load(folder, NULL, NULL, &config));
    assert_ok(model_create(&config, &(struct model_use){.B = 1, .T = 8}, &out->model));
    assert_ok(kernels_cpu(&kernels));
    int units = out->model->graph.units, unit[units];
    for (int u = 0; u < units; u++) {
        unit[u] = u;
    }
    struct part_stage all = {.unit = unit, .units = units, .frames = 1};
    struct part_options options = {
        .model = out->model, .kernels = kernels, .stage = &all, .stages = 1, .threads = 1};
    assert_ok(part_create(&options, &out->part));
}

static void close_case(struct fixture *fixture)
{
    part_destroy(fixture->part);
    model_destroy(fixture->model);
}

/* Every tensor of `file` is in the part, bit for bit. */
static void assert_same(const struct fixture *fixture, const struct tensor_file *file)
{
    assert_int_equal(tensor_file_count(file), fixture->model->params);
    for (int p = 0; p < fixture->model->params; p++) {
        const struct param *param = &fixture->model->param[p];
        struct tensor tensor;
        assert_true(tensor_file_find(file, param->name, &tensor));
        assert_memory_equal(tensor.data, part_values(fixture->part, STORE_WEIGHTS, p),
                            (size_t)param->count * sizeof(float));
    }
}

static void export(const struct fixture *fixture, const struct tensor_entry *entries, int count)
{
    assert_ok(tensor_writer_create(file_name, entries, count));
    for (int p = 0; p < count; p++) {
        assert_ok(tensor_writer_write(file_name, entries, count, p,
                                      part_values(fixture->part, STORE_WEIGHTS, p)));
    }
}

static void test_round_trip(void **state)
{
    static const char *const cases[] = {"muddformer-tiny", "muddformer-tiny-noqk",
                                        "muddformer-k2-tiny", "transformerpp-tiny"};
    char folder[512];

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct fixture fixture;
        struct tensor_file *file = NULL;
        struct tensor_entry *entries = NULL;
        snprintf(folder, sizeof folder, "%s/golden/%s", TEST_FOLDER, cases[i]);
        open_case(folder, &fixture);
        assert_ok(tensor_file_open(folder, &file));
        assert_ok(part_import(fixture.part, file));
        assert_same(&fixture, file);
        tensor_file_close(file);
        assert_ok(model_entries(fixture.model, &entries));
        export(&fixture, entries, fixture.model->params);
        free(entries);
        assert_ok(tensor_file_open(file_name, &file));
        assert_same(&fixture, file);
        tensor_file_close(file);
        close_case(&fixture);
    }
}

static void assert_refused(const struct fixture *fixture, const struct tensor_entry *entries,
                           int count, const char *words)
{
    struct tensor_file *file = NULL;

    assert_ok(tensor_writer_create(file_name, entries, count));
    assert_ok(tensor_file_open(file_name, &file));
    message[0] = '\0';
    log_capture(message, sizeof message);
    status_t status = part_import(fixture->part, file);
    log_capture(NULL, 0);
    tensor_file_close(file);
    assert_int_equal(status, STATUS_INVALID);
    if (strstr(message, words) == NULL) {
        fail_msg("'%s' is missing in: %s", words, message);
    }
}

static void test_refused(void **state)
{
    struct fixture fixture;
    struct tensor_entry *entries = NULL;

    (void)state;
    open_case(TEST_FOLDER "/golden/muddformer-tiny", &fixture);
    assert_ok(model_entries(fixture.model, &entries));
    int count = fixture.model->params;
    assert_refused(&fixture, entries, count - 1, "is missing");
    strcpy(entries[1].name, "layers.0.stranger");
    assert_refused(&fixture, entries, count, "layers.0.stranger is none of this model's");
    free(entries);
    assert_ok(model_entries(fixture.model, &entries));
    entries[0].shape[0]++;
    assert_refused(&fixture, entries, count,
                   "tok_embeddings.weight has shape [65, 32]; the model's has [64, 32]");
    free(entries);
    close_case(&fixture);
}

/* Weights that nothing trains may be absent. */
static void test_untrained_may_be_absent(void **state)
{
    struct fixture fixture;
    struct tensor_entry *entries = NULL;
    struct tensor_file *file = NULL;
    int kept = 0;

    (void)state;
    open_case(TEST_FOLDER "/golden/transformerpp-tiny", &fixture);
    assert_ok(model_entries(fixture.model, &entries));
    for (int p = 0; p < fixture.model->params; p++) {
        if (fixture.model->param[p].trained) {
            entries[kept++] = entries[p];
        }
    }
    assert_true(kept < fixture.model->params);
    assert_ok(tensor_writer_create(file_name, entries, kept));
    assert_ok(tensor_file_open(file_name, &file));
    assert_ok(part_import(fixture.part, file));
    tensor_file_close(file);
    free(entries);
    close_case(&fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_untrained_may_be_absent),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
