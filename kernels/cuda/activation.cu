// activation.cu - SwiGLU and GELU, forward and backward.
#include "kernels/cuda/common.cuh"

__device__ inline float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

// Normal distribution function; erfc keeps the lower tail's relative accuracy.
__device__ inline float phi(float x)
{
    return 0.5f * erfcf(x * -0.70710678118654752f);
}

// silu(gate) * up
struct swiglu {
    __device__ void operator()(float (&y)[1], const float (&x)[2]) const
    {
        y[0] = x[0] * sigmoid(x[0]) * x[1];
    }
};

// In: dy, gate, up. silu'(g) = sigmoid(g) (1 + g (1 - sigmoid(g)))
struct swiglu_gradient {
    __device__ void operator()(float (&y)[2], const float (&x)[3]) const
    {
        float s = sigmoid(x[1]);
        y[0] = x[0] * x[2] * (s * fmaf(x[1], 1.0f - s, 1.0f));
        y[1] = x[0] * (x[1] * s);
    }
};

struct gelu {
    __device__ void operator()(float (&y)[1], const float (&x)[1]) const
    {
        y[0] = x[0] * phi(x[0]);
    }
};

// In: dy, x. phi(x) + x exp(-x^2 / 2) / sqrt(2 pi)
struct gelu_gradient {
    __device__ void operator()(float (&y)[1], const float (&x)[2]) const
    {
        float density = expf(x[1] * x[1] * -0.5f) * 0.398942280401432678f;
        y[0] = x[0] * fmaf(x[1], density, phi(x[1]));
    }
};

template <typename T>
static void swiglu_forward(const struct kernel_ctx *ctx, void *y, const void *gate, const void *up,
                           size_t count)
{
    streams<T, 1, 2> s = {{(T *)y}, {(const T *)gate, (const T *)up}};
    each_run(ctx, "swiglu_forward", s, swiglu(), count);
}

template <typename T>
static void swiglu_backward(const struct kernel_ctx *ctx, void *dgate, void *dup, const void *dy,
                            const void *gate, const void *up, size_t count)
{
    streams<T, 2, 3> s = {{(T *)dgate, (T *)dup}, {(const T *)dy, (const T *)gate, (const T *)up}};
    each_run(ctx, "swiglu_backward", s, swiglu_gradient(), count);
}

template <typename T>
static void gelu_forward(const struct kernel_ctx *ctx, void *y, const void *x, size_t count)
{
    streams<T, 1, 1> s = {{(T *)y}, {(const T *)x}};
    each_run(ctx, "gelu_forward", s, gelu(), count);
}

template <typename T>
static void gelu_backward(const struct kernel_ctx *ctx, void *dx, const void *dy, const void *x,
                          size_t count)
{
    streams<T, 1, 2> s = {{(T *)dx}, {(const T *)dy, (const T *)x}};
    each_run(ctx, "gelu_backward", s, gelu_gradient(), count);
}

template <typename T> static void fill(struct kernels *table)
{
    table->swiglu_forward = swiglu_forward<T>;
    table->swiglu_backward = swiglu_backward<T>;
    table->gelu_forward = gelu_forward<T>;
    table->gelu_backward = gelu_backward<T>;
}

extern "C" void cuda_activation_fill(struct kernels *table)
{
    table->dtype == DTYPE_BF16 ? fill<bf16>(table) : fill<float>(table);
}
