/* test_determinism.c - the same bits with any number of threads, wherever the buffers lie, twice,
 * and (our own operations) with every instruction set. */
#include "tests/kernels/cases.h"

/* Runs a problem again and compares all bits with `first`. */
static void same_again(const struct trial *first, const struct kernels *table, int threads,
                       size_t shift)
{
    struct trial t;
    char text[128];
    trial_create(&t, first->problem, shift);
    trial_run(&t, table, threads);
    if (!trial_same(first, &t)) {
        fail_msg("%s: other bits with %s, %d threads, buffers shifted by %zu",
                 problem_print(t.problem, text, sizeof text), table->name, threads, shift);
    }
    trial_free(&t);
}

static void table_check(const struct kernels *table)
{
    if (!table) {
        return;
    }
    for (size_t i = 0; i < PROBLEMS; i++) {
        struct trial first;
        trial_create(&first, &problems[i], 0);
        trial_run(&first, table, 1);
        same_again(&first, table, 1, 0);
        same_again(&first, table, 2, 0);
        same_again(&first, table, 3, 0);
        same_again(&first, table, 1, 1);
        same_again(&first, table, 2, 5);
        same_again(&first, table, 2, 16);
        trial_free(&first);
    }
}

static void test_dnnl(void **state)
{
    (void)state;
    table_check(kit_table(NULL, "dnnl"));
}

static void test_openblas(void **state)
{
    (void)state;
    table_check(kit_table(NULL, "openblas"));
}

static void test_own(void **state)
{
    (void)state;
    table_check(kit_table(NULL, "own"));
}

static void test_instruction_sets(void **state)
{
    (void)state;
    static const char *const others[] = {"v4", "v3"};
    const struct kernels *generic = kit_table("generic", "own");
    assert_non_null(generic);
    for (size_t i = 0; i < PROBLEMS; i++) {
        struct trial first;
        trial_create(&first, &problems[i], 0);
        trial_run(&first, generic, 2);
        for (size_t k = 0; k < 2; k++) {
            const struct kernels *table = kit_table(others[k], "own");
            if (table) {
                same_again(&first, table, 2, 0);
            }
        }
        trial_free(&first);
    }
}

int main(void)
{
    kit_skip_under_thread_sanitizer();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dnnl),
        cmocka_unit_test(test_openblas),
        cmocka_unit_test(test_own),
        cmocka_unit_test(test_instruction_sets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
