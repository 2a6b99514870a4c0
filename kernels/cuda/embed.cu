// embed.cu - rows of the embedding table.
#include "kernels/cuda/common.cuh"

enum { THREADS = 256 };

template <typename T>
static __global__ void __launch_bounds__(THREADS)
    gather_kernel(T *out, const T *table, const int32_t *ids, size_t first, size_t V, size_t D,
                  bool wide)
{
    size_t t = blockIdx.x, row = (size_t)ids[t] - first; // below `first`: huge
    const T *from = table + (row < V ? row : 0) * D;
    T *to = out + t * D;
    for (size_t at = (size_t)threadIdx.x * LANES<T>; at < D; at += THREADS * LANES<T>) {
        float x[LANES<T>] = {};
        if (row < V) {
            row_load<T>(x, from, at, D, wide);
        }
        row_store<T>(to, x, at, D, wide);
    }
}

// The block of a token that is the first with its id adds that id's tokens, ascending; all others
// have nothing to do. Threads scan the ids, THREADS of them at a time, and share out the columns.
template <typename T>
static __global__ void __launch_bounds__(THREADS)
    scatter_kernel(float *dtable, const T *dout, const int32_t *ids, size_t first, size_t V,
                   size_t N, size_t D, bool wide)
{
    constexpr int L = LANES<T>;
    __shared__ unsigned found[THREADS / WARP];
    size_t t = blockIdx.x;
    int32_t id = ids[t];
    bool earlier = (size_t)id - first >= V; // the row is not here
    for (size_t i = threadIdx.x; i < t; i += THREADS) {
        earlier = earlier || ids[i] == id;
    }
    if (__syncthreads_or(earlier)) {
        return;
    }
    size_t at = ((size_t)blockIdx.y * THREADS + threadIdx.x) * L;
    float sum[L];
    float *into = dtable + ((size_t)id - first) * D;
#pragma unroll
    for (int i = 0; i < L; i++) {
        sum[i] = at + i < D ? into[at + i] : 0.0f;
    }
    for (size_t base = t; base < N; base += THREADS) {
        size_t token = base + threadIdx.x;
        unsigned mask = __ballot_sync(0xffffffffu, token < N && ids[token] == id);
        __syncthreads();
        if (threadIdx.x % WARP == 0) {
            found[threadIdx.x / WARP] = mask;
        }
        __syncthreads();
        for (int w = 0; w < THREADS / WARP; w++) {
            for (unsigned rest = found[w]; rest; rest &= rest - 1) {
                float x[L];
                row_load<T>(x, dout + (base + w * WARP + __ffs(rest) - 1) * D, at, D, wide);
#pragma unroll
                for (int i = 0; i < L; i++) {
                    sum[i] += x[i];
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < L; i++) {
        if (at + i < D) {
            into[at + i] = sum[i];
        }
    }
}

template <typename T>
static void embed_forward(const struct kernel_ctx *ctx, void *out, const void *table,
                          const int32_t *ids, size_t first, size_t V, size_t N, size_t D)
{
    bool wide = rows_aligned<T>(out, D) && aligned(table);
    if (N > 0) {
        gather_kernel<T><<<grid_of(N), THREADS, 0, stream_of(ctx)>>>((T *)out, (const T *)table,
                                                                     ids, first, V, D, wide);
        launch_check("embed_forward");
    }
}

template <typename T>
static void embed_backward(const struct kernel_ctx *ctx, float *dtable, const void *dout,
                           const int32_t *ids, size_t first, size_t V, size_t N, size_t D)
{
    if (N > 0) {
        dim3 grid(grid_of(N), grid_of(blocks_of(D, (size_t)THREADS * LANES<T>)));
        scatter_kernel<T><<<grid, THREADS, 0, stream_of(ctx)>>>(dtable, (const T *)dout, ids, first,
                                                                V, N, D, rows_aligned<T>(dout, D));
        launch_check("embed_backward");
    }
}

template <typename T> static void fill(struct kernels *table)
{
    table->embed_forward = embed_forward<T>;
    table->embed_backward = embed_backward<T>;
}

extern "C" void cuda_embed_fill(struct kernels *table)
{
    table->dtype == DTYPE_BF16 ? fill<bf16>(table) : fill<float>(table);
}
