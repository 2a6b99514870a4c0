// xent.cu - softmax cross-entropy and its gradient.
//
// A block takes a row: a thread's running maximum and sum of exponentials over its columns, then the
// threads' together, in double. The rows' losses are kept and added afterwards.
#include "kernels/cuda/common.cuh"

enum { THREADS = 512, LOSS_THREADS = 256 };

__device__ inline float block_largest(float x)
{
    __shared__ float part[THREADS / WARP];
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) {
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, apart));
    }
    if (threadIdx.x % WARP == 0) {
        part[threadIdx.x / WARP] = x;
    }
    __syncthreads();
    x = part[0];
    for (int w = 1; w < THREADS / WARP; w++) {
        x = fmaxf(x, part[w]);
    }
    return x;
}

// Largest logit of a row, and the sum of exp(logit - largest).
__device__ inline void row_sums(const float *x, size_t V, bool wide, float *largest, double *sum)
{
    float most = -INFINITY, total = 0;
    for (size_t at = (size_t)threadIdx.x * 4; at < V; at += THREADS * 4) {
        float v[4];
        row_load<float>(v, x, at, V, wide);
        float before = most;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            most = at + i < V ? fmaxf(most, v[i]) : most;
        }
        total = most > before ? total * expf(before - most) : total;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            total += at + i < V ? expf(v[i] - most) : 0.0f;
        }
    }
    *largest = block_largest(most);
    double share = total == 0 ? 0.0 : (double)total * (double)expf(most - *largest);
    *sum = group_sum<THREADS>(share);
}

__device__ inline void four_store(float *p, const float (&x)[4])
{
    lanes_store(p, x);
}
__device__ inline void four_store(bf16 *p, const float (&x)[4])
{
    *reinterpret_cast<uint2 *>(p) = make_uint2(bf16_pair(x[0], x[1]), bf16_pair(x[2], x[3]));
}

// d = (p - onehot) * scale of a row, or 0 where it does not count; target from V on: none of these columns.
// Elements are written after all of the block's THREADS * 4 logits of the round are read, so that the
// gradient may take the logits' place, in float or from the row's beginning in half the width.
template <typename T>
__device__ inline void row_gradient(T *d, const float *x, bool counts, size_t target, float largest,
                                    float inverse, float scale, size_t V, bool wide)
{
    __syncthreads(); // x[target] is read
    for (size_t base = 0; d && base < V; base += THREADS * 4) {
        size_t at = base + (size_t)threadIdx.x * 4;
        float v[4] = {};
        if (at < V) {
            row_load<float>(v, x, at, V, wide);
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float p = expf(v[i] - largest) * inverse;
            v[i] = !counts ? 0.0f : (at + i == target ? p - 1.0f : p) * scale;
        }
        if (wide && at + 4 <= V) {
            four_store(d + at, v);
            continue;
        }
        for (int i = 0; i < 4 && at + i < V; i++) {
            d[at + i] = from_float<T>(v[i]);
        }
    }
}

template <typename T>
static __global__ void __launch_bounds__(THREADS)
    xent_kernel(double *row_loss, T *dlogits, const float *logits, const int32_t *targets,
                float scale, size_t V, size_t first, bool wide)
{
    size_t row = first + blockIdx.x;
    const float *x = logits + row * V;
    int32_t target = targets[row];
    float largest = 0, inverse = 0;
    double sum = 1;
    if (target >= 0) {
        row_sums(x, V, wide, &largest, &sum);
        inverse = (float)(1.0 / sum);
        if (threadIdx.x == 0) {
            row_loss[row] = (double)largest - (double)x[target] + log(sum);
        }
    } else if (threadIdx.x == 0) {
        row_loss[row] = 0;
    }
    row_gradient<T>(dlogits ? dlogits + row * V : NULL, x, target >= 0, (size_t)target, largest,
                    inverse, scale, V, wide);
}

// ---- a vocabulary in parts ----

enum { LARGEST, SUM, TARGET, SUMS }; // of a row in a part

static __global__ void __launch_bounds__(THREADS)
    sums_kernel(float *sums, const float *logits, const int32_t *targets, size_t begin, size_t V,
                bool wide)
{
    size_t row = blockIdx.x, target = (size_t)targets[row] - begin;
    const float *x = logits + row * V;
    float largest;
    double sum;
    row_sums(x, V, wide, &largest, &sum);
    if (threadIdx.x == 0) {
        float *out = sums + row * SUMS;
        out[LARGEST] = largest;
        out[SUM] = (float)sum;
        out[TARGET] = targets[row] >= 0 && target < V ? x[target] : 0.0f;
    }
}

