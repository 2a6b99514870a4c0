// attention_mma_forward.cu - attention forward on tensor cores: a block of queries of a head against
// tiles of 64 keys, a warp 16 M queries. The next keys and values arrive while these are used.
#include "kernels/cuda/attention_mma.cuh"

struct running { // of rows lane/4 and lane/4 + 8
    float largest[2], sum[2];
};

// Scores become 2^(scale s - largest); maxima, sums and output follow. Scores are in units of log2.
template <int WIDE>
__device__ inline void softmax_step(float (&s)[ROWS / 8][4], float (&out)[WIDE / 8][4], running &r,
                                    float scale)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float most = -INFINITY, part = 0;
#pragma unroll
        for (int n = 0; n < ROWS / 8; n++) {
            most = fmaxf(most, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        }
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        most = fmaxf(r.largest[half], most * scale);
        float base = most == -INFINITY ? 0.0f : most; // nothing seen so far
        float factor = exp2_fast(r.largest[half] - base);
        r.largest[half] = most;
#pragma unroll
        for (int n = 0; n < ROWS / 8; n++) {
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                s[n][i] = exp2_fast(fmaf(s[n][i], scale, -base));
                part += s[n][i];
            }
        }
        r.sum[half] = fmaf(r.sum[half], factor, part);
#pragma unroll
        for (int n = 0; n < WIDE / 8; n++) {
            out[n][2 * half] *= factor;
            out[n][2 * half + 1] *= factor;
        }
    }
}

// -inf where one of sixteen queries from `query` on does not see a key.
__device__ inline void scores_mask(float (&s)[ROWS / 8][4], const int *first, int query, int key)
{
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < ROWS / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int r = lane / 4 + i / 2 * 8, at = key + n * 8 + lane % 4 * 2 + i % 2;
            s[n][i] = attention_sees(query + r, at, first[r]) ? s[n][i] : -INFINITY;
        }
    }
}

// lse and the output of sixteen queries.
template <int WIDE>
__device__ inline void queries_finish(const attention_args &a, bf16 *out, size_t row, int query,
                                      const float (&x)[WIDE / 8][4], const running &r)
{
    int lane = threadIdx.x % WARP;
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = r.sum[half];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        inverse[half] = 1.0f / sum;
        int t = query + lane / 4 + half * 8;
        if (lane % 4 == 0 && t < a.T) {
            a.lse[(size_t)blockIdx.y * a.T + t] = (r.largest[half] + log2f(sum)) * LN_2;
        }
    }
    rows_store<WIDE>(out, row, query, a.T, a.E, x, inverse[0], inverse[1]);
}

template <int WIDE, int M>
static __global__ void __launch_bounds__(MMA_THREADS)
    forward_kernel(const __grid_constant__ attention_args a)
{
    constexpr int TILE = TILE_ELEMENTS<WIDE>, OWN = OWN_ROWS<M>;
    extern __shared__ __align__(16) bf16 tiles[];
    __shared__ int first[OWN];
    bf16 *q = tiles, *k = q + M * TILE,
         *v = k + 2 * TILE; // two of each: this tile's and the next's
    int b = blockIdx.y / a.H, h = blockIdx.y % a.H, part = threadIdx.x / WARP * 16 * M;
    int query = (int)(gridDim.x - 1 - blockIdx.x) * OWN; // the longest first
    int mine = query + part, end = min(a.T, query + OWN);
    size_t row = (size_t)a.H * a.E, kv_row = (size_t)a.G * a.E;
    size_t at = head_offset(a, b, h, a.H), kv = head_offset(a, b, h / (a.H / a.G), a.G);
    const bf16 *keys = (const bf16 *)a.k + kv, *values = (const bf16 *)a.v + kv;
    float out[M][WIDE / 8][4] = {}, scale = a.scale * LOG2_E;
    running r[M];
#pragma unroll
    for (int m = 0; m < M; m++) {
        r[m] = {{-INFINITY, -INFINITY}, {0, 0}};
    }
    first_range range = first_load<OWN>(first, a, b, query);
    int start = range.least / ROWS * ROWS;
    tile_fetch<WIDE, OWN>(q, (const bf16 *)a.q + at, row, query, a.T, a.E);
    tile_fetch<WIDE, ROWS>(k, keys, kv_row, start, a.T, a.E);
    tile_fetch<WIDE, ROWS>(v, values, kv_row, start, a.T, a.E);
    async_commit();
    for (int key = start, stage = 0; key < end; key += ROWS, stage ^= 1) {
        if (key + ROWS < end) {
            tile_fetch<WIDE, ROWS>(k + (stage ^ 1) * TILE, keys, kv_row, key + ROWS, a.T, a.E);
            tile_fetch<WIDE, ROWS>(v + (stage ^ 1) * TILE, values, kv_row, key + ROWS, a.T, a.E);
            async_commit();
            async_wait<1>();
        } else {
            async_wait<0>();
        }
        __syncthreads();
        if (key < mine + 16 * M) { // else none of the warp's queries sees any of them
            float s[M][ROWS / 8][4];
            unsigned p[M][ROWS / 16][4];
            rows_dot<WIDE, M, ROWS>(s, q + part * TILE_PITCH<WIDE>, k + stage * TILE);
            bool masked = key + ROWS > mine + 1 || range.most > key;
#pragma unroll
            for (int m = 0; m < M; m++) {
                if (masked) {
                    scores_mask(s[m], first + part + m * 16, mine + m * 16, key);
                }
                softmax_step<WIDE>(s[m], out[m], r[m], scale);
            }
            rows_pack<M, ROWS>(p, s);
            rows_mix<WIDE, M, ROWS>(out, p, v + stage * TILE);
        }
        __syncthreads(); // before the next fetch overwrites them
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
        queries_finish<WIDE>(a, (bf16 *)a.out + at, row, mine + m * 16, out[m], r[m]);
    }
}

template <int WIDE, int M>
static void forward_run(const struct kernel_ctx *ctx, const attention_args &a)
{
    dim3 grid((unsigned)blocks_of((size_t)a.T, OWN_ROWS<M>), (unsigned)(a.B * a.H));
    attention_launch(ctx, "attention_forward", forward_kernel<WIDE, M>, grid, MMA_THREADS,
                     (4 + M) * TILE_ELEMENTS<WIDE> * sizeof(bf16), a);
}

void attention_mma_forward(const struct kernel_ctx *ctx, const attention_args &a)
{
#define RUN(WIDE) forward_run<WIDE, 2>(ctx, a)
    ATTENTION_MMA_DISPATCH(a.E, RUN);
#undef RUN
}
