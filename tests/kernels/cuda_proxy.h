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

static inline size_t proxy_rows(const int32_t *ids, size_t N)
{
    int32_t most = -1;
    for (size_t t = 0; t < N; t++) {
        most = ids[t] > most ? ids[t] : most;
    }
    return (size_t)(most + 1);
}

static void proxy_embed_forward(const struct kernel_ctx *ctx, void *out, const void *table,
                                const int32_t *ids, size_t N, size_t D)
{
    const void *rows = PROXY_IN(table, proxy_rows(ids, N) * D);
    PROXY_RUN(embed_forward, PROXY_OUT(out, N * D), rows, PROXY_INTS(ids, N), N, D);
}

static void proxy_embed_backward(const struct kernel_ctx *ctx, float *dtable, const void *dout,
                                 const int32_t *ids, size_t N, size_t D)
{
    float *rows = PROXY_FLOAT_BOTH(dtable, proxy_rows(ids, N) * D);
    PROXY_RUN(embed_backward, rows, PROXY_IN(dout, N * D), PROXY_INTS(ids, N), N, D);
}

static void proxy_norm_forward(const struct kernel_ctx *ctx, const struct norm_shape *s, void *y,
                               float *mean, float *rstd, const void *x, const void *scale,
                               const void *bias)
{
    const void *in = PROXY_IN(x, s->rows * s->width);
    PROXY_RUN(norm_forward, s, PROXY_OUT(y, s->rows * s->width), PROXY_FLOAT_OUT(mean, s->rows),
              PROXY_FLOAT_OUT(rstd, s->rows), in, PROXY_IN(scale, s->width),
              PROXY_IN(bias, s->width));
}

static void proxy_norm_backward(const struct kernel_ctx *ctx, const struct norm_shape *s, void *dx,
                                bool accumulate, float *dscale, float *dbias, const void *dy,
                                const void *x, const float *mean, const float *rstd,
                                const void *scale)
{
    size_t count = s->rows * s->width;
    const void *gradient = PROXY_IN(dy, count), *in = PROXY_IN(x, count);
    void *out = accumulate ? PROXY_BOTH(dx, count) : PROXY_OUT(dx, count);
    PROXY_RUN(norm_backward, s, out, accumulate, PROXY_FLOAT_OUT(dscale, s->width),
              PROXY_FLOAT_OUT(dbias, s->width), gradient, in, PROXY_FLOAT_IN(mean, s->rows),
              PROXY_FLOAT_IN(rstd, s->rows), PROXY_IN(scale, s->width));
}

static void proxy_linear_forward(const struct kernel_ctx *ctx, void *y, const void *x,
                                 const void *weight, const void *bias, size_t N, size_t I, size_t O)
{
    const void *in = PROXY_IN(x, N * I), *w = PROXY_IN(weight, O * I);
    PROXY_RUN(linear_forward, PROXY_OUT(y, N * O), in, w, PROXY_IN(bias, O), N, I, O);
}

static void proxy_linear_backward_input(const struct kernel_ctx *ctx, void *dx, bool accumulate,
                                        const void *dy, const void *weight, size_t N, size_t I,
                                        size_t O)
{
    void *out = accumulate ? PROXY_BOTH(dx, N * I) : PROXY_OUT(dx, N * I);
    PROXY_RUN(linear_backward_input, out, accumulate, PROXY_IN(dy, N * O), PROXY_IN(weight, O * I),
              N, I, O);
}

static void proxy_linear_backward_weight(const struct kernel_ctx *ctx, float *dweight, float *dbias,
                                         const void *dy, const void *x, size_t N, size_t I,
                                         size_t O)
{
    PROXY_RUN(linear_backward_weight, PROXY_FLOAT_BOTH(dweight, O * I), PROXY_FLOAT_BOTH(dbias, O),
              PROXY_IN(dy, N * O), PROXY_IN(x, N * I), N, I, O);
}

static void proxy_logits_forward(const struct kernel_ctx *ctx, float *logits, const void *x,
                                 const void *weight, size_t N, size_t I, size_t O)
{
    const void *in = PROXY_IN(x, N * I);
    PROXY_RUN(logits_forward, PROXY_FLOAT_OUT(logits, N * O), in, PROXY_IN(weight, O * I), N, I, O);
}

static void proxy_rope(const struct kernel_ctx *ctx, void *x, const float *cosine,
                       const float *sine, const int32_t *position, bool inverse, size_t N, size_t T,
                       size_t heads, size_t E, size_t R)
{
    size_t angles = (position ? proxy_rows(position, N) : T) * (R / 2);
    PROXY_RUN(rope, PROXY_BOTH(x, N * heads * E), PROXY_FLOAT_IN(cosine, angles),
              PROXY_FLOAT_IN(sine, angles), PROXY_INTS(position, N), inverse, N, T, heads, E, R);
}

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

