// attention_backward.cu - gradients of q, k and v, with the probabilities made anew from lse.
//
// Two passes, so that nothing is added up across blocks of threads: one by blocks of queries for dq,
// one by blocks of keys for dk and dv. The latter walks the query heads of a key/value head ascending,
// in each the blocks of queries ascending.
//     P = exp(scale Q K^T - lse)         dV = P^T dO
//     dS = P (dO V^T - delta) scale      dK = dS^T Q     dQ = dS K
// where delta = rows' sum of dO * O.
#include "kernels/cuda/attention.cuh"

enum { DELTA_THREADS = 256 };

// delta [B, H, T]: a warp a row.
template <typename T>
static __global__ void __launch_bounds__(DELTA_THREADS)
    delta_kernel(const __grid_constant__ attention_args a)
{
    size_t row = ((size_t)blockIdx.x * DELTA_THREADS + threadIdx.x) / WARP; // of [B, T, H]
    if (row >= (size_t)a.B * a.T * a.H) {
        return;
    }
    const T *dout = (const T *)a.dout + row * a.E, *out = (const T *)a.kept + row * a.E;
    float sum = 0;
    for (int e = threadIdx.x % WARP; e < a.E; e += WARP) {
        sum = fmaf(to_float(dout[e]), to_float(out[e]), sum);
    }
    sum = warp_sum(sum);
    size_t t = row / a.H, h = row % a.H;
    if (threadIdx.x % WARP == 0) {
        a.delta[(t / a.T * a.H + h) * a.T + t % a.T] = sum;
    }
}

template <typename T, int WIDE, int BLOCK>
static __global__ void __launch_bounds__(ATTENTION_THREADS)
    queries_kernel(const __grid_constant__ attention_args a)
{
    constexpr int R = BLOCK / SIDE, TILE = BLOCK * PITCH<WIDE>;
    extern __shared__ float shared[];
    __shared__ int first[BLOCK];
    float *q = shared, *dout = q + TILE, *k = dout + TILE, *v = k + TILE, *ds = v + TILE;
    int y = threadIdx.x / SIDE, x = threadIdx.x % SIDE;
    int b = blockIdx.y / a.H, h = blockIdx.y % a.H;
    int query = (int)(gridDim.x - 1 - blockIdx.x) * BLOCK;
    size_t row = (size_t)a.H * a.E, kv_row = (size_t)a.G * a.E;
    size_t at = head_offset(a, b, h, a.H), kv = head_offset(a, b, h / (a.H / a.G), a.G);
    float dq[R][COLUMNS<WIDE>] = {}, lse[R], delta[R];
#pragma unroll
    for (int i = 0; i < R; i++) {
        int t = query + y * R + i;
        lse[i] = t < a.T ? a.lse[(size_t)blockIdx.y * a.T + t] : 0.0f;
        delta[i] = t < a.T ? a.delta[(size_t)blockIdx.y * a.T + t] : 0.0f;
    }
    tile_load<T, BLOCK, WIDE>(q, (const T *)a.q + at, row, query, a.T, a.E);
    tile_load<T, BLOCK, WIDE>(dout, (const T *)a.dout + at, row, query, a.T, a.E);
    int start = first_load<BLOCK>(first, a, b, query).least / BLOCK * BLOCK;
    for (int key = start; key <= query; key += BLOCK) {
        float s[R][R], dp[R][R];
        __syncthreads();
        tile_load<T, BLOCK, WIDE>(k, (const T *)a.k + kv, kv_row, key, a.T, a.E);
        tile_load<T, BLOCK, WIDE>(v, (const T *)a.v + kv, kv_row, key, a.T, a.E);
        __syncthreads();
        tile_dot<BLOCK, WIDE>(s, q, k);
        tile_dot<BLOCK, WIDE>(dp, dout, v);
#pragma unroll
        for (int i = 0; i < R; i++) {
            int r = y * R + i;
#pragma unroll
            for (int j = 0; j < R; j++) {
                bool seen = attention_sees(query + r, key + x + j * SIDE, first[r]);
                float p = seen ? expf(s[i][j] * a.scale - lse[i]) : 0.0f;
                ds[r * (BLOCK + 4) + x + j * SIDE] = p * (dp[i][j] - delta[i]) * a.scale;
            }
        }
        __syncthreads();
        tile_mix<BLOCK, WIDE>(dq, ds, k);
    }
    tile_store<T, BLOCK, WIDE>((T *)a.dq + at, row, query, a.T, a.E, dq);
}

// One block of queries of one head, for a block of keys: s = P^T and dp = dS^T, keys down the rows.
template <int BLOCK>
__device__ inline void transposed_scores(float (&s)[BLOCK / SIDE][BLOCK / SIDE],
                                         float (&dp)[BLOCK / SIDE][BLOCK / SIDE],
                                         const attention_args &a, const int *first, size_t head_row,
                                         int query, int key)
{
    constexpr int R = BLOCK / SIDE;
    int y = threadIdx.x / SIDE, x = threadIdx.x % SIDE;
#pragma unroll
    for (int j = 0; j < R; j++) {
        int r = x + j * SIDE, t = query + r;
        float lse = t < a.T ? a.lse[head_row + t] : 0.0f;
        float delta = t < a.T ? a.delta[head_row + t] : 0.0f;
#pragma unroll
        for (int i = 0; i < R; i++) {
            bool seen = t < a.T && attention_sees(t, key + y * R + i, first[r]);
            s[i][j] = seen ? expf(s[i][j] * a.scale - lse) : 0.0f;
            dp[i][j] = s[i][j] * (dp[i][j] - delta) * a.scale;
        }
    }
}

