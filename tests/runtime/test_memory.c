/* test_memory.c - what the plan says a rank holds is what it holds, to the byte: for every kind of model,
 * precision and policy of recomputation, for training and for evaluation; and the policies do save.
 */
#include "tests/test.h"

#include "shapes.h"

static const char *const policy[] = {"none", "selective", "full"};
enum { POLICIES = sizeof policy / sizeof policy[0] };

/* bf16 has operations on GPUs only; to lay out its memory none are run. */
static const struct kernels *table_of(enum dtype dtype)
{
    static struct kernels rounded;
    const struct kernels *cpu;
    assert_ok(kernels_cpu(&cpu));
    rounded = *cpu;
    rounded.dtype = DTYPE_BF16;
    return dtype == DTYPE_BF16 ? &rounded : cpu;
}

/* Frames and backward memory of a rank, both as predicted. */
static int64_t compare_rank(const struct model *model, const struct plan *plan, int rank)
{
    struct part_stage stage[plan->stages];
    struct plan_memory predicted;
    struct part_memory used;
    struct part *part;
    struct part_options options = {.model = model,
                                   .kernels = table_of(model->dtype),
                                   .stage = stage,
                                   .stages = part_stages_of(plan, rank, stage),
                                   .training = plan->training,
                                   .threads = 1};
    assert_ok(part_create(&options, &part));
    int64_t workspace;
    assert_ok(part_workspace(&options, &workspace));
    part_memory(part, &used);
    assert_int_equal(used.workspace, workspace);
    plan_memory(plan, rank, &predicted);
    assert_int_equal(used.parameters, predicted.parameters);
    assert_int_equal(used.gradients, predicted.gradients);
    assert_int_equal(used.optimizer, predicted.optimizer);
    assert_int_equal(used.frames, predicted.frames);
    assert_int_equal(used.backward, predicted.backward);
    part_destroy(part);
    return used.frames + used.backward;
}

static int64_t compare_schedule(const struct shape *shape, int ranks, const char *recompute,
                                const char *precision, const char *schedule, bool training)
{
    char text[3][64];
    char *args[] = {text[0], text[1], text[2]};
    struct run_config run;
    struct model_config config;
    struct model *model;
    struct plan *plan;
    snprintf(text[0], sizeof text[0], "parallel.recompute=%s", recompute);
    snprintf(text[1], sizeof text[1], "precision=%s", precision);
    snprintf(text[2], sizeof text[2], "parallel.schedule=%s", schedule);
    shape_load(shape, 3, args, &run, &config);
    struct model_use use = model_use_of(&run, shape->B, shape->T);
    assert_ok(model_create(&config, &use, &model));
    struct plan_options options = plan_options_of(&run, ranks, shape->microbatches, training);
    assert_ok(plan_create(&model->graph, &options, &plan));
    int64_t bytes = 0;
    for (int rank = 0; rank < ranks; rank++) {
        bytes += compare_rank(model, plan, rank);
    }
    plan_destroy(plan);
    model_destroy(model);
    config_free(&run);
    return bytes;
}

static int64_t compare_ranks(const struct shape *shape, int ranks, const char *recompute,
                             const char *precision, bool training)
{
    return compare_schedule(shape, ranks, recompute, precision, "1f1b", training);
}

static void compare_shapes(const char *precision)
{
    for (int s = 0; s < SHAPES; s++) {
        for (int ranks = 1; ranks <= 3; ranks++) {
            int64_t bytes[POLICIES], evaluation[POLICIES];
            for (int p = 0; p < POLICIES; p++) {
                bytes[p] = compare_ranks(&shapes[s], ranks, policy[p], precision, true);
                evaluation[p] = compare_ranks(&shapes[s], ranks, policy[p], precision, false);
                assert_true(evaluation[p] < bytes[p]);
                if (ranks == 1) { /* where cuts lie depends on what is computed again */
                    assert_int_equal(evaluation[p], evaluation[0]);
                }
            }
            /* With one microbatch in flight, what B forms again for W takes as much as a frame would have:
             * the memory that units share is then on top. */
            int64_t selective = bytes[0] + (ranks == 1 ? evaluation[0] : 0);
            if (bytes[1] >= selective || bytes[2] >= bytes[0] || bytes[2] >= bytes[1]) {
                fail_msg("%s, %d ranks, %s: %lld, %lld and %lld bytes", shapes[s].name, ranks,
                         precision, (long long)bytes[0], (long long)bytes[1], (long long)bytes[2]);
            }
        }
    }
}

static void test_float32(void **state)
{
    (void)state;
    compare_shapes("float32");
}

static void test_bf16(void **state)
{
    (void)state;
    compare_shapes("bf16");
}

/* Weights put off, and two stages a rank: as predicted with every policy. What full recomputation forms again
 * is kept from B to W there, and counted. */
static void test_schedules(void **state)
{
    static const char *const schedules[] = {"zb-h1", "interleaved", "zb-v"};
    (void)state;
    for (int s = 0; s < SHAPES; s++) {
        for (int i = 0; i < 3; i++) {
            for (int p = 0; p < POLICIES; p++) {
                compare_schedule(&shapes[s], 2, policy[p], "bf16", schedules[i], true);
                compare_schedule(&shapes[s], 2, policy[p], "float32", schedules[i], p == 0);
            }
        }
    }
}

/* 16 bytes a parameter in float32: weight, gradient, moments. In bf16 two more, for the rounded copy;
 * for evaluation that copy alone. */
static void test_bytes_of_parameters(void **state)
{
    static const struct {
        const char *precision;
        int training, evaluation;
    } cases[] = {{"float32", 16, 4}, {"bf16", 18, 2}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char precision[64];
        char *args[] = {precision};
        struct run_config run;
        struct model_config config;
        struct model *model;
        snprintf(precision, sizeof precision, "precision=%s", cases[i].precision);
        shape_load(&shapes[0], 1, args, &run, &config);
        struct model_use use = model_use_of(&run, 1, 16);
        assert_ok(model_create(&config, &use, &model));
        int64_t room = 0;
        for (int p = 0; p < model->params; p++) {
            int64_t piece = ARENA_ALIGN / (int64_t)dtype_size(model->dtype);
            room += (model->param[p].count + piece - 1) / piece * piece;
        }
        for (int training = 0; training < 2; training++) {
            struct plan_options options = plan_options_of(&run, 1, 2, training);
            struct plan *plan;
            struct plan_memory memory;
            assert_ok(plan_create(&model->graph, &options, &plan));
            plan_memory(plan, 0, &memory);
            assert_int_equal(memory.parameters + memory.gradients + memory.optimizer,
                             room * (training ? cases[i].training : cases[i].evaluation));
            plan_destroy(plan);
        }
        model_destroy(model);
        config_free(&run);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_float32),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_schedules),
        cmocka_unit_test(test_bytes_of_parameters),
    };
    return cmocka_run_group_tests_name("runtime/memory", tests, NULL, NULL);
}
