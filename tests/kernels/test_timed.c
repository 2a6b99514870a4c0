/* test_timed.c - a timed table has every op, calls the real one, and records it. */
#include "tests/kernels/kit.h"

#include "base/timeline.h"

/* The ops are what follows `workspace`. */
static void test_every_op_is_there(void **state)
{
    (void)state;
    const struct kernels *real;
    struct kernels timed;
    assert_int_equal(kernels_cpu(&real), STATUS_OK);
    kernels_time(real, &timed);
    assert_string_equal(timed.name, real->name);
    assert_true(timed.workspace == real->workspace);

    size_t first = offsetof(struct kernels, workspace) / sizeof(void *) + 1;
    size_t last = sizeof(struct kernels) / sizeof(void *);
    for (size_t i = first; i < last; i++) {
        void *mine, *theirs;
        memcpy(&mine, (char *)&timed + i * sizeof mine, sizeof mine);
        memcpy(&theirs, (const char *)real + i * sizeof theirs, sizeof theirs);
        if (!mine || mine == theirs) {
            fail_msg("op %zu of %zu is not timed", i - first, last - first);
        }
    }
}

static void test_same_result_and_a_span(void **state)
{
    (void)state;
    enum { N = 3, I = 5, O = 7 };
    const struct kernels *real;
    struct kernels timed;
    struct timeline *timeline;
    struct kernel_ctx ctx = {.threads = 1};
    float *x = kit_numbers(N * I, 1), *weight = kit_numbers(O * I, 2), *bias = kit_numbers(O, 3);
    float *plain = kit_floats(N * O, 0), *recorded = kit_floats(N * O, 0);

    assert_int_equal(kernels_cpu(&real), STATUS_OK);
    assert_int_equal(timeline_create(NULL, 4, &timeline), STATUS_OK);
    assert_int_equal(timeline_start(timeline), STATUS_OK);
    kernels_time(real, &timed);
    real->linear_forward(&ctx, plain, x, weight, bias, N, I, O);
    ctx.timeline = timeline;
    ctx.timed = real;
    timed.linear_forward(&ctx, recorded, x, weight, bias, N, I, O);
    assert_memory_equal(plain, recorded, N * O * sizeof *plain);

    assert_int_equal(timeline_resolve(timeline), STATUS_OK);
    assert_int_equal(timeline_count(timeline), 1);
    assert_string_equal(timeline_span(timeline, 0)->name, "linear_forward");
    assert_string_equal(timeline_span(timeline, 0)->category, "gemm forward");
    timeline_destroy(timeline);
    kit_free(x, 0);
    kit_free(weight, 0);
    kit_free(bias, 0);
    kit_free(plain, 0);
    kit_free(recorded, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_op_is_there),
        cmocka_unit_test(test_same_result_and_a_span),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
