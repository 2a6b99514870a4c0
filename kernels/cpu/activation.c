/* activation.c - SwiGLU and GELU, forward and backward. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"
#include "kernels/cpu/vec_math.h"

/* Calls lanes_function(i, n) for whole lanes and then for the rest of [begin, end). */
#define EACH_LANES(begin, end, call_whole, call_rest)                                              \
    do {                                                                                           \
        size_t i = (begin);                                                                        \
        for (; i + LANES <= (end); i += LANES) {                                                   \
            call_whole;                                                                            \
        }                                                                                          \
        if (i < (end)) {                                                                           \
            size_t rest = (end)-i;                                                                 \
            call_rest;                                                                             \
        }                                                                                          \
    } while (0)

/* silu(gate) * up */
INLINE void swiglu_lanes(float *y, const float *gate, const float *up, size_t n)
{
    lanes_t g = lanes_load_n(gate, n);
    lanes_t silu = lanes_mul(g, lanes_sigmoid(g));
    lanes_store_n(y, lanes_mul(silu, lanes_load_n(up, n)), n);
}

/* silu'(g) = sigmoid(g) (1 + g (1 - sigmoid(g))) */
INLINE void swiglu_backward_lanes(float *dgate, float *dup, const float *dy, const float *gate,
                                  const float *up, size_t n)
{
    lanes_t one = lanes_set(1.0f), d = lanes_load_n(dy, n);
    lanes_t g = lanes_load_n(gate, n), u = lanes_load_n(up, n);
    lanes_t s = lanes_sigmoid(g);
    lanes_t slope = lanes_mul(s, lanes_fma(g, lanes_sub(one, s), one));
    lanes_store_n(dgate, lanes_mul(lanes_mul(d, u), slope), n);
    lanes_store_n(dup, lanes_mul(d, lanes_mul(g, s)), n);
}

INLINE void gelu_lanes(float *y, const float *x, size_t n)
{
    lanes_t a = lanes_load_n(x, n);
    lanes_store_n(y, lanes_mul(a, lanes_phi(a)), n);
}

/* phi(x) + x exp(-x^2 / 2) / sqrt(2 pi) */
INLINE void gelu_backward_lanes(float *dx, const float *dy, const float *x, size_t n)
{
    lanes_t a = lanes_load_n(x, n);
    lanes_t density = lanes_exp(lanes_mul(lanes_mul(a, a), lanes_set(-0.5f)));
    density = lanes_mul(density, lanes_set(0.398942280401432678f));
    lanes_t slope = lanes_fma(a, density, lanes_phi(a));
    lanes_store_n(dx, lanes_mul(lanes_load_n(dy, n), slope), n);
}

static void swiglu_forward(const struct kernel_ctx *ctx, void *y_, const void *gate_,
                           const void *up_, size_t count)
{
    float *y = y_;
    const float *gate = gate_, *up = up_;
    size_t blocks = blocks_of(count, ELEMENT_BLOCK);
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t block = 0; block < blocks; block++) {
        size_t begin = block * ELEMENT_BLOCK, end = smaller(count, begin + ELEMENT_BLOCK);
        EACH_LANES(begin, end, swiglu_lanes(y + i, gate + i, up + i, LANES),
                   swiglu_lanes(y + i, gate + i, up + i, rest));
    }
}

static void swiglu_backward(const struct kernel_ctx *ctx, void *dgate_, void *dup_, const void *dy_,
                            const void *gate_, const void *up_, size_t count)
{
    float *dgate = dgate_, *dup = dup_;
    const float *dy = dy_, *gate = gate_, *up = up_;
    size_t blocks = blocks_of(count, ELEMENT_BLOCK);
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t block = 0; block < blocks; block++) {
        size_t begin = block * ELEMENT_BLOCK, end = smaller(count, begin + ELEMENT_BLOCK);
        EACH_LANES(begin, end,
                   swiglu_backward_lanes(dgate + i, dup + i, dy + i, gate + i, up + i, LANES),
                   swiglu_backward_lanes(dgate + i, dup + i, dy + i, gate + i, up + i, rest));
    }
}

static void gelu_forward(const struct kernel_ctx *ctx, void *y_, const void *x_, size_t count)
{
    float *y = y_;
    const float *x = x_;
    size_t blocks = blocks_of(count, ELEMENT_BLOCK);
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t block = 0; block < blocks; block++) {
        size_t begin = block * ELEMENT_BLOCK, end = smaller(count, begin + ELEMENT_BLOCK);
        EACH_LANES(begin, end, gelu_lanes(y + i, x + i, LANES), gelu_lanes(y + i, x + i, rest));
    }
}

static void gelu_backward(const struct kernel_ctx *ctx, void *dx_, const void *dy_, const void *x_,
                          size_t count)
{
    float *dx = dx_;
    const float *dy = dy_, *x = x_;
    size_t blocks = blocks_of(count, ELEMENT_BLOCK);
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t block = 0; block < blocks; block++) {
        size_t begin = block * ELEMENT_BLOCK, end = smaller(count, begin + ELEMENT_BLOCK);
        EACH_LANES(begin, end, gelu_backward_lanes(dx + i, dy + i, x + i, LANES),
                   gelu_backward_lanes(dx + i, dy + i, x + i, rest));
    }
}

void ISA(activation_fill)(struct kernels *table)
{
    table->swiglu_forward = swiglu_forward;
    table->swiglu_backward = swiglu_backward;
    table->gelu_forward = gelu_forward;
    table->gelu_backward = gelu_backward;
}
