/* cuda.h - what the files of kernels/cuda/ share with the table that they fill; private to kernels/.
 *
 * Each file exports one function that puts its operations, for the table's dtype, into the table.
 */
#ifndef KERNELS_CUDA_CUDA_H
#define KERNELS_CUDA_CUDA_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* WHAT(file) for every file of operations. */
#define CUDA_FILES(what)                                                                           \
    what(activation) what(attention_forward) what(attention_backward) what(depth)                  \
        what(elementwise) what(embed) what(hyper) what(matmul) what(mudd_forward)                  \
            what(mudd_backward) what(norm) what(optimizer) what(rope) what(streams) what(xent)
#define CUDA_DECLARE_FILL_(file) void cuda_##file##_fill(struct kernels *table);
CUDA_FILES(CUDA_DECLARE_FILL_)

/* Is there code in this program for the bound device? */
bool cuda_code_suits(void);

/* Makes the library's handle for the bound device, so that no step has to. */
MUST_USE status_t cuda_matmul_init(void);
size_t cuda_matmul_version(void); /* of the library, once it is there: 130001 for 13.0.1 */
/* Does a cublasLtMatmulAlgo_t add in an order that is the same in every run? Its inner dimension is not
 * split, or a separate step adds the parts. Needs the library and no GPU. */
MUST_USE status_t cuda_algorithm_order(const void *algorithm, bool *out_fixed);
/* Who does bf16 attention: MUDDPIPE_ATTENTION=own|cudnn for tests, else cuDNN what it can do. */
enum cuda_attention { CUDA_ATTENTION_AUTO, CUDA_ATTENTION_OWN, CUDA_ATTENTION_CUDNN };
enum cuda_attention cuda_attention_choice(void);
bool cuda_deterministic(void);

/* Of a table but for what cuDNN wants. */
size_t cuda_workspace(const struct kernel_limits *limits);

/* dst [count] bf16 = src. */
void cuda_round(const struct kernel_ctx *ctx, void *dst, const float *src, size_t count);

#ifdef __cplusplus
}
#endif

/* ---- workspace, in bytes ---- */

enum {
    CUDA_MATMUL_BYTES = 32 << 20, /* what the library may use, whatever the shape */
    CUDA_SPLIT_TILES = 128,       /* tiles that a split weight gradient has at most */
    CUDA_SPLIT_BYTES = CUDA_SPLIT_TILES * 128 * 128 * 4, /* its parts, behind the library's share */
    CUDA_COLUMN_CHUNKS = 512, /* most chunks of rows whose column sums are added last */
    CUDA_COLUMN_ROWS = 64,    /* fewest rows of such a chunk */
    CUDA_DEPTH_CHUNKS = 1024, /* most chunks of tokens whose gradients of a query are added last */
    CUDA_DEPTH_ROWS = 8,      /* fewest tokens of such a chunk */
    CUDA_SQUARE_CHUNKS = 1024 /* blocks that share out a sum of squares */
};

static inline size_t cuda_column_rows(size_t rows) /* rows of a chunk */
{
    size_t each = (rows + CUDA_COLUMN_CHUNKS - 1) / CUDA_COLUMN_CHUNKS;
    return each > CUDA_COLUMN_ROWS ? each : CUDA_COLUMN_ROWS;
}

static inline size_t cuda_depth_rows(size_t rows) /* tokens of a chunk */
{
    size_t each = (rows + CUDA_DEPTH_CHUNKS - 1) / CUDA_DEPTH_CHUNKS;
    return each > CUDA_DEPTH_ROWS ? each : CUDA_DEPTH_ROWS;
}

static inline size_t cuda_depth_bytes(size_t rows, size_t width)
{
    size_t chunks = (rows + cuda_depth_rows(rows) - 1) / cuda_depth_rows(rows);
    return (chunks + 1) * width * sizeof(float);
}

/* Two sums (scale and bias) of each chunk and column. */
static inline size_t cuda_columns_bytes(size_t rows, size_t width)
{
    size_t chunks = (rows + cuda_column_rows(rows) - 1) / cuda_column_rows(rows);
    return chunks * 2 * width * sizeof(float);
}

#endif
