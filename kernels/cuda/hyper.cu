// hyper.cu - the weights of hyper-connections, and their gradients.
//
// A thread takes a token: its numbers are few, and the steps the same for all tokens. The formulas of the way
// back are in kernels/cpu/hyper.c. SIZE: streams, known when compiling for few of them, else the most.
#include "kernels/cuda/columns.cuh"

enum { THREADS = 128 };

template <typename T> struct hyper_args {
    float *weights;            // forward
    float *dz, *factor, *rows; // backward: rows [N, W + 3]
    const float *dweights, *z, *rstd;
    const T *pre, *res, *post, *pre_scale, *res_scale, *post_scale;
    enum hyper_kind kind;
    size_t width, N;
    int n;
};

template <typename T> __device__ inline float number_of(const T *scale)
{
    return scale ? to_float(*scale) : 0.0f;
}

// The token's blocks of z: of p, of M, of o.
template <typename T> struct token {
    const hyper_args<T> &a;
    size_t t;
    int n;

    __device__ float rstd(int stream) const
    {
        return a.kind == HYPER_MHC ? a.rstd[t] : a.rstd[t * n + stream];
    }
    __device__ size_t at_p(int s) const
    {
        return t * n + s;
    }
    __device__ size_t at_m(int s, int r) const
    {
        int place = a.kind == HYPER_DYNAMIC ? r * n + s : s * n + r;
        return a.N * n + t * n * n + place;
    }
    __device__ size_t at_o(int s) const
    {
        return a.N * (n + n * n) + t * n + s;
    }
    __device__ float z(size_t at, int stream) const
    {
        return a.z[at] * rstd(stream);
    }
    __device__ float vector(const T *from, const T *scale, size_t at, int s, float most) const
    {
        float own = to_float(from[s]);
        if (a.kind == HYPER_STATIC) {
            return own;
        }
        float x = z(at, s);
        if (a.kind == HYPER_DYNAMIC) {
            return fmaf(number_of(scale), tanhf(x), own);
        }
        return most / (1.0f + expf(-fmaf(number_of(scale), x, own)));
    }
    __device__ float logarithm(int s, int r) const // or the number itself
    {
        float own = to_float(a.res[s * n + r]);
        if (a.kind == HYPER_STATIC) {
            return own;
        }
        float x = z(at_m(s, r), r);
        return fmaf(number_of(a.res_scale), a.kind == HYPER_DYNAMIC ? tanhf(x) : x, own);
    }
};

template <int SIZE> struct sinkhorn {
    float column[SINKHORN_ROUNDS][SIZE], row[SINKHORN_ROUNDS][SIZE];
};

template <int SIZE>
__device__ inline void sinkhorn_run(float (&m)[SIZE][SIZE], int n, sinkhorn<SIZE> &out)
{
    float largest = m[0][0];
    for (int s = 0; s < n; s++) {
        for (int r = 0; r < n; r++) {
            largest = fmaxf(largest, m[s][r]);
        }
    }
    for (int s = 0; s < n; s++) {
        for (int r = 0; r < n; r++) {
            m[s][r] = expf(m[s][r] - largest);
        }
    }
    for (int round = 0; round < SINKHORN_ROUNDS; round++) {
        for (int r = 0; r < n; r++) {
            float sum = m[0][r];
            for (int s = 1; s < n; s++) {
                sum += m[s][r];
            }
            out.column[round][r] = sum;
        }
        for (int s = 0; s < n; s++) {
            float sum = 0;
            for (int r = 0; r < n; r++) {
                m[s][r] /= out.column[round][r];
                sum += m[s][r];
            }
            out.row[round][s] = sum;
            for (int r = 0; r < n; r++) {
                m[s][r] /= sum;
            }
        }
    }
}

template <int SIZE, typename T>
__device__ inline void matrix_weights(const token<T> &k, float (&m)[SIZE][SIZE], int n,
                                      sinkhorn<SIZE> &rounds)
{
    for (int s = 0; s < n; s++) {
        for (int r = 0; r < n; r++) {
            m[s][r] = k.a.res ? k.logarithm(s, r) : s == r ? 1.0f : 0.0f;
        }
    }
    if (k.a.res && k.a.kind == HYPER_MHC) {
        sinkhorn_run<SIZE>(m, n, rounds);
    }
}

