/* test_straggler.c - who is told to have become slower, and who is not. */
#include "tests/test.h"

#include <string.h>

#include "runtime/straggler.h"

#define SECONDS 0.7 /* so that a window is 16 steps */

static char line[240];

/* `count` steps from *step on, rank r taking seconds[r] (1 + noise); the last line that was said. */
static const char *steps(struct straggler *straggler, int64_t *step, int count, int ranks,
                         const double *seconds)
{
    static char last[240];
    last[0] = '\0';
    for (int i = 0; i < count; i++, (*step)++) {
        for (int r = 0; r < ranks; r++) {
            straggler_add(straggler, r,
                          seconds[r] * (1 + 0.02 * (double)((*step * 7 + r * 3) % 5)));
        }
        straggler_step(straggler, *step, SECONDS, line, sizeof line);
        if (line[0]) {
            strcpy(last, line);
        }
    }
    return last;
}

static void told(void **state)
{
    (void)state;
    struct straggler *straggler;
    int64_t step = 1;
    const double even[] = {0.1, 0.3, 0.2, 0.25}, slow[] = {0.1, 0.3, 0.24, 0.25};
    const double all[] = {0.2, 0.6, 0.4, 0.5}, all_slow[] = {0.2, 0.6, 0.48, 0.5};
    assert_ok(straggler_create(4, 0.1, &straggler));
    assert_string_equal(steps(straggler, &step, 100, 4, even),
                        "");                                      /* stages that differ are none */
    assert_string_equal(steps(straggler, &step, 64, 4, all), ""); /* nor is what all lose */
    assert_non_null(strstr(steps(straggler, &step, 64, 4, all_slow), "rank 2 has become slower"));
    assert_string_equal(steps(straggler, &step, 64, 4, slow), ""); /* once */
    assert_non_null(strstr(steps(straggler, &step, 64, 4, even), "rank 2 is as quick"));
    assert_non_null(strstr(steps(straggler, &step, 16 * 20, 4, slow), "rank 2 has become slower"));
    straggler_destroy(straggler);
}

/* One slow step, or one slow window, is no straggler. */
static void not_told(void **state)
{
    (void)state;
    struct straggler *straggler;
    int64_t step = 1;
    const double even[] = {0.1, 0.3}, slow[] = {0.1, 3.0}, little[] = {0.1, 0.32};
    assert_ok(straggler_create(2, 0.1, &straggler));
    assert_string_equal(steps(straggler, &step, 4 + 32, 2, even), "");
    assert_string_equal(steps(straggler, &step, 16, 2, slow), "");
    assert_string_equal(steps(straggler, &step, 64, 2, even), "");
    assert_string_equal(steps(straggler, &step, 64, 2, little), "");
    assert_non_null(strstr(steps(straggler, &step, 64, 2, slow), "rank 1 has become slower"));
    straggler_destroy(straggler);
    assert_ok(straggler_create(2, 0.1, &straggler)); /* steps of a millisecond: 10 s are many */
    for (step = 1; step <= 9000; step++) {
        straggler_add(straggler, 0, 0.001);
        straggler_add(straggler, 1, step > 2000 && step < 5000 ? 0.005 : 0.001);
        straggler_step(straggler, step, 0.001, line, sizeof line);
        assert_string_equal(line, "");
    }
    straggler_destroy(straggler);
    assert_ok(straggler_create(1, 0.1, &straggler));
    assert_null(straggler);
    straggler_step(straggler, 1, SECONDS, line, sizeof line);
    assert_string_equal(line, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(told),
        cmocka_unit_test(not_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
