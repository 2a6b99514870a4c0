// attention_mma.cuh - attention's small products on tensor cores, bfloat16 in, float out.
//
// A tile is some rows of a head in shared memory, WIDE elements and 16 bytes of padding each (which
// spreads eight rows over all banks). A warp holds M times 16 rows of a product, in the layout of
// mma.m16n8k16: of each eight columns a lane has, of rows lane/4 and lane/4 + 8, the columns
// 2 (lane % 4) and the next. The larger M, the more each fetch from shared memory is used, and the
// more registers it takes.
#ifndef KERNELS_CUDA_ATTENTION_MMA_CUH
#define KERNELS_CUDA_ATTENTION_MMA_CUH

#include "kernels/cuda/attention.cuh"

// Rows of a tile that streams by.
enum { ROWS = 64, MMA_WARPS = 4, MMA_THREADS = MMA_WARPS * WARP };

#define LOG2_E 1.4426950408889634f
#define LN_2 0.69314718055994531f

template <int WIDE> struct tile_shape {
    static constexpr int pitch = WIDE + 8, elements = ROWS * pitch;
};
template <int WIDE> constexpr int TILE_PITCH = tile_shape<WIDE>::pitch;
template <int WIDE> constexpr int TILE_ELEMENTS = tile_shape<WIDE>::elements;
// Rows of the tiles that a block keeps.
template <int M> constexpr int OWN_ROWS = MMA_WARPS * 16 * M;

__device__ inline unsigned shared_address(const void *p)
{
    return (unsigned)__cvta_generic_to_shared(p);
}

// 16 bytes from global to shared memory behind the program's back; zeros if not `inside`.
__device__ inline void async_copy(void *to, const void *from, bool inside)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(inside ? 16 : 0));
}
__device__ inline void async_commit()
{
    asm volatile("cp.async.commit_group;");
}
template <int PENDING> __device__ inline void async_wait() // until at most so many groups are open
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING));
}

// Rows begin.. of a head, zeros beyond the sequence and beyond E.
template <int WIDE, int COUNT>
__device__ inline void tile_fetch(bf16 *tile, const bf16 *base, size_t stride, int begin, int rows,
                                  int E)
{
    constexpr int CHUNKS = WIDE / 8;
    for (int i = threadIdx.x; i < COUNT * CHUNKS; i += MMA_THREADS) {
        int r = i / CHUNKS, e = i % CHUNKS * 8;
        bool inside = begin + r < rows && e < E;
        async_copy(tile + r * TILE_PITCH<WIDE> + e, inside ? base + (begin + r) * stride + e : base,
                   inside);
    }
}

__device__ inline void matrices_load(unsigned (&x)[4], const bf16 *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(p)));
}
__device__ inline void matrices_load_turned(unsigned (&x)[4], const bf16 *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(p)));
}
__device__ inline void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// acc = a[16 M rows] b[COLS]^T, over WIDE.
template <int WIDE, int M, int COLS>
__device__ inline void rows_dot(float (&acc)[M][COLS / 8][4], const bf16 *a, const bf16 *b)
{
    int lane = threadIdx.x % WARP;
    const bf16 *a_at = a + lane % 16 * TILE_PITCH<WIDE> + lane / 16 * 8;
    const bf16 *b_at = b + (lane / 16 * 8 + lane % 8) * TILE_PITCH<WIDE> + lane / 8 % 2 * 8;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < COLS / 8; n++) {
            acc[m][n][0] = acc[m][n][1] = acc[m][n][2] = acc[m][n][3] = 0;
        }
    }
#pragma unroll
    for (int e = 0; e < WIDE; e += 16) {
        unsigned x[M][4], y[4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            matrices_load(x[m], a_at + m * 16 * TILE_PITCH<WIDE> + e);
        }
#pragma unroll
        for (int n = 0; n < COLS / 16; n++) {
            matrices_load(y, b_at + n * 16 * TILE_PITCH<WIDE> + e);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(acc[m][2 * n], x[m], y[0], y[1]);
                mma(acc[m][2 * n + 1], x[m], y[2], y[3]);
            }
        }
    }
}

// acc [16 M, WIDE] += p [16 M, COLS] b [COLS, WIDE].
template <int WIDE, int M, int COLS>
__device__ inline void rows_mix(float (&acc)[M][WIDE / 8][4], const unsigned (&p)[M][COLS / 16][4],
                                const bf16 *b)
{
    int lane = threadIdx.x % WARP;
    const bf16 *b_at = b + lane % 16 * TILE_PITCH<WIDE> + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < COLS / 16; k++) {
#pragma unroll
        for (int n = 0; n < WIDE / 16; n++) {
            unsigned y[4];
            matrices_load_turned(y, b_at + k * 16 * TILE_PITCH<WIDE> + n * 16);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma(acc[m][2 * n], p[m][k], y[0], y[1]);
                mma(acc[m][2 * n + 1], p[m][k], y[2], y[3]);
            }
        }
    }
}

// A product's result as the next one's left operand.
template <int M, int COLS>
__device__ inline void rows_pack(unsigned (&p)[M][COLS / 16][4], const float (&x)[M][COLS / 8][4])
{
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int k = 0; k < COLS / 16; k++) {
            p[m][k][0] = bf16_pair(x[m][2 * k][0], x[m][2 * k][1]);
            p[m][k][1] = bf16_pair(x[m][2 * k][2], x[m][2 * k][3]);
            p[m][k][2] = bf16_pair(x[m][2 * k + 1][0], x[m][2 * k + 1][1]);
            p[m][k][3] = bf16_pair(x[m][2 * k + 1][2], x[m][2 * k + 1][3]);
        }
    }
}

// Sixteen rows begin.. of a head: x times the factors of a lane's two rows.
template <int WIDE>
__device__ inline void rows_store(bf16 *base, size_t stride, int begin, int rows, int E,
                                  const float (&x)[WIDE / 8][4], float low, float high)
{
    int lane = threadIdx.x % WARP, row = begin + lane / 4;
#pragma unroll
    for (int n = 0; n < WIDE / 8; n++) {
        int e = n * 8 + lane % 4 * 2;
        if (e < E && row < rows) {
            *reinterpret_cast<unsigned *>(base + row * stride + e) =
                bf16_pair(x[n][0] * low, x[n][1] * low);
        }
        if (e < E && row + 8 < rows) {
            *reinterpret_cast<unsigned *>(base + (row + 8) * stride + e) =
                bf16_pair(x[n][2] * high, x[n][3] * high);
        }
    }
}

__device__ inline float exp2_fast(float x) // 2^-inf is 0
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Calls run(WIDE) for the narrowest class that holds E.
#define ATTENTION_MMA_DISPATCH(E, run)                                                             \
    do {                                                                                           \
        if ((E) <= 64) {                                                                           \
            run(64);                                                                               \
        } else if ((E) <= 80) {                                                                    \
            run(80);                                                                               \
        } else {                                                                                   \
            run(128);                                                                              \
        }                                                                                          \
    } while (0)

#endif
