// attention.cuh - what attention's two directions share: tiles, masks, small products in registers.
//
// A tile is BLOCK rows of a head, as float, in shared memory, zeros beyond E up to WIDE and beyond the
// sequence. 16 x 16 threads hold a BLOCK x BLOCK product: thread (y, x) rows y * R.. and columns
// x, x + 16, ..; with R = BLOCK / 16.
#ifndef KERNELS_CUDA_ATTENTION_CUH
#define KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/common.cuh"

extern "C" {
#include "kernels/cuda/cudnn.h"
}

enum { SIDE = 16, ATTENTION_THREADS = SIDE * SIDE };

#define ATTENTION_HIDDEN (-1e30f) // score of a key that a query does not see

// Tensors of either direction, for a head they are rows H*E or G*E apart.
struct attention_args {
    void *out, *dq, *dk, *dv;
    const void *q, *k, *v, *kept, *dout; // kept: forward's out
    float *lse, *delta;
    const int32_t *first;
    int B, T, H, G, E;
    float scale;
};

template <int WIDE> constexpr int PITCH = WIDE + 4; // floats; rows start 4 banks apart

template <typename T, int BLOCK, int WIDE>
__device__ inline void tile_load(float *tile, const T *base, size_t stride, int begin, int rows,
                                 int E)
{
    for (int i = threadIdx.x; i < BLOCK * WIDE; i += ATTENTION_THREADS) {
        int r = i / WIDE, e = i % WIDE;
        bool inside = begin + r < rows && e < E;
        tile[r * PITCH<WIDE> + e] = inside ? to_float(base[(begin + r) * stride + e]) : 0.0f;
    }
}

// acc[i][j] = sum over e of a[row i][e] b[column j][e].
template <int BLOCK, int WIDE>
__device__ inline void tile_dot(float (&acc)[BLOCK / SIDE][BLOCK / SIDE], const float *a,
                                const float *b)
{
    constexpr int R = BLOCK / SIDE;
    int y = threadIdx.x / SIDE, x = threadIdx.x % SIDE;
#pragma unroll
    for (int i = 0; i < R; i++) {
#pragma unroll
        for (int j = 0; j < R; j++) {
            acc[i][j] = 0;
        }
    }
#pragma unroll 4
    for (int e = 0; e < WIDE; e += 4) {
        float u[R][4], w[R][4];
#pragma unroll
        for (int i = 0; i < R; i++) {
            lanes_load(u[i], a + (y * R + i) * PITCH<WIDE> + e);
            lanes_load(w[i], b + (x + i * SIDE) * PITCH<WIDE> + e);
        }
#pragma unroll
        for (int l = 0; l < 4; l++) {
#pragma unroll
            for (int i = 0; i < R; i++) {
#pragma unroll
                for (int j = 0; j < R; j++) {
                    acc[i][j] = fmaf(u[i][l], w[j][l], acc[i][j]);
                }
            }
        }
    }
}

// A thread's columns of a BLOCK x WIDE result: groups of VEC next to each other.
template <int WIDE> constexpr int COLUMNS = WIDE / SIDE;
template <int WIDE> constexpr int VEC = COLUMNS<WIDE> < 4 ? COLUMNS<WIDE> : 4;
template <int WIDE> __device__ inline int column_at(int c)
{
    constexpr int V = VEC<WIDE>;
    return (c / V * SIDE + (int)threadIdx.x % SIDE) * V + c % V;
}

// out[i][c] += sum over k of p[row i][k] b[k][column c]; p is BLOCK + 4 wide.
template <int BLOCK, int WIDE>
__device__ inline void tile_mix(float (&out)[BLOCK / SIDE][COLUMNS<WIDE>], const float *p,
                                const float *b)
{
    constexpr int R = BLOCK / SIDE, C = COLUMNS<WIDE>, V = VEC<WIDE>;
    int y = threadIdx.x / SIDE;
#pragma unroll 2
    for (int k = 0; k < BLOCK; k += 4) {
        float u[R][4];
#pragma unroll
        for (int i = 0; i < R; i++) {
            lanes_load(u[i], p + (y * R + i) * (BLOCK + 4) + k);
        }
#pragma unroll
        for (int l = 0; l < 4; l++) {
            float w[C];
            const float *row = b + (k + l) * PITCH<WIDE>;
#pragma unroll
            for (int c = 0; c < C; c += V) {
                if constexpr (V == 4) {
                    float four[4];
                    lanes_load(four, row + column_at<WIDE>(c));
                    w[c] = four[0], w[c + 1] = four[1], w[c + 2] = four[2], w[c + 3] = four[3];
                } else {
                    float2 two = *reinterpret_cast<const float2 *>(row + column_at<WIDE>(c));
                    w[c] = two.x, w[c + 1] = two.y;
                }
            }
#pragma unroll
            for (int i = 0; i < R; i++) {
#pragma unroll
                for (int c = 0; c < C; c++) {
                    out[i][c] = fmaf(u[i][l], w[c], out[i][c]);
                }
            }
        }
    }
}

