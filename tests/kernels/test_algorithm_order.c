/* test_algorithm_order.c - which of cuBLASLt's algorithms give the same bits in every run; without a GPU.
 *
 * The words are laid out as version 13 does: id; splits and tile; reduction scheme. */
#include "tests/test.h"

#include <stdbool.h>
#include <stdio.h>

#include "kernels/cuda/cuda.h"

#ifdef KERNELS_HAVE_CUDA
enum { NONE = 0, IN_PLACE = 1, COMPUTE_TYPE = 2, OUTPUT_TYPE = 4 };

static bool fixed(uint64_t splits, uint64_t scheme)
{
    const uint64_t algorithm[8] = {0x42, splits << 32 | 0x23, scheme};
    bool is;
    assert_ok(cuda_algorithm_order(algorithm, &is));
    return is;
}

static void test_order(void **state)
{
    (void)state;
    assert_true(fixed(1, NONE));
    assert_true(fixed(0, NONE));
    assert_true(fixed(3, COMPUTE_TYPE));
    assert_false(fixed(3, IN_PLACE));
    assert_false(fixed(1, IN_PLACE));
    assert_false(fixed(3, COMPUTE_TYPE | IN_PLACE));
    assert_false(fixed(3, OUTPUT_TYPE)); /* rounded once a part: never measured here */
    assert_false(fixed(3, NONE));        /* added by whom? */
    assert_false(fixed(UINT32_MAX, NONE));
}

int main(void)
{
    const uint64_t any[8] = {0};
    bool is;
    if (cuda_algorithm_order(any, &is) != STATUS_OK) {
        printf("skipped: no cuBLASLt here\n");
        return TEST_SKIPPED;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_order)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
#else
int main(void)
{
    printf("skipped: built without CUDA\n");
    return TEST_SKIPPED;
}
#endif
