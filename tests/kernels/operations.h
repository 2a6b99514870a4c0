/* operations.h - the table of the operations under test. */
#ifndef TESTS_KERNELS_OPERATIONS_H
#define TESTS_KERNELS_OPERATIONS_H

#include "tests/kernels/operations_row.h"
#include "tests/kernels/operations_streams.h"
#include "tests/kernels/operations_token.h"

#define TESTED(name, library)                                                                      \
    {                                                                                              \
#name, name##_sizes, name##_reference, name##_forward, name##_backward, library            \
    }
static const struct operation operations[] = {
    TESTED(embed, false),
    TESTED(norm, false),
    TESTED(linear, true),
    {"rope", rope_sizes, rope_reference, rope_forward, rope_backward, false},
    TESTED(attention, false),
    TESTED(swiglu, false),
    TESTED(gelu, false),
    TESTED(mudd, false),
    TESTED(depth, false),
    TESTED(streams, false),
    TESTED(hyper, true),
    TESTED(xent, false),
    TESTED(xent_parts, false),
};

static inline const struct operation *operation_find(const char *name)
{
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++) {
        if (strcmp(operations[i].name, name) == 0) {
            return &operations[i];
        }
    }
    fail_msg("no operation %s", name);
    return NULL;
}

#endif
