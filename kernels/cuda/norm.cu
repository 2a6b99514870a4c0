/* norm.cu - twin of cpu/norm.c in float32: a warp a row, sums folded by shuffles in a fixed tree.
 *
 * The scale's and bias's gradients are added over chunks of NORM_CHUNK rows, a thread a column,
 * rows ascending, and then over the chunks, ascending: no atomics, so the same bits every time.
 * They run before dx, which may overwrite dy.
 */
#include <cuda_runtime.h>

extern "C" {
#include "kernels/kernels.h"
}
#include "kernels/cpu/scratch.h"

enum { WARP = 32, ROWS_A_BLOCK = 4, COLUMNS_A_BLOCK = 128 };

struct norm_rows { /* one direction's operands; NULL where not wanted */
    const float *x, *scale, *bias, *dy;
    float *mean, *rstd;
    size_t rows, width;
    float eps;
    bool layer;
};

static __device__ float warp_sum(float x)
{
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, distance);
    }
    return x;
}

static __device__ size_t warp_row(void)
{
    return (size_t)blockIdx.x * ROWS_A_BLOCK + threadIdx.y;
}

static __global__ void forward_rows(struct norm_rows n, float *y)
{
    size_t row = warp_row();
    if (row >= n.rows) {
        return;
    }
    const float *x = n.x + row * n.width;
    float mean = 0, squares = 0;
    if (n.layer) {
        for (size_t i = threadIdx.x; i < n.width; i += WARP) {
            mean += x[i];
        }
        mean = warp_sum(mean) / (float)n.width;
    }
    for (size_t i = threadIdx.x; i < n.width; i += WARP) {
        float d = x[i] - mean;
        squares = fmaf(d, d, squares);
    }
    float rstd = 1.0f / sqrtf(warp_sum(squares) / (float)n.width + n.eps);
    for (size_t i = threadIdx.x; i < n.width; i += WARP) {
        float value = (x[i] - mean) * rstd;
        value = n.scale ? value * n.scale[i] : value;
        y[row * n.width + i] = n.bias ? value + n.bias[i] : value;
    }
    if (threadIdx.x == 0) {
        n.rstd[row] = rstd;
        if (n.layer) {
            n.mean[row] = mean;
        }
    }
}

/* dx = rstd * (g - mean(g) - xhat * mean(g * xhat)), g = dy * scale; mean(g) for LayerNorm only. */
static __global__ void backward_rows(struct norm_rows n, float *dx, bool accumulate)
{
    size_t row = warp_row();
    if (row >= n.rows) {
        return;
    }
    const float *x = n.x + row * n.width, *dy = n.dy + row * n.width;
    float mean = n.layer ? n.mean[row] : 0.0f, rstd = n.rstd[row], sum_g = 0, sum_gx = 0;
    for (size_t i = threadIdx.x; i < n.width; i += WARP) {
        float g = n.scale ? dy[i] * n.scale[i] : dy[i];
        sum_g += g;
        sum_gx = fmaf(g, (x[i] - mean) * rstd, sum_gx);
    }
    float mean_g = n.layer ? warp_sum(sum_g) / (float)n.width : 0.0f;
    float mean_gx = warp_sum(sum_gx) / (float)n.width;
    for (size_t i = threadIdx.x; i < n.width; i += WARP) {
        float g = n.scale ? dy[i] * n.scale[i] : dy[i];
        float d = fmaf((x[i] - mean) * rstd, -mean_gx, g - mean_g);
        float *into = dx + row * n.width + i;
        *into = accumulate ? fmaf(d, rstd, *into) : d * rstd;
    }
}

/* parts [chunks, 2, width]: dscale and dbias of each chunk of rows. */
static __global__ void backward_parts(struct norm_rows n, float *parts)
{
    size_t column = (size_t)blockIdx.x * COLUMNS_A_BLOCK + threadIdx.x, chunk = blockIdx.y;
    if (column >= n.width) {
        return;
    }
    size_t end = (chunk + 1) * NORM_CHUNK < n.rows ? (chunk + 1) * NORM_CHUNK : n.rows;
    float dscale = 0, dbias = 0;
    for (size_t row = chunk * NORM_CHUNK; row < end; row++) {
        float dy = n.dy[row * n.width + column], mean = n.layer ? n.mean[row] : 0.0f;
        dscale = fmaf(dy, (n.x[row * n.width + column] - mean) * n.rstd[row], dscale);
        dbias += dy;
    }
    parts[chunk * 2 * n.width + column] = dscale;
    parts[(chunk * 2 + 1) * n.width + column] = dbias;
}

