/* cuda_proxy.h - the GPU's operations on host arrays of floats.
 *
 * A table whose every operation brings its operands to the GPU (rounded where the GPU's table has
 * another dtype), runs the GPU's operation and brings the results back. What the operation should
 * write whole arrives there as NaN. Arrays that alias here alias there. So each test of the CPU's
 * table can be run on the GPU's. One thread at a time.
 */
#ifndef TESTS_KERNELS_CUDA_PROXY_H
#define TESTS_KERNELS_CUDA_PROXY_H

#include "base/device.h"
#include "tests/kernels/kit.h"
#include "tests/kernels/largest.h"

enum { PROXY_PIECES = 512 };

enum proxy_kind { PROXY_ELEMENT, PROXY_FLOAT, PROXY_INT, PROXY_DOUBLE };

struct proxy_piece {
    void *host, *device;
    size_t count;
    enum proxy_kind kind;
    bool back; /* brought back at the end */
};

static struct {
    struct device *device;
    const struct kernels *table; /* the GPU's */
    struct kernel_ctx ctx;
    struct proxy_piece piece[PROXY_PIECES];
    size_t pieces;
} proxy;

static inline float bf16_round(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = isnan(x) ? 0x7fc00000u : (bits + 0x7fffu + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline bool proxy_narrow(enum proxy_kind kind)
{
    return kind == PROXY_ELEMENT && proxy.table->dtype == DTYPE_BF16;
}

static inline size_t proxy_size(enum proxy_kind kind)
{
    return proxy_narrow(kind) ? 2 : kind == PROXY_DOUBLE ? 8 : 4;
}

static inline void proxy_upload(const struct proxy_piece *piece)
{
    uint16_t *narrow = NULL;
    const void *from = piece->host;
    if (proxy_narrow(piece->kind)) {
        narrow = malloc(piece->count * sizeof *narrow + 1);
        assert_non_null(narrow);
        for (size_t i = 0; i < piece->count; i++) {
            float x = bf16_round(((const float *)piece->host)[i]);
            memcpy(narrow + i, (const char *)&x + 2, 2);
        }
        from = narrow;
    }
    size_t bytes = piece->count * proxy_size(piece->kind);
    assert_int_equal(device_copy(proxy.device, piece->device, from, bytes, proxy.ctx.stream), 0);
    assert_int_equal(device_stream_sync(proxy.device, proxy.ctx.stream), 0);
    free(narrow);
}

static inline void proxy_download(const struct proxy_piece *piece)
{
    size_t bytes = piece->count * proxy_size(piece->kind);
    assert_int_equal(device_copy(proxy.device, piece->host, piece->device, bytes, proxy.ctx.stream),
                     0);
    assert_int_equal(device_stream_sync(proxy.device, proxy.ctx.stream), 0);
    if (proxy_narrow(piece->kind)) { /* spread out in place, from the end */
        uint16_t *narrow = piece->host;
        for (size_t i = piece->count; i-- > 0;) {
            uint32_t bits = (uint32_t)narrow[i] << 16;
            memcpy((float *)piece->host + i, &bits, sizeof bits);
        }
    }
}

static inline void *proxy_stage(const void *host, size_t count, enum proxy_kind kind, bool upload,
                                bool back)
{
    if (!host) {
        return NULL;
    }
    for (size_t i = 0; i < proxy.pieces; i++) {
        if (proxy.piece[i].host == host) {
            proxy.piece[i].back = proxy.piece[i].back || back;
            proxy.piece[i].kind = back ? kind : proxy.piece[i].kind;
            return proxy.piece[i].device;
        }
    }
    assert_true(proxy.pieces < PROXY_PIECES);
    struct proxy_piece *piece = &proxy.piece[proxy.pieces++];
    *piece = (struct proxy_piece){(void *)(uintptr_t)host, NULL, count, kind, back};
    size_t bytes = count * proxy_size(kind);
    assert_int_equal(device_alloc(proxy.device, MEMORY_DEVICE, bytes, "a test", &piece->device), 0);
    assert_int_equal(device_fill(proxy.device, piece->device, 0xff, bytes, proxy.ctx.stream), 0);
    if (upload) {
        proxy_upload(piece);
    }
    return piece->device;
}

static inline void proxy_done(void)
{
    assert_int_equal(device_stream_sync(proxy.device, proxy.ctx.stream), 0);
    for (size_t i = 0; i < proxy.pieces; i++) {
        if (proxy.piece[i].back) {
            proxy_download(&proxy.piece[i]);
        }
        device_free(proxy.device, MEMORY_DEVICE, proxy.piece[i].device);
    }
    proxy.pieces = 0;
}

/* Operands: elements, floats; read, written, both. Inputs come before outputs that may alias them. */
#define PROXY_IN(x, count) proxy_stage((x), (count), PROXY_ELEMENT, true, false)
#define PROXY_OUT(x, count) proxy_stage((x), (count), PROXY_ELEMENT, false, true)
#define PROXY_BOTH(x, count) proxy_stage((x), (count), PROXY_ELEMENT, true, true)
#define PROXY_FLOAT_IN(x, count) ((float *)proxy_stage((x), (count), PROXY_FLOAT, true, false))
#define PROXY_FLOAT_OUT(x, count) ((float *)proxy_stage((x), (count), PROXY_FLOAT, false, true))
#define PROXY_FLOAT_BOTH(x, count) ((float *)proxy_stage((x), (count), PROXY_FLOAT, true, true))
#define PROXY_INTS(x, count) ((int32_t *)proxy_stage((x), (count), PROXY_INT, true, false))
#define PROXY_RUN(op, ...)                                                                         \
    do {                                                                                           \
        (void)ctx;                                                                                 \
        proxy.table->op(&proxy.ctx, __VA_ARGS__);                                                  \
        proxy_done();                                                                              \
    } while (0)

/* What is read, before what may alias it and is written. */
#define STAGE(kind, ...) STAGE_##kind(__VA_ARGS__)
#define STAGE_IN(name, count) PROXY_IN(name, count);
#define STAGE_OUT(name, count)
#define STAGE_SUM(name, count, onto)                                                               \
    if (onto) {                                                                                    \
        PROXY_BOTH(name, count);                                                                   \
    }
#define STAGE_FLOAT_IN(name, count) (void)PROXY_FLOAT_IN(name, count);
#define STAGE_FLOAT_OUT(name, count)
#define STAGE_FLOAT_SUM(name, count) (void)PROXY_FLOAT_BOTH(name, count);
#define STAGE_DOUBLE_OUT(name, count)
#define STAGE_DOUBLE_SUM(name, count) proxy_stage(name, count, PROXY_DOUBLE, true, true);
#define STAGE_INT_IN(name, count) (void)PROXY_INTS(name, count);
#define STAGE_LIST_IN(name, list, count)                                                           \
    const void *name##_there[PROXY_PIECES];                                                        \
    for (size_t i = 0; i < (list); i++) {                                                          \
        name##_there[i] = PROXY_IN(name[i], count);                                                \
    }
#define STAGE_LIST_OUT(name, list, count) void *name##_there[PROXY_PIECES];
#define STAGE_STRUCT(type, name, list)
#define STAGE_SIZE(name)
#define STAGE_VALUE(type, name)

#define STAGE_LISTS(kind, ...) STAGE_LISTS_##kind(__VA_ARGS__)
#define STAGE_LISTS_IN(name, count)
#define STAGE_LISTS_OUT(name, count)
#define STAGE_LISTS_SUM(name, count, onto)
#define STAGE_LISTS_FLOAT_IN(name, count)
#define STAGE_LISTS_FLOAT_OUT(name, count)
#define STAGE_LISTS_FLOAT_SUM(name, count)
#define STAGE_LISTS_DOUBLE_OUT(name, count)
#define STAGE_LISTS_DOUBLE_SUM(name, count)
#define STAGE_LISTS_INT_IN(name, count)
#define STAGE_LISTS_LIST_IN(name, list, count)
#define STAGE_LISTS_LIST_OUT(name, list, count)                                                    \
    for (size_t i = 0; i < (list); i++) {                                                          \
        name##_there[i] = PROXY_OUT(name[i], count);                                               \
    }
#define STAGE_LISTS_STRUCT(type, name, list)
#define STAGE_LISTS_SIZE(name)
#define STAGE_LISTS_VALUE(type, name)

#define THERE(kind, ...) THERE_##kind(__VA_ARGS__)
#define THERE_IN(name, count) , PROXY_IN(name, count)
#define THERE_OUT(name, count) , PROXY_OUT(name, count)
#define THERE_SUM(name, count, onto) , PROXY_OUT(name, count)
#define THERE_FLOAT_IN(name, count) , PROXY_FLOAT_IN(name, count)
#define THERE_FLOAT_OUT(name, count) , PROXY_FLOAT_OUT(name, count)
#define THERE_FLOAT_SUM(name, count) , PROXY_FLOAT_BOTH(name, count)
#define THERE_DOUBLE_OUT(name, count) , proxy_stage(name, count, PROXY_DOUBLE, false, true)
#define THERE_DOUBLE_SUM(name, count) , proxy_stage(name, count, PROXY_DOUBLE, true, true)
#define THERE_INT_IN(name, count) , PROXY_INTS(name, count)
#define THERE_LIST_IN(name, list, count) , name##_there
#define THERE_LIST_OUT(name, list, count) , name##_there
#define THERE_STRUCT(type, name, list) , name
#define THERE_SIZE(name) , name
#define THERE_VALUE(type, name) , name

#define OPERATION(op, category, ...)                                                               \
    static void there_##op(const struct kernel_ctx *ctx EACH(OPERATION_PARAMETER, __VA_ARGS__))    \
    {                                                                                              \
        (void)ctx;                                                                                 \
        EACH(STAGE, __VA_ARGS__)                                                                   \
        EACH(STAGE_LISTS, __VA_ARGS__)                                                             \
        proxy.table->op(&proxy.ctx EACH(THERE, __VA_ARGS__));                                      \
        proxy_done();                                                                              \
    }
#include "kernels/operations.def"
#undef OPERATION

/* ---- operations of which a row does not say everything ---- */

static void proxy_attention_forward(const struct kernel_ctx *ctx, const struct attention_shape *s,
                                    void *out, float *lse, const void *q, const void *k,
                                    const void *v)
{
    size_t N = s->B * s->T, wide = N * s->H * s->E, narrow = N * s->G * s->E;
    struct attention_shape there = *s;
    there.first = PROXY_INTS(s->first, N);
    PROXY_RUN(attention_forward, &there, PROXY_OUT(out, wide), PROXY_FLOAT_OUT(lse, N * s->H),
              PROXY_IN(q, wide), PROXY_IN(k, narrow), PROXY_IN(v, narrow));
}

static void proxy_attention_backward(const struct kernel_ctx *ctx, const struct attention_shape *s,
                                     void *dq, void *dk, void *dv, const void *dout,
                                     const void *out, const float *lse, const void *q,
                                     const void *k, const void *v)
{
    size_t N = s->B * s->T, wide = N * s->H * s->E, narrow = N * s->G * s->E;
    struct attention_shape there = *s;
    there.first = PROXY_INTS(s->first, N);
    PROXY_RUN(attention_backward, &there, PROXY_OUT(dq, wide), PROXY_OUT(dk, narrow),
              PROXY_OUT(dv, narrow), PROXY_IN(dout, wide), PROXY_IN(out, wide),
              PROXY_FLOAT_IN(lse, N * s->H), PROXY_IN(q, wide), PROXY_IN(k, narrow),
              PROXY_IN(v, narrow));
}

static void proxy_mudd_backward_key(const struct kernel_ctx *ctx, void *dkey, bool accumulate,
                                    const struct mudd_term *terms, size_t count, size_t N, size_t D)
{
    struct mudd_term there[PROXY_PIECES];
    for (size_t k = 0; k < count; k++) {
        const struct mudd_term *term = &terms[k];
        size_t reach = (N - 1) * term->row_stride + (term->ways - 1) * term->way_stride + 1;
        there[k] = *term;
        there[k].weights = PROXY_FLOAT_IN(term->weights, reach);
        for (size_t c = 0; c < term->ways; c++) {
            there[k].dout[c] = PROXY_IN(term->dout[c], N * D);
        }
    }
    void *out = accumulate ? PROXY_BOTH(dkey, N * D) : PROXY_OUT(dkey, N * D);
    PROXY_RUN(mudd_backward_key, out, accumulate, there, count, N, D);
}

static void proxy_depth_backward_key(const struct kernel_ctx *ctx, void *dkey, bool accumulate,
                                     const struct depth_term *terms, size_t count, const void *key,
                                     size_t N, size_t D)
{
    struct depth_term there[PROXY_PIECES];
    const void *source = PROXY_IN(key, N * D);
    for (size_t k = 0; k < count; k++) {
        const struct depth_term *term = &terms[k];
        size_t reach = (N - 1) * 3 * term->n + 2 * term->n + 1;
        there[k] = (struct depth_term){PROXY_FLOAT_IN(term->coefficients, reach), term->n,
                                       PROXY_IN(term->dout, N * D), PROXY_IN(term->query, D),
                                       PROXY_IN(term->scale, D)};
    }
    void *out = accumulate ? PROXY_BOTH(dkey, N * D) : PROXY_OUT(dkey, N * D);
    PROXY_RUN(depth_backward_key, out, accumulate, there, count, source, N, D);
}

static void proxy_zero(const struct kernel_ctx *ctx, void *dst, size_t bytes)
{
    PROXY_RUN(zero, PROXY_FLOAT_OUT(dst, bytes / sizeof(float)), bytes);
}

static void proxy_adamw(const struct kernel_ctx *ctx, const struct adamw_args *args, float *p,
                        float *m, float *v, const float *gradient, size_t count)
{
    struct adamw_args there = *args;
    there.gradient_scale_at = PROXY_FLOAT_IN(args->gradient_scale_at, 1);
    PROXY_RUN(adamw, &there, PROXY_FLOAT_BOTH(p, count), PROXY_FLOAT_BOTH(m, count),
              PROXY_FLOAT_BOTH(v, count), PROXY_FLOAT_IN(gradient, count), count);
}

static inline void proxy_fill(struct kernels *table)
{
#define OPERATION(op, category, ...) table->op = there_##op;
#include "kernels/operations.def"
#undef OPERATION
    table->attention_forward = proxy_attention_forward;
    table->attention_backward = proxy_attention_backward;
    table->mudd_backward_key = proxy_mudd_backward_key;
    table->depth_backward_key = proxy_depth_backward_key;
    table->zero = proxy_zero;
    table->adamw = proxy_adamw;
}

/* The table to test, for a dtype of the GPU's. */
static inline const struct kernels *proxy_open(enum dtype dtype)
{
    static struct kernels table;
    struct kernel_limits limits = {
        .B = 1, .T = 1 << 16, .D = 8192, .H = 16, .E = 256, .K = 256, .Cn = 512, .threads = 1};
    if (!proxy.device) {
        assert_int_equal(device_open(DEVICE_CUDA, 0, &proxy.device), STATUS_OK);
        assert_int_equal(device_stream_create(proxy.device, false, &proxy.ctx.stream), STATUS_OK);
    }
    assert_int_equal(kernels_cuda(dtype, &proxy.table), STATUS_OK);
    if (!proxy.ctx.workspace) {
        proxy.ctx.threads = 1;
        proxy.ctx.workspace_bytes = kernels_workspace(proxy.table, &limits);
        assert_int_equal(device_alloc(proxy.device, MEMORY_DEVICE, proxy.ctx.workspace_bytes,
                                      "the workspace", &proxy.ctx.workspace),
                         STATUS_OK);
    }
    proxy_fill(&table);
    table.name = proxy.table->name;
    table.dtype = dtype;
    table.workspace = proxy.table->workspace;
    return &table;
}

static inline void proxy_close(void)
{
    device_free(proxy.device, MEMORY_DEVICE, proxy.ctx.workspace);
    device_stream_destroy(proxy.device, proxy.ctx.stream);
    device_close(proxy.device);
    memset(&proxy, 0, sizeof proxy);
}

#endif
