// norm.cu - RMSNorm and LayerNorm over rows.
//
// Eight threads take a row, a warp one that is wider, a block one that is wider still. Backward, with g = dy * scale and
// xhat = (x - mean) * rstd:
//     dx = rstd * (g - [mean of g, LAYER only] - xhat * mean of (g * xhat)).
#include "kernels/cuda/columns.cuh"

enum { THREADS = 256, NARROW = 128, NARROW_THREADS = 8, WIDE = 512 };

template <typename T> struct norm_tensors {
    T *out; // y or dx
    const T *x, *dy, *scale, *bias;
    float *mean, *rstd; // written by forward, read by backward
    size_t rows, width;
    float eps;
    bool layer, accumulate, wide;
};

template <typename T, int GROUP>
static __global__ void __launch_bounds__(THREADS) forward_kernel(const norm_tensors<T> n)
{
    constexpr int L = LANES<T>;
    size_t row = (size_t)blockIdx.x * (THREADS / GROUP) + threadIdx.x / GROUP;
    if (row >= n.rows) {
        return; // whole groups
    }
    size_t first = (threadIdx.x % GROUP) * L;
    const T *in = n.x + row * n.width;
    float mean = 0, x[L];
    if (n.layer) {
        float sum = 0;
        for (size_t at = first; at < n.width; at += GROUP * L) {
            row_load<T>(x, in, at, n.width, n.wide);
#pragma unroll
            for (int i = 0; i < L; i++) {
                sum += x[i];
            }
        }
        mean = group_sum<GROUP>(sum) / (float)n.width;
    }
    float sum = 0;
    for (size_t at = first; at < n.width; at += GROUP * L) {
        row_load<T>(x, in, at, n.width, n.wide);
#pragma unroll
        for (int i = 0; i < L; i++) {
            float d = at + i < n.width ? x[i] - mean : 0.0f;
            sum = fmaf(d, d, sum);
        }
    }
    float rstd = 1.0f / sqrtf(group_sum<GROUP>(sum) / (float)n.width + n.eps);
    if (first == 0) {
        n.rstd[row] = rstd;
        if (n.layer) {
            n.mean[row] = mean;
        }
    }
    for (size_t at = first; n.out && at < n.width; at += GROUP * L) {
        float scale[L], bias[L];
        row_load<T>(x, in, at, n.width, n.wide);
        if (n.scale) {
            row_load<T>(scale, n.scale, at, n.width, n.wide);
        }
        if (n.bias) {
            row_load<T>(bias, n.bias, at, n.width, n.wide);
        }
#pragma unroll
        for (int i = 0; i < L; i++) {
            x[i] = (x[i] - mean) * rstd;
            x[i] = n.scale ? x[i] * scale[i] : x[i];
            x[i] = n.bias ? x[i] + bias[i] : x[i];
        }
        row_store<T>(n.out + row * n.width, x, at, n.width, n.wide);
    }
}

// g and xhat of some elements of a row; both zero beyond its end.
template <typename T>
__device__ inline void gradient_load(float (&g)[LANES<T>], float (&xhat)[LANES<T>],
                                     const norm_tensors<T> &n, size_t row, size_t at, float mean,
                                     float rstd)
{
    float scale[LANES<T>];
    row_load<T>(g, n.dy + row * n.width, at, n.width, n.wide);
    row_load<T>(xhat, n.x + row * n.width, at, n.width, n.wide);
    if (n.scale) {
        row_load<T>(scale, n.scale, at, n.width, n.wide);
    }
#pragma unroll
    for (int i = 0; i < LANES<T>; i++) {
        g[i] = n.scale ? g[i] * scale[i] : g[i];
        xhat[i] = (xhat[i] - mean) * rstd;
    }
}

template <typename T, int GROUP>
static __global__ void __launch_bounds__(THREADS) backward_kernel(const norm_tensors<T> n)
{
    constexpr int L = LANES<T>;
    size_t row = (size_t)blockIdx.x * (THREADS / GROUP) + threadIdx.x / GROUP;
    if (row >= n.rows) {
        return;
    }
    size_t first = (threadIdx.x % GROUP) * L;
    float mean = n.layer ? n.mean[row] : 0.0f, rstd = n.rstd[row], g[L], xhat[L];
    float sum_g = 0, sum_gx = 0;
    for (size_t at = first; at < n.width; at += GROUP * L) {
        gradient_load(g, xhat, n, row, at, mean, rstd);
#pragma unroll
        for (int i = 0; i < L; i++) {
            sum_g += g[i];
            sum_gx = fmaf(g[i], xhat[i], sum_gx);
        }
    }
    float mean_gx = group_sum<GROUP>(sum_gx) / (float)n.width;
    float mean_g = n.layer ? group_sum<GROUP>(sum_g) / (float)n.width : 0.0f;
    T *dx = n.out + row * n.width;
    for (size_t at = first; at < n.width; at += GROUP * L) {
        float before[L];
        gradient_load(g, xhat, n, row, at, mean, rstd);
        if (n.accumulate) {
            row_load<T>(before, dx, at, n.width, n.wide);
        }
#pragma unroll
        for (int i = 0; i < L; i++) {
            float d = fmaf(xhat[i], -mean_gx, g[i] - mean_g);
            g[i] = n.accumulate ? fmaf(d, rstd, before[i]) : d * rstd;
        }
        row_store<T>(dx, g, at, n.width, n.wide);
    }
}

