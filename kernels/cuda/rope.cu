// rope.cu - rotary positions: pairs (d, d + R/2) turned by the position's angles, in place.
#include "kernels/cuda/common.cuh"

enum { THREADS = 256 };

// A thread takes one pair.
template <typename T>
static __global__ void __launch_bounds__(THREADS)
    rope_kernel(T *x, const float *cosine, const float *sine, const int32_t *position, float sign,
                size_t pairs, size_t T_, size_t heads, size_t E, size_t half)
{
    size_t pair = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (pair >= pairs) {
        return;
    }
    size_t row = pair / half, d = pair % half, t = row / heads;
    size_t at = (position ? (size_t)position[t] : t % T_) * half + d;
    T *low = x + row * E + d, *high = low + half;
    float a = to_float(*low), b = to_float(*high), c = cosine[at], s = sine[at] * sign;
    *low = from_float<T>(fmaf(a, c, -(b * s)));
    *high = from_float<T>(fmaf(b, c, a * s));
}

template <typename T>
static void rope(const struct kernel_ctx *ctx, void *x, const float *cosine, const float *sine,
                 const int32_t *position, bool inverse, size_t N, size_t T_, size_t heads, size_t E,
                 size_t R)
{
    size_t half = R / 2, pairs = N * heads * half;
    if (pairs > 0) {
        rope_kernel<T><<<grid_of(blocks_of(pairs, THREADS)), THREADS, 0, stream_of(ctx)>>>(
            (T *)x, cosine, sine, position, inverse ? -1.0f : 1.0f, pairs, T_, heads, E, half);
        launch_check("rope");
    }
}

extern "C" void cuda_rope_fill(struct kernels *table)
{
    table->rope = table->dtype == DTYPE_BF16 ? rope<bf16> : rope<float>;
}
