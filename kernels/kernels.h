/* kernels.h - the door of kernels/: a table of every operation; operations.def has a row for each.
 *
 * The CPU op (kernels/cpu/<op>.c) is the specification; its CUDA twin (kernels/cuda/<op>.cu) fills
 * the same table. Ops are deaf: they know pointers and shapes, no model, no rank.
 *
 * Letters, used everywhere in the project:
 *     B sequences of a microbatch   T tokens of a sequence      N = B*T rows (tokens)
 *     D model width   H query heads   G key/value heads   E head width   F FFN width   V vocabulary
 *     C ways of an aggregate (1..4)   n keys an aggregate reads   K inner width of its generator
 * All tensors are dense and row-major. `void *` points to elements of the table's dtype, `float *`
 * and `double *` to what they say in every table. Linears are stored [out, in]: y = x W^T + b.
 *
 * Contract of every op
 *  - Forward and input gradients overwrite their output unless the name says accumulate; weight
 *    gradients (dweight) accumulate; small gradients named *_part overwrite (one microbatch's
 *    share).
 *  - Outputs do not alias inputs unless said.
 *  - Nothing is allocated; scratch comes from ctx->workspace (kernels_workspace tells how much).
 *  - The order of every addition is fixed by the shape, never by threads or alignment: the same
 *    input gives the same bits with any ctx->threads. (One exception: kernels_cuda_options.)
 *  - Bad arguments are our bug (CHECK).
 */
#ifndef KERNELS_KERNELS_H
#define KERNELS_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/trace.h"
#include "kernels/audit.h"
#include "kernels/each.h"

enum dtype { DTYPE_F32, DTYPE_BF16 };
size_t dtype_size(enum dtype dtype); /* bytes an element */
const char *dtype_name(enum dtype dtype);

enum { WAYS_MAX = 4 };

struct kernels;
struct timeline; /* base/timeline.h */
struct audit;    /* kernels/audit.h */

/* What an op runs on. One per rank. */
struct kernel_ctx {
    int threads;         /* OpenMP threads for this rank's ops, >= 1 */
    void *stream;        /* cudaStream_t; NULL on the CPU */
    struct trace *trace; /* gemm, attention and aggregate ops book their time here; may be NULL */
    void *workspace;     /* at least kernels_workspace bytes, ARENA_ALIGN-aligned */
    size_t workspace_bytes;
    /* For the ops of a table of kernels_time: where they record themselves, and whose they are. */
    struct timeline *timeline;
    const struct kernels *timed;
    /* For the ops of a table of kernels_audit: what watches them, and whose they are. */
    struct audit *audit;
    const struct kernels *audited;
};

enum norm_kind { NORM_RMS, NORM_LAYER };

/* y = (x - mean) * rstd * scale + bias over rows of `width`; RMS: mean = 0, no bias.
 * rstd = 1/sqrt(mean((x-mean)^2) + eps). scale NULL = ones, bias NULL = zeros. */
struct norm_shape {
    enum norm_kind kind;
    size_t rows, width;
    float eps;
};

struct attention_shape {
    size_t B, T, H, G, E; /* query head h reads key/value head h / (H/G); H % G == 0 */
    float scale;          /* usually 1/sqrt(E) */
    /* [B*T] first position (0..T-1) of the token's document in its sequence: token t sees
     * first[t]..t. NULL = 0 everywhere (plain causal). */
    const int32_t *first;
};

/* One consumer's part in a key's gradient: dX += sum_c weight(t, c) * dout[c][t, :], c ascending.
 * weight(t, c) = weights[t * row_stride + c * way_stride]; row_stride 0 = static weights. */
struct mudd_term {
    const float *weights; /* at this key's column of way 0 */
    size_t row_stride, way_stride;
    size_t ways;                /* C */
    const void *dout[WAYS_MAX]; /* C x [N, D] gradients of the aggregate's outputs */
};

/* How the weights of hyper-connections come about (hyper_weights_forward). */
enum hyper_kind { HYPER_STATIC, HYPER_DYNAMIC, HYPER_MHC };
enum { STREAMS_MAX = 16, SINKHORN_ROUNDS = 20 };

/* Keys that an operation reads at once, at most. */
enum { KEYS_MOST = 256 };

/* One consumer's part in a source's gradient (depth_backward has the formulas), in three fmaf steps:
 *     dX += alpha * dout[t, :];   dX += a * (query * scale);   dX += b * X[t, :]
 * with alpha, a, b = coefficients[t * 3 n + (0, n, 2 n)]. */
struct depth_term {
    const float *coefficients; /* at this source's column of alpha */
    size_t n;                  /* sources of the consumer */
    const void *dout;          /* [N, D] */
    const void *query, *scale; /* [D] */
};

struct adamw_args {
    float lr, beta1, beta2, eps, weight_decay; /* weight_decay 0 for tensors that do not decay */
    float gradient_scale;                      /* clipping factor, applied to the gradient first */
    int64_t step;                              /* from 1, for bias correction */
    /* Where not NULL, the factor is read here when the op runs: on a GPU, in stream order, from device
     * or pinned memory, so that clipping needs no wait. A negative one refuses the step: p, m and v
     * keep their bits, whatever the gradient holds (a loss that is not finite, say). */
    const float *gradient_scale_at;
};

