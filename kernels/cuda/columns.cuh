// columns.cuh - sums down the columns of a matrix: chunks of rows first, then the chunks.
//
// A block takes 32 * 4 columns of a chunk; its eight rows of threads take every eighth row each.
// The chunks (their number follows from the rows alone) are added the same way.
#ifndef KERNELS_CUDA_COLUMNS_CUH
#define KERNELS_CUDA_COLUMNS_CUH

#include "kernels/cuda/common.cuh"

enum { COLUMN_LANES = 4, COLUMN_STRIP = WARP * COLUMN_LANES, COLUMN_TALL = 8 };

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

// Adds the block's COLUMN_TALL partial sums, ascending; the first row of threads gets them.
__device__ inline void tall_sum(float (&x)[COLUMN_LANES])
{
    __shared__ float part[COLUMN_TALL][COLUMN_STRIP];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < COLUMN_LANES; i++) {
        part[threadIdx.y][i * WARP + threadIdx.x] = x[i];
    }
    __syncthreads();
    if (threadIdx.y == 0) {
#pragma unroll
        for (int i = 0; i < COLUMN_LANES; i++) {
            x[i] = part[0][i * WARP + threadIdx.x];
            for (int r = 1; r < COLUMN_TALL; r++) {
                x[i] += part[r][i * WARP + threadIdx.x];
            }
        }
    }
}

// out[x] (+)= sum over chunks of part[chunk * stride + x].
static __global__ void __launch_bounds__(WARP *COLUMN_TALL)
    chunks_kernel(float *out, const float *part, size_t chunks, size_t stride, size_t width,
                  bool accumulate)
{
    size_t at = (size_t)blockIdx.x * COLUMN_STRIP + threadIdx.x * COLUMN_LANES;
    float sum[COLUMN_LANES] = {};
#pragma unroll 4
    for (size_t chunk = threadIdx.y; chunk < chunks; chunk += COLUMN_TALL) {
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

#endif