template <int SIZE, typename T>
static __global__ void __launch_bounds__(THREADS)
    forward_kernel(const __grid_constant__ hyper_args<T> a)
{
    size_t t = (size_t)blockIdx.x * THREADS + threadIdx.x;
    int n = SIZE == STREAMS_MAX ? a.n : SIZE;
    if (t >= a.N) {
        return;
    }
    token<T> k = {a, t, n};
    float *out = a.weights + t * (2 * n + n * n), m[SIZE][SIZE];
    sinkhorn<SIZE> rounds;
    matrix_weights<SIZE>(k, m, n, rounds);
    for (int s = 0; s < n; s++) {
        if (a.pre) {
            out[s] = k.vector(a.pre, a.pre_scale, k.at_p(s), s, 1.0f);
        }
        out[n + n * n + s] = k.vector(a.post, a.post_scale, k.at_o(s), s, 2.0f);
        for (int r = 0; r < n; r++) {
            out[n + s * n + r] = m[s][r];
        }
    }
}

// dz of one number whose scaled sum with a parameter has the gradient d; adds to that of the scale and to what
// goes through the norm.
template <typename T>
__device__ inline void number_backward(const token<T> &k, size_t at, int stream, float scale,
                                       float d, float *dscale, float *norm)
{
    float z = k.z(at, stream), inner = z, slope = 1.0f;
    if (k.a.kind == HYPER_DYNAMIC) {
        inner = tanhf(z);
        slope = 1.0f - inner * inner;
    }
    float dz = d * scale * slope;
    *dscale = fmaf(d, inner, *dscale);
    norm[k.a.kind == HYPER_DYNAMIC ? stream : 0] += dz * z;
    k.a.dz[at] = dz * k.rstd(stream);
}

template <typename T>
__device__ inline void vector_backward(const token<T> &k, const T *from, const T *scale, int s,
                                       size_t at, float most, float d, float *dparam, float *dscale,
                                       float *norm)
{
    if (k.a.kind == HYPER_MHC) {
        float y = k.vector(from, scale, at, s, most);
        d *= y * (1.0f - y / most);
    }
    *dparam = d;
    if (k.a.kind != HYPER_STATIC) {
        number_backward(k, at, s, number_of(scale), d, dscale, norm);
    }
}

// m the last matrix, d its gradient, which becomes that of the logarithms.
template <int SIZE>
__device__ inline void sinkhorn_backward(float (&m)[SIZE][SIZE], float (&d)[SIZE][SIZE], int n,
                                         const sinkhorn<SIZE> &rounds)
{
    for (int round = SINKHORN_ROUNDS; round-- > 0;) {
        for (int s = 0; s < n; s++) {
            float sum = 0, c = rounds.row[round][s];
            for (int r = 0; r < n; r++) {
                sum = fmaf(d[s][r], m[s][r], sum);
            }
            for (int r = 0; r < n; r++) {
                d[s][r] = (d[s][r] - sum) / c;
                m[s][r] *= c;
            }
        }
        for (int r = 0; r < n; r++) {
            float sum = 0, c = rounds.column[round][r];
            for (int s = 0; s < n; s++) {
                sum = fmaf(d[s][r], m[s][r], sum);
            }
            for (int s = 0; s < n; s++) {
                d[s][r] = (d[s][r] - sum) / c;
                m[s][r] *= c;
            }
        }
    }
    for (int s = 0; s < n; s++) {
        for (int r = 0; r < n; r++) {
            d[s][r] *= m[s][r];
        }
    }
}

template <int SIZE, typename T>
static __global__ void __launch_bounds__(THREADS)
    backward_kernel(const __grid_constant__ hyper_args<T> a)
{
    size_t t = (size_t)blockIdx.x * THREADS + threadIdx.x;
    int n = SIZE == STREAMS_MAX ? a.n : SIZE, W = 2 * n + n * n;
    if (t >= a.N) {
        return;
    }
    token<T> k = {a, t, n};
    const float *from = a.dweights + t * W;
    float *row = a.rows + t * (W + 3), d[SIZE][SIZE], norm[SIZE] = {};
    float dpre_scale = 0, dres_scale = 0, dpost_scale = 0;
    for (int s = 0; s < n; s++) {
        row[s] = 0;
        if (a.pre) {
            vector_backward(k, a.pre, a.pre_scale, s, k.at_p(s), 1.0f, from[s], &row[s],
                            &dpre_scale, norm);
        }
        vector_backward(k, a.post, a.post_scale, s, k.at_o(s), 2.0f, from[n + n * n + s],
                        &row[n + n * n + s], &dpost_scale, norm);
        for (int r = 0; r < n; r++) {
            d[s][r] = from[n + s * n + r];
            row[n + s * n + r] = 0;
        }
    }
    if (a.res && a.kind == HYPER_MHC) {
        float m[SIZE][SIZE];
        sinkhorn<SIZE> rounds;
        matrix_weights<SIZE>(k, m, n, rounds);
        sinkhorn_backward<SIZE>(m, d, n, rounds);
    }
    for (int s = 0; s < n && a.res; s++) {
        for (int r = 0; r < n; r++) {
            row[n + s * n + r] = d[s][r];
            if (a.kind != HYPER_STATIC) {
                number_backward(k, k.at_m(s, r), r, number_of(a.res_scale), d[s][r], &dres_scale,
                                norm);
            }
        }
    }
    row[W] = dpre_scale, row[W + 1] = dres_scale, row[W + 2] = dpost_scale;
    for (int s = 0; s < n && a.kind != HYPER_STATIC; s++) {
        float rstd = k.rstd(s), sum = norm[a.kind == HYPER_DYNAMIC ? s : 0];
        a.factor[t * n + s] = -(sum * (rstd * rstd)) / (float)a.width;
    }
}

