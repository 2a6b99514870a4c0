/* gemm.h - matrix products by whoever does them best; private to kernels/.
 *
 * A library is asked for one tile at a time, in the calling thread alone: linear.c cuts a product
 * into tiles whose sizes come from its shape and spreads them over the threads. So the order of
 * additions inside an element is the library's choice for that tile's shape and never depends on
 * the threads.
 */
#ifndef KERNELS_GEMM_H
#define KERNELS_GEMM_H

#include <stdbool.h>
#include <stddef.h>

/* A row-major matrix as stored; `transposed` means that the product reads it the other way round.
 * */
struct gemm_operand {
    const float *base;
    size_t ld; /* elements from one stored row to the next */
    bool transposed;
};

/* C [M, N] (+)= A [M, K] B [K, N], on the calling thread. */
typedef void (*gemm_fn)(size_t M, size_t N, size_t K, struct gemm_operand A, struct gemm_operand B,
                        bool accumulate, float *C, size_t ldc);

/* Name and version of what is loaded. */
void gemm_dnnl_title(char *buffer, size_t size);
void gemm_openblas_title(char *buffer, size_t size);

enum gemm_library { GEMM_DNNL, GEMM_OPENBLAS, GEMM_OWN, GEMM_LIBRARIES };

void gemm_dnnl(size_t M, size_t N, size_t K, struct gemm_operand A, struct gemm_operand B,
               bool accumulate, float *C, size_t ldc);
void gemm_openblas(size_t M, size_t N, size_t K, struct gemm_operand A, struct gemm_operand B,
                   bool accumulate, float *C, size_t ldc);

/* Keeps OpenBLAS to one thread a call; before its first product. */
void gemm_openblas_init(void);
/* The body of kernels_guard where OpenBLAS is the library in use. */
void gemm_openblas_guard(char *const *argv);

#endif
