/* test_trace.c - categories add up to the elapsed time. */
#include "tests/test.h"

#include <time.h>

#include "base/trace.h"

static void sleep_ms(long ms)
{
    struct timespec time = {.tv_nsec = ms * 1000000};
    nanosleep(&time, NULL);
}

static int64_t trace_total(const struct trace *trace)
{
    int64_t total = 0;
    for (int i = 0; i < TRACE_CATEGORIES; i++) {
        total += trace->ns[i];
    }
    return total;
}

static void test_sum_is_elapsed(void **state)
{
    (void)state;
    struct trace trace;

    trace_reset(&trace);
    int64_t begin = trace.last;
    sleep_ms(2);
    assert_int_equal(trace_switch(&trace, TRACE_GEMM), TRACE_OTHER);
    sleep_ms(3);
    assert_int_equal(trace_switch(&trace, TRACE_WAIT), TRACE_GEMM);
    assert_int_equal(trace_switch(&trace, TRACE_OTHER), TRACE_WAIT);
    assert_true(trace.ns[TRACE_OTHER] >= 2000000);
    assert_true(trace.ns[TRACE_GEMM] >= 3000000);
    assert_int_equal(trace_total(&trace), trace.last - begin);
    assert_true(trace_now() >= trace.last);
}

static void test_move_keeps_the_sum(void **state)
{
    (void)state;
    struct trace trace = {.ns = {[TRACE_WAIT] = 50}};

    trace_move(&trace, TRACE_WAIT, TRACE_EXPOSED_DENSE, 20);
    assert_int_equal(trace.ns[TRACE_WAIT], 30);
    assert_int_equal(trace.ns[TRACE_EXPOSED_DENSE], 20);
    assert_int_equal(trace_total(&trace), 50);
}

static void test_null_does_nothing(void **state)
{
    (void)state;
    trace_reset(NULL);
    trace_switch(NULL, TRACE_GEMM);
    trace_move(NULL, TRACE_WAIT, TRACE_GEMM, 1);
}

static void test_names(void **state)
{
    (void)state;
    for (int i = 0; i < TRACE_CATEGORIES; i++) {
        assert_string_not_equal(trace_category_name((enum trace_category)i), "unknown");
    }
    assert_string_equal(trace_category_name(TRACE_CATEGORIES), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sum_is_elapsed),
        cmocka_unit_test(test_move_keeps_the_sum),
        cmocka_unit_test(test_null_does_nothing),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
