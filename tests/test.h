/* test.h - what every unit test includes: cmocka with the headers it forgets.
 *
 * A test program is a list of cmocka tests and `return cmocka_run_group_tests(...)`. Exit code 77
 * means skipped. TEST_FOLDER is the path of tests/ in the source tree.
 */
#ifndef TESTS_TEST_H
#define TESTS_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/status.h"

enum { TEST_SKIPPED = 77 };

#define assert_ok(call) assert_int_equal((call), STATUS_OK)
#define assert_status(call, status) assert_int_equal((call), (status))

#endif