// Rows begin.. of a head from a thread's part of a BLOCK x WIDE result.
template <typename T, int BLOCK, int WIDE>
__device__ inline void tile_store(T *base, size_t stride, int begin, int rows, int E,
                                  const float (&x)[BLOCK / SIDE][COLUMNS<WIDE>])
{
    constexpr int R = BLOCK / SIDE;
    int y = threadIdx.x / SIDE;
#pragma unroll
    for (int i = 0; i < R; i++) {
        int row = begin + y * R + i;
#pragma unroll
        for (int c = 0; c < COLUMNS<WIDE>; c++) {
            int e = column_at<WIDE>(c);
            if (row < rows && e < E) {
                base[row * stride + e] = from_float<T>(x[i][c]);
            }
        }
    }
}

// first[BLOCK] of queries begin.. (0 beyond the sequence); the smallest and the largest of those
// inside. All threads of the block take part.
struct first_range {
    int least, most;
};

template <int BLOCK>
__device__ inline first_range first_load(int *first, const attention_args &a, int b, int begin)
{
    __shared__ first_range range;
    __syncthreads();
    if (threadIdx.x == 0) {
        range = {a.T, 0};
    }
    __syncthreads();
    for (int i = threadIdx.x; i < BLOCK; i += blockDim.x) {
        int t = begin + i;
        first[i] = t < a.T && a.first ? a.first[(size_t)b * a.T + t] : 0;
        if (t < a.T) { // of integers: any order gives the same
            atomicMin(&range.least, first[i]);
            atomicMax(&range.most, first[i]);
        }
    }
    __syncthreads();
    return range;
}

__device__ inline bool attention_sees(int query, int key, int first)
{
    return key <= query && key >= first;
}

// Offset of a sequence's head in a tensor of `heads` heads.
__device__ inline size_t head_offset(const attention_args &a, int b, int head, int heads)
{
    return ((size_t)b * a.T * heads + head) * a.E;
}

// Width classes of the tiles: the narrowest that holds E, and rows a tile. Calls run<WIDE, BLOCK>().
#define ATTENTION_DISPATCH(E, run)                                                                 \
    do {                                                                                           \
        if ((E) <= 32) {                                                                           \
            run(32, 64);                                                                           \
        } else if ((E) <= 64) {                                                                    \
            run(64, 64);                                                                           \
        } else if ((E) <= 128) {                                                                   \
            run(128, 64);                                                                          \
        } else {                                                                                   \
            run(256, 32);                                                                          \
        }                                                                                          \
    } while (0)

// A kernel whose block takes `bytes` of dynamic shared memory.
template <typename K>
static void attention_launch(const struct kernel_ctx *ctx, const char *op, K *kernel, dim3 grid,
                             unsigned threads, size_t bytes, const attention_args &args)
{
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    CHECK(error == cudaSuccess, "GPU: %s wants %zu bytes of shared memory: %s", op, bytes,
          cudaGetErrorString(error));
    kernel<<<grid, threads, bytes, stream_of(ctx)>>>(args);
    launch_check(op);
}

static inline attention_args attention_args_of(const struct attention_shape *shape)
{
    CHECK(shape->G && shape->H % shape->G == 0, "%zu heads share %zu", shape->H, shape->G);
    CHECK(shape->E <= 256, "heads of %zu elements: at most 256", shape->E);
    CHECK(shape->B * shape->H <= 65535, "%zu sequences of %zu heads at once", shape->B, shape->H);
    attention_args a = {};
    a.first = shape->first;
    a.B = (int)shape->B, a.T = (int)shape->T, a.H = (int)shape->H;
    a.G = (int)shape->G, a.E = (int)shape->E;
    a.scale = shape->scale;
    return a;
}

// Do the tensor cores' kernels apply? bfloat16 whose rows are whole, aligned vectors.
static inline bool attention_suits_mma(const attention_args &a)
{
    return a.E % 8 == 0 && a.E <= 128 && aligned(a.q) && aligned(a.k) && aligned(a.v) &&
           aligned(a.out) && aligned(a.kept) && aligned(a.dout) && aligned(a.dq) && aligned(a.dk) &&
           aligned(a.dv);
}

// bfloat16 on tensor cores (attention_mma_*.cu).
void attention_mma_forward(const struct kernel_ctx *ctx, const attention_args &args);
void attention_mma_backward(const struct kernel_ctx *ctx, const attention_args &args);

#endif
