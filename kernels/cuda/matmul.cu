// matmul.cu - everything that is a matrix product: linears, logits, the generator's last step.
//
// What is added besides (biases, column sums, the parts of a split product) is added by us. Weight
// gradients too small to fill a card are split into as many parts as their shape says.
#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/product.cuh"

enum { BIAS_THREADS = 256, SPLIT_TILE = 128, SPLIT_LEAST = 64 };

// ---- biases ----

// Every row of y = bias.
template <typename Y, typename T>
static __global__ void __launch_bounds__(BIAS_THREADS)
    bias_kernel(Y *y, const T *bias, size_t count, size_t O)
{
    size_t step = (size_t)gridDim.x * BIAS_THREADS;
    for (size_t i = (size_t)blockIdx.x * BIAS_THREADS + threadIdx.x; i < count; i += step) {
        y[i] = from_float<Y>(to_float(bias[i % O]));
    }
}

template <typename Y, typename T>
static void bias_set(const struct kernel_ctx *ctx, Y *y, const T *bias, size_t N, size_t O)
{
    size_t blocks = blocks_of(N * O, BIAS_THREADS);
    blocks = blocks < EACH_BLOCKS_MOST ? blocks : EACH_BLOCKS_MOST;
    if (blocks > 0) {
        bias_kernel<Y, T><<<grid_of(blocks), BIAS_THREADS, 0, stream_of(ctx)>>>(y, bias, N * O, O);
        launch_check("bias");
    }
}

// ---- the table's operations ----

template <typename T> constexpr enum dtype DTYPE = sizeof(T) == 2 ? DTYPE_BF16 : DTYPE_F32;

// y [N, O] = x [N, I] weight^T + bias.
template <typename T, typename Y>
static void forward(const struct kernel_ctx *ctx, Y *y, const void *x, const void *weight,
                    const void *bias, size_t N, size_t I, size_t O)
{
    if (bias) {
        bias_set<Y, T>(ctx, y, (const T *)bias, N, O);
    }
    struct product p = {N, O, I, x, weight, y, false, true, DTYPE<T>, DTYPE<Y>, bias != NULL, 0};
    product_run(ctx, &p);
}

template <typename T>
static void linear_forward(const struct kernel_ctx *ctx, void *y, const void *x, const void *weight,
                           const void *bias, size_t N, size_t I, size_t O)
{
    forward<T, T>(ctx, (T *)y, x, weight, bias, N, I, O);
}

template <typename T>
static void logits_forward(const struct kernel_ctx *ctx, float *logits, const void *x,
                           const void *weight, size_t N, size_t I, size_t O)
{
    forward<T, float>(ctx, logits, x, weight, NULL, N, I, O);
}

template <typename T>
static void linear_backward_input(const struct kernel_ctx *ctx, void *dx, bool accumulate,
                                  const void *dy, const void *weight, size_t N, size_t I, size_t O)
{
    struct product p = {N, I, O, dy, weight, dx, false, false, DTYPE<T>, DTYPE<T>, accumulate, 0};
    product_run(ctx, &p);
}

// Parts that the rows of a small weight gradient are split into: enough for 128 tiles, powers of two
// that divide the rows.
static size_t split_parts(size_t N, size_t I, size_t O)
{
    size_t tiles = blocks_of(I, SPLIT_TILE) * blocks_of(O, SPLIT_TILE), parts = 1;
    while (tiles * parts * 2 <= CUDA_SPLIT_TILES && N % (parts * 2) == 0 &&
           N / (parts * 2) >= SPLIT_LEAST) {
        parts *= 2;
    }
    return parts;
}

// dweight [O, I] += dy^T x. The parts' products go to the workspace's end and are added from there.
template <typename T>
static void weight_gradient(const struct kernel_ctx *ctx, float *dweight, const void *dy,
                            const void *x, size_t N, size_t I, size_t O)
{
    size_t parts = split_parts(N, I, O), bytes = parts * I * O * sizeof(float);
    if (parts == 1) {
        struct product p = {O, I, N, dy, x, dweight, true, false, DTYPE<T>, DTYPE_F32, true, 0};
        product_run(ctx, &p);
        return;
    }
    char *workspace = (char *)workspace_get(ctx, CUDA_MATMUL_BYTES + CUDA_SPLIT_BYTES);
    float *part = (float *)(workspace + CUDA_MATMUL_BYTES);
    CHECK(bytes <= CUDA_SPLIT_BYTES, "%zu parts of %zu x %zu", parts, O, I);
    struct product p = {O,    I,     N / parts, dy,        x,     part,
                        true, false, DTYPE<T>,  DTYPE_F32, false, parts};
    product_run(ctx, &p);
    chunks_add(ctx, dweight, part, parts, I * O, I * O, true);
}

template <typename T>
static void linear_backward_weight(const struct kernel_ctx *ctx, float *dweight, float *dbias,
                                   const void *dy, const void *x, size_t N, size_t I, size_t O)
{
    if (dweight && x) {
        weight_gradient<T>(ctx, dweight, dy, x, N, I, O);
    }
    if (dbias) {
        columns_add(ctx, dbias, (const T *)dy, N, O);
    }
}

template <typename T>
static void mudd_weights_forward(const struct kernel_ctx *ctx, float *weights, const void *hidden,
                                 const void *w2, const void *bias, size_t N, size_t K, size_t Cn)
{
    forward<T, float>(ctx, weights, hidden, w2, bias, N, K, Cn);
}

// The gradient of the weights in the products' dtype: in the workspace behind the products' shares.
template <typename T>
static const void *dweights_rounded(const struct kernel_ctx *ctx, const float *dweights,
                                    size_t count)
{
    if (sizeof(T) == sizeof(float)) {
        return dweights;
    }
    size_t before = CUDA_MATMUL_BYTES + CUDA_SPLIT_BYTES;
    char *workspace = (char *)workspace_get(ctx, before + count * sizeof(T));
    cuda_round(ctx, workspace + before, dweights, count);
    return workspace + before;
}

template <typename T>
static void mudd_weights_backward_input(const struct kernel_ctx *ctx, void *dhidden,
                                        bool accumulate, const float *dweights, const void *w2,
                                        size_t N, size_t K, size_t Cn)
{
    const void *dy = dweights_rounded<T>(ctx, dweights, N * Cn);
    linear_backward_input<T>(ctx, dhidden, accumulate, dy, w2, N, K, Cn);
}

template <typename T>
static void mudd_weights_backward_weight(const struct kernel_ctx *ctx, float *dw2, float *dbias,
                                         const float *dweights, const void *hidden, size_t N,
                                         size_t K, size_t Cn)
{
    if (dw2 && hidden) {
        const void *dy = dweights_rounded<T>(ctx, dweights, N * Cn);
        weight_gradient<T>(ctx, dw2, dy, hidden, N, K, Cn);
    }
    if (dbias) {
        columns_add(ctx, dbias, dweights, N, Cn);
    }
}

template <typename T> static void fill(struct kernels *table)
{
    table->linear_forward = linear_forward<T>;
    table->linear_backward_input = linear_backward_input<T>;
    table->linear_backward_weight = linear_backward_weight<T>;
    table->logits_forward = logits_forward<T>;
    table->mudd_weights_forward = mudd_weights_forward<T>;
    table->mudd_weights_backward_input = mudd_weights_backward_input<T>;
    table->mudd_weights_backward_weight = mudd_weights_backward_weight<T>;
}

extern "C" void cuda_matmul_fill(struct kernels *table)
{
    table->dtype == DTYPE_BF16 ? fill<bf16>(table) : fill<float>(table);
}
