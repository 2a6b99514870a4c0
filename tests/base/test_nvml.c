/* test_nvml.c - what a card says, by a library made up for the test (fake_nvml.c). */
#include "tests/test.h"

#include <string.h>

#include "base/device_internal.h"
#include "base/nvml.h"

static void test_reads_the_card(void **state)
{
    (void)state;
    struct device device = {.info = {.name = "a card", .bus = "0000:1B:00.0"}};
    struct nvml_state now;
    char text[128];

    for (int round = 0; round < 2; round++) {
        struct nvml *nvml = nvml_open(&device);
        assert_non_null(nvml);
        assert_true(nvml_read(nvml, &now));
        assert_true(now.sm_mhz == 1980 && now.celsius == 63);
        assert_true(now.watts > 698.4 && now.watts < 698.6);
        assert_string_equal(nvml_throttle_print(now.throttle, text, sizeof text), "power cap, hot");
        nvml_close(nvml);
    }
}

static void test_no_such_card(void **state)
{
    (void)state;
    struct device other = {.info = {.name = "a card", .bus = "0000:2A:00.0"}}, host = {0};
    struct nvml_state now;

    assert_null(nvml_open(&other));
    assert_null(nvml_open(&host));
    assert_false(nvml_read(NULL, &now));
    nvml_close(NULL);
}

static void test_driver(void **state)
{
    (void)state;
    char text[80], small[4];

    assert_true(nvml_driver(text, sizeof text));
    assert_string_equal(text, "580.82.07");
    assert_false(nvml_driver(small, sizeof small));
}

static void test_reasons(void **state)
{
    (void)state;
    char text[128], small[8];

    assert_string_equal(nvml_throttle_print(0, text, sizeof text), "none");
    assert_string_equal(nvml_throttle_print(0x40, text, sizeof text), "too hot");
    assert_int_equal(strlen(nvml_throttle_print(0xfff, small, sizeof small)), sizeof small - 1);
    assert_false(nvml_throttle_is_bad(0x1 | 0x2 | 0x4));
    assert_true(nvml_throttle_is_bad(0x4 | 0x80));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_the_card),
        cmocka_unit_test(test_no_such_card),
        cmocka_unit_test(test_driver),
        cmocka_unit_test(test_reasons),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