// Every thread of a row's block adds up the same few numbers, in the order of the parts.
template <typename T>
static __global__ void __launch_bounds__(THREADS)
    joined_kernel(double *row_loss, T *dlogits, const float *logits, const float *sums,
                  size_t parts, size_t rows, const int32_t *targets, size_t begin, float scale,
                  size_t V, size_t first, bool wide)
{
    size_t row = first + blockIdx.x;
    int32_t target = targets[row];
    float largest = sums[row * SUMS + LARGEST];
    double sum = 0, of_target = 0;
    for (size_t p = 1; p < parts; p++) {
        largest = fmaxf(largest, sums[(p * rows + row) * SUMS + LARGEST]);
    }
    for (size_t p = 0; p < parts; p++) {
        const float *of = sums + (p * rows + row) * SUMS;
        sum += (double)of[SUM] * (double)expf(of[LARGEST] - largest);
        of_target += (double)of[TARGET];
    }
    if (threadIdx.x == 0) {
        row_loss[row] = target >= 0 ? (double)largest - of_target + log(sum) : 0.0;
    }
    row_gradient<T>(dlogits ? dlogits + row * V : NULL, logits + row * V, target >= 0,
                    (size_t)target - begin, largest, (float)(1.0 / sum), scale, V, wide);
}

// *loss += the rows' losses.
static __global__ void __launch_bounds__(LOSS_THREADS)
    loss_kernel(double *loss, const double *row_loss, size_t rows)
{
    double sum = 0;
    for (size_t row = threadIdx.x; row < rows; row += LOSS_THREADS) {
        sum += row_loss[row];
    }
    sum = group_sum<LOSS_THREADS>(sum);
    if (threadIdx.x == 0) {
        *loss += sum;
    }
}

// Half as wide, the gradient of rows r.. in the logits' place covers logits of rows r/2..: rows go in
// rounds, each of which overwrites only rows of earlier ones.
static size_t round_rows(size_t first, size_t rows, bool in_place)
{
    size_t most = in_place ? (first > 0 ? first : 1) : rows;
    return rows - first < most ? rows - first : most;
}

static void add_losses(const struct kernel_ctx *ctx, double *loss, const double *row_loss,
                       size_t rows)
{
    if (rows > 0) {
        loss_kernel<<<1, LOSS_THREADS, 0, stream_of(ctx)>>>(loss, row_loss, rows);
        launch_check("xent");
    }
}

template <typename T>
static void xent(const struct kernel_ctx *ctx, double *loss, void *dlogits, const float *logits,
                 const int32_t *targets, float scale, size_t rows, size_t V)
{
    double *row_loss = (double *)workspace_get(ctx, rows * sizeof *row_loss);
    bool wide = rows_aligned<float>(logits, V) && aligned(dlogits);
    bool in_place = sizeof(T) < sizeof(float) && dlogits == (const void *)logits;
    for (size_t first = 0; first < rows;) {
        size_t count = round_rows(first, rows, in_place);
        xent_kernel<T><<<grid_of(count), THREADS, 0, stream_of(ctx)>>>(
            row_loss, (T *)dlogits, logits, targets, scale, V, first, wide);
        first += count;
    }
    add_losses(ctx, loss, row_loss, rows);
}

static void xent_sums(const struct kernel_ctx *ctx, float *sums, const float *logits,
                      const int32_t *targets, size_t first, size_t rows, size_t V)
{
    if (rows > 0) {
        sums_kernel<<<grid_of(rows), THREADS, 0, stream_of(ctx)>>>(sums, logits, targets, first, V,
                                                                   rows_aligned<float>(logits, V));
        launch_check("xent_sums");
    }
}

template <typename T>
static void xent_joined(const struct kernel_ctx *ctx, double *loss, void *dlogits,
                        const float *logits, const float *sums, size_t parts,
                        const int32_t *targets, size_t begin, float scale, size_t rows, size_t V)
{
    double *row_loss = (double *)workspace_get(ctx, rows * sizeof *row_loss);
    bool wide = rows_aligned<float>(logits, V) && aligned(dlogits);
    bool in_place = sizeof(T) < sizeof(float) && dlogits == (const void *)logits;
    for (size_t first = 0; first < rows;) {
        size_t count = round_rows(first, rows, in_place);
        joined_kernel<T><<<grid_of(count), THREADS, 0, stream_of(ctx)>>>(
            row_loss, (T *)dlogits, logits, sums, parts, rows, targets, begin, scale, V, first,
            wide);
        first += count;
    }
    add_losses(ctx, loss, row_loss, rows);
}

extern "C" void cuda_xent_fill(struct kernels *table)
{
    bool half = table->dtype == DTYPE_BF16;
    table->xent = half ? xent<bf16> : xent<float>;
    table->xent_sums = xent_sums;
    table->xent_joined = half ? xent_joined<bf16> : xent_joined<float>;
}
