/* test_rng.c - known answers, and moments and quantiles of many numbers. */
#include "tests/test.h"

#include <math.h>

#include "base/rng.h"

enum { COUNT = 200000 };

/* Words 0 and 1 of the known answers that come with Random123 (kat_vectors, philox4x32 10). */
static void test_philox_known_answers(void **state)
{
    (void)state;
    assert_int_equal(rng_bits(0, 0, 0), 0xe169c58d6627e8d5u);
    assert_int_equal(rng_bits(~0ull, ~0ull, ~0ull), 0x41c83b0e408f276du);
    assert_int_equal(rng_bits(0x299f31d0a4093822u, 0x0370734413198a2eu, 0x85a308d3243f6a88u),
                     0x94fdccebd16cfe09u);
}

static void test_stream_is_fnv1a(void **state)
{
    (void)state;
    assert_int_equal(rng_stream(""), 0xcbf29ce484222325u);
    assert_int_equal(rng_stream("a"), 0xaf63dc4c8601ec8cu);
    assert_int_equal(rng_stream("foobar"), 0x85944171f73967e8u);
}

static void test_uniform(void **state)
{
    (void)state;
    double sum = 0, squares = 0, low = 1, high = 0;

    for (uint64_t i = 0; i < COUNT; i++) {
        double u = rng_uniform(1, 2, i);
        assert_true(u > 0.0 && u < 1.0);
        sum += u;
        squares += u * u;
        low = fmin(low, u);
        high = fmax(high, u);
    }
    double mean = sum / COUNT;
    assert_true(fabs(mean - 0.5) < 0.003);
    assert_true(fabs(squares / COUNT - mean * mean - 1.0 / 12) < 0.002);
    assert_true(low < 1e-4 && high > 1 - 1e-4);
}

static void test_normal_moments(void **state)
{
    (void)state;
    double sum[5] = {0};

    for (uint64_t i = 0; i < COUNT; i++) {
        double x = rng_normal(1, rng_stream("wte.weight"), i), power = x;
        for (int k = 1; k <= 4; k++, power *= x) {
            sum[k] += power;
        }
    }
    assert_true(fabs(sum[1] / COUNT) < 0.01);
    assert_true(fabs(sum[2] / COUNT - 1) < 0.015);
    assert_true(fabs(sum[3] / COUNT) < 0.03);
    assert_true(fabs(sum[4] / COUNT - 3) < 0.1);
}

/* The normal is the quantile of the uniform: its own distribution function must lead back. */
static void test_normal_is_the_quantile(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < COUNT; i++) {
        double u = rng_uniform(7, 9, i), x = rng_normal(7, 9, i);
        double back = x < 0 ? 0.5 * erfc(-x / sqrt(2)) : 1 - 0.5 * erfc(x / sqrt(2));
        double tail = fmin(u, 1 - u);
        assert_true(fabs(back - u) < 1e-11 * tail + 3e-16);
    }
}

static void test_below(void **state)
{
    (void)state;
    int counts[7] = {0};

    for (uint64_t i = 0; i < 70000; i++) {
        uint64_t value = rng_below(3, 4, i, 7);
        assert_true(value < 7);
        counts[value]++;
    }
    for (int k = 0; k < 7; k++) {
        assert_true(counts[k] > 9500 && counts[k] < 10500);
    }
    assert_int_equal(rng_below(3, 4, 5, 1), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_known_answers),
        cmocka_unit_test(test_stream_is_fnv1a),
        cmocka_unit_test(test_uniform),
        cmocka_unit_test(test_normal_moments),
        cmocka_unit_test(test_normal_is_the_quantile),
        cmocka_unit_test(test_below),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