static __global__ void parts_add(const float *parts, size_t chunks, size_t width, float *dscale,
                                 float *dbias)
{
    size_t column = (size_t)blockIdx.x * COLUMNS_A_BLOCK + threadIdx.x;
    if (column >= width) {
        return;
    }
    float sum_scale = 0, sum_bias = 0;
    for (size_t chunk = 0; chunk < chunks; chunk++) {
        sum_scale += parts[chunk * 2 * width + column];
        sum_bias += parts[(chunk * 2 + 1) * width + column];
    }
    if (dscale) {
        dscale[column] = sum_scale;
    }
    if (dbias) {
        dbias[column] = sum_bias;
    }
}

static void launch_check(const char *what)
{
    cudaError_t error = cudaGetLastError();
    CHECK(error == cudaSuccess, "%s: %s", what, cudaGetErrorString(error));
}

static unsigned blocks_for(size_t count, size_t block)
{
    return (unsigned)((count + block - 1) / block);
}

extern "C" void norm_forward_cuda(const struct kernel_ctx *ctx, const struct norm_shape *shape,
                                  void *y, float *mean, float *rstd, const void *x,
                                  const void *scale, const void *bias)
{
    if (shape->rows == 0) {
        return;
    }
    struct norm_rows n = {};
    n.x = (const float *)x, n.scale = (const float *)scale, n.bias = (const float *)bias;
    n.mean = mean, n.rstd = rstd, n.rows = shape->rows, n.width = shape->width;
    n.eps = shape->eps, n.layer = shape->kind == NORM_LAYER;
    forward_rows<<<blocks_for(n.rows, ROWS_A_BLOCK), dim3(WARP, ROWS_A_BLOCK), 0,
                   (cudaStream_t)ctx->stream>>>(n, (float *)y);
    launch_check("norm_forward");
}

extern "C" void norm_backward_cuda(const struct kernel_ctx *ctx, const struct norm_shape *shape,
                                   void *dx, bool accumulate, float *dscale_part, float *dbias_part,
                                   const void *dy, const void *x, const float *mean,
                                   const float *rstd, const void *scale)
{
    cudaStream_t stream = (cudaStream_t)ctx->stream;
    unsigned chunks = blocks_for(shape->rows, NORM_CHUNK);
    struct norm_rows n = {};
    n.x = (const float *)x, n.dy = (const float *)dy, n.scale = (const float *)scale;
    n.mean = (float *)mean, n.rstd = (float *)rstd, n.rows = shape->rows, n.width = shape->width;
    n.eps = shape->eps, n.layer = shape->kind == NORM_LAYER;
    if (dscale_part || dbias_part) {
        unsigned across = blocks_for(n.width, COLUMNS_A_BLOCK);
        size_t bytes = scratch_norm_backward(n.rows, n.width) * sizeof(float);
        CHECK(bytes <= ctx->workspace_bytes, "workspace of %zu bytes, %zu needed",
              ctx->workspace_bytes, bytes);
        if (chunks > 0) {
            backward_parts<<<dim3(across, chunks), COLUMNS_A_BLOCK, 0, stream>>>(
                n, (float *)ctx->workspace);
        }
        parts_add<<<across, COLUMNS_A_BLOCK, 0, stream>>>((const float *)ctx->workspace, chunks,
                                                          n.width, dscale_part, dbias_part);
        launch_check("norm_backward, parts");
    }
    if (n.rows > 0) {
        backward_rows<<<blocks_for(n.rows, ROWS_A_BLOCK), dim3(WARP, ROWS_A_BLOCK), 0, stream>>>(
            n, (float *)dx, accumulate);
        launch_check("norm_backward");
    }
}
