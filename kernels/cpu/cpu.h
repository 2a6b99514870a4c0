/* cpu.h - what the files of kernels/cpu/ share; private to kernels/.
 *
 * Each file here is compiled once per instruction set. Its operations are static; the one symbol it
 * exports puts them into a table, under a name that carries the instruction set: norm_fill_v4 and
 * so on.
 */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include "kernels/gemm.h"
#include "kernels/kernels.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#define CPU_JOIN2_(name, isa) name##_##isa
#define CPU_JOIN_(name, isa) CPU_JOIN2_(name, isa)
#define ISA(name) CPU_JOIN_(name, CPU_ISA)

/* WHAT(file, isa) for every file of operations but linear.c, which also takes the GEMM library. */
#define CPU_FILES(what, isa)                                                                       \
    what(activation, isa) what(attention, isa) what(attention_backward, isa) what(depth, isa)      \
        what(elementwise, isa) what(embed, isa) what(hyper, isa) what(mudd, isa) what(norm, isa)   \
            what(optimizer, isa) what(rope, isa) what(streams, isa) what(xent, isa)
#define CPU_DECLARE_FILL_(file, isa) void file##_fill_##isa(struct kernels *table);

#define CPU_DECLARE(isa)                                                                           \
    CPU_FILES(CPU_DECLARE_FILL_, isa)                                                              \
    void linear_fill_##isa(struct kernels *table, enum gemm_library library);                      \
    void gemm_own_##isa(size_t M, size_t N, size_t K, struct gemm_operand A,                       \
                        struct gemm_operand B, bool accumulate, float *C, size_t ldc);

CPU_DECLARE(generic)
#if defined(__x86_64__)
CPU_DECLARE(v3)
CPU_DECLARE(v4)
#endif

/* Elements that a thread takes at a time in elementwise loops. */
enum { ELEMENT_BLOCK = 8192 };

static inline size_t blocks_of(size_t count, size_t block)
{
    return (count + block - 1) / block;
}

static inline size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Index of the calling thread in its team. */
static inline size_t thread_index(void)
{
#ifdef _OPENMP
    return (size_t)omp_get_thread_num();
#else
    return 0;
#endif
}

static inline void *workspace_get(const struct kernel_ctx *ctx, size_t bytes)
{
    CHECK(bytes <= ctx->workspace_bytes, "workspace of %zu bytes, %zu needed", ctx->workspace_bytes,
          bytes);
    return ctx->workspace;
}

#endif
