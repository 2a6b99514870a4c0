// mudd_backward.cu - gradients of an aggregate's weights and of its keys.
#include "kernels/cuda/common.cuh"

enum { THREADS = 256, TOGETHER = 8, TERMS_MOST = 56 };

// ---- weights: dweights[t, c*n + j] = sum over d of dout[c][t,d] key[j][t,d] ----
//
// A block takes a token. A thread keeps TOGETHER * C running sums; a warp adds its threads' by halves
// (each step a lane hands half of its sums over and takes the other half), so that at the end a lane
// holds one sum, and the warps' are added in ascending order.

struct dot_keys {
    const void *key[KEYS_MOST];
};

template <typename T> struct dot_args {
    float *dweights;
    const void *dout[WAYS_MAX];
    size_t D;
    int n;
};

template <bool WIDE, typename T, int C>
static __global__ void __launch_bounds__(THREADS, 2)
    dot_kernel(const __grid_constant__ dot_keys k, const __grid_constant__ dot_args<T> a)
{
    constexpr int L = LANES<T>, COUNT = TOGETHER * (C == 3 ? 4 : C);
    extern __shared__ float part[]; // [warps][groups][COUNT]
    int groups = (a.n + TOGETHER - 1) / TOGETHER, lane = threadIdx.x % WARP;
    size_t t = blockIdx.x, row = t * a.D;
    for (int group = 0; group < groups; group++) {
        float sum[COUNT] = {};
        for (size_t at = (size_t)threadIdx.x * L; at < a.D; at += (size_t)blockDim.x * L) {
            float d[C][L];
#pragma unroll
            for (int c = 0; c < C; c++) {
                row_fetch<WIDE>(d[c], (const T *)a.dout[c] + row, at, a.D);
            }
            float x[TOGETHER][L]; // in flight together; beyond the last key that key again
#pragma unroll
            for (int i = 0; i < TOGETHER; i++) {
                int j = min(group * TOGETHER + i, a.n - 1);
                row_fetch<WIDE>(x[i], (const T *)k.key[j] + row, at, a.D);
            }
#pragma unroll
            for (int i = 0; i < TOGETHER; i++) {
#pragma unroll
                for (int c = 0; c < C; c++) {
#pragma unroll
                    for (int l = 0; l < L; l++) {
                        sum[c * TOGETHER + i] = fmaf(d[c][l], x[i][l], sum[c * TOGETHER + i]);
                    }
                }
            }
        }
        halves_sum<COUNT>(sum, lane);
        float whole = sum[0];
#pragma unroll
        for (int apart = COUNT; apart < WARP; apart *= 2) {
            whole += __shfl_xor_sync(0xffffffffu, whole, apart);
        }
        if (lane < COUNT) {
            part[((threadIdx.x / WARP) * groups + group) * COUNT + lane] = whole;
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < C * a.n; i += blockDim.x) {
        int c = i / a.n, j = i % a.n;
        const float *from = part + j / TOGETHER * COUNT + c * TOGETHER + j % TOGETHER;
        float sum = from[0];
        for (int w = 1; w < (int)blockDim.x / WARP; w++) {
            sum += from[w * groups * COUNT];
        }
        a.dweights[t * (size_t)(C * a.n) + i] = sum;
    }
}

template <bool WIDE, typename T>
static void dot_run(const struct kernel_ctx *ctx, const dot_keys &k, const dot_args<T> &a, size_t N,
                    size_t C)
{
    unsigned threads = row_threads<THREADS>(a.D, LANES<T>), grid = grid_of(N);
    size_t sums = blocks_of((size_t)a.n, TOGETHER) * TOGETHER * (C == 3 ? 4 : C);
    size_t shared = threads / WARP * sums * sizeof(float);
    switch (C) {
    case 1:
        dot_kernel<WIDE, T, 1><<<grid, threads, shared, stream_of(ctx)>>>(k, a);
        break;
    case 2:
        dot_kernel<WIDE, T, 2><<<grid, threads, shared, stream_of(ctx)>>>(k, a);
        break;
    case 3:
        dot_kernel<WIDE, T, 3><<<grid, threads, shared, stream_of(ctx)>>>(k, a);
        break;
    default:
        dot_kernel<WIDE, T, 4><<<grid, threads, shared, stream_of(ctx)>>>(k, a);
        break;
    }
    launch_check("mudd_backward_weights");
}

template <typename T>
static void mudd_backward_weights(const struct kernel_ctx *ctx, float *dweights,
                                  const void *const *dout, const void *const *key, size_t N,
                                  size_t D, size_t C, size_t n)
{
    CHECK(C >= 1 && C <= WAYS_MAX, "%zu ways", C);
    CHECK(n >= 1 && n <= KEYS_MOST, "an aggregate of %zu keys: 1 to %d", n, KEYS_MOST);
    dot_keys k;
    dot_args<T> a = {dweights, {}, D, (int)n};
    bool wide = D % LANES<T> == 0;
    for (size_t j = 0; j < n; j++) {
        k.key[j] = key[j];
        wide = wide && aligned(key[j]);
    }
    for (size_t c = 0; c < C; c++) {
        a.dout[c] = dout[c];
        wide = wide && aligned(dout[c]);
    }
    if (N == 0) {
        return;
    }
    if (wide) {
        dot_run<true>(ctx, k, a, N, C);
    } else {
        dot_run<false>(ctx, k, a, N, C);
    }
}

// ---- key: dkey (+)= the terms in order, their ways ascending, in float until the one write ----

struct key_terms {
    struct mudd_term term[TERMS_MOST];
    int count;
};

template <bool WIDE, typename T>
static __global__ void __launch_bounds__(THREADS)
    key_kernel(T *dkey, const __grid_constant__ key_terms terms, size_t D, bool accumulate)
{
    constexpr int L = LANES<T>;
    size_t t = blockIdx.x, row = t * D;
    for (size_t at = (size_t)threadIdx.x * L; at < D; at += (size_t)blockDim.x * L) {
        float sum[L] = {};
        if (accumulate) {
            row_fetch<WIDE>(sum, dkey + row, at, D);
        }
#pragma unroll 2
        for (int k = 0; k < terms.count; k++) {
            const struct mudd_term &term = terms.term[k];
            const float *weights = term.weights + t * term.row_stride;
            int ways = (int)term.ways;
            float w[WAYS_MAX], x[WAYS_MAX][L];
#pragma unroll
            for (int c = 0; c < WAYS_MAX; c++) {
                if (c < ways) {
                    w[c] = weights[c * term.way_stride];
                    row_fetch<WIDE>(x[c], (const T *)term.dout[c] + row, at, D);
                }
            }
#pragma unroll
            for (int c = 0; c < WAYS_MAX; c++) {
                if (c < ways) {
#pragma unroll
                    for (int l = 0; l < L; l++) {
                        sum[l] = fmaf(w[c], x[c][l], sum[l]);
                    }
                }
            }
        }
        row_put<WIDE>(dkey + row, sum, at, D);
    }
}

template <typename T>
static void mudd_backward_key(const struct kernel_ctx *ctx, void *dkey, bool accumulate,
                              const struct mudd_term *terms, size_t count, size_t N, size_t D)
{
    if (N == 0 || D == 0) {
        return;
    }
    size_t done = 0;
    do { // more than one round for very many terms only
        key_terms some;
        bool wide = rows_aligned<T>(dkey, D);
        some.count = (int)(count - done < TERMS_MOST ? count - done : TERMS_MOST);
        for (int k = 0; k < some.count; k++) {
            some.term[k] = terms[done + (size_t)k];
            for (size_t c = 0; c < some.term[k].ways; c++) {
                wide = wide && aligned(some.term[k].dout[c]);
            }
        }
        unsigned grid = grid_of(N), threads = row_threads<THREADS>(D, LANES<T>);
        bool more = accumulate || done > 0;
        if (wide) {
            key_kernel<true><<<grid, threads, 0, stream_of(ctx)>>>((T *)dkey, some, D, more);
        } else {
            key_kernel<false><<<grid, threads, 0, stream_of(ctx)>>>((T *)dkey, some, D, more);
        }
        launch_check("mudd_backward_key");
        done += (size_t)some.count;
    } while (done < count);
}

template <typename T> static void fill(struct kernels *table)
{
    table->mudd_backward_weights = mudd_backward_weights<T>;
    table->mudd_backward_key = mudd_backward_key<T>;
}

extern "C" void cuda_mudd_backward_fill(struct kernels *table)
{
    table->dtype == DTYPE_BF16 ? fill<bf16>(table) : fill<float>(table);
}
