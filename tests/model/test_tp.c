/* test_tp.c - what parts of tensor parallelism have of parameters: every element once, in pieces of any size, whatever
 * the shares; what goes in comes out. */
#include "tests/test.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "model/model.h"

static struct model *open_model(const char *name, const struct model_use *use)
{
    char folder[512];
    struct model_config config;
    struct model *model;

    snprintf(folder, sizeof folder, TEST_FOLDER "/golden/%s-tiny", name);
    assert_ok(model_config_load(folder, NULL, NULL, &config));
    assert_ok(model_create(&config, use, &model));
    return model;
}

static struct part *open_part(const struct model *model, int share, int tp_rank)
{
    const struct kernels *kernels = NULL;
    struct part *part;
    int units = model->graph.units, unit[units];

    assert_ok(kernels_cpu(&kernels));
    for (int u = 0; u < units; u++) {
        unit[u] = u;
    }
    struct part_stage all = {.unit = unit, .units = units, .frames = 1, .backwards = 1};
    struct part_options options = {.model = model,
                                   .kernels = kernels,
                                   .stage = &all,
                                   .stages = 1,
                                   .training = true,
                                   .threads = 1,
                                   .share = share,
                                   .tp_rank = tp_rank};
    assert_ok(part_create(&options, &part));
    return part;
}

/* The value that tells an element of a parameter from all others of it. */
static float value_of(int64_t element)
{
    return (float)(element + 1);
}

static float *whole_values(const struct param *param)
{
    float *values = malloc((size_t)param->count * sizeof *values);

    assert_non_null(values);
    for (int64_t e = 0; e < param->count; e++) {
        values[e] = value_of(e);
    }
    return values;
}

/* Counts the elements that a part answers for, by its pieces, and looks whether they have their values. */
static void count_pieces(const struct part *part, int param, int64_t most, const struct param *of,
                         unsigned char *seen)
{
    struct piece piece;
    float values[256];

    for (int64_t at = 0; part_piece(part, STORE_WEIGHTS, param, most, &at, &piece);) {
        int64_t count = piece.here.count;
        assert_true(count > 0 && count <= most && piece.run > 0 && count % piece.run == 0);
        assert_ok(part_read(part, &piece.here, values));
        for (int64_t i = 0; i < count; i++) {
            int64_t element = piece.begin + i / piece.run * piece.stride + i % piece.run;
            assert_in_range(element, 0, of->count - 1);
            assert_true(values[i] == value_of(element));
            seen[element]++;
        }
    }
}

/* With all (tp_rank, share): each element of each parameter once. */
static void check_pieces(const char *name, int tp, int shares, int64_t most)
{
    struct model_use use = {.B = 2, .T = 8, .tp = tp, .shares = shares};
    struct model *model = open_model(name, &use);
    unsigned char *seen[model->params];

    for (int p = 0; p < model->params; p++) {
        seen[p] = calloc((size_t)model->param[p].count, 1);
        assert_non_null(seen[p]);
    }
    for (int i = 0; i < tp * shares; i++) {
        struct part *part = open_part(model, i / tp, i % tp);
        for (int p = 0; p < model->params; p++) {
            float *values = whole_values(&model->param[p]);
            assert_ok(part_write(part, STORE_WEIGHTS, p, values));
            free(values);
            count_pieces(part, p, most, &model->param[p], seen[p]);
        }
        part_destroy(part);
    }
    for (int p = 0; p < model->params; p++) {
        for (int64_t e = 0; e < model->param[p].count; e++) {
            if (seen[p][e] != 1) {
                fail_msg("%s, tp %d, %d shares: element %lld of %s is there %d times", name, tp,
                         shares, (long long)e, model->param[p].name, seen[p][e]);
            }
        }
        free(seen[p]);
    }
    model_destroy(model);
}

static void test_pieces(void **state)
{
    static const char *const names[] = {"muddformer", "muddpythia", "pythia", "transformerpp",
                                        "hyper-mhc"};

    (void)state;
    for (size_t n = 0; n < sizeof names / sizeof names[0]; n++) {
        check_pieces(names[n], 1, 1, 256);
        check_pieces(names[n], 2, 1, 256);
        check_pieces(names[n], 2, 3, 100);
        check_pieces(names[n], 2, 2, 7); /* less than a row of any part */
    }
    check_pieces("depth-attention", 4, 3, 256); /* a vocabulary of 67 */
}

/* What parts have, put together again, is what they were given. */
static void test_join(void **state)
{
    struct model_use use = {.B = 2, .T = 8, .tp = 4};
    struct model *model = open_model("depth-attention", &use);

    (void)state;
    for (int p = 0; p < model->params; p++) {
        const struct param *param = &model->param[p];
        float *values = whole_values(param), *out = calloc((size_t)param->count, sizeof *out);
        int64_t all = 0;
        assert_non_null(out);
        for (int r = 0; r < use.tp; r++) {
            struct part *part = open_part(model, 0, r);
            assert_ok(part_write(part, STORE_WEIGHTS, p, values));
            param_join(param, use.tp, r, part_values(part, STORE_WEIGHTS, p), out);
            all += param_local(param, use.tp, r);
            part_destroy(part);
        }
        assert_int_equal(all, param->split == SPLIT_NONE ? use.tp * param->count : param->count);
        assert_memory_equal(values, out, (size_t)param->count * sizeof *out);
        free(values);
        free(out);
    }
    model_destroy(model);
}

/* Initial values are those of one part. */
static void test_initial(void **state)
{
    struct model_use use = {.B = 2, .T = 8}, divided = {.B = 2, .T = 8, .tp = 2};
    struct model *model = open_model("muddformer", &use),
                 *other = open_model("muddformer", &divided);
    struct part *whole = open_part(model, 0, 0);

    (void)state;
    assert_ok(part_init_weights(whole, 7));
    for (int r = 0; r < divided.tp; r++) {
        struct part *part = open_part(other, 0, r);
        assert_ok(part_init_weights(part, 7));
        for (int p = 0; p < model->params; p++) {
            size_t bytes = (size_t)model->param[p].count * sizeof(float);
            const float *expected = part_values(whole, STORE_WEIGHTS, p);
            float *out = malloc(bytes);
            assert_non_null(out);
            memcpy(out, expected, bytes);
            param_join(&other->param[p], divided.tp, r, part_values(part, STORE_WEIGHTS, p), out);
            assert_memory_equal(out, expected, bytes);
            free(out);
        }
        part_destroy(part);
    }
    part_destroy(whole);
    model_destroy(model);
    model_destroy(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_join),
        cmocka_unit_test(test_initial),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
