// attention_mma_backward.cu - attention's gradients on tensor cores; the passes, sums and their order
// are those of attention_backward.cu. A block keeps 64 queries (or keys), a warp 16 of them; tiles of
// 64 keys (or queries) stream by.
#include "kernels/cuda/attention_mma.cuh"

// Of a query, for every lane that holds some of its scores.
__device__ inline float row_value(const float *values, size_t head_row, int t, int rows)
{
    return t < rows ? values[head_row + t] : 0.0f;
}

// dp becomes dS (but for the scale), for sixteen queries and a tile of keys.
__device__ inline void query_scores(float (&dp)[ROWS / 8][4], const float (&s)[ROWS / 8][4],
                                    const float (&lse)[2], const float (&delta)[2],
                                    const int *first, int query, int key, float scale, bool masked)
{
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < ROWS / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int r = lane / 4 + i / 2 * 8, j = key + n * 8 + lane % 4 * 2 + i % 2;
            float p = exp2_fast(fmaf(s[n][i], scale, -lse[i / 2]));
            p = masked && !attention_sees(query + r, j, first[r]) ? 0.0f : p;
            dp[n][i] = p * (dp[n][i] - delta[i / 2]);
        }
    }
}

template <int WIDE>
static __global__ void __launch_bounds__(MMA_THREADS)
    queries_kernel(const __grid_constant__ attention_args a)
{
    constexpr int TILE = TILE_ELEMENTS<WIDE>;
    extern __shared__ __align__(16) bf16 tiles[];
    __shared__ int first[ROWS];
    bf16 *q = tiles, *dout = q + TILE, *k = dout + TILE, *v = k + 2 * TILE;
    int lane = threadIdx.x % WARP, part = threadIdx.x / WARP * 16;
    int b = blockIdx.y / a.H, h = blockIdx.y % a.H;
    int query = (int)(gridDim.x - 1 - blockIdx.x) * ROWS;
    int mine = query + part;
    size_t row = (size_t)a.H * a.E, kv_row = (size_t)a.G * a.E, head_row = (size_t)blockIdx.y * a.T;
    size_t at = head_offset(a, b, h, a.H), kv = head_offset(a, b, h / (a.H / a.G), a.G);
    const bf16 *keys = (const bf16 *)a.k + kv, *values = (const bf16 *)a.v + kv;
    float dq[1][WIDE / 8][4] = {}, lse[2], delta[2], scale = a.scale * LOG2_E;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int t = mine + lane / 4 + half * 8;
        lse[half] = row_value(a.lse, head_row, t, a.T) * LOG2_E;
        delta[half] = row_value(a.delta, head_row, t, a.T);
    }
    first_range range = first_load<ROWS>(first, a, b, query);
    int start = range.least / ROWS * ROWS;
    tile_fetch<WIDE, ROWS>(q, (const bf16 *)a.q + at, row, query, a.T, a.E);
    tile_fetch<WIDE, ROWS>(dout, (const bf16 *)a.dout + at, row, query, a.T, a.E);
    tile_fetch<WIDE, ROWS>(k, keys, kv_row, start, a.T, a.E);
    tile_fetch<WIDE, ROWS>(v, values, kv_row, start, a.T, a.E);
    async_commit();
    for (int key = start, stage = 0; key <= query; key += ROWS, stage ^= 1) {
        if (key + ROWS <= query) {
            tile_fetch<WIDE, ROWS>(k + (stage ^ 1) * TILE, keys, kv_row, key + ROWS, a.T, a.E);
            tile_fetch<WIDE, ROWS>(v + (stage ^ 1) * TILE, values, kv_row, key + ROWS, a.T, a.E);
            async_commit();
            async_wait<1>();
        } else {
            async_wait<0>();
        }
        __syncthreads();
        float s[1][ROWS / 8][4], dp[1][ROWS / 8][4];
        unsigned ds[1][ROWS / 16][4];
        rows_dot<WIDE, 1, ROWS>(s, q + part * TILE_PITCH<WIDE>, k + stage * TILE);
        rows_dot<WIDE, 1, ROWS>(dp, dout + part * TILE_PITCH<WIDE>, v + stage * TILE);
        query_scores(dp[0], s[0], lse, delta, first + part, mine, key, scale,
                     key + ROWS > query || range.most > key);
        rows_pack<1, ROWS>(ds, dp);
        rows_mix<WIDE, 1, ROWS>(dq, ds, k + stage * TILE);
        __syncthreads();
    }
    rows_store<WIDE>((bf16 *)a.dq + at, row, mine, a.T, a.E, dq[0], a.scale, a.scale);
}

// What a tile of queries brings along.
struct query_rows {
    float lse[ROWS], delta[ROWS];
    int first[ROWS];
};

struct query_tile {
    int h, query;
};

// The i-th tile of queries that a block of keys meets: heads ascending, then positions.
__device__ inline query_tile tile_at(const attention_args &a, int g, int key, int i)
{
    int count = (a.T - key + ROWS - 1) / ROWS;
    return {g * (a.H / a.G) + i / count, key + i % count * ROWS};
}

