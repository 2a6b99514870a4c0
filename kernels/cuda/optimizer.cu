// optimizer.cu - the gradient's square sum and AdamW.
#include "kernels/cuda/common.cuh"

enum { THREADS = 256, ELEMENTS = 4096 };

// Block k adds the squares of chunks k, k + gridDim, .. of ELEMENTS each; a thread its own, in double.
static __global__ void __launch_bounds__(THREADS)
    squares_kernel(double *part, const float *x, size_t count, bool wide)
{
    double sum = 0;
    for (size_t base = (size_t)blockIdx.x * ELEMENTS; base < count;
         base += (size_t)gridDim.x * ELEMENTS) {
#pragma unroll
        for (int i = 0; i < ELEMENTS / THREADS / 4; i++) {
            float v[4];
            row_load<float>(v, x, base + ((size_t)i * THREADS + threadIdx.x) * 4, count, wide);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                sum = fma((double)v[k], (double)v[k], sum); // the product is exact
            }
        }
    }
    sum = group_sum<THREADS>(sum);
    if (threadIdx.x == 0) {
        part[blockIdx.x] = sum;
    }
}

static __global__ void __launch_bounds__(THREADS)
    total_kernel(double *out, const double *part, size_t parts)
{
    double sum = 0;
    for (size_t i = threadIdx.x; i < parts; i += THREADS) {
        sum += part[i];
    }
    sum = group_sum<THREADS>(sum);
    if (threadIdx.x == 0) {
        *out = sum;
    }
}

static void sum_squares(const struct kernel_ctx *ctx, double *out, const float *x, size_t count)
{
    size_t blocks = blocks_of(count, ELEMENTS);
    blocks = blocks < CUDA_SQUARE_CHUNKS ? blocks : CUDA_SQUARE_CHUNKS;
    double *part = (double *)workspace_get(ctx, CUDA_SQUARE_CHUNKS * sizeof *part);
    if (blocks > 0) {
        squares_kernel<<<grid_of(blocks), THREADS, 0, stream_of(ctx)>>>(part, x, count, aligned(x));
    }
    total_kernel<<<1, THREADS, 0, stream_of(ctx)>>>(out, part, blocks);
    launch_check("sum_squares");
}

// In: p, m, v, gradient. Out: p, m, v.
struct adamw_step {
    float beta1, beta2, rest1, rest2, eps, scale, decay, rate, correction;
    const float *scale_at; // read when the kernel runs, if not NULL
    __device__ void operator()(float (&y)[3], const float (&x)[4]) const
    {
        float factor = scale_at ? *scale_at : scale;
        if (scale_at && factor < 0) {
            y[0] = x[0], y[1] = x[1], y[2] = x[2];
            return;
        }
        float g = x[3] * factor;
        y[1] = fmaf(beta1, x[1], rest1 * g);
        y[2] = fmaf(beta2, x[2], rest2 * g * g);
        y[0] = x[0] * decay - rate * y[1] / (sqrtf(y[2] * correction) + eps);
    }
};

// base^exponent by squaring.
static double power(double base, int64_t exponent)
{
    double result = 1;
    for (; exponent > 0; exponent >>= 1, base *= base) {
        if (exponent & 1) {
            result *= base;
        }
    }
    return result;
}

static void adamw(const struct kernel_ctx *ctx, const struct adamw_args *args, float *p, float *m,
                  float *v, const float *gradient, size_t count)
{
    adamw_step step;
    step.beta1 = args->beta1;
    step.beta2 = args->beta2;
    step.rest1 = (float)(1.0 - (double)args->beta1);
    step.rest2 = (float)(1.0 - (double)args->beta2);
    step.eps = args->eps;
    step.scale = args->gradient_scale;
    step.scale_at = args->gradient_scale_at;
    step.decay = (float)(1.0 - (double)args->lr * (double)args->weight_decay);
    step.rate = (float)((double)args->lr / (1.0 - power((double)args->beta1, args->step)));
    step.correction = (float)(1.0 / (1.0 - power((double)args->beta2, args->step)));
    streams<float, 3, 4> s = {{p, m, v}, {p, m, v, gradient}};
    each_run(ctx, "adamw", s, step, count);
}

extern "C" void cuda_optimizer_fill(struct kernels *table)
{
    table->sum_squares = sum_squares;
    table->adamw = adamw;
}
