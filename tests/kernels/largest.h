/* largest.h - what rows of operations.def call largest(). */
#ifndef TESTS_KERNELS_LARGEST_H
#define TESTS_KERNELS_LARGEST_H

#include <stddef.h>
#include <stdint.h>

/* One more than the largest of the ids. */
static inline size_t largest(const int32_t *ids, size_t N)
{
    int32_t most = -1;
    for (size_t i = 0; i < N; i++) {
        most = ids[i] > most ? ids[i] : most;
    }
    return (size_t)(most + 1);
}

#endif
