/* scratch.h - how much workspace each CPU operation takes; private to kernels/. */
#ifndef KERNELS_CPU_SCRATCH_H
#define KERNELS_CPU_SCRATCH_H

#include <stddef.h>

enum {
    ATTENTION_BLOCK = 64, /* queries, and keys, handled at a time */
    NORM_CHUNK = 64       /* rows whose scale gradients are added first */
};

static inline size_t scratch_lanes(size_t elements) /* whole vectors of 16 */
{
    return (elements + 15) / 16 * 16;
}

/* Floats a thread: queries and outputs transposed, scores, and four rows of per-query numbers. */
static inline size_t scratch_attention_forward(size_t E)
{
    return ATTENTION_BLOCK * (2 * E + ATTENTION_BLOCK + 4);
}

/* Floats a thread: dk and dv of a key/value head; q and dout as rows and transposed, dq transposed;
 * two blocks of scores; per-query numbers. */
static inline size_t scratch_attention_backward(size_t T, size_t E)
{
    size_t wide = scratch_lanes(E);
    return 2 * T * wide + ATTENTION_BLOCK * (2 * wide + 3 * E + 2 * ATTENTION_BLOCK + 4);
}

/* Floats: dscale and dbias of each chunk of rows. */
static inline size_t scratch_norm_backward(size_t rows, size_t width)
{
    return (rows + NORM_CHUNK - 1) / NORM_CHUNK * width * 2;
}

#endif