struct kernel_limits;

struct kernels {
    const char *name;  /* "cpu-v4 (oneDNN 3.6.2)": with the libraries' versions */
    const char *lacks; /* "no cuDNN: ...": why something quicker is not in it; NULL = nothing */
    enum dtype dtype;
    size_t (*workspace)(const struct kernel_limits *limits); /* see kernels_workspace */

#define OPERATION(name, category, ...)                                                             \
    void (*name)(const struct kernel_ctx *ctx EACH(OPERATION_PARAMETER, __VA_ARGS__));
#include "kernels/operations.def"
#undef OPERATION
};

/* Largest sizes that the ops will be called with, for the workspace. */
struct kernel_limits {
    size_t B, T, D, H, G, E, F, V, K, Cn;
    int threads;
    size_t keys; /* that an operation reads at once: on GPUs at most KEYS_MOST */
};
size_t kernels_workspace(const struct kernels *kernels, const struct kernel_limits *limits);

/* A table whose ops are spans of ctx->timeline (base/timeline.h) around those of ctx->timed, which must
 * be `real`. Names are the ops', categories "gemm forward", "gemm dgrad", "attention backward" and so
 * on. */
void kernels_time(const struct kernels *real, struct kernels *out);

/* The CPU's table for this machine (widest vector set found at run time) and the GEMM library of
 * this build (oneDNN, OpenBLAS, or our own). MUDDPIPE_GEMM=dnnl|openblas|own and
 * MUDDPIPE_ISA=v4|v3|generic override. Thread-safe, cheap to call again. */
MUST_USE status_t kernels_cpu(const struct kernels **out);
/* The GPU's table, for the device that the calling thread is bound to (base/device.h). Its ops only
 * enqueue on ctx->stream, never wait, and read and write device or pinned memory: so must `loss`
 * and the `out` of sum_squares; arrays of pointers and structs of arguments stay on the host and
 * are copied; ctx->threads and ctx->trace are not used. ARENA_ALIGN-aligned tensors are fast ones,
 * and equal bits are promised for them. One stream uses a workspace at a time. bfloat16: sums are
 * float32 and rounded once; `dlogits` in the logits' place works, elsewhere it is faster.
 * STATUS_UNSUPPORTED in a program built without CUDA. */
MUST_USE status_t kernels_cuda(enum dtype dtype, const struct kernels **out);

/* A table without operations, for kernels_workspace where there is no GPU: what it says lacks only what
 * cuDNN's attention would want beyond it, which cuDNN tells on the GPU. In every build. */
const struct kernels *kernels_cuda_sizes(enum dtype dtype);

/* What holds for the GPU's bfloat16 tables of the whole process; set before one is asked for. float32
 * always gives the same bits. */
struct kernels_cuda_options {
    bool deterministic; /* the same bits every time, from attention's backward too */
};
void kernels_cuda_options(const struct kernels_cuda_options *options);

/* ---- algorithms of the GPU's bfloat16 products ----
 *
 * cuBLASLt multiplies in many ways. Which one is looked up in one table of the process: by shape, how
 * the operands are stored, dtypes, accumulation, alignment, card and version of the library. What is not
 * in it takes the library's own first choice, so a table that lacks something costs time only. Ranks
 * with one table run one algorithm for one product, and runs with one table give the same bits.
 *
 * As text the table has a line a product, for people to read and delete:
 *     card=NVIDIA_H200/132 library=130001 product=4096x5632x2048 parts=0 stored=nt in=bf16 out=bf16
 *         add=0 aligned=111 algorithm=<hex> us=131.20 first=140.90
 * (on one line; product M x N x K, stored transposed or not, the algorithm's time and that of the first
 * choice in microseconds, cold caches). Empty lines and those that begin with # say nothing, lines of
 * other cards and versions are passed over. All text is malloc'ed. */

/* The products that the bound GPU has run so far and that are not in the table: a line each, without
 * algorithm and times. A dry run of what will be computed, on any numbers, brings them all. */
char *kernels_cuda_algorithms_missing(void);
/* Adds such lines to the table: times candidates that add in a fixed order (no split of the inner
 * dimension whose parts race), on random numbers with cold caches. Waits for the GPU and takes memory
 * for the largest product while it runs; warns and does nothing if there is none. */
MUST_USE status_t kernels_cuda_algorithms_measure(const char *missing);
char *kernels_cuda_algorithms_save(void);
/* Adds or replaces; STATUS_INVALID names `name` and the line. An algorithm that adds in an order that
 * changes is not taken: a warning names its line. */
MUST_USE status_t kernels_cuda_algorithms_load(const char *name, const char *text);

/* Call first thing in main: where OpenBLAS took this processor for an older one (its sgemm is then
 * 4-7 times slower), runs the program again with OPENBLAS_CORETYPE set. Returns if nothing is to be
 * done. */
void kernels_guard(char *const *argv);

#endif