template <typename T>
static void hyper_run(const struct kernel_ctx *ctx, const hyper_args<T> &a, bool forward)
{
    unsigned blocks = grid_of(blocks_of(a.N, THREADS));
    cudaStream_t stream = stream_of(ctx);
    switch (a.n) {
    case 2:
        forward ? forward_kernel<2, T><<<blocks, THREADS, 0, stream>>>(a)
                : backward_kernel<2, T><<<blocks, THREADS, 0, stream>>>(a);
        break;
    case 3:
        forward ? forward_kernel<3, T><<<blocks, THREADS, 0, stream>>>(a)
                : backward_kernel<3, T><<<blocks, THREADS, 0, stream>>>(a);
        break;
    case 4:
        forward ? forward_kernel<4, T><<<blocks, THREADS, 0, stream>>>(a)
                : backward_kernel<4, T><<<blocks, THREADS, 0, stream>>>(a);
        break;
    default:
        forward ? forward_kernel<STREAMS_MAX, T><<<blocks, THREADS, 0, stream>>>(a)
                : backward_kernel<STREAMS_MAX, T><<<blocks, THREADS, 0, stream>>>(a);
        break;
    }
    launch_check("hyper_weights");
}

template <typename T>
static hyper_args<T> args_of(const float *z, const float *rstd, const void *pre, const void *res,
                             const void *post, const void *pre_scale, const void *res_scale,
                             const void *post_scale, enum hyper_kind kind, size_t N, size_t n)
{
    CHECK(n >= 2 && n <= STREAMS_MAX, "%zu streams: 2 to %d", n, STREAMS_MAX);
    hyper_args<T> a = {};
    a.z = z, a.rstd = rstd, a.kind = kind, a.N = N, a.n = (int)n;
    a.pre = (const T *)pre, a.res = (const T *)res, a.post = (const T *)post;
    a.pre_scale = (const T *)pre_scale, a.res_scale = (const T *)res_scale;
    a.post_scale = (const T *)post_scale;
    return a;
}

template <typename T>
static void hyper_weights_forward(const struct kernel_ctx *ctx, float *weights, const float *z,
                                  const float *rstd, const void *pre, const void *res,
                                  const void *post, const void *pre_scale, const void *res_scale,
                                  const void *post_scale, enum hyper_kind kind, size_t N, size_t n)
{
    hyper_args<T> a =
        args_of<T>(z, rstd, pre, res, post, pre_scale, res_scale, post_scale, kind, N, n);
    a.weights = weights;
    if (N > 0) {
        hyper_run(ctx, a, true);
    }
}

template <typename T>
static void hyper_weights_backward(const struct kernel_ctx *ctx, float *dz, float *factor,
                                   float *dparams_part, const float *dweights, const float *z,
                                   const float *rstd, const void *pre, const void *res,
                                   const void *post, const void *pre_scale, const void *res_scale,
                                   const void *post_scale, enum hyper_kind kind, size_t width,
                                   size_t N, size_t n)
{
    size_t count = 2 * n + n * n + 3, before = cuda_columns_bytes(N, count);
    hyper_args<T> a =
        args_of<T>(z, rstd, pre, res, post, pre_scale, res_scale, post_scale, kind, N, n);
    a.dz = dz, a.factor = factor, a.dweights = dweights, a.width = width;
    a.rows = (float *)((char *)workspace_get(ctx, before + N * count * sizeof(float)) + before);
    cudaMemsetAsync(dparams_part, 0, count * sizeof(float), stream_of(ctx));
    if (N > 0) {
        hyper_run(ctx, a, false);
        columns_add(ctx, dparams_part, (const float *)a.rows, N, count);
    }
}

template <typename T> static void fill(struct kernels *table)
{
    table->hyper_weights_forward = hyper_weights_forward<T>;
    table->hyper_weights_backward = hyper_weights_backward<T>;
}

extern "C" void cuda_hyper_fill(struct kernels *table)
{
    table->dtype == DTYPE_BF16 ? fill<bf16>(table) : fill<float>(table);
}
