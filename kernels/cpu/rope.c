/* rope.c - rotary positions: pairs (d, d + R/2) turned by the position's angles, in place. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

INLINE void rope_lanes(float *low, float *high, const float *cosine, const float *sine, float sign,
                       size_t n)
{
    lanes_t a = lanes_load_n(low, n), b = lanes_load_n(high, n), c = lanes_load_n(cosine, n);
    lanes_t s = lanes_mul(lanes_load_n(sine, n), lanes_set(sign));
    lanes_store_n(low, lanes_fma(a, c, lanes_mul(lanes_sub(lanes_zero(), b), s)), n);
    lanes_store_n(high, lanes_fma(b, c, lanes_mul(a, s)), n);
}

static void rope(const struct kernel_ctx *ctx, void *x, const float *cosine, const float *sine,
                 const int32_t *position, bool inverse, size_t N, size_t T, size_t heads, size_t E,
                 size_t R)
{
    size_t half = R / 2;
    float sign = inverse ? -1.0f : 1.0f;
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t t = 0; t < N; t++) {
        size_t at = position ? (size_t)position[t] : t % T;
        const float *c = cosine + at * half, *s = sine + at * half;
        for (size_t head = 0; head < heads; head++) {
            float *pair = (float *)x + (t * heads + head) * E;
            for (size_t d = 0; d < half; d += LANES) {
                rope_lanes(pair + d, pair + half + d, c + d, s + d, sign, half - d);
            }
        }
    }
}

void ISA(rope_fill)(struct kernels *table)
{
    table->rope = rope;
}
