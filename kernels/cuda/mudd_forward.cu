// mudd_forward.cu - the aggregates over earlier layers' outputs.
//
// A block takes a token; a thread LANES columns of it, for all ways at once in registers, while the keys
// stream by: each key is read once. The steps of an element are those of kernels.h.
#include "kernels/cuda/common.cuh"

enum { THREADS = 256, TOGETHER = 4 };

struct mix_keys { // passed by value: no copy to the device, no lifetime
    const void *key[KEYS_MOST];
};

template <typename T> struct mix_args {
    void *out[WAYS_MAX];
    const float *weights; // [N, C*n], or NULL:
    const T *static_weights;
    size_t D;
    int n;
};

// `keys` keys from j on: their loads first, so that all are in flight together.
template <bool WIDE, typename T, int C, int KEYS>
__device__ inline void mix(float (&sum)[C][LANES<T>], const mix_keys &k, const float4 *weight,
                           int j, size_t row, size_t at, const mix_args<T> &a)
{
    constexpr int L = LANES<T>;
    float x[KEYS][L];
#pragma unroll
    for (int i = 0; i < KEYS; i++) {
        row_fetch<WIDE>(x[i], (const T *)k.key[j + i] + row, at, a.D);
    }
#pragma unroll
    for (int i = 0; i < KEYS; i++) {
        float4 all = weight[j + i];
        const float w[4] = {all.x, all.y, all.z, all.w};
#pragma unroll
        for (int c = 0; c < C; c++) {
#pragma unroll
            for (int l = 0; l < L; l++) {
                sum[c][l] = fmaf(w[c], x[i][l], sum[c][l]);
            }
        }
    }
}

template <bool WIDE, typename T, int C>
static __global__ void __launch_bounds__(THREADS)
    mix_kernel(const __grid_constant__ mix_keys k, const __grid_constant__ mix_args<T> a)
{
    constexpr int L = LANES<T>;
    __shared__ float4 weight[KEYS_MOST]; // all ways of a key
    size_t t = blockIdx.x, row = t * a.D;
    for (int i = threadIdx.x; i < a.n * C; i += blockDim.x) {
        int c = i / a.n, j = i % a.n;
        float w = a.weights ? a.weights[t * (size_t)(C * a.n) + i] : to_float(a.static_weights[i]);
        reinterpret_cast<float *>(&weight[j])[c] = w;
    }
    __syncthreads();
    for (size_t at = (size_t)threadIdx.x * L; at < a.D; at += (size_t)blockDim.x * L) {
        float sum[C][L] = {};
        int j = 0;
        for (; j + TOGETHER <= a.n; j += TOGETHER) {
            mix<WIDE, T, C, TOGETHER>(sum, k, weight, j, row, at, a);
        }
        for (; j < a.n; j++) {
            mix<WIDE, T, C, 1>(sum, k, weight, j, row, at, a);
        }
#pragma unroll
        for (int c = 0; c < C; c++) {
            row_put<WIDE>((T *)a.out[c] + row, sum[c], at, a.D);
        }
    }
}

template <bool WIDE, typename T>
static void mix_run(const struct kernel_ctx *ctx, const mix_keys &k, const mix_args<T> &a, size_t N,
                    size_t C)
{
    size_t warps = blocks_of(blocks_of(a.D, LANES<T>), WARP);
    unsigned threads = warps < THREADS / WARP ? (unsigned)warps * WARP : THREADS, grid = grid_of(N);
    switch (C) {
    case 1:
        mix_kernel<WIDE, T, 1><<<grid, threads, 0, stream_of(ctx)>>>(k, a);
        break;
    case 2:
        mix_kernel<WIDE, T, 2><<<grid, threads, 0, stream_of(ctx)>>>(k, a);
        break;
    case 3:
        mix_kernel<WIDE, T, 3><<<grid, threads, 0, stream_of(ctx)>>>(k, a);
        break;
    default:
        mix_kernel<WIDE, T, 4><<<grid, threads, 0, stream_of(ctx)>>>(k, a);
        break;
    }
    launch_check("mudd_forward");
}

template <typename T>
static void mudd_forward(const struct kernel_ctx *ctx, void *const *out, const void *const *key,
                         const float *weights, const void *static_weights, size_t N, size_t D,
                         size_t C, size_t n)
{
    CHECK(C >= 1 && C <= WAYS_MAX, "%zu ways", C);
    CHECK(n >= 1 && n <= KEYS_MOST, "an aggregate of %zu keys: 1 to %d", n, KEYS_MOST);
    mix_keys k;
    mix_args<T> a = {{}, weights, (const T *)static_weights, D, (int)n};
    bool wide = D % LANES<T> == 0;
    for (size_t j = 0; j < n; j++) {
        k.key[j] = key[j];
        wide = wide && aligned(key[j]);
    }
    for (size_t c = 0; c < C; c++) {
        a.out[c] = out[c];
        wide = wide && aligned(out[c]);
    }
    if (N == 0 || D == 0) {
        return;
    }
    if (wide) {
        mix_run<true>(ctx, k, a, N, C);
    } else {
        mix_run<false>(ctx, k, a, N, C);
    }
}

extern "C" void cuda_mudd_forward_fill(struct kernels *table)
{
    table->mudd_forward = table->dtype == DTYPE_BF16 ? mudd_forward<bf16> : mudd_forward<float>;
}
