// depth.cu - attention over depth: sources weighted by a softmax of their own scores, and its gradients.
//
// A block takes a token (backward: a chunk of tokens, one after the other). Its threads form the sums of
// TOGETHER sources at a time, as in mudd_backward.cu, then every thread weighs the sources, then they are
// mixed: read again, from the second-level cache.
#include "kernels/cuda/columns.cuh"

enum { THREADS = 256, TOGETHER = 4, TERMS_MOST = 64 };

struct sources {
    const void *key[KEYS_MOST];
};

template <typename T> struct depth_args {
    T *out;              // forward
    float *coefficients; // backward, as `part` and `dout`
    float *part;         // [chunks, D]
    const T *dout, *query, *scale;
    size_t N, D, rows; // rows of a chunk
    float eps;
    int n;
};

// What a block knows of its token's sources.
struct weighed {
    float score[KEYS_MOST], rstd[KEYS_MOST], alpha[KEYS_MOST], dalpha[KEYS_MOST];
};

// Sums of TOGETHER sources: with the direction, of squares, and (SUMS 3) with dout.
template <bool WIDE, typename T, int SUMS>
__device__ inline void source_sums(float (&sum)[4 * TOGETHER], const sources &k,
                                   const depth_args<T> &a, int first, size_t row)
{
    constexpr int L = LANES<T>;
    for (size_t at = (size_t)threadIdx.x * L; at < a.D; at += (size_t)blockDim.x * L) {
        float query[L], scale[L], dout[L], x[TOGETHER][L];
        row_fetch<WIDE>(query, a.query, at, a.D);
        row_fetch<WIDE>(scale, a.scale, at, a.D);
        if (SUMS == 3) {
            row_fetch<WIDE>(dout, a.dout + row, at, a.D);
        }
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) { // beyond the last source that one again
            row_fetch<WIDE>(x[i], (const T *)k.key[min(first + i, a.n - 1)] + row, at, a.D);
        }
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
#pragma unroll
            for (int l = 0; l < L; l++) {
                sum[i] = fmaf(query[l] * scale[l], x[i][l], sum[i]);
                sum[TOGETHER + i] = fmaf(x[i][l], x[i][l], sum[TOGETHER + i]);
                if (SUMS == 3) {
                    sum[2 * TOGETHER + i] = fmaf(dout[l], x[i][l], sum[2 * TOGETHER + i]);
                }
            }
        }
    }
}