template <int WIDE>
__device__ inline void queries_fetch(bf16 *q, bf16 *dout, query_rows *rows, const attention_args &a,
                                     int b, query_tile tile)
{
    size_t row = (size_t)a.H * a.E, at = head_offset(a, b, tile.h, a.H);
    size_t head_row = ((size_t)b * a.H + tile.h) * a.T;
    tile_fetch<WIDE, ROWS>(q, (const bf16 *)a.q + at, row, tile.query, a.T, a.E);
    tile_fetch<WIDE, ROWS>(dout, (const bf16 *)a.dout + at, row, tile.query, a.T, a.E);
    async_commit();
    int i = threadIdx.x % ROWS, t = tile.query + i;
    if (threadIdx.x < ROWS) {
        rows->lse[i] = row_value(a.lse, head_row, t, a.T) * LOG2_E;
        rows->first[i] = t < a.T && a.first ? a.first[(size_t)b * a.T + t] : 0;
    } else {
        rows->delta[i] = row_value(a.delta, head_row, t, a.T);
    }
}

// s becomes P^T and dp dS^T: sixteen keys from `key` on down the rows, the tile's queries along them.
// Queries beyond the sequence have dout and delta 0: what they add is 0.
__device__ inline void key_scores(float (&s)[ROWS / 8][4], float (&dp)[ROWS / 8][4],
                                  const query_rows *rows, int query, int key, float scale,
                                  bool masked)
{
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < ROWS / 8; n++) {
        int c = n * 8 + lane % 4 * 2;
        float2 lse = *reinterpret_cast<const float2 *>(rows->lse + c);
        float2 delta = *reinterpret_cast<const float2 *>(rows->delta + c);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int at = c + i % 2, j = key + lane / 4 + i / 2 * 8;
            float p = exp2_fast(fmaf(s[n][i], scale, i % 2 ? -lse.y : -lse.x));
            p = masked && !attention_sees(query + at, j, rows->first[at]) ? 0.0f : p;
            s[n][i] = p;
            dp[n][i] = p * (dp[n][i] - (i % 2 ? delta.y : delta.x));
        }
    }
}

template <int WIDE>
static __global__ void __launch_bounds__(MMA_THREADS)
    keys_kernel(const __grid_constant__ attention_args a)
{
    constexpr int TILE = TILE_ELEMENTS<WIDE>;
    extern __shared__ __align__(16) bf16 tiles[];
    __shared__ __align__(16) query_rows rows[2];
    bf16 *k = tiles, *v = k + TILE, *q = v + TILE, *dout = q + 2 * TILE;
    int b = blockIdx.y / a.G, g = blockIdx.y % a.G, key = blockIdx.x * ROWS;
    int part = threadIdx.x / WARP * 16, mine = key + part;
    size_t kv_row = (size_t)a.G * a.E, kv = head_offset(a, b, g, a.G);
    int count = (a.T - key + ROWS - 1) / ROWS * (a.H / a.G);
    float dk[1][WIDE / 8][4] = {}, dv[1][WIDE / 8][4] = {}, scale = a.scale * LOG2_E;
    tile_fetch<WIDE, ROWS>(k, (const bf16 *)a.k + kv, kv_row, key, a.T, a.E);
    tile_fetch<WIDE, ROWS>(v, (const bf16 *)a.v + kv, kv_row, key, a.T, a.E);
    queries_fetch<WIDE>(q, dout, rows, a, b, tile_at(a, g, key, 0));
    for (int i = 0, stage = 0; i < count; i++, stage ^= 1) {
        int query = tile_at(a, g, key, i).query, other = stage ^ 1;
        if (i + 1 < count) {
            queries_fetch<WIDE>(q + other * TILE, dout + other * TILE, rows + other, a, b,
                                tile_at(a, g, key, i + 1));
            async_wait<1>();
        } else {
            async_wait<0>();
        }
        const query_rows *here = rows + stage;
        __syncthreads();
        // Are there documents that begin before the block's last key?
        bool sees = __syncthreads_or(here->first[threadIdx.x % ROWS] < key + ROWS);
        if (sees) {
            float s[1][ROWS / 8][4], dp[1][ROWS / 8][4];
            unsigned p[1][ROWS / 16][4];
            rows_dot<WIDE, 1, ROWS>(s, k + part * TILE_PITCH<WIDE>, q + stage * TILE);
            rows_dot<WIDE, 1, ROWS>(dp, v + part * TILE_PITCH<WIDE>, dout + stage * TILE);
            key_scores(s[0], dp[0], here, query, mine, scale, a.first || query < key + ROWS);
            rows_pack<1, ROWS>(p, s);
            rows_mix<WIDE, 1, ROWS>(dv, p, dout + stage * TILE);
            rows_pack<1, ROWS>(p, dp);
            rows_mix<WIDE, 1, ROWS>(dk, p, q + stage * TILE);
        }
        __syncthreads();
    }
    rows_store<WIDE>((bf16 *)a.dk + kv, kv_row, mine, a.T, a.E, dk[0], a.scale, a.scale);
    rows_store<WIDE>((bf16 *)a.dv + kv, kv_row, mine, a.T, a.E, dv[0], 1.0f, 1.0f);
}

template <int WIDE> static void backward_run(const struct kernel_ctx *ctx, const attention_args &a)
{
    unsigned blocks = (unsigned)blocks_of((size_t)a.T, ROWS);
    size_t bytes = 6 * TILE_ELEMENTS<WIDE> * sizeof(bf16);
    attention_launch(ctx, "attention_backward", queries_kernel<WIDE>,
                     dim3(blocks, (unsigned)(a.B * a.H)), MMA_THREADS, bytes, a);
    attention_launch(ctx, "attention_backward", keys_kernel<WIDE>,
                     dim3(blocks, (unsigned)(a.B * a.G)), MMA_THREADS, bytes, a);
}

void attention_mma_backward(const struct kernel_ctx *ctx, const attention_args &a)
{
#define RUN(WIDE) backward_run<WIDE>(ctx, a)
    ATTENTION_MMA_DISPATCH(a.E, RUN);
#undef RUN
}
