// common.cuh - device code that the operations share; private to kernels/cuda/.
//
// T is the table's element: float or __nv_bfloat16. Arithmetic is float, or double where said. No sum
// depends on alignment: the elements that a thread takes follow from the shape, and only how they are
// fetched (16 bytes at once, or one by one) from where the buffers lie.
#ifndef KERNELS_CUDA_COMMON_CUH
#define KERNELS_CUDA_COMMON_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

extern "C" {
#include "kernels/cuda/cuda.h"
}

typedef __nv_bfloat16 bf16;

enum { WARP = 32, DEVICES_MOST = 64 };

template <typename T> struct lane_count; // elements of 16 bytes
template <> struct lane_count<float> {
    static constexpr int value = 4;
};
template <> struct lane_count<bf16> {
    static constexpr int value = 8;
};
template <typename T> constexpr int LANES = lane_count<T>::value;

__device__ inline float to_float(float x)
{
    return x;
}
__device__ inline float to_float(bf16 x)
{
    return __bfloat162float(x);
}
template <typename T> __device__ inline T from_float(float x);
template <> __device__ inline float from_float<float>(float x)
{
    return x;
}
template <> __device__ inline bf16 from_float<bf16>(float x)
{
    return __float2bfloat16_rn(x);
}

// 16 aligned bytes.
__device__ inline void lanes_load(float (&x)[4], const float *p)
{
    float4 v = *reinterpret_cast<const float4 *>(p);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}
__device__ inline void lanes_load(float (&x)[8], const bf16 *p)
{
    uint4 v = *reinterpret_cast<const uint4 *>(p);
    const unsigned word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) { // a bfloat16 is a float's upper half
        x[2 * i] = __uint_as_float(word[i] << 16);
        x[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
    }
}
__device__ inline void lanes_store(float *p, const float (&x)[4])
{
    *reinterpret_cast<float4 *>(p) = make_float4(x[0], x[1], x[2], x[3]);
}
__device__ inline unsigned bf16_pair(float low, float high)
{
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<unsigned *>(&pair);
}
__device__ inline void lanes_store(bf16 *p, const float (&x)[8])
{
    *reinterpret_cast<uint4 *>(p) = make_uint4(bf16_pair(x[0], x[1]), bf16_pair(x[2], x[3]),
                                               bf16_pair(x[4], x[5]), bf16_pair(x[6], x[7]));
}

// Elements at..at+LANES of a row that ends at `width`, zeros beyond it. `wide`: the row is aligned.
template <typename T>
__device__ inline void row_load(float (&x)[LANES<T>], const T *row, size_t at, size_t width,
                                bool wide)
{
    if (wide && at + LANES<T> <= width) {
        lanes_load(x, row + at);
        return;
    }
#pragma unroll
    for (int i = 0; i < LANES<T>; i++) {
        x[i] = at + i < width ? to_float(row[at + i]) : 0.0f;
    }
}

template <typename T>
__device__ inline void row_store(T *row, const float (&x)[LANES<T>], size_t at, size_t width,
                                 bool wide)
{
    if (wide && at + LANES<T> <= width) {
        lanes_store(row + at, x);
        return;
    }
#pragma unroll
    for (int i = 0; i < LANES<T>; i++) {
        if (at + i < width) {
            row[at + i] = from_float<T>(x[i]);
        }
    }
}

// The same where it is known when compiling: WIDE rows are aligned and whole multiples of LANES.
template <bool WIDE, typename T>
__device__ inline void row_fetch(float (&x)[LANES<T>], const T *row, size_t at, size_t width)
{
    if constexpr (WIDE) {
        lanes_load(x, row + at);
    } else {
        row_load<T>(x, row, at, width, false);
    }
}

template <bool WIDE, typename T>
__device__ inline void row_put(T *row, const float (&x)[LANES<T>], size_t at, size_t width)
{
    if constexpr (WIDE) {
        lanes_store(row + at, x);
    } else {
        row_store<T>(row, x, at, width, false);
    }
}

// Sum over SIZE neighbouring lanes, in each of them: lanes SIZE / 2 apart first, down to 1.
template <int SIZE = WARP, typename S> __device__ inline S warp_sum(S x)
{
    unsigned lane = threadIdx.x % WARP, mask = 0xffffffffu;
    if (SIZE < WARP) { // others may have left
        mask = ((1u << SIZE % WARP) - 1) << lane / SIZE * SIZE;
    }
#pragma unroll
    for (int apart = SIZE / 2; apart > 0; apart /= 2) {
        x += __shfl_xor_sync(mask, x, apart);
    }
    return x;
}

// Sum over THREADS threads (some of a warp, or a whole block), in every one of them; warps ascending.
template <int THREADS, typename S> __device__ inline S group_sum(S x)
{
    if constexpr (THREADS <= WARP) {
        return warp_sum<THREADS>(x);
    } else {
        __shared__ S part[THREADS / WARP];
        x = warp_sum(x);
        __syncthreads(); // the last round's readers are done
        if (threadIdx.x % WARP == 0) {
            part[threadIdx.x / WARP] = x;
        }
        __syncthreads();
        x = part[0];
#pragma unroll
        for (int w = 1; w < THREADS / WARP; w++) {
            x += part[w];
        }
        return x;
    }
}

