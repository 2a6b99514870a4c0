/* micro.h - the inner product of our own matrix products: a few rows of C in registers.
 *
 * C[m, x] = (C[m, x] or 0) + sum_k A[m, k] B[k, x], k ascending, one fmaf a step: the same bits for
 * any blocking, as long as k is walked in order. A is read one element at a time with any strides
 * (so also transposed); the columns of B and C are whole lanes, padded by the caller.
 */
#ifndef KERNELS_CPU_MICRO_H
#define KERNELS_CPU_MICRO_H

#include <stdbool.h>

#include "kernels/cpu/vec.h"

struct micro_operand {
    const float *base;
    size_t row, column; /* strides, elements */
};

INLINE void micro_block(int rows, int width, size_t K, const float *A, size_t a_row,
                        size_t a_column, const float *B, size_t ldb, float *C, size_t ldc,
                        bool accumulate)
{
    lanes_t sum[8][4];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int w = 0; w < width; w++) {
            sum[r][w] =
                accumulate ? lanes_load(C + (size_t)r * ldc + (size_t)w * LANES) : lanes_zero();
        }
    }
    for (size_t k = 0; k < K; k++) {
        lanes_t b[4];
#pragma GCC unroll 4
        for (int w = 0; w < width; w++) {
            b[w] = lanes_load(B + k * ldb + (size_t)w * LANES);
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            lanes_t a = lanes_set(A[(size_t)r * a_row + k * a_column]);
#pragma GCC unroll 4
            for (int w = 0; w < width; w++) {
                sum[r][w] = lanes_fma(a, b[w], sum[r][w]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int w = 0; w < width; w++) {
            lanes_store(C + (size_t)r * ldc + (size_t)w * LANES, sum[r][w]);
        }
    }
}

/* All M rows of one strip of columns, `width` lanes wide, `rows` at a time. */
INLINE void micro_strip(int rows, int width, size_t M, size_t K, struct micro_operand A,
                        const float *B, size_t ldb, float *C, size_t ldc, bool accumulate)
{
    size_t m = 0;
    for (; m + (size_t)rows <= M; m += (size_t)rows) {
        micro_block(rows, width, K, A.base + m * A.row, A.row, A.column, B, ldb, C + m * ldc, ldc,
                    accumulate);
    }
    for (; m < M; m++) {
        micro_block(1, width, K, A.base + m * A.row, A.row, A.column, B, ldb, C + m * ldc, ldc,
                    accumulate);
    }
}

/* C [M, columns * LANES] over A [M, K] and B [K, columns * LANES]. The strips' shapes fit the
 * number of registers: 32 with AVX-512 (one a lane), 16 otherwise (two a lane). */
static inline __attribute__((unused)) void micro_gemm(size_t M, size_t columns, size_t K,
                                                      struct micro_operand A, const float *B,
                                                      size_t ldb, float *C, size_t ldc,
                                                      bool accumulate)
{
    size_t x = 0;
#if defined(__AVX512F__)
    for (; x + 4 <= columns; x += 4) {
        micro_strip(4, 4, M, K, A, B + x * LANES, ldb, C + x * LANES, ldc, accumulate);
    }
    for (; x + 2 <= columns; x += 2) {
        micro_strip(8, 2, M, K, A, B + x * LANES, ldb, C + x * LANES, ldc, accumulate);
    }
    for (; x < columns; x++) {
        micro_strip(8, 1, M, K, A, B + x * LANES, ldb, C + x * LANES, ldc, accumulate);
    }
#else
    for (; x < columns; x++) {
        micro_strip(4, 1, M, K, A, B + x * LANES, ldb, C + x * LANES, ldc, accumulate);
    }
#endif
}

#endif
