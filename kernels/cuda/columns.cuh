// columns.cuh - sums down the columns of a matrix: chunks of rows first, then the chunks.
//
// A block takes blockDim.x * 4 columns of a chunk; each of its blockDim.y rows of threads every
// blockDim.y-th row. The chunks (their number follows from the rows alone) are added the same way.
#ifndef KERNELS_CUDA_COLUMNS_CUH
#define KERNELS_CUDA_COLUMNS_CUH

#include "kernels/cuda/common.cuh"

enum { COLUMN_LANES = 4, COLUMN_THREADS = 256 };

// First of the thread's columns.
__device__ inline size_t column_first()
{
    return ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * COLUMN_LANES;
}

// Four consecutive elements, zeros beyond `width`.
template <typename T>
__device__ inline void four_load(float (&x)[4], const T *row, size_t at, size_t width, bool wide)
{
    if (wide && at + 4 <= width) {
        if constexpr (sizeof(T) == 4) {
            lanes_load(x, row + at);
        } else {
            uint2 v = *reinterpret_cast<const uint2 *>(row + at);
            x[0] = __uint_as_float(v.x << 16), x[1] = __uint_as_float(v.x & 0xffff0000u);
            x[2] = __uint_as_float(v.y << 16), x[3] = __uint_as_float(v.y & 0xffff0000u);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[i] = at + i < width ? to_float(row[at + i]) : 0.0f;
    }
}

// Adds the partial sums of the block's rows of threads, ascending; the first row gets them.
__device__ inline void tall_sum(float (&x)[COLUMN_LANES])
{
    __shared__ float part[COLUMN_LANES][COLUMN_THREADS];
    int at = threadIdx.y * blockDim.x + threadIdx.x;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < COLUMN_LANES; i++) {
        part[i][at] = x[i];
    }
    __syncthreads();
    if (threadIdx.y == 0) {
#pragma unroll
        for (int i = 0; i < COLUMN_LANES; i++) {
            for (int r = 1; r < blockDim.y; r++) {
                x[i] += part[i][r * blockDim.x + threadIdx.x];
            }
        }
    }
}

// out[x] (+)= sum over chunks of part[chunk * stride + x].
static __global__ void __launch_bounds__(COLUMN_THREADS)
    chunks_kernel(float *out, const float *part, size_t chunks, size_t stride, size_t width,
                  bool accumulate)
{
    size_t at = column_first();
    float sum[COLUMN_LANES] = {};
#pragma unroll 4
    for (size_t chunk = threadIdx.y; chunk < chunks; chunk += blockDim.y) {
        float x[4];
        four_load<float>(x, part + chunk * stride, at, width, width % 4 == 0);
#pragma unroll
        for (int i = 0; i < COLUMN_LANES; i++) {
            sum[i] += x[i];
        }
    }
    tall_sum(sum);
    if (threadIdx.y == 0) {
        for (int i = 0; i < COLUMN_LANES && at + i < width; i++) {
            out[at + i] = accumulate ? out[at + i] + sum[i] : sum[i];
        }
    }
}

struct column_grid {
    dim3 grid, block; // the grid's y: chunks
};

static inline column_grid column_grid_of(size_t width, size_t chunks)
{
    unsigned lanes = width <= 32 ? 8 : width <= 64 ? 16 : WARP;
    unsigned strips = grid_of(blocks_of(width, (size_t)lanes * COLUMN_LANES));
    return {dim3(strips, (unsigned)chunks), dim3(lanes, COLUMN_THREADS / lanes)};
}

// out (+)= the chunks' sums.
static inline void chunks_add(const struct kernel_ctx *ctx, float *out, const float *part,
                              size_t chunks, size_t stride, size_t width, bool accumulate)
{
    column_grid g = column_grid_of(width, 1);
    chunks_kernel<<<g.grid, g.block, 0, stream_of(ctx)>>>(out, part, chunks, stride, width,
                                                          accumulate);
    launch_check("sums over chunks");
}

// Sums of a chunk of rows down a strip of columns.
template <typename T>
static __global__ void __launch_bounds__(COLUMN_THREADS)
    columns_kernel(float *part, const T *a, size_t rows, size_t width, size_t chunk_rows, bool wide)
{
    size_t at = column_first();
    size_t begin = blockIdx.y * chunk_rows, end = min(rows, begin + chunk_rows);
    float sum[COLUMN_LANES] = {};
#pragma unroll 4
    for (size_t row = begin + threadIdx.y; row < end; row += blockDim.y) {
        float x[4];
        four_load<T>(x, a + row * width, at, width, wide);
#pragma unroll
        for (int i = 0; i < COLUMN_LANES; i++) {
            sum[i] += x[i];
        }
    }
    tall_sum(sum);
    if (threadIdx.y == 0) {
        for (int i = 0; i < COLUMN_LANES && at + i < width; i++) {
            part[(size_t)blockIdx.y * width + at + i] = sum[i];
        }
    }
}

// sum += column sums of a [rows, width].
template <typename T>
static void columns_add(const struct kernel_ctx *ctx, float *sum, const T *a, size_t rows,
                        size_t width)
{
    if (rows == 0 || width == 0) {
        return;
    }
    size_t chunk = cuda_column_rows(rows), chunks = blocks_of(rows, chunk);
    float *part = (float *)workspace_get(ctx, cuda_columns_bytes(rows, width));
    column_grid g = column_grid_of(width, chunks);
    columns_kernel<T><<<g.grid, g.block, 0, stream_of(ctx)>>>(part, a, rows, width, chunk,
                                                              rows_aligned<T>(a, width));
    launch_check("sums of columns");
    chunks_add(ctx, sum, part, chunks, width, width, true);
}

#endif
