/* linear.c - everything that is a matrix product: linears, logits, the generator's last step.
 *
 * A product is cut into tiles whose sizes follow from its shape alone; each is one call of a GEMM
 * library on one thread, and the inner dimension is never cut. So threads change no bit.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

/* Measured: larger tiles gain nothing, and below 64 rows the library packs more than it multiplies.
 * */
enum {
    TILE_ROWS = 256,
    TILE_ROWS_LEAST = 64,
    TILE_COLUMNS = 256,
    TILE_STEP = 16,
    TILES_WANTED = 4
};

struct product {
    size_t M, N, K; /* C [M, N] (+)= A [M, K] B [K, N] */
    struct gemm_operand A, B;
    float *C;
    bool accumulate;
    const float *bias; /* [N], or NULL; not when accumulating */
};

/* Size of the equal tiles that `size` is cut into, none above `most`, in whole steps. */
static size_t tile_size(size_t size, size_t most)
{
    size_t tiles = blocks_of(size, most);
    return tiles ? blocks_of(blocks_of(size, tiles), TILE_STEP) * TILE_STEP : TILE_STEP;
}

static const float *operand_at(struct gemm_operand operand, size_t row, size_t column)
{
    return operand.transposed ? operand.base + column * operand.ld + row
                              : operand.base + row * operand.ld + column;
}

static void product_tile(const struct product *p, gemm_fn gemm, size_t row, size_t column,
                         size_t rows, size_t columns)
{
    float *C = p->C + row * p->N + column;
    struct gemm_operand A = p->A, B = p->B;
    A.base = operand_at(A, row, 0);
    B.base = operand_at(B, 0, column);
    if (p->bias) {
        for (size_t r = 0; r < rows; r++) {
            memcpy(C + r * p->N, p->bias + column, columns * sizeof *C);
        }
    }
    gemm(rows, columns, p->K, A, B, p->accumulate || p->bias, C, p->N);
}

static void product_run(const struct kernel_ctx *ctx, const struct product *p, gemm_fn gemm)
{
    size_t tile_columns = tile_size(p->N, TILE_COLUMNS), across = blocks_of(p->N, tile_columns);
    size_t most = TILE_ROWS;
    while (blocks_of(p->M, most) * across < TILES_WANTED && most > TILE_ROWS_LEAST) {
        most /= 2;
    }
    size_t tile_rows = tile_size(p->M, most), tiles = blocks_of(p->M, tile_rows) * across;
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t tile = 0; tile < tiles; tile++) {
        size_t row = tile / across * tile_rows, column = tile % across * tile_columns;
        product_tile(p, gemm, row, column, smaller(p->M - row, tile_rows),
                     smaller(p->N - column, tile_columns));
    }
}

/* sum[x] += column sums of a [rows, width]: chunks of rows first, then the chunks ascending. */
static void columns_add(const struct kernel_ctx *ctx, float *sum, const float *a, size_t rows,
                        size_t width)
{
    enum { STRIP = 4 * LANES, CHUNK = 128 };
    size_t strips = blocks_of(width, STRIP);
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t strip = 0; strip < strips; strip++) {
        size_t begin = strip * STRIP, count = smaller(width - begin, STRIP);
        float total[STRIP] = {0};
        for (size_t first = 0; first < rows; first += CHUNK) {
            size_t end = smaller(rows, first + CHUNK);
            float part[STRIP] = {0};
            for (size_t r = first; r < end; r++) {
                for (size_t x = 0; x < count; x++) {
                    part[x] += a[r * width + begin + x];
                }
            }
            for (size_t x = 0; x < STRIP; x++) {
                total[x] += part[x];
            }
        }
        for (size_t x = 0; x < count; x++) {
            sum[begin + x] += total[x];
        }
    }
}

static struct gemm_operand plain(const void *base, size_t ld)
{
    struct gemm_operand operand = {base, ld, false};
    return operand;
}

static struct gemm_operand transposed(const void *base, size_t ld)
{
    struct gemm_operand operand = {base, ld, true};
    return operand;
}

static void forward(const struct kernel_ctx *ctx, gemm_fn gemm, enum trace_category category,
                    void *y, const void *x, const void *weight, const void *bias, size_t N,
                    size_t I, size_t O)
{
    enum trace_category before = trace_switch(ctx->trace, category);
    struct product p = {N, O, I, plain(x, I), transposed(weight, I), y, false, bias};
    product_run(ctx, &p, gemm);
    trace_switch(ctx->trace, before);
}

static void backward_input(const struct kernel_ctx *ctx, gemm_fn gemm, enum trace_category category,
                           void *dx, bool accumulate, const void *dy, const void *weight, size_t N,
                           size_t I, size_t O)
{
    enum trace_category before = trace_switch(ctx->trace, category);
    struct product p = {N, I, O, plain(dy, O), plain(weight, I), dx, accumulate, NULL};
    product_run(ctx, &p, gemm);
    trace_switch(ctx->trace, before);
}

