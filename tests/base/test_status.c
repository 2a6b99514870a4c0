/* test_status.c - errors are forwarded, named and said once. */
#include "tests/test.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"

static status_t fails(status_t status)
{
    return FAIL(status, "no layer %d; there are %d", 7, 4);
}

static status_t forwards(status_t status)
{
    TRY(fails(status));
    return STATUS_OK;
}

static status_t undoes(status_t given, int *undone)
{
    status_t status;

    TRY_GOTO(given, undo);
    return STATUS_OK;
undo:
    *undone += 1;
    return status;
}

static void test_fail_logs_the_message(void **state)
{
    (void)state;
    char lines[256];

    log_capture(lines, sizeof lines);
    assert_status(forwards(STATUS_INVALID), STATUS_INVALID);
    log_capture(NULL, 0);
    assert_string_equal(lines, "no layer 7; there are 4\n");
}

static void test_try_goto_undoes(void **state)
{
    (void)state;
    int undone = 0;

    assert_ok(undoes(STATUS_OK, &undone));
    assert_int_equal(undone, 0);
    assert_status(undoes(STATUS_IO, &undone), STATUS_IO);
    assert_int_equal(undone, 1);
}

static void test_every_status_has_a_name(void **state)
{
    (void)state;
    for (int i = STATUS_OK; i <= STATUS_INTERNAL; i++) {
        assert_string_not_equal(status_name((status_t)i), "unknown status");
    }
    assert_string_equal(status_name((status_t)99), "unknown status");
    assert_string_equal(status_name((status_t)-1), "unknown status");
}

static void test_log_file_has_place_and_rank(void **state)
{
    (void)state;
    char lines[256], text[512] = "";
    FILE *file = tmpfile();

    assert_non_null(file);
    log_set_file(file);
    log_set_rank(3);
    log_capture(lines, sizeof lines);
    assert_status(fails(STATUS_IO), STATUS_IO);
    log_debug("a detail\n");
    log_trace("too much");
    log_capture(NULL, 0);
    log_set_rank(-1);
    log_set_file(NULL);

    rewind(file);
    text[fread(text, 1, sizeof text - 1, file)] = '\0';
    fclose(file);
    assert_ptr_equal(strstr(text, "[rank 3] error: "), text);
    assert_non_null(strstr(text, "test_status.c:"));
    assert_non_null(strstr(text, ": no layer 7; there are 4\n[rank 3] debug: a detail\n"));
    assert_null(strstr(text, "too much"));
}

static void test_capture_stops_at_its_size(void **state)
{
    (void)state;
    char lines[16];

    log_capture(lines, sizeof lines);
    log_error("0123456789");
    log_error("0123456789");
    log_capture(NULL, 0);
    assert_string_equal(lines, "0123456789\n0123");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fail_logs_the_message),
        cmocka_unit_test(test_try_goto_undoes),
        cmocka_unit_test(test_every_status_has_a_name),
        cmocka_unit_test(test_log_file_has_place_and_rank),
        cmocka_unit_test(test_capture_stops_at_its_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
