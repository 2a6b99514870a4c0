// elementwise.cu - copies and sums; each element is on its own.
#include "kernels/cuda/common.cuh"

struct add_pair {
    __device__ void operator()(float (&y)[1], const float (&x)[2]) const
    {
        y[0] = x[0] + x[1];
    }
};

struct add_scaled {
    float scale;
    __device__ void operator()(float (&y)[1], const float (&x)[2]) const
    {
        y[0] = fmaf(scale, x[1], x[0]);
    }
};

template <typename T>
static void copy(const struct kernel_ctx *ctx, void *dst, const void *src, size_t count)
{
    cudaError_t error =
        cudaMemcpyAsync(dst, src, count * sizeof(T), cudaMemcpyDeviceToDevice, stream_of(ctx));
    CHECK(error == cudaSuccess, "GPU: copy: %s", cudaGetErrorString(error));
}

static void zero(const struct kernel_ctx *ctx, void *dst, size_t bytes)
{
    cudaError_t error = cudaMemsetAsync(dst, 0, bytes, stream_of(ctx));
    CHECK(error == cudaSuccess, "GPU: zero: %s", cudaGetErrorString(error));
}

template <typename T>
static void add(const struct kernel_ctx *ctx, void *out, const void *a, const void *b, size_t count)
{
    streams<T, 1, 2> s = {{(T *)out}, {(const T *)a, (const T *)b}};
    each_run(ctx, "add", s, add_pair(), count);
}

template <typename T>
static void scale_add(const struct kernel_ctx *ctx, void *dst, const void *src, float scale,
                      size_t count)
{
    streams<T, 1, 2> s = {{(T *)dst}, {(const T *)dst, (const T *)src}};
    each_run(ctx, "scale_add", s, add_scaled{scale}, count);
}

static void accumulate_f32(const struct kernel_ctx *ctx, float *dst, const float *src, size_t count)
{
    add<float>(ctx, dst, dst, src, count);
}

// Four elements a thread: 16 bytes of source.
static __global__ void __launch_bounds__(EACH_THREADS)
    round_kernel(bf16 *dst, const float *src, size_t count, bool wide)
{
    size_t step = (size_t)gridDim.x * EACH_THREADS * 4;
    for (size_t i = ((size_t)blockIdx.x * EACH_THREADS + threadIdx.x) * 4; i < count; i += step) {
        float x[4];
        row_load<float>(x, src, i, count, wide);
        if (wide && i + 4 <= count) {
            *reinterpret_cast<uint2 *>(dst + i) =
                make_uint2(bf16_pair(x[0], x[1]), bf16_pair(x[2], x[3]));
            continue;
        }
        for (int k = 0; k < 4 && i + k < count; k++) {
            dst[i + k] = from_float<bf16>(x[k]);
        }
    }
}

extern "C" void cuda_round(const struct kernel_ctx *ctx, void *dst, const float *src, size_t count)
{
    if (count > 0) {
        size_t blocks = blocks_of(count, (size_t)EACH_THREADS * 4);
        blocks = blocks < EACH_BLOCKS_MOST ? blocks : EACH_BLOCKS_MOST;
        bool wide = aligned(dst) && aligned(src);
        round_kernel<<<grid_of(blocks), EACH_THREADS, 0, stream_of(ctx)>>>((bf16 *)dst, src, count,
                                                                           wide);
        launch_check("rounding");
    }
}

static __global__ void __launch_bounds__(EACH_THREADS)
    columns_kernel(float *x, const float *scale, size_t count, size_t columns)
{
    size_t step = (size_t)gridDim.x * EACH_THREADS;
    for (size_t i = (size_t)blockIdx.x * EACH_THREADS + threadIdx.x; i < count; i += step) {
        x[i] *= scale[i % columns];
    }
}

static void scale_columns(const struct kernel_ctx *ctx, float *x, const float *scale, size_t rows,
                          size_t columns)
{
    size_t count = rows * columns;
    if (count > 0) {
        size_t blocks = blocks_of(count, (size_t)EACH_THREADS);
        blocks = blocks < EACH_BLOCKS_MOST ? blocks : EACH_BLOCKS_MOST;
        columns_kernel<<<grid_of(blocks), EACH_THREADS, 0, stream_of(ctx)>>>(x, scale, count,
                                                                             columns);
        launch_check("scale_columns");
    }
}

static void from_f32_f32(const struct kernel_ctx *ctx, void *dst, const float *src, size_t count)
{
    copy<float>(ctx, dst, src, count);
}

template <typename T> static void fill(struct kernels *table)
{
    table->copy = copy<T>;
    table->add = add<T>;
    table->scale_add = scale_add<T>;
}

// Any kernel would do: all are compiled for the same cards.
extern "C" bool cuda_code_suits(void)
{
    cudaFuncAttributes attributes;
    cudaError_t error = cudaFuncGetAttributes(&attributes, (const void *)columns_kernel);
    if (error != cudaErrorNoKernelImageForDevice) {
        return true;
    }
    (void)cudaGetLastError();
    return false;
}

extern "C" void cuda_elementwise_fill(struct kernels *table)
{
    table->zero = zero;
    table->accumulate_f32 = accumulate_f32;
    table->scale_columns = scale_columns;
    if (table->dtype == DTYPE_BF16) {
        fill<bf16>(table);
        table->from_f32 = cuda_round;
    } else {
        fill<float>(table);
        table->from_f32 = from_f32_f32;
    }
}
