// streams.cu - the streams of hyper-connections: read, mixed and written, and their gradients.
//
// A block takes a token; a thread LANES columns of all its streams at once, in registers. MOST: streams that
// there are registers for.
#include "kernels/cuda/common.cuh"

enum { THREADS = 256, FEW = 4 };

// ---- out[t] = sum over s of weight[t, s] x[t, s] ----

template <bool WIDE, typename T>
static __global__ void __launch_bounds__(THREADS)
    sum_kernel(T *out, const float *weight, size_t stride, const T *x, size_t D, int n)
{
    constexpr int L = LANES<T>;
    size_t t = blockIdx.x;
    for (size_t at = (size_t)threadIdx.x * L; at < D; at += (size_t)blockDim.x * L) {
        float sum[L] = {};
#pragma unroll 4
        for (int s = 0; s < n; s++) {
            float w = weight ? weight[t * stride + s] : 1.0f, v[L];
            row_fetch<WIDE>(v, x + (t * n + s) * D, at, D);
#pragma unroll
            for (int l = 0; l < L; l++) {
                sum[l] = fmaf(w, v[l], sum[l]);
            }
        }
        row_put<WIDE>(out + t * D, sum, at, D);
    }
}

template <typename T>
static void streams_sum(const struct kernel_ctx *ctx, void *out, const float *weight, size_t stride,
                        const void *x, size_t N, size_t D, size_t n)
{
    bool wide = rows_aligned<T>(x, D) && aligned(out);
    unsigned threads = row_threads<THREADS>(D, LANES<T>);
    if (N == 0) {
        return;
    }
    if (wide) {
        sum_kernel<true, T><<<grid_of(N), threads, 0, stream_of(ctx)>>>((T *)out, weight, stride,
                                                                        (const T *)x, D, (int)n);
    } else {
        sum_kernel<false, T><<<grid_of(N), threads, 0, stream_of(ctx)>>>((T *)out, weight, stride,
                                                                         (const T *)x, D, (int)n);
    }
    launch_check("streams_sum");
}

// ---- out[t, s] (+)= sum over r of M[s, r] x[t, r] + weight[s] f[t] + factor[s] y[t, s] ----

template <typename T> struct mix_args {
    T *out;
    const T *x, *f, *y;
    const float *matrix, *weight, *factor;
    size_t stride, D;
    int n;
    bool accumulate, transposed;
};

template <bool WIDE, typename T, int MOST>
static __global__ void __launch_bounds__(THREADS) mix_kernel(const __grid_constant__ mix_args<T> a)
{
    constexpr int L = LANES<T>;
    __shared__ float matrix[MOST][MOST], weight[MOST], factor[MOST]; // [s][r]
    size_t t = blockIdx.x, row = t * a.n * a.D;
    for (int i = threadIdx.x; i < a.n * a.n && a.matrix; i += blockDim.x) {
        int s = a.transposed ? i % a.n : i / a.n, r = a.transposed ? i / a.n : i % a.n;
        matrix[s][r] = a.matrix[t * a.stride + i];
    }
    for (int s = threadIdx.x; s < a.n; s += blockDim.x) {
        weight[s] = a.weight ? a.weight[t * a.stride + s] : 1.0f;
        factor[s] = a.factor ? a.factor[t * a.n + s] : 0.0f;
    }
    __syncthreads();
    for (size_t at = (size_t)threadIdx.x * L; at < a.D; at += (size_t)blockDim.x * L) {
        float x[MOST][L], f[L];
        if (a.matrix) {
#pragma unroll
            for (int r = 0; r < MOST; r++) {
                if (r < a.n) {
                    row_fetch<WIDE>(x[r], a.x + row + r * a.D, at, a.D);
                }
            }
        }
        if (a.f) {
            row_fetch<WIDE>(f, a.f + t * a.D, at, a.D);
        }
#pragma unroll 1
        for (int s = 0; s < a.n; s++) {
            float sum[L] = {};
            if (a.accumulate) {
                row_fetch<WIDE>(sum, a.out + row + s * a.D, at, a.D);
            }
            if (a.matrix) {
#pragma unroll
                for (int r = 0; r < MOST; r++) {
                    if (r < a.n) {
#pragma unroll
                        for (int l = 0; l < L; l++) {
                            sum[l] = fmaf(matrix[s][r], x[r][l], sum[l]);
                        }
                    }
                }
            }
            if (a.f) {
#pragma unroll
                for (int l = 0; l < L; l++) {
                    sum[l] = fmaf(weight[s], f[l], sum[l]);
                }
            }
            if (a.factor) {
                float y[L];
                row_fetch<WIDE>(y, a.y + row + s * a.D, at, a.D);
#pragma unroll
                for (int l = 0; l < L; l++) {
                    sum[l] = fmaf(factor[s], y[l], sum[l]);
                }
            }
            row_put<WIDE>(a.out + row + s * a.D, sum, at, a.D);
        }
    }
}

template <bool WIDE, typename T>
static void mix_run(const struct kernel_ctx *ctx, const mix_args<T> &a, size_t N)
{
    unsigned threads = row_threads<THREADS>(a.D, LANES<T>);
    if (a.n <= FEW) {
        mix_kernel<WIDE, T, FEW><<<grid_of(N), threads, 0, stream_of(ctx)>>>(a);
    } else {
        mix_kernel<WIDE, T, STREAMS_MAX><<<grid_of(N), threads, 0, stream_of(ctx)>>>(a);
    }
    launch_check("streams_mix");
}