static void backward_weight(const struct kernel_ctx *ctx, gemm_fn gemm,
                            enum trace_category category, float *dweight, float *dbias,
                            const void *dy, const void *x, size_t N, size_t I, size_t O)
{
    enum trace_category before = trace_switch(ctx->trace, category);
    if (dweight && x) {
        struct product p = {O, I, N, transposed(dy, O), plain(x, I), dweight, true, NULL};
        product_run(ctx, &p, gemm);
    }
    if (dbias) {
        columns_add(ctx, dbias, dy, N, O);
    }
    trace_switch(ctx->trace, before);
}

/* The table's functions for one library. */
#define LINEAR_OPERATIONS(library, gemm)                                                           \
    static void linear_forward_##library(const struct kernel_ctx *ctx, void *y, const void *x,     \
                                         const void *weight, const void *bias, size_t N, size_t I, \
                                         size_t O)                                                 \
    {                                                                                              \
        forward(ctx, gemm, TRACE_GEMM, y, x, weight, bias, N, I, O);                               \
    }                                                                                              \
    static void linear_backward_input_##library(const struct kernel_ctx *ctx, void *dx,            \
                                                bool accumulate, const void *dy,                   \
                                                const void *weight, size_t N, size_t I, size_t O)  \
    {                                                                                              \
        backward_input(ctx, gemm, TRACE_GEMM, dx, accumulate, dy, weight, N, I, O);                \
    }                                                                                              \
    static void linear_backward_weight_##library(const struct kernel_ctx *ctx, float *dweight,     \
                                                 float *dbias, const void *dy, const void *x,      \
                                                 size_t N, size_t I, size_t O)                     \
    {                                                                                              \
        backward_weight(ctx, gemm, TRACE_GEMM, dweight, dbias, dy, x, N, I, O);                    \
    }                                                                                              \
    static void logits_forward_##library(const struct kernel_ctx *ctx, float *logits,              \
                                         const void *x, const void *weight, size_t N, size_t I,    \
                                         size_t O)                                                 \
    {                                                                                              \
        forward(ctx, gemm, TRACE_GEMM, logits, x, weight, NULL, N, I, O);                          \
    }                                                                                              \
    static void mudd_weights_forward_##library(const struct kernel_ctx *ctx, float *weights,       \
                                               const void *hidden, const void *w2,                 \
                                               const void *bias, size_t N, size_t K, size_t Cn)    \
    {                                                                                              \
        forward(ctx, gemm, TRACE_AGGREGATE, weights, hidden, w2, bias, N, K, Cn);                  \
    }                                                                                              \
    static void mudd_weights_backward_input_##library(                                             \
        const struct kernel_ctx *ctx, void *dhidden, bool accumulate, const float *dweights,       \
        const void *w2, size_t N, size_t K, size_t Cn)                                             \
    {                                                                                              \
        backward_input(ctx, gemm, TRACE_AGGREGATE, dhidden, accumulate, dweights, w2, N, K, Cn);   \
    }                                                                                              \
    static void mudd_weights_backward_weight_##library(                                            \
        const struct kernel_ctx *ctx, float *dw2, float *dbias, const float *dweights,             \
        const void *hidden, size_t N, size_t K, size_t Cn)                                         \
    {                                                                                              \
        backward_weight(ctx, gemm, TRACE_AGGREGATE, dw2, dbias, dweights, hidden, N, K, Cn);       \
    }                                                                                              \
    static void fill_##library(struct kernels *table)                                              \
    {                                                                                              \
        table->linear_forward = linear_forward_##library;                                          \
        table->linear_backward_input = linear_backward_input_##library;                            \
        table->linear_backward_weight = linear_backward_weight_##library;                          \
        table->logits_forward = logits_forward_##library;                                          \
        table->mudd_weights_forward = mudd_weights_forward_##library;                              \
        table->mudd_weights_backward_input = mudd_weights_backward_input_##library;                \
        table->mudd_weights_backward_weight = mudd_weights_backward_weight_##library;              \
    }

LINEAR_OPERATIONS(own, ISA(gemm_own))
#ifdef KERNELS_HAVE_DNNL
LINEAR_OPERATIONS(dnnl, gemm_dnnl)
#endif
#ifdef KERNELS_HAVE_OPENBLAS
LINEAR_OPERATIONS(openblas, gemm_openblas)
#endif

void ISA(linear_fill)(struct kernels *table, enum gemm_library library)
{
    switch (library) {
#ifdef KERNELS_HAVE_DNNL
    case GEMM_DNNL:
        fill_dnnl(table);
        break;
#endif
#ifdef KERNELS_HAVE_OPENBLAS
    case GEMM_OPENBLAS:
        fill_openblas(table);
        break;
#endif
    default:
        fill_own(table);
        break;
    }
}