// The token's scores and weights, in every thread's sight. part: [warps][groups][4 * TOGETHER].
template <bool WIDE, typename T, int SUMS>
__device__ inline void sources_weigh(weighed &w, float *part, const sources &k,
                                     const depth_args<T> &a, size_t row)
{
    constexpr int COUNT = 4 * TOGETHER; // a power of two, for halves_sum
    int groups = (a.n + TOGETHER - 1) / TOGETHER, lane = threadIdx.x % WARP;
    for (int group = 0; group < groups; group++) {
        float sum[COUNT] = {};
        source_sums<WIDE, T, SUMS>(sum, k, a, group * TOGETHER, row);
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
    for (int s = threadIdx.x; s < a.n; s += blockDim.x) {
        const float *from = part + s / TOGETHER * COUNT + s % TOGETHER;
        float sum[3] = {};
#pragma unroll
        for (int i = 0; i < SUMS; i++) {
            for (int warp = 0; warp < (int)blockDim.x / WARP; warp++) {
                sum[i] += from[warp * groups * COUNT + i * TOGETHER];
            }
        }
        w.rstd[s] = 1.0f / sqrtf(sum[1] / (float)a.D + a.eps);
        w.score[s] = sum[0] * w.rstd[s];
        w.dalpha[s] = sum[2];
    }
    __syncthreads();
    float largest = w.score[0], sum = 0;
    for (int s = 1; s < a.n; s++) {
        largest = fmaxf(largest, w.score[s]);
    }
    for (int s = 0; s < a.n; s++) { // the same in every thread
        sum += expf(w.score[s] - largest);
    }
    for (int s = threadIdx.x; s < a.n; s += blockDim.x) {
        w.alpha[s] = expf(w.score[s] - largest) / sum;
    }
    __syncthreads();
}

// sum (+)= weight[s] times source s, ascending.
template <bool WIDE, typename T>
__device__ inline void sources_mix(float (&sum)[LANES<T>], const float *weight, const sources &k,
                                   const depth_args<T> &a, size_t row, size_t at)
{
    constexpr int L = LANES<T>;
#pragma unroll 4
    for (int s = 0; s < a.n; s++) {
        float x[L];
        row_fetch<WIDE>(x, (const T *)k.key[s] + row, at, a.D);
#pragma unroll
        for (int l = 0; l < L; l++) {
            sum[l] = fmaf(weight[s], x[l], sum[l]);
        }
    }
}

template <bool WIDE, typename T>
static __global__ void __launch_bounds__(THREADS)
    forward_kernel(const __grid_constant__ sources k, const __grid_constant__ depth_args<T> a)
{
    constexpr int L = LANES<T>;
    extern __shared__ float part[];
    __shared__ weighed w;
    size_t row = (size_t)blockIdx.x * a.D;
    sources_weigh<WIDE, T, 2>(w, part, k, a, row);
    for (size_t at = (size_t)threadIdx.x * L; at < a.D; at += (size_t)blockDim.x * L) {
        float sum[L] = {};
        sources_mix<WIDE>(sum, w.alpha, k, a, row, at);
        row_put<WIDE>(a.out + row, sum, at, a.D);
    }
}

template <bool WIDE, typename T>
static __global__ void __launch_bounds__(THREADS)
    backward_kernel(const __grid_constant__ sources k, const __grid_constant__ depth_args<T> a)
{
    constexpr int L = LANES<T>;
    extern __shared__ float part[];
    __shared__ weighed w;
    __shared__ float to_direction[KEYS_MOST]; // a_s of the token
    size_t begin = blockIdx.x * a.rows, end = min(a.N, begin + a.rows);
    float *own = a.part + blockIdx.x * a.D;
    for (size_t t = begin; t < end; t++) {
        size_t row = t * a.D;
        sources_weigh<WIDE, T, 3>(w, part, k, a, row);
        float mean = 0, *to = a.coefficients + t * 3 * a.n;
        for (int s = 0; s < a.n; s++) {
            mean = fmaf(w.alpha[s], w.dalpha[s], mean);
        }
        for (int s = threadIdx.x; s < a.n; s += blockDim.x) {
            float dscore = w.alpha[s] * (w.dalpha[s] - mean), rstd = w.rstd[s];
            to_direction[s] = dscore * rstd;
            to[s] = w.alpha[s];
            to[a.n + s] = dscore * rstd;
            to[2 * a.n + s] = -(dscore * w.score[s]) * (rstd * rstd) / (float)a.D;
        }
        __syncthreads();
        for (size_t at = (size_t)threadIdx.x * L; at < a.D; at += (size_t)blockDim.x * L) {
            float sum[L] = {}; // of the chunk's tokens so far: this thread's own elements
            for (int l = 0; l < L && at + l < a.D && t > begin; l++) {
                sum[l] = own[at + l];
            }
            sources_mix<WIDE>(sum, to_direction, k, a, row, at);
            for (int l = 0; l < L && at + l < a.D; l++) {
                own[at + l] = sum[l];
            }
        }
        __syncthreads(); // before w and to_direction change
    }
}

// dquery = scale * sum, dscale = query * sum.
template <typename T>
static __global__ void __launch_bounds__(THREADS)
    finish_kernel(float *dquery, float *dscale, const float *sum, const T *query, const T *scale,
                  size_t D)
{
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < D) {
        dquery[i] = sum[i] * to_float(scale[i]);
        dscale[i] = sum[i] * to_float(query[i]);
    }
}

template <typename T>
static bool sources_fill(sources &k, const void *const *key, const depth_args<T> &a)
{
    CHECK(a.n >= 1 && a.n <= KEYS_MOST, "%d sources: 1 to %d", a.n, KEYS_MOST);
    bool wide = a.D % LANES<T> == 0 && aligned(a.query) && aligned(a.scale) && aligned(a.dout) &&
                aligned(a.out);
    for (int s = 0; s < a.n; s++) {
        k.key[s] = key[s];
        wide = wide && aligned(key[s]);
    }
    return wide;
}

static size_t shared_bytes(unsigned threads, int n)
{
    return threads / WARP * blocks_of((size_t)n, TOGETHER) * 4 * TOGETHER * sizeof(float);
}

template <typename T>
static void depth_forward(const struct kernel_ctx *ctx, void *out, const void *const *key,
                          const void *query, const void *scale, float eps, size_t N, size_t D,
                          size_t n)
{
    sources k;
    depth_args<T> a = {};
    a.out = (T *)out, a.query = (const T *)query, a.scale = (const T *)scale;
    a.N = N, a.D = D, a.eps = eps, a.n = (int)n;
    bool wide = sources_fill(k, key, a);
    unsigned threads = row_threads<THREADS>(D, LANES<T>);
    size_t shared = shared_bytes(threads, a.n);
    if (N == 0) {
        return;
    }
    if (wide) {
        forward_kernel<true, T><<<grid_of(N), threads, shared, stream_of(ctx)>>>(k, a);
    } else {
        forward_kernel<false, T><<<grid_of(N), threads, shared, stream_of(ctx)>>>(k, a);
    }
    launch_check("depth_forward");
}

