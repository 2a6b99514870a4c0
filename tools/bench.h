/* bench.h - private to tools/: what the parts of `muddpipe bench` share. */
#ifndef TOOLS_BENCH_H
#define TOOLS_BENCH_H

#include <stdio.h>

#include "base/device.h"
#include "comm/comm.h"
#include "kernels/kernels.h"

enum { BENCH_REPEATS = 64 }; /* at most */

/* What repeats gave; `median` of an even number is the upper of the two in the middle. */
struct bench_value {
    double median, least, most;
    int repeats;
};
struct bench_value bench_value_of(double *samples, int count); /* sorts them */

/* Numbers between 1/2 and 1 of either sign, where the device has memory [bytes]; done on return. A card that
 * multiplies zeros draws less power and runs faster. */
MUST_USE status_t bench_fill_numbers(struct device *device, void *stream, enum dtype dtype,
                                     void *memory, size_t bytes);

struct bench_comm {
    struct group *group;
    struct device *device; /* the host's or a GPU */
    void *stream;          /* of the messages */
    const char *transport; /* being measured */
    int repeats;
    FILE *json; /* rank 0; NULL = none */
};

/* A row of a table, on rank 0: "one way", "32 MiB", value, unit; `more` (may be "") goes into the JSON
 * object as further members, each with a comma before it. */
void bench_comm_row(const struct bench_comm *bench, const char *test, size_t bytes,
                    const struct bench_value *value, const char *unit, const char *more);

/* bench_beside.c: messages and matrix products at once, on GPUs. `size` of the meter's sizes. */
MUST_USE status_t bench_beside(const struct bench_comm *bench, struct meter *meter, int size,
                               size_t bytes);

int bench_comm_main(int argc, char **argv);
int bench_checkpoint_main(int argc, char **argv);

#endif