template <typename T>
static void streams_mix(const struct kernel_ctx *ctx, void *out, bool accumulate,
                        const float *matrix, bool transposed, const void *x, const float *weight,
                        const void *f, const float *factor, const void *y, size_t stride, size_t N,
                        size_t D, size_t n)
{
    CHECK(n >= 1 && n <= STREAMS_MAX, "%zu streams: 1 to %d", n, STREAMS_MAX);
    mix_args<T> a = {(T *)out, (const T *)x, (const T *)f, (const T *)y,
                     matrix,   weight,       factor,       stride,
                     D,        (int)n,       accumulate,   transposed};
    if (N == 0) {
        return;
    }
    if (rows_aligned<T>(out, D) && aligned(x) && aligned(f) && aligned(y)) {
        mix_run<true>(ctx, a, N);
    } else {
        mix_run<false>(ctx, a, N);
    }
}

// ---- dmatrix[s, r] = <a[s], b[r]>, dweight[s] = <a[s], f> ----

template <typename T> struct dots_args {
    float *dmatrix, *dweight;
    const T *a, *b, *f;
    size_t stride, D;
    int n;
};

// One s after the other; the sums of a thread, a warp and the block as in mudd_backward.cu.
template <bool WIDE, typename T, int MOST>
static __global__ void __launch_bounds__(THREADS)
    dots_kernel(const __grid_constant__ dots_args<T> d)
{
    constexpr int L = LANES<T>, COUNT = 2 * MOST; // a power of two: those of r, then f's
    __shared__ float part[THREADS / WARP][COUNT];
    size_t t = blockIdx.x, row = t * d.n * d.D;
    int lane = threadIdx.x % WARP;
    for (int s = 0; s < d.n; s++) {
        float sum[COUNT] = {};
        for (size_t at = (size_t)threadIdx.x * L; at < d.D; at += (size_t)blockDim.x * L) {
            float a[L], x[L];
            row_fetch<WIDE>(a, d.a + row + s * d.D, at, d.D);
#pragma unroll
            for (int r = 0; r < MOST; r++) {
                if (d.b && r < d.n) {
                    row_fetch<WIDE>(x, d.b + row + r * d.D, at, d.D);
#pragma unroll
                    for (int l = 0; l < L; l++) {
                        sum[r] = fmaf(a[l], x[l], sum[r]);
                    }
                }
            }
            row_fetch<WIDE>(x, d.f + t * d.D, at, d.D);
#pragma unroll
            for (int l = 0; l < L; l++) {
                sum[MOST] = fmaf(a[l], x[l], sum[MOST]);
            }
        }
        halves_sum<COUNT>(sum, lane);
        float whole = sum[0];
#pragma unroll
        for (int apart = COUNT; apart < WARP; apart *= 2) {
            whole += __shfl_xor_sync(0xffffffffu, whole, apart);
        }
        __syncthreads(); // the last round's readers are done
        if (lane < COUNT) {
            part[threadIdx.x / WARP][lane] = whole;
        }
        __syncthreads();
        for (int r = threadIdx.x; r <= MOST; r += blockDim.x) {
            float total = part[0][r];
            for (int w = 1; w < (int)blockDim.x / WARP; w++) {
                total += part[w][r];
            }
            if (r == MOST) {
                d.dweight[t * d.stride + s] = total;
            } else if (d.b && r < d.n) {
                d.dmatrix[t * d.stride + s * d.n + r] = total;
            }
        }
    }
}

template <bool WIDE, typename T>
static void dots_run(const struct kernel_ctx *ctx, const dots_args<T> &d, size_t N)
{
    unsigned threads = row_threads<THREADS>(d.D, LANES<T>);
    if (d.n <= FEW) {
        dots_kernel<WIDE, T, FEW><<<grid_of(N), threads, 0, stream_of(ctx)>>>(d);
    } else {
        dots_kernel<WIDE, T, STREAMS_MAX><<<grid_of(N), threads, 0, stream_of(ctx)>>>(d);
    }
    launch_check("streams_dots");
}

template <typename T>
static void streams_dots(const struct kernel_ctx *ctx, float *dmatrix, float *dweight,
                         size_t stride, const void *a, const void *b, const void *f, size_t N,
                         size_t D, size_t n)
{
    CHECK(n >= 1 && n <= STREAMS_MAX, "%zu streams: 1 to %d", n, STREAMS_MAX);
    dots_args<T> d = {dmatrix, dweight, (const T *)a, (const T *)b, (const T *)f,
                      stride,  D,       (int)n};
    if (N == 0) {
        return;
    }
    if (rows_aligned<T>(a, D) && aligned(b) && aligned(f)) {
        dots_run<true>(ctx, d, N);
    } else {
        dots_run<false>(ctx, d, N);
    }
}

template <typename T> static void fill(struct kernels *table)
{
    table->streams_sum = streams_sum<T>;
    table->streams_mix = streams_mix<T>;
    table->streams_dots = streams_dots<T>;
}

extern "C" void cuda_streams_fill(struct kernels *table)
{
    table->dtype == DTYPE_BF16 ? fill<bf16>(table) : fill<float>(table);
}