template <int BLOCK>
__device__ inline void scores_store(float *to, const float (&s)[BLOCK / SIDE][BLOCK / SIDE])
{
    constexpr int R = BLOCK / SIDE;
    int y = threadIdx.x / SIDE, x = threadIdx.x % SIDE;
    __syncthreads(); // what lies there is read
#pragma unroll
    for (int i = 0; i < R; i++) {
#pragma unroll
        for (int j = 0; j < R; j++) {
            to[(y * R + i) * (BLOCK + 4) + x + j * SIDE] = s[i][j];
        }
    }
    __syncthreads();
}

template <typename T, int WIDE, int BLOCK>
static __global__ void __launch_bounds__(ATTENTION_THREADS)
    keys_kernel(const __grid_constant__ attention_args a)
{
    constexpr int R = BLOCK / SIDE, TILE = BLOCK * PITCH<WIDE>;
    extern __shared__ float shared[];
    __shared__ int first[BLOCK];
    float *q = shared, *dout = q + TILE, *k = dout + TILE, *v = k + TILE, *p = v + TILE;
    int b = blockIdx.y / a.G, g = blockIdx.y % a.G, key = blockIdx.x * BLOCK;
    size_t row = (size_t)a.H * a.E, kv_row = (size_t)a.G * a.E, kv = head_offset(a, b, g, a.G);
    float dk[R][COLUMNS<WIDE>] = {}, dv[R][COLUMNS<WIDE>] = {};
    tile_load<T, BLOCK, WIDE>(k, (const T *)a.k + kv, kv_row, key, a.T, a.E);
    tile_load<T, BLOCK, WIDE>(v, (const T *)a.v + kv, kv_row, key, a.T, a.E);
    for (int h = g * (a.H / a.G); h < (g + 1) * (a.H / a.G); h++) {
        size_t at = head_offset(a, b, h, a.H), head_row = ((size_t)b * a.H + h) * a.T;
        for (int query = key; query < a.T; query += BLOCK) {
            if (first_load<BLOCK>(first, a, b, query).least >= key + BLOCK) {
                continue; // documents that begin after these keys
            }
            float s[R][R], dp[R][R];
            tile_load<T, BLOCK, WIDE>(q, (const T *)a.q + at, row, query, a.T, a.E);
            tile_load<T, BLOCK, WIDE>(dout, (const T *)a.dout + at, row, query, a.T, a.E);
            __syncthreads();
            tile_dot<BLOCK, WIDE>(s, k, q);
            tile_dot<BLOCK, WIDE>(dp, v, dout);
            transposed_scores<BLOCK>(s, dp, a, first, head_row, query, key);
            scores_store<BLOCK>(p, s);
            tile_mix<BLOCK, WIDE>(dv, p, dout);
            scores_store<BLOCK>(p, dp);
            tile_mix<BLOCK, WIDE>(dk, p, q);
        }
    }
    tile_store<T, BLOCK, WIDE>((T *)a.dk + kv, kv_row, key, a.T, a.E, dk);
    tile_store<T, BLOCK, WIDE>((T *)a.dv + kv, kv_row, key, a.T, a.E, dv);
}

template <typename T, int WIDE, int BLOCK>
static void backward_run(const struct kernel_ctx *ctx, const attention_args &a)
{
    unsigned blocks = (unsigned)blocks_of((size_t)a.T, BLOCK);
    size_t floats = 4 * BLOCK * PITCH<WIDE> + BLOCK * (BLOCK + 4);
    attention_launch(ctx, "attention_backward", queries_kernel<T, WIDE, BLOCK>,
                     dim3(blocks, (unsigned)(a.B * a.H)), ATTENTION_THREADS, floats * sizeof(float),
                     a);
    attention_launch(ctx, "attention_backward", keys_kernel<T, WIDE, BLOCK>,
                     dim3(blocks, (unsigned)(a.B * a.G)), ATTENTION_THREADS, floats * sizeof(float),
                     a);
}

template <typename T>
static void attention_backward(const struct kernel_ctx *ctx, const struct attention_shape *shape,
                               void *dq, void *dk, void *dv, const void *dout, const void *out,
                               const float *lse, const void *q, const void *k, const void *v)
{
    attention_args a = attention_args_of(shape);
    size_t rows = shape->B * shape->T * shape->H;
    a.dq = dq, a.dk = dk, a.dv = dv, a.dout = dout, a.kept = out, a.lse = (float *)lse;
    a.q = q, a.k = k, a.v = v;
    a.delta = (float *)workspace_get(ctx, rows * sizeof(float));
    if (rows == 0) {
        return;
    }
    if (sizeof(T) == 2 && cuda_attention_choice() != CUDA_ATTENTION_OWN &&
        cudnn_attention_backward(ctx, shape, cuda_deterministic(), dq, dk, dv, dout, out, lse, q, k,
                                 v)) {
        return;
    }
    unsigned blocks = grid_of(blocks_of(rows * WARP, DELTA_THREADS));
    delta_kernel<T><<<blocks, DELTA_THREADS, 0, stream_of(ctx)>>>(a);
    launch_check("attention_backward");
    if (sizeof(T) == 2 && attention_suits_mma(a)) {
        attention_mma_backward(ctx, a);
        return;
    }
#define RUN(WIDE, BLOCK) backward_run<T, WIDE, BLOCK>(ctx, a)
    ATTENTION_DISPATCH(a.E, RUN);
#undef RUN
}

extern "C" void cuda_attention_backward_fill(struct kernels *table)
{
    table->attention_backward =
        table->dtype == DTYPE_BF16 ? attention_backward<bf16> : attention_backward<float>;
}