template <typename T>
static void depth_backward(const struct kernel_ctx *ctx, float *coefficients, float *dquery_part,
                           float *dscale_part, const void *dout, const void *const *key,
                           const void *query, const void *scale, float eps, size_t N, size_t D,
                           size_t n)
{
    sources k;
    depth_args<T> a = {};
    a.coefficients = coefficients, a.dout = (const T *)dout;
    a.query = (const T *)query, a.scale = (const T *)scale;
    a.N = N, a.D = D, a.rows = cuda_depth_rows(N), a.eps = eps, a.n = (int)n;
    a.part = (float *)workspace_get(ctx, cuda_depth_bytes(N, D));
    bool wide = sources_fill(k, key, a);
    size_t chunks = blocks_of(N, a.rows);
    unsigned threads = row_threads<THREADS>(D, LANES<T>);
    size_t shared = shared_bytes(threads, a.n);
    float *sum = a.part + chunks * D;
    if (N == 0) {
        return;
    }
    if (wide) {
        backward_kernel<true, T><<<grid_of(chunks), threads, shared, stream_of(ctx)>>>(k, a);
    } else {
        backward_kernel<false, T><<<grid_of(chunks), threads, shared, stream_of(ctx)>>>(k, a);
    }
    launch_check("depth_backward");
    chunks_add(ctx, sum, a.part, chunks, D, D, false);
    finish_kernel<T><<<grid_of(blocks_of(D, THREADS)), THREADS, 0, stream_of(ctx)>>>(
        dquery_part, dscale_part, sum, a.query, a.scale, D);
    launch_check("depth_backward");
}

// ---- key: dkey (+)= the terms in order, three steps each, in float until the one write ----

struct depth_terms {
    struct depth_term term[TERMS_MOST];
    int count;
};

template <bool WIDE, typename T>
static __global__ void __launch_bounds__(THREADS)
    key_kernel(T *dkey, const __grid_constant__ depth_terms terms, const T *key, size_t D,
               bool accumulate)
{
    constexpr int L = LANES<T>;
    size_t t = blockIdx.x, row = t * D;
    for (size_t at = (size_t)threadIdx.x * L; at < D; at += (size_t)blockDim.x * L) {
        float sum[L] = {}, x[L];
        if (accumulate) {
            row_fetch<WIDE>(sum, dkey + row, at, D);
        }
        row_fetch<WIDE>(x, key + row, at, D);
#pragma unroll 2
        for (int k = 0; k < terms.count; k++) {
            const struct depth_term &term = terms.term[k];
            const float *from = term.coefficients + t * 3 * term.n;
            float alpha = from[0], a = from[term.n], b = from[2 * term.n];
            float dout[L], query[L], scale[L];
            row_fetch<WIDE>(dout, (const T *)term.dout + row, at, D);
            row_fetch<WIDE>(query, (const T *)term.query, at, D);
            row_fetch<WIDE>(scale, (const T *)term.scale, at, D);
#pragma unroll
            for (int l = 0; l < L; l++) {
                sum[l] = fmaf(alpha, dout[l], sum[l]);
                sum[l] = fmaf(a, query[l] * scale[l], sum[l]);
                sum[l] = fmaf(b, x[l], sum[l]);
            }
        }
        row_put<WIDE>(dkey + row, sum, at, D);
    }
}

template <typename T>
static void depth_backward_key(const struct kernel_ctx *ctx, void *dkey, bool accumulate,
                               const struct depth_term *terms, size_t count, const void *key,
                               size_t N, size_t D)
{
    size_t done = 0;
    if (N == 0 || D == 0) {
        return;
    }
    do { // more than one round for very many terms only
        depth_terms some;
        bool wide = rows_aligned<T>(dkey, D) && aligned(key);
        some.count = (int)(count - done < TERMS_MOST ? count - done : TERMS_MOST);
        for (int k = 0; k < some.count; k++) {
            some.term[k] = terms[done + (size_t)k];
            wide = wide && aligned(some.term[k].dout) && aligned(some.term[k].query) &&
                   aligned(some.term[k].scale);
        }
        unsigned grid = grid_of(N), threads = row_threads<THREADS>(D, LANES<T>);
        bool more = accumulate || done > 0;
        if (wide) {
            key_kernel<true, T>
                <<<grid, threads, 0, stream_of(ctx)>>>((T *)dkey, some, (const T *)key, D, more);
        } else {
            key_kernel<false, T>
                <<<grid, threads, 0, stream_of(ctx)>>>((T *)dkey, some, (const T *)key, D, more);
        }
        launch_check("depth_backward_key");
        done += (size_t)some.count;
    } while (done < count);
}

template <typename T> static void fill(struct kernels *table)
{
    table->depth_forward = depth_forward<T>;
    table->depth_backward = depth_backward<T>;
    table->depth_backward_key = depth_backward_key<T>;
}

extern "C" void cuda_depth_fill(struct kernels *table)
{
    table->dtype == DTYPE_BF16 ? fill<bf16>(table) : fill<float>(table);
}
