/* gemm_own.c - a matrix product without a library: also the one whose bits are the same everywhere.
 *
 * Strips of B are copied next to each other (turned around if need be), a strip times all rows of A
 * runs in registers (micro.h). Each element is one chain of fmaf over the inner index, ascending.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/micro.h"

enum { STRIP = 4 * LANES, DEPTH = 256, ROWS = 64 };

/* pack [depth, STRIP] = B[k.., x..], zeros beyond `width`. */
static void strip_pack(float *pack, struct gemm_operand B, size_t k, size_t x, size_t depth,
                       size_t width)
{
    if (!B.transposed) {
        for (size_t i = 0; i < depth; i++) {
            memcpy(pack + i * STRIP, B.base + (k + i) * B.ld + x, width * sizeof *pack);
            memset(pack + i * STRIP + width, 0, (STRIP - width) * sizeof *pack);
        }
        return;
    }
    memset(pack, 0, depth * STRIP * sizeof *pack);
    for (size_t j = 0; j < width; j++) {
        for (size_t i = 0; i < depth; i++) {
            pack[i * STRIP + j] = B.base[(x + j) * B.ld + k + i];
        }
    }
}

/* C's rows through a small block of whole lanes, since its columns may end anywhere. */
static void rows_run(const struct micro_operand *A, const float *pack, size_t rows, size_t width,
                     size_t depth, bool accumulate, float *C, size_t ldc)
{
    size_t lanes = (width + LANES - 1) / LANES;
    if (width % LANES == 0) {
        micro_gemm(rows, lanes, depth, *A, pack, STRIP, C, ldc, accumulate);
        return;
    }
    float block[ROWS * STRIP];
    for (size_t r = 0; r < rows && accumulate; r++) {
        memcpy(block + r * STRIP, C + r * ldc, width * sizeof *C);
        memset(block + r * STRIP + width, 0, (STRIP - width) * sizeof *C);
    }
    micro_gemm(rows, lanes, depth, *A, pack, STRIP, block, STRIP, accumulate);
    for (size_t r = 0; r < rows; r++) {
        memcpy(C + r * ldc, block + r * STRIP, width * sizeof *C);
    }
}

void ISA(gemm_own)(size_t M, size_t N, size_t K, struct gemm_operand A, struct gemm_operand B,
                   bool accumulate, float *C, size_t ldc)
{
    float pack[DEPTH * STRIP];
    size_t a_row = A.transposed ? 1 : A.ld, a_column = A.transposed ? A.ld : 1;
    for (size_t x = 0; x < N; x += STRIP) {
        size_t width = smaller(N - x, STRIP);
        for (size_t k = 0; k < K; k += DEPTH) {
            size_t depth = smaller(K - k, DEPTH);
            strip_pack(pack, B, k, x, depth, width);
            for (size_t m = 0; m < M; m += ROWS) {
                struct micro_operand rows = {A.base + m * a_row + k * a_column, a_row, a_column};
                rows_run(&rows, pack, smaller(M - m, ROWS), width, depth, accumulate || k > 0,
                         C + m * ldc + x, ldc);
            }
        }
    }
}