// sum[0] of lane l becomes the warp's sum of sum[l % COUNT]; COUNT a power of two up to WARP.
template <int COUNT> __device__ inline void halves_sum(float *sum, int lane)
{
    if constexpr (COUNT > 1) {
        constexpr int HALF = COUNT / 2;
        bool upper = lane & HALF;
#pragma unroll
        for (int i = 0; i < HALF; i++) {
            float give = upper ? sum[i] : sum[i + HALF], keep = upper ? sum[i + HALF] : sum[i];
            sum[i] = keep + __shfl_xor_sync(0xffffffffu, give, HALF);
        }
        halves_sum<HALF>(sum, lane);
    }
}

// ---- host side ----

static inline cudaStream_t stream_of(const struct kernel_ctx *ctx)
{
    return (cudaStream_t)ctx->stream;
}

static inline size_t blocks_of(size_t count, size_t block)
{
    return (count + block - 1) / block;
}

static inline unsigned grid_of(size_t blocks)
{
    CHECK(blocks > 0 && blocks <= 0x7fffffff, "a grid of %zu blocks", blocks);
    return (unsigned)blocks;
}

// Threads of a block that takes a row of D elements, `lanes` each at a time: whole warps.
template <int MOST> static inline unsigned row_threads(size_t D, int lanes)
{
    size_t warps = blocks_of(blocks_of(D, (size_t)lanes), WARP);
    return warps < MOST / WARP ? (unsigned)(warps > 0 ? warps : 1) * WARP : MOST;
}

static inline bool aligned(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}

// Rows of `width` elements from p are each aligned.
template <typename T> static inline bool rows_aligned(const void *p, size_t width)
{
    return aligned(p) && width * sizeof(T) % 16 == 0;
}

static inline void launch_check(const char *op)
{
    cudaError_t error = cudaGetLastError();
    CHECK(error == cudaSuccess, "GPU: %s: %s", op, cudaGetErrorString(error));
}

// Libraries have a handle for each device.
inline int device_bound(void)
{
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    CHECK(error == cudaSuccess && device < DEVICES_MOST, "GPU %d: %s", device,
          cudaGetErrorString(error));
    return device;
}

static inline void *workspace_get(const struct kernel_ctx *ctx, size_t bytes)
{
    CHECK(bytes <= ctx->workspace_bytes, "workspace of %zu bytes, %zu needed", ctx->workspace_bytes,
          bytes);
    return ctx->workspace;
}

// ---- elementwise: out[..][i] = f(in[..][i]); outputs may alias inputs ----

template <typename T, int OUT, int IN> struct streams {
    T *out[OUT];
    const T *in[IN];
};

enum { EACH_THREADS = 256, EACH_BLOCKS_MOST = 1 << 20 };

template <typename T, int OUT, int IN, typename F>
static __global__ void __launch_bounds__(EACH_THREADS)
    each_kernel(const streams<T, OUT, IN> s, const F f, size_t count, bool wide)
{
    constexpr int L = LANES<T>;
    size_t thread = (size_t)blockIdx.x * EACH_THREADS + threadIdx.x;
    size_t step = (size_t)gridDim.x * EACH_THREADS;
    for (size_t v = thread; v * L < count; v += step) {
        float x[IN][L], y[OUT][L];
#pragma unroll
        for (int k = 0; k < IN; k++) {
            row_load<T>(x[k], s.in[k], v * L, count, wide);
        }
#pragma unroll
        for (int i = 0; i < L; i++) {
            float from[IN], to[OUT];
#pragma unroll
            for (int k = 0; k < IN; k++) {
                from[k] = x[k][i];
            }
            f(to, from);
#pragma unroll
            for (int k = 0; k < OUT; k++) {
                y[k][i] = to[k];
            }
        }
#pragma unroll
        for (int k = 0; k < OUT; k++) {
            row_store<T>(s.out[k], y[k], v * L, count, wide);
        }
    }
}

template <typename T, int OUT, int IN, typename F>
static void each_run(const struct kernel_ctx *ctx, const char *op, const streams<T, OUT, IN> &s,
                     const F &f, size_t count)
{
    bool wide = true;
    for (int k = 0; k < OUT; k++) {
        wide = wide && aligned(s.out[k]);
    }
    for (int k = 0; k < IN; k++) {
        wide = wide && aligned(s.in[k]);
    }
    if (count > 0) {
        size_t blocks = blocks_of(count, (size_t)EACH_THREADS * LANES<T>);
        blocks = blocks < EACH_BLOCKS_MOST ? blocks : EACH_BLOCKS_MOST;
        each_kernel<T, OUT, IN, F>
            <<<grid_of(blocks), EACH_THREADS, 0, stream_of(ctx)>>>(s, f, count, wide);
        launch_check(op);
    }
}

#endif
