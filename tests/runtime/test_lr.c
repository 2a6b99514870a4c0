/* test_lr.c - learning rates and batch sizes by step. */
#include "tests/test.h"

#include <math.h>

#include "runtime/runtime.h"

static struct lr_args args_of(int schedule, int64_t steps)
{
    return (struct lr_args){.schedule = schedule,
                            .steps = steps,
                            .lr = 1.0,
                            .min_lr_ratio = 0.1,
                            .warmup = 0.1,
                            .decay = 0.2};
}

static void assert_near(double value, double expected)
{
    if (!(fabs(value - expected) < 1e-12)) {
        fail_msg("%.15g instead of %.15g", value, expected);
    }
}

/* Every schedule rises linearly over the warm-up. */
static void test_warm_up(void **state)
{
    (void)state;
    for (int schedule = LR_COSINE; schedule <= LR_WSD; schedule++) {
        struct lr_args args = args_of(schedule, 100);
        for (int64_t step = 1; step <= 10; step++) {
            assert_near(lr_at(&args, step), (double)step / 10);
        }
    }
}

static void test_shapes(void **state)
{
    struct lr_args cosine = args_of(LR_COSINE, 100), linear = args_of(LR_LINEAR, 100);
    struct lr_args constant = args_of(LR_CONSTANT, 100), wsd = args_of(LR_WSD, 100);
    (void)state;
    assert_near(lr_at(&cosine, 55), 0.55); /* half way: half of the distance */
    assert_near(lr_at(&cosine, 100), 0.1);
    assert_near(lr_at(&linear, 28), 1 - 0.9 * 18 / 90);
    assert_near(lr_at(&linear, 100), 0.1);
    assert_near(lr_at(&constant, 11), 1);
    assert_near(lr_at(&constant, 100), 1);
    assert_near(lr_at(&wsd, 80), 1);
    assert_near(lr_at(&wsd, 90), 0.55);
    assert_near(lr_at(&wsd, 100), 0.1);
}

/* Any number of steps from 1, and never more than the peak or less than its share. */
static void test_few_steps(void **state)
{
    (void)state;
    for (int schedule = LR_COSINE; schedule <= LR_WSD; schedule++) {
        for (int64_t steps = 1; steps < 40; steps++) {
            struct lr_args args = args_of(schedule, steps);
            for (int64_t step = 1; step <= steps; step++) {
                double lr = lr_at(&args, step);
                bool rising = step <= (int64_t)floor(args.warmup * (double)steps);
                assert_true(lr <= 1 && lr > 0 && (rising || lr >= 0.1 - 1e-12));
            }
        }
    }
}

static void test_ramp(void **state)
{
    (void)state;
    assert_int_equal(microbatches_at(1, 100, 0, 8, 0.5), 8); /* no ramp */
    assert_int_equal(microbatches_at(1, 100, 2, 8, 0.5), 2);
    assert_int_equal(microbatches_at(50, 100, 2, 8, 0.5), 7);
    assert_int_equal(microbatches_at(51, 100, 2, 8, 0.5), 8);
    assert_int_equal(microbatches_at(1, 100, 9, 8, 0.5), 8);
    assert_int_equal(microbatches_at(1, 1, 2, 8, 0.5), 8);
    for (int64_t step = 2; step <= 100; step++) {
        assert_true(microbatches_at(step, 100, 1, 16, 0.7) >=
                    microbatches_at(step - 1, 100, 1, 16, 0.7));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_warm_up),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_few_steps),
        cmocka_unit_test(test_ramp),
    };
    return cmocka_run_group_tests_name("runtime/lr", tests, NULL, NULL);
}
