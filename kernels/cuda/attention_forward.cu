// attention_forward.cu - causal softmax attention: blocks of queries against blocks of keys.
//
// A block of threads takes a block of queries of one head and walks the keys it sees, ascending, with
// the usual rescaling when a row's maximum grows. Float arithmetic throughout; bfloat16 of ordinary
// widths goes to the tensor cores instead: to cuDNN, or to the own kernels for documents and where it is
// not.
#include "kernels/cuda/attention.cuh"

// Scores become exp(score - largest); the running maximum, sum and output follow. A row's scores lie
// in the 16 threads of one y.
template <int BLOCK, int WIDE>
__device__ inline void softmax_step(float (&s)[BLOCK / SIDE][BLOCK / SIDE],
                                    float (&out)[BLOCK / SIDE][COLUMNS<WIDE>],
                                    float (&largest)[BLOCK / SIDE], float (&sum)[BLOCK / SIDE],
                                    const int *first, int query, int key, float scale)
{
    constexpr int R = BLOCK / SIDE;
    int y = threadIdx.x / SIDE, x = threadIdx.x % SIDE;
#pragma unroll
    for (int i = 0; i < R; i++) {
        int row = y * R + i;
        float most = largest[i];
        bool seen[R];
#pragma unroll
        for (int j = 0; j < R; j++) {
            seen[j] = attention_sees(query + row, key + x + j * SIDE, first[row]);
            s[i][j] = seen[j] ? s[i][j] * scale : ATTENTION_HIDDEN;
            most = fmaxf(most, s[i][j]);
        }
#pragma unroll
        for (int apart = SIDE / 2; apart > 0; apart /= 2) {
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, apart));
        }
        float factor = expf(largest[i] - most), part = 0;
        largest[i] = most;
#pragma unroll
        for (int j = 0; j < R; j++) {
            s[i][j] = seen[j] ? expf(s[i][j] - most) : 0.0f;
            part += s[i][j];
        }
        sum[i] = fmaf(sum[i], factor, part); // of this thread's columns
#pragma unroll
        for (int c = 0; c < COLUMNS<WIDE>; c++) {
            out[i][c] *= factor;
        }
    }
}

template <typename T, int WIDE, int BLOCK>
static __global__ void __launch_bounds__(ATTENTION_THREADS)
    forward_kernel(const __grid_constant__ attention_args a)
{
    constexpr int R = BLOCK / SIDE, TILE = BLOCK * PITCH<WIDE>;
    extern __shared__ float shared[];
    __shared__ int first[BLOCK];
    float *q = shared, *k = q + TILE, *v = k + TILE, *p = v + TILE;
    int y = threadIdx.x / SIDE, x = threadIdx.x % SIDE;
    int b = blockIdx.y / a.H, h = blockIdx.y % a.H;
    int query = (int)(gridDim.x - 1 - blockIdx.x) * BLOCK; // the longest first
    size_t row = (size_t)a.H * a.E, kv_row = (size_t)a.G * a.E;
    size_t at = head_offset(a, b, h, a.H), kv = head_offset(a, b, h / (a.H / a.G), a.G);
    float out[R][COLUMNS<WIDE>] = {}, largest[R], sum[R];
#pragma unroll
    for (int i = 0; i < R; i++) {
        largest[i] = ATTENTION_HIDDEN;
        sum[i] = 0;
    }
    tile_load<T, BLOCK, WIDE>(q, (const T *)a.q + at, row, query, a.T, a.E);
    int start = first_load<BLOCK>(first, a, b, query).least / BLOCK * BLOCK;
    for (int key = start; key <= query; key += BLOCK) {
        float s[R][R];
        __syncthreads(); // the last tiles are read
        tile_load<T, BLOCK, WIDE>(k, (const T *)a.k + kv, kv_row, key, a.T, a.E);
        tile_load<T, BLOCK, WIDE>(v, (const T *)a.v + kv, kv_row, key, a.T, a.E);
        __syncthreads();
        tile_dot<BLOCK, WIDE>(s, q, k);
        softmax_step<BLOCK, WIDE>(s, out, largest, sum, first, query, key, a.scale);
#pragma unroll
        for (int i = 0; i < R; i++) {
#pragma unroll
            for (int j = 0; j < R; j++) {
                p[(y * R + i) * (BLOCK + 4) + x + j * SIDE] = s[i][j];
            }
        }
        __syncthreads();
        tile_mix<BLOCK, WIDE>(out, p, v);
    }
#pragma unroll
    for (int i = 0; i < R; i++) {
#pragma unroll
        for (int apart = SIDE / 2; apart > 0; apart /= 2) {
            sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], apart);
        }
        float inverse = 1.0f / sum[i];
#pragma unroll
        for (int c = 0; c < COLUMNS<WIDE>; c++) {
            out[i][c] *= inverse;
        }
        int t = query + y * R + i;
        if (x == 0 && t < a.T) {
            a.lse[(size_t)blockIdx.y * a.T + t] = largest[i] + logf(sum[i]);
        }
    }
    tile_store<T, BLOCK, WIDE>((T *)a.out + at, row, query, a.T, a.E, out);
}

template <typename T, int WIDE, int BLOCK>
static void forward_run(const struct kernel_ctx *ctx, const attention_args &a)
{
    dim3 grid((unsigned)blocks_of((size_t)a.T, BLOCK), (unsigned)(a.B * a.H));
    size_t floats = 3 * BLOCK * PITCH<WIDE> + BLOCK * (BLOCK + 4);
    attention_launch(ctx, "attention_forward", forward_kernel<T, WIDE, BLOCK>, grid,
                     ATTENTION_THREADS, floats * sizeof(float), a);
}

template <typename T>
static void attention_forward(const struct kernel_ctx *ctx, const struct attention_shape *shape,
                              void *out, float *lse, const void *q, const void *k, const void *v)
{
    attention_args a = attention_args_of(shape);
    a.out = out, a.lse = lse, a.q = q, a.k = k, a.v = v;
    if (a.B == 0 || a.T == 0) {
        return;
    }
    if (sizeof(T) == 2 && cuda_attention_choice() != CUDA_ATTENTION_OWN &&
        cudnn_attention_forward(ctx, shape, out, lse, q, k, v)) {
        return;
    }
    if (sizeof(T) == 2 && attention_suits_mma(a)) {
        attention_mma_forward(ctx, a);
        return;
    }
#define RUN(WIDE, BLOCK) forward_run<T, WIDE, BLOCK>(ctx, a)
    ATTENTION_DISPATCH(a.E, RUN);
#undef RUN
}

extern "C" void cuda_attention_forward_fill(struct kernels *table)
{
    table->attention_forward =
        table->dtype == DTYPE_BF16 ? attention_forward<bf16> : attention_forward<float>;
}
