/* kit.h - buffers, random numbers and comparisons for the tests of kernels/. */
#ifndef TESTS_KERNELS_KIT_H
#define TESTS_KERNELS_KIT_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/arena.h"
#include "kernels/kernels.h"

#define UNUSED_ __attribute__((unused))

/* Cheap repeatable numbers in (-1, 1). */
static inline double kit_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (double)(int64_t)(*state >> 11) * 0x1p-52 - 1.0;
}

/* For tests without threads of their own: without OpenMP the sanitizer has nothing to see in them.
 * */
static inline void kit_skip_under_thread_sanitizer(void)
{
#ifdef __SANITIZE_THREAD__
    printf("skipped: one thread only, and too slow under the thread sanitizer\n");
    exit(77);
#endif
}

/* An array of floats `shift` elements past a 256-byte boundary; filled with NaN so that reading
 * what was not written shows. */
static inline float *kit_floats(size_t count, size_t shift)
{
    size_t bytes = ((count + shift) * sizeof(float) + 2 * ARENA_ALIGN) / ARENA_ALIGN * ARENA_ALIGN;
    float *base = aligned_alloc(ARENA_ALIGN, bytes);
    assert_non_null(base);
    memset(base, 0xff, bytes);
    return base + shift;
}

static inline float *kit_numbers(size_t count, uint64_t seed)
{
    float *x = kit_floats(count, 0);
    for (size_t i = 0; i < count; i++) {
        x[i] = (float)kit_random(&seed);
    }
    return x;
}

static inline void kit_free(float *floats, size_t shift)
{
    free(floats - shift);
}

/* A context with its own workspace. */
static inline struct kernel_ctx kit_context(int threads)
{
    struct kernel_ctx ctx = {.threads = threads, .workspace_bytes = (size_t)16 << 20};
    ctx.workspace = aligned_alloc(ARENA_ALIGN, ctx.workspace_bytes);
    assert_non_null(ctx.workspace);
    memset(ctx.workspace, 0xff, ctx.workspace_bytes);
    return ctx;
}

static inline void kit_context_free(struct kernel_ctx *ctx)
{
    free(ctx->workspace);
}

/* The table for an instruction set and a library (NULL: the default); NULL if this machine or build
 * has none. */
UNUSED_ static const struct kernels *kit_table(const char *isa, const char *gemm)
{
    const struct kernels *table = NULL;
    isa ? setenv("MUDDPIPE_ISA", isa, 1) : unsetenv("MUDDPIPE_ISA");
    gemm ? setenv("MUDDPIPE_GEMM", gemm, 1) : unsetenv("MUDDPIPE_GEMM");
    if (kernels_cpu(&table) != STATUS_OK) {
        table = NULL;
    }
    unsetenv("MUDDPIPE_ISA");
    unsetenv("MUDDPIPE_GEMM");
    return table;
}

/* max|a - b| / max|b|; infinite if something is not a number. */
static inline double kit_error(const float *a, const double *b, size_t count)
{
    double worst = 0, largest = 0;
    for (size_t i = 0; i < count; i++) {
        double difference = fabs((double)a[i] - b[i]);
        if (!(difference <= worst)) {
            worst = isnan(difference) ? INFINITY : difference;
        }
        largest = fmax(largest, fabs(b[i]));
    }
    return largest > 0 ? worst / largest : worst;
}

/* A negative factor leaves everything as it is, with whatever gradient; zero is a step. */
UNUSED_ static void adamw_refused_check(const struct kernels *k, const struct kernel_ctx *ctx)
{
    enum { N = 1003 };
    float *p = kit_numbers(N, 1), *m = kit_numbers(N, 2), *v = kit_floats(N, 0);
    float *p2 = kit_numbers(N, 1), *m2 = kit_numbers(N, 2), *v2 = kit_floats(N, 0);
    float *g = kit_numbers(N, 4), factor = -1;
    struct adamw_args args = {0.01f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.5f, 7, &factor};
    for (size_t i = 0; i < N; i++) {
        v[i] = v2[i] = 0.5f + (float)i;
    }
    g[3] = NAN, g[5] = INFINITY;
    k->adamw(ctx, &args, p, m, v, g, N);
    assert_memory_equal(p, p2, N * sizeof *p);
    assert_memory_equal(m, m2, N * sizeof *m);
    assert_memory_equal(v, v2, N * sizeof *v);
    factor = 0;
    k->adamw(ctx, &args, p, m, v, g, N);
    assert_true(isnan(p[3]) && p[7] != p2[7] && m[7] != m2[7] && v[7] != v2[7]);
    kit_free(p, 0), kit_free(m, 0), kit_free(v, 0), kit_free(g, 0);
    kit_free(p2, 0), kit_free(m2, 0), kit_free(v2, 0);
}

#endif