static void proxy_swiglu_forward(const struct kernel_ctx *ctx, void *y, const void *gate,
                                 const void *up, size_t count)
{
    PROXY_RUN(swiglu_forward, PROXY_OUT(y, count), PROXY_IN(gate, count), PROXY_IN(up, count),
              count);
}

static void proxy_swiglu_backward(const struct kernel_ctx *ctx, void *dgate, void *dup,
                                  const void *dy, const void *gate, const void *up, size_t count)
{
    const void *g = PROXY_IN(gate, count), *u = PROXY_IN(up, count);
    PROXY_RUN(swiglu_backward, PROXY_OUT(dgate, count), PROXY_OUT(dup, count), PROXY_IN(dy, count),
              g, u, count);
}

static void proxy_gelu_forward(const struct kernel_ctx *ctx, void *y, const void *x, size_t count)
{
    PROXY_RUN(gelu_forward, PROXY_OUT(y, count), PROXY_IN(x, count), count);
}

static void proxy_gelu_backward(const struct kernel_ctx *ctx, void *dx, const void *dy,
                                const void *x, size_t count)
{
    const void *gradient = PROXY_IN(dy, count);
    PROXY_RUN(gelu_backward, PROXY_OUT(dx, count), gradient, PROXY_IN(x, count), count);
}

static void proxy_mudd_weights_forward(const struct kernel_ctx *ctx, float *weights,
                                       const void *hidden, const void *w2, const void *bias,
                                       size_t N, size_t K, size_t Cn)
{
    PROXY_RUN(mudd_weights_forward, PROXY_FLOAT_OUT(weights, N * Cn), PROXY_IN(hidden, N * K),
              PROXY_IN(w2, Cn * K), PROXY_IN(bias, Cn), N, K, Cn);
}

static void proxy_mudd_weights_backward_input(const struct kernel_ctx *ctx, void *dhidden,
                                              const float *dweights, const void *w2, size_t N,
                                              size_t K, size_t Cn)
{
    PROXY_RUN(mudd_weights_backward_input, PROXY_OUT(dhidden, N * K),
              PROXY_FLOAT_IN(dweights, N * Cn), PROXY_IN(w2, Cn * K), N, K, Cn);
}

static void proxy_mudd_weights_backward_weight(const struct kernel_ctx *ctx, float *dw2,
                                               float *dbias, const float *dweights,
                                               const void *hidden, size_t N, size_t K, size_t Cn)
{
    PROXY_RUN(mudd_weights_backward_weight, PROXY_FLOAT_BOTH(dw2, Cn * K),
              PROXY_FLOAT_BOTH(dbias, Cn), PROXY_FLOAT_IN(dweights, N * Cn),
              PROXY_IN(hidden, N * K), N, K, Cn);
}

static void proxy_mudd_forward(const struct kernel_ctx *ctx, void *const *out,
                               const void *const *key, const float *weights,
                               const void *static_weights, size_t N, size_t D, size_t C, size_t n)
{
    void *ways[WAYS_MAX];
    const void *keys[PROXY_PIECES];
    for (size_t j = 0; j < n; j++) {
        keys[j] = PROXY_IN(key[j], N * D);
    }
    for (size_t c = 0; c < C; c++) {
        ways[c] = PROXY_OUT(out[c], N * D);
    }
    PROXY_RUN(mudd_forward, ways, keys, PROXY_FLOAT_IN(weights, N * C * n),
              PROXY_IN(static_weights, C * n), N, D, C, n);
}

