/* test_gradient.c - every operation's value against a double reference, every gradient against that
 * reference's central differences, and proof that a wrong gradient is noticed. */
#include "tests/kernels/gradient.h"

static const double value_tolerance = 2e-6, gradient_tolerance = 5e-6;

/* Largest errors of one problem; true if both are within tolerance. */
static bool problem_holds(const struct trial *t, bool print)
{
    struct mirror m;
    char text[128];
    mirror_create(&m, t);
    t->op->reference(t->problem, m.in, m.out);
    double value = kit_error(t->out, m.out, t->outputs), gradient = 0;
    size_t samples = t->inputs > 8 ? 4 : 24;
    for (size_t i = 0; i < t->inputs; i++) {
        if (t->outputs * t->inputs < 100000) {
            gradient = fmax(gradient, gradient_error(&m, i, samples));
        }
        gradient = fmax(gradient, gradient_error_along(&m, i));
    }
    mirror_free(&m);
    if (print) {
        print_message("%-40s value %.1e gradient %.1e\n",
                      problem_print(t->problem, text, sizeof text), value, gradient);
    }
    return value <= value_tolerance && gradient <= gradient_tolerance;
}

static void table_check(const struct kernels *table)
{
    bool all = true;
    if (!table) {
        return;
    }
    print_message("%s\n", table->name);
    for (size_t i = 0; i < PROBLEMS; i++) {
        struct trial t;
        trial_create(&t, &problems[i], 0);
        trial_run(&t, table, 2);
        all = problem_holds(&t, true) && all;
        trial_free(&t);
    }
    assert_true(all);
}

static void test_default(void **state)
{
    (void)state;
    table_check(kit_table(NULL, NULL));
}

static void test_own_products(void **state)
{
    (void)state;
    table_check(kit_table(NULL, "own"));
}

/* A gradient that is off by 2e-5 of itself, or in one element, fails. */
static void test_notices(void **state)
{
    (void)state;
    const struct kernels *table = kit_table(NULL, "own");
    for (size_t i = 0; i < PROBLEMS; i++) {
        struct trial t;
        trial_create(&t, &problems[i], 0);
        if (t.outputs * t.inputs >= 10000) {
            trial_free(&t);
            continue;
        }
        trial_run(&t, table, 1);
        size_t largest = 0;
        for (size_t k = 0; k < t.sizes[0]; k++) {
            largest = fabsf(t.din[0][k]) > fabsf(t.din[0][largest]) ? k : largest;
        }
        float before = t.din[0][largest];
        if (fabsf(before) < 0.02f) { /* next to nothing: below the floor */
            trial_free(&t);
            continue;
        }
        t.din[0][largest] = before * 1.05f;
        bool noticed = !problem_holds(&t, false);
        t.din[0][largest] = before;
        for (size_t k = 0; k < t.sizes[0]; k++) {
            t.din[0][k] *= 1 + 2e-5f;
        }
        noticed = !problem_holds(&t, false) && noticed;
        trial_free(&t);
        if (!noticed) {
            char text[128];
            fail_msg("a wrong gradient of %s passed",
                     problem_print(&problems[i], text, sizeof text));
        }
    }
}

int main(void)
{
    kit_skip_under_thread_sanitizer();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_default),
        cmocka_unit_test(test_own_products),
        cmocka_unit_test(test_notices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
