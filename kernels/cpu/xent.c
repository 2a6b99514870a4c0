/* xent.c - softmax cross-entropy and its gradient.
 *
 * A row's exponentials are added in sixteen float lanes over SUM_CHUNK columns, the chunks in
 * double; the rows' losses are kept and added in order afterwards.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"
#include "kernels/cpu/vec_math.h"

enum { SUM_CHUNK = 1024 };

static float row_largest(const float *x, size_t V)
{
    size_t i = 0;
    float largest = x[0];
    if (V >= LANES) {
        lanes_t lanes = lanes_load(x);
        for (; i + LANES <= V; i += LANES) {
            lanes = lanes_max(lanes, lanes_load(x + i));
        }
        largest = lanes_largest(lanes);
    }
    for (; i < V; i++) {
        largest = largest > x[i] ? largest : x[i];
    }
    return largest;
}

/* Sum of exp(x - largest); the terms are kept in `out` unless that is NULL. */
static double row_exponentials(float *out, const float *x, float largest, size_t V)
{
    double total = 0;
    for (size_t begin = 0; begin < V; begin += SUM_CHUNK) {
        size_t end = smaller(V, begin + SUM_CHUNK);
        lanes_t sum = lanes_zero();
        for (size_t i = begin; i < end; i += LANES) {
            size_t n = end - i;
            lanes_t e = lanes_exp(lanes_sub(lanes_load_n(x + i, n), lanes_set(largest)));
            if (n < LANES) {
                float tail[LANES];
                lanes_store(tail, e);
                e = lanes_load_part(tail, n);
            }
            sum = lanes_add(sum, e);
            if (out) {
                lanes_store_n(out + i, e, n);
            }
        }
        total += (double)lanes_sum(sum);
    }
    return total;
}

/* d = (p - onehot) * scale over a row that holds the exponentials; target V: none of them. */
static void row_gradient(float *d, double sum, size_t target, float scale, size_t V)
{
    float inverse = (float)(1.0 / sum), p_target = target < V ? d[target] * inverse : 0;
    lanes_t factor = lanes_set(inverse), by = lanes_set(scale);
    for (size_t i = 0; i < V; i += LANES) {
        lanes_t p = lanes_mul(lanes_load_n(d + i, V - i), factor);
        lanes_store_n(d + i, lanes_mul(p, by), V - i);
    }
    if (target < V) {
        d[target] = (p_target - 1.0f) * scale;
    }
}

static void add_losses(double *loss, const double *row_loss, const int32_t *targets, size_t rows)
{
    for (size_t row = 0; row < rows; row++) {
        if (targets[row] >= 0) {
            *loss += row_loss[row];
        }
    }
}

static void xent(const struct kernel_ctx *ctx, double *loss, void *dlogits, const float *logits,
                 const int32_t *targets, float scale, size_t rows, size_t V)
{
    double *row_loss = workspace_get(ctx, rows * sizeof *row_loss);
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t row = 0; row < rows; row++) {
        const float *x = logits + row * V;
        float *d = dlogits ? (float *)dlogits + row * V : NULL;
        row_loss[row] = 0;
        if (targets[row] < 0) {
            if (d) {
                memset(d, 0, V * sizeof *d);
            }
            continue;
        }
        size_t target = (size_t)targets[row];
        float largest = row_largest(x, V);
        double below = (double)largest - (double)x[target];
        double sum = row_exponentials(d, x, largest, V);
        row_loss[row] = below + log_positive(sum);
        if (d) {
            row_gradient(d, sum, target, scale, V);
        }
    }
    add_losses(loss, row_loss, targets, rows);
}

/* ---- a vocabulary in parts ---- */

enum { LARGEST, SUM, TARGET, SUMS }; /* of a row in a part */

static void xent_sums(const struct kernel_ctx *ctx, float *sums, const float *logits,
                      const int32_t *targets, size_t first, size_t rows, size_t V)
{
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t row = 0; row < rows; row++) {
        const float *x = logits + row * V;
        size_t target = (size_t)targets[row] - first;
        float *out = sums + row * SUMS;
        out[LARGEST] = row_largest(x, V);
        out[SUM] = (float)row_exponentials(NULL, x, out[LARGEST], V);
        out[TARGET] = targets[row] >= 0 && target < V ? x[target] : 0;
    }
}

/* Of a row in all parts, in their order. */
static void join_sums(const float *sums, size_t parts, size_t rows, size_t row, float *out_largest,
                      double *out_sum, double *out_target)
{
    float largest = sums[row * SUMS + LARGEST];
    for (size_t p = 1; p < parts; p++) {
        const float *of = sums + (p * rows + row) * SUMS;
        largest = largest > of[LARGEST] ? largest : of[LARGEST];
    }
    *out_largest = largest;
    *out_sum = *out_target = 0;
    for (size_t p = 0; p < parts; p++) {
        const float *of = sums + (p * rows + row) * SUMS;
        float scale[LANES];
        lanes_store(scale, lanes_exp(lanes_set(of[LARGEST] - largest)));
        *out_sum += (double)of[SUM] * (double)scale[0];
        *out_target += (double)of[TARGET];
    }
}

static void xent_joined(const struct kernel_ctx *ctx, double *loss, void *dlogits,
                        const float *logits, const float *sums, size_t parts,
                        const int32_t *targets, size_t first, float scale, size_t rows, size_t V)
{
    double *row_loss = workspace_get(ctx, rows * sizeof *row_loss);
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t row = 0; row < rows; row++) {
        float *d = dlogits ? (float *)dlogits + row * V : NULL, largest;
        double sum, of_target;
        if (targets[row] < 0 && d) {
            memset(d, 0, V * sizeof *d);
        }
        if (targets[row] < 0) {
            continue;
        }
        size_t target = (size_t)targets[row] - first;
        join_sums(sums, parts, rows, row, &largest, &sum, &of_target);
        row_loss[row] = (double)largest - of_target + log_positive(sum);
        if (d) {
            row_exponentials(d, logits + row * V, largest, V);
            row_gradient(d, sum, target < V ? target : V, scale, V);
        }
    }
    add_losses(loss, row_loss, targets, rows);
}

void ISA(xent_fill)(struct kernels *table)
{
    table->xent = xent;
    table->xent_sums = xent_sums;
    table->xent_joined = xent_joined;
}