static void proxy_mudd_backward_weights(const struct kernel_ctx *ctx, float *dweights,
                                        const void *const *dout, const void *const *key, size_t N,
                                        size_t D, size_t C, size_t n)
{
    const void *ways[WAYS_MAX], *keys[PROXY_PIECES];
    for (size_t j = 0; j < n; j++) {
        keys[j] = PROXY_IN(key[j], N * D);
    }
    for (size_t c = 0; c < C; c++) {
        ways[c] = PROXY_IN(dout[c], N * D);
    }
    PROXY_RUN(mudd_backward_weights, PROXY_FLOAT_OUT(dweights, N * C * n), ways, keys, N, D, C, n);
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

static void proxy_xent(const struct kernel_ctx *ctx, double *loss, void *dlogits,
                       const float *logits, const int32_t *targets, float scale, size_t rows,
                       size_t V)
{
    const float *x = PROXY_FLOAT_IN(logits, rows * V);
    double *sum = proxy_stage(loss, 1, PROXY_DOUBLE, true, true);
    PROXY_RUN(xent, sum, PROXY_OUT(dlogits, rows * V), x, PROXY_INTS(targets, rows), scale, rows,
              V);
}

static void proxy_from_f32(const struct kernel_ctx *ctx, void *dst, const float *src, size_t count)
{
    PROXY_RUN(from_f32, PROXY_OUT(dst, count), PROXY_FLOAT_IN(src, count), count);
}

static void proxy_copy(const struct kernel_ctx *ctx, void *dst, const void *src, size_t count)
{
    PROXY_RUN(copy, PROXY_OUT(dst, count), PROXY_IN(src, count), count);
}

static void proxy_zero(const struct kernel_ctx *ctx, void *dst, size_t bytes)
{
    PROXY_RUN(zero, PROXY_FLOAT_OUT(dst, bytes / sizeof(float)), bytes);
}

static void proxy_add(const struct kernel_ctx *ctx, void *out, const void *a, const void *b,
                      size_t count)
{
    const void *x = PROXY_IN(a, count), *y = PROXY_IN(b, count);
    PROXY_RUN(add, PROXY_OUT(out, count), x, y, count);
}

static void proxy_scale_add(const struct kernel_ctx *ctx, void *dst, const void *src, float scale,
                            size_t count)
{
    PROXY_RUN(scale_add, PROXY_BOTH(dst, count), PROXY_IN(src, count), scale, count);
}

static void proxy_accumulate_f32(const struct kernel_ctx *ctx, float *dst, const float *src,
                                 size_t count)
{
    PROXY_RUN(accumulate_f32, PROXY_FLOAT_BOTH(dst, count), PROXY_FLOAT_IN(src, count), count);
}

static void proxy_scale_columns(const struct kernel_ctx *ctx, float *x, const float *scale,
                                size_t rows, size_t columns)
{
    PROXY_RUN(scale_columns, PROXY_FLOAT_BOTH(x, rows * columns), PROXY_FLOAT_IN(scale, columns),
              rows, columns);
}

static void proxy_sum_squares(const struct kernel_ctx *ctx, double *out, const float *x,
                              size_t count)
{
    PROXY_RUN(sum_squares, proxy_stage(out, 1, PROXY_DOUBLE, false, true), PROXY_FLOAT_IN(x, count),
              count);
}

static void proxy_adamw(const struct kernel_ctx *ctx, const struct adamw_args *args, float *p,
                        float *m, float *v, const float *gradient, size_t count)
{
    struct adamw_args there = *args;
    there.gradient_scale_at = PROXY_FLOAT_IN(args->gradient_scale_at, 1);
    PROXY_RUN(adamw, &there, PROXY_FLOAT_BOTH(p, count), PROXY_FLOAT_BOTH(m, count),
              PROXY_FLOAT_BOTH(v, count), PROXY_FLOAT_IN(gradient, count), count);
}

static const struct kernels proxy_operations = {
    .embed_forward = proxy_embed_forward,
    .embed_backward = proxy_embed_backward,
    .norm_forward = proxy_norm_forward,
    .norm_backward = proxy_norm_backward,
    .linear_forward = proxy_linear_forward,
    .linear_backward_input = proxy_linear_backward_input,
    .linear_backward_weight = proxy_linear_backward_weight,
    .logits_forward = proxy_logits_forward,
    .rope = proxy_rope,
    .attention_forward = proxy_attention_forward,
    .attention_backward = proxy_attention_backward,
    .swiglu_forward = proxy_swiglu_forward,
    .swiglu_backward = proxy_swiglu_backward,
    .gelu_forward = proxy_gelu_forward,
    .gelu_backward = proxy_gelu_backward,
    .mudd_weights_forward = proxy_mudd_weights_forward,
    .mudd_weights_backward_input = proxy_mudd_weights_backward_input,
    .mudd_weights_backward_weight = proxy_mudd_weights_backward_weight,
    .mudd_forward = proxy_mudd_forward,
    .mudd_backward_weights = proxy_mudd_backward_weights,
    .mudd_backward_key = proxy_mudd_backward_key,
    .xent = proxy_xent,
    .from_f32 = proxy_from_f32,
    .copy = proxy_copy,
    .zero = proxy_zero,
    .add = proxy_add,
    .scale_add = proxy_scale_add,
    .accumulate_f32 = proxy_accumulate_f32,
    .scale_columns = proxy_scale_columns,
    .sum_squares = proxy_sum_squares,
    .adamw = proxy_adamw,
};

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
    table = proxy_operations;
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