// A chunk's share of dscale and dbias, for a strip of columns: part [chunk][2][width].
template <typename T>
static __global__ void __launch_bounds__(COLUMN_THREADS)
    parts_kernel(float *part, const norm_tensors<T> n, size_t chunk_rows)
{
    size_t at = column_first();
    size_t begin = blockIdx.y * chunk_rows, end = min(n.rows, begin + chunk_rows);
    float scale[COLUMN_LANES] = {}, bias[COLUMN_LANES] = {};
#pragma unroll 4
    for (size_t row = begin + threadIdx.y; row < end; row += blockDim.y) {
        float dy[4], x[4], mean = n.layer ? n.mean[row] : 0.0f, rstd = n.rstd[row];
        four_load<T>(dy, n.dy + row * n.width, at, n.width, n.wide);
        four_load<T>(x, n.x + row * n.width, at, n.width, n.wide);
#pragma unroll
        for (int i = 0; i < COLUMN_LANES; i++) {
            scale[i] = fmaf(dy[i], (x[i] - mean) * rstd, scale[i]);
            bias[i] += dy[i];
        }
    }
    tall_sum(scale);
    tall_sum(bias);
    if (threadIdx.y == 0) {
        float *to = part + (size_t)blockIdx.y * 2 * n.width + at;
        for (int i = 0; i < COLUMN_LANES && at + i < n.width; i++) {
            to[i] = scale[i];
            to[n.width + i] = bias[i];
        }
    }
}

template <typename T, int GROUP>
static void rows_run(const struct kernel_ctx *ctx, const norm_tensors<T> &n, bool forward)
{
    unsigned blocks = grid_of(blocks_of(n.rows, THREADS / GROUP));
    if (forward) {
        forward_kernel<T, GROUP><<<blocks, THREADS, 0, stream_of(ctx)>>>(n);
    } else {
        backward_kernel<T, GROUP><<<blocks, THREADS, 0, stream_of(ctx)>>>(n);
    }
    launch_check("norm");
}

template <typename T>
static void norm_run(const struct kernel_ctx *ctx, const norm_tensors<T> &n, bool forward)
{
    if (n.width > WIDE) {
        rows_run<T, THREADS>(ctx, n, forward);
    } else if (n.width > NARROW) {
        rows_run<T, WARP>(ctx, n, forward);
    } else {
        rows_run<T, NARROW_THREADS>(ctx, n, forward);
    }
}

template <typename T>
static norm_tensors<T> tensors_of(const struct norm_shape *shape, void *out, const void *x,
                                  const void *dy, const void *scale, const void *bias,
                                  const float *mean, const float *rstd, bool accumulate)
{
    bool wide = rows_aligned<T>(out, shape->width) && aligned(x) && aligned(dy) && aligned(scale) &&
                aligned(bias);
    norm_tensors<T> n = {(T *)out,
                         (const T *)x,
                         (const T *)dy,
                         (const T *)scale,
                         (const T *)bias,
                         (float *)mean,
                         (float *)rstd,
                         shape->rows,
                         shape->width,
                         shape->eps,
                         shape->kind == NORM_LAYER,
                         accumulate,
                         wide};
    return n;
}

template <typename T>
static void norm_forward(const struct kernel_ctx *ctx, const struct norm_shape *shape, void *y,
                         float *mean, float *rstd, const void *x, const void *scale,
                         const void *bias)
{
    if (shape->rows > 0) {
        norm_run(ctx, tensors_of<T>(shape, y, x, NULL, scale, bias, mean, rstd, false), true);
    }
}

template <typename T>
static void norm_backward(const struct kernel_ctx *ctx, const struct norm_shape *shape, void *dx,
                          bool accumulate, float *dscale_part, float *dbias_part, const void *dy,
                          const void *x, const float *mean, const float *rstd, const void *scale)
{
    size_t rows = shape->rows, width = shape->width;
    norm_tensors<T> n = tensors_of<T>(shape, dx, x, dy, scale, NULL, mean, rstd, accumulate);
    size_t chunk = cuda_column_rows(rows), chunks = blocks_of(rows, chunk);
    if (rows > 0 && (dscale_part || dbias_part)) { // first: dx may overwrite dy
        column_grid g = column_grid_of(width, chunks);
        float *part = (float *)workspace_get(ctx, cuda_columns_bytes(rows, width));
        parts_kernel<T><<<g.grid, g.block, 0, stream_of(ctx)>>>(part, n, chunk);
        launch_check("norm_backward");
        if (dscale_part) {
            chunks_add(ctx, dscale_part, part, chunks, 2 * width, width, false);
        }
        if (dbias_part) {
            chunks_add(ctx, dbias_part, part + width, chunks, 2 * width, width, false);
        }
    }
    if (rows > 0) {
        norm_run(ctx, n, false);
    }
}

template <typename T> static void fill(struct kernels *table)
{
    table->norm_forward = norm_forward<T>;
    table->norm_backward = norm_backward<T>;
}

extern "C" void cuda_norm_fill(struct kernels *table)
{
    table->dtype == DTYPE_BF16 ? fill<bf16>(table) : fill<float>(table);
}
