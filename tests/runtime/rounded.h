/* rounded.h - the operations in bf16 on the host, for tests: the CPU's float32 operations between bf16
 * tensors. So what bf16 storage does to a model is seen where there is no GPU, and whoever takes a bf16
 * tensor for floats, or the other way round, reads nonsense here too. One thread at a time.
 */
#ifndef TESTS_RUNTIME_ROUNDED_H
#define TESTS_RUNTIME_ROUNDED_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "tests/kernels/largest.h"

enum { ROUNDED_LENT = 256 };

static struct {
    const struct kernels *cpu;
    struct {
        float *wide;
        uint16_t *back; /* rounded into at the end; NULL: only read */
        size_t count;
    } lent[ROUNDED_LENT];
    int count;
} rounded;

/* To nearest, ties to even. */
static inline uint16_t rounded_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = isnan(x) ? 0x7fc00000u : bits + 0x7fffu + (bits >> 16 & 1);
    return (uint16_t)(bits >> 16);
}

static inline float rounded_wide(uint16_t x)
{
    uint32_t bits = (uint32_t)x << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

static inline float *rounded_lend(const void *narrow, size_t count, bool back)
{
    if (!narrow) {
        return NULL;
    }
    assert_true(rounded.count < ROUNDED_LENT);
    const uint16_t *x = narrow;
    float *wide = aligned_alloc(256, (count * sizeof *wide + 256) / 256 * 256);
    assert_non_null(wide);
    for (size_t i = 0; i < count; i++) {
        wide[i] = rounded_wide(x[i]);
    }
    rounded.lent[rounded.count].wide = wide;
    rounded.lent[rounded.count].back = back ? (uint16_t *)(uintptr_t)narrow : NULL;
    rounded.lent[rounded.count++].count = count;
    return wide;
}

static inline void rounded_done(void)
{
    for (int i = 0; i < rounded.count; i++) {
        for (size_t k = 0; rounded.lent[i].back && k < rounded.lent[i].count; k++) {
            rounded.lent[i].back[k] = rounded_bits(rounded.lent[i].wide[k]);
        }
        free(rounded.lent[i].wide);
    }
    rounded.count = 0;
}

/* The CPU's operation on widened tensors: lists are widened first, the others in the call. */
#define WIDEN(kind, ...) WIDEN_##kind(__VA_ARGS__)
#define WIDEN_IN(name, count)
#define WIDEN_OUT(name, count)
#define WIDEN_SUM(name, count, onto)
#define WIDEN_FLOAT_IN(name, count)
#define WIDEN_FLOAT_OUT(name, count)
#define WIDEN_FLOAT_SUM(name, count)
#define WIDEN_DOUBLE_OUT(name, count)
#define WIDEN_DOUBLE_SUM(name, count)
#define WIDEN_INT_IN(name, count)
#define WIDEN_LIST_IN(name, list, count)                                                           \
    const void *name##_wide[ROUNDED_LENT];                                                         \
    for (size_t i = 0; i < (list); i++) {                                                          \
        name##_wide[i] = rounded_lend(name[i], (count), false);                                    \
    }
#define WIDEN_LIST_OUT(name, list, count)                                                          \
    void *name##_wide[ROUNDED_LENT];                                                               \
    for (size_t i = 0; i < (list); i++) {                                                          \
        name##_wide[i] = rounded_lend(name[i], (count), true);                                     \
    }
#define WIDEN_STRUCT(type, name, list)
#define WIDEN_SIZE(name)
#define WIDEN_VALUE(type, name)

#define WIDE(kind, ...) WIDE_##kind(__VA_ARGS__)
#define WIDE_IN(name, count) , rounded_lend(name, (count), false)
#define WIDE_OUT(name, count) , rounded_lend(name, (count), true)
#define WIDE_SUM(name, count, onto) , rounded_lend(name, (count), true)
#define WIDE_FLOAT_IN(name, count) , name
#define WIDE_FLOAT_OUT(name, count) , name
#define WIDE_FLOAT_SUM(name, count) , name
#define WIDE_DOUBLE_OUT(name, count) , name
#define WIDE_DOUBLE_SUM(name, count) , name
#define WIDE_INT_IN(name, count) , name
#define WIDE_LIST_IN(name, list, count) , name##_wide
#define WIDE_LIST_OUT(name, list, count) , name##_wide
#define WIDE_STRUCT(type, name, list) , name
#define WIDE_SIZE(name) , name
#define WIDE_VALUE(type, name) , name

#define OPERATION(op, category, ...)                                                               \
    static void r_##op(const struct kernel_ctx *ctx EACH(OPERATION_PARAMETER, __VA_ARGS__))        \
    {                                                                                              \
        EACH(WIDEN, __VA_ARGS__)                                                                   \
        rounded.cpu->op(ctx EACH(WIDE, __VA_ARGS__));                                              \
        rounded_done();                                                                            \
    }
#include "kernels/operations.def"
#undef OPERATION

/* ---- operations of which a row does not say everything ---- */

static void rounded_mudd_backward_key(const struct kernel_ctx *ctx, void *dkey, bool accumulate,
                                      const struct mudd_term *terms, size_t count, size_t N,
                                      size_t D)
{
    struct mudd_term wide[64];
    assert_true(count <= 64);
    for (size_t i = 0; i < count; i++) {
        wide[i] = terms[i];
        for (size_t c = 0; c < terms[i].ways; c++) {
            wide[i].dout[c] = rounded_lend(terms[i].dout[c], N * D, false);
        }
    }
    rounded.cpu->mudd_backward_key(ctx, rounded_lend(dkey, N * D, true), accumulate, wide, count, N,
                                   D);
    rounded_done();
}

static void rounded_depth_backward_key(const struct kernel_ctx *ctx, void *dkey, bool accumulate,
                                       const struct depth_term *terms, size_t count,
                                       const void *key, size_t N, size_t D)
{
    struct depth_term wide[64];
    assert_true(count <= 64);
    for (size_t i = 0; i < count; i++) {
        wide[i] = terms[i];
        wide[i].dout = rounded_lend(terms[i].dout, N * D, false);
        wide[i].query = rounded_lend(terms[i].query, D, false);
        wide[i].scale = rounded_lend(terms[i].scale, D, false);
    }
    rounded.cpu->depth_backward_key(ctx, rounded_lend(dkey, N * D, true), accumulate, wide, count,
                                    rounded_lend(key, N * D, false), N, D);
    rounded_done();
}

static void rounded_from_f32(const struct kernel_ctx *ctx, void *dst, const float *src,
                             size_t count)
{
    uint16_t *narrow = dst;
    (void)ctx;
    for (size_t i = 0; i < count; i++) {
        narrow[i] = rounded_bits(src[i]);
    }
}

static void rounded_copy(const struct kernel_ctx *ctx, void *dst, const void *src, size_t count)
{
    (void)ctx;
    memmove(dst, src, count * sizeof(uint16_t));
}

/* The table. */
static inline const struct kernels *rounded_kernels(void)
{
    static struct kernels table;
    assert_ok(kernels_cpu(&rounded.cpu));
    table = *rounded.cpu;
    table.name = "rounded";
    table.dtype = DTYPE_BF16;
#define OPERATION(op, category, ...) table.op = r_##op;
#include "kernels/operations.def"
#undef OPERATION
    table.mudd_backward_key = rounded_mudd_backward_key;
    table.depth_backward_key = rounded_depth_backward_key;
    table.from_f32 = rounded_from_f32;
    table.copy = rounded_copy;
    table.zero = rounded.cpu->zero;
    return &table;
}

#endif
