/* rows.h - one more transport, schedule and operation, each by its row alone; included before everything else in
 * what test_rows is made of. */
#ifndef TESTS_ROWS_ROWS_H
#define TESTS_ROWS_ROWS_H

#define TRANSPORTS_MORE(row) row(dummy)
#define SCHEDULES_MORE(row) row(dummy)
#define OPERATIONS_MORE "tests/rows/dummy.def"

#endif
