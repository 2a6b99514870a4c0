/* vec.h - sixteen floats at a time, whatever the machine's vectors are.
 *
 * The CPU operations are written once over `lanes_t` and compiled once per instruction set
 * (CPU_ISA): one AVX-512 register, two AVX2 registers, or an array of sixteen floats. Every lane
 * does the same IEEE operations in each of them, a reduction is always the same tree over sixteen
 * lanes, and a row's tail goes through the same operations as its body, with zeros in the lanes
 * beyond the end. So a result depends neither on the instruction set nor on alignment nor on an
 * element's position.
 */
#ifndef KERNELS_CPU_VEC_H
#define KERNELS_CPU_VEC_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 16 };

/* Without fused multiply-add in hardware every lane of lanes_fma is a call, and under a sanitizer
 * every array is guarded: inlining all of that takes the compiler minutes and gains nothing. */
#if (defined(__FMA__) || defined(__ARM_FEATURE_FMA)) && !defined(__SANITIZE_ADDRESS__)
#define INLINE static inline __attribute__((always_inline, unused))
#else
#define INLINE static __attribute__((noinline, unused))
#endif

/* clang-format off */

#if defined(__AVX512F__) && defined(__AVX512DQ__)

#include <immintrin.h>

typedef __m512 lanes_t;

INLINE __mmask16 lanes_mask_(size_t n) { return (__mmask16)((1u << n) - 1u); }
INLINE lanes_t lanes_set(float x) { return _mm512_set1_ps(x); }
INLINE lanes_t lanes_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void lanes_store(float *p, lanes_t a) { _mm512_storeu_ps(p, a); }
/* The first n < LANES elements; the other lanes are zero. */
INLINE lanes_t lanes_load_part(const float *p, size_t n)
{
    return _mm512_maskz_loadu_ps(lanes_mask_(n), p);
}
INLINE void lanes_store_part(float *p, lanes_t a, size_t n)
{
    _mm512_mask_storeu_ps(p, lanes_mask_(n), a);
}
INLINE lanes_t lanes_add(lanes_t a, lanes_t b) { return _mm512_add_ps(a, b); }
INLINE lanes_t lanes_sub(lanes_t a, lanes_t b) { return _mm512_sub_ps(a, b); }
INLINE lanes_t lanes_mul(lanes_t a, lanes_t b) { return _mm512_mul_ps(a, b); }
INLINE lanes_t lanes_div(lanes_t a, lanes_t b) { return _mm512_div_ps(a, b); }
INLINE lanes_t lanes_sqrt(lanes_t a) { return _mm512_sqrt_ps(a); }
/* a * b + c, rounded once. */
INLINE lanes_t lanes_fma(lanes_t a, lanes_t b, lanes_t c) { return _mm512_fmadd_ps(a, b, c); }
/* a > b ? a : b, so that a NaN in b stays. */
INLINE lanes_t lanes_max(lanes_t a, lanes_t b) { return _mm512_max_ps(a, b); }
INLINE lanes_t lanes_min(lanes_t a, lanes_t b) { return _mm512_min_ps(a, b); }
/* a < b ? x : y. */
INLINE lanes_t lanes_select_less(lanes_t a, lanes_t b, lanes_t x, lanes_t y)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
INLINE lanes_t lanes_round(lanes_t a) { return _mm512_roundscale_ps(a, 0); }
/* a * 2^n for integral n where neither a nor the result is subnormal or infinite. */
INLINE lanes_t lanes_ldexp(lanes_t a, lanes_t n)
{
    __m512i shift = _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), shift));
}
INLINE lanes_t lanes_abs(lanes_t a) { return _mm512_abs_ps(a); }
#define LANES_HALVES_
INLINE __m256 lanes_low_(lanes_t a) { return _mm512_castps512_ps256(a); }
INLINE __m256 lanes_high_(lanes_t a) { return _mm512_extractf32x8_ps(a, 1); }

#elif defined(__AVX2__) && defined(__FMA__)

#include <immintrin.h>

typedef struct {
    __m256 lo, hi;
} lanes_t;

INLINE lanes_t lanes_pair_(__m256 lo, __m256 hi)
{
    lanes_t pair = {lo, hi};
    return pair;
}
#define LANES_UNARY_(name, op)                                                                     \
    INLINE lanes_t name(lanes_t a) { return lanes_pair_(op(a.lo), op(a.hi)); }
#define LANES_BINARY_(name, op)                                                                    \
    INLINE lanes_t name(lanes_t a, lanes_t b)                                                      \
    {                                                                                              \
        return lanes_pair_(op(a.lo, b.lo), op(a.hi, b.hi));                                        \
    }

INLINE lanes_t lanes_set(float x) { return lanes_pair_(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
INLINE lanes_t lanes_load(const float *p)
{
    return lanes_pair_(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
}
INLINE void lanes_store(float *p, lanes_t a)
{
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
INLINE lanes_t lanes_load_part(const float *p, size_t n)
{
    float x[LANES] = {0};
    memcpy(x, p, n * sizeof *x);
    return lanes_load(x);
}
INLINE void lanes_store_part(float *p, lanes_t a, size_t n)
{
    float x[LANES];
    lanes_store(x, a);
    memcpy(p, x, n * sizeof *x);
}
LANES_BINARY_(lanes_add, _mm256_add_ps)
LANES_BINARY_(lanes_sub, _mm256_sub_ps)
LANES_BINARY_(lanes_mul, _mm256_mul_ps)
LANES_BINARY_(lanes_div, _mm256_div_ps)
LANES_BINARY_(lanes_max, _mm256_max_ps)
LANES_BINARY_(lanes_min, _mm256_min_ps)
LANES_UNARY_(lanes_sqrt, _mm256_sqrt_ps)
INLINE lanes_t lanes_fma(lanes_t a, lanes_t b, lanes_t c)
{
    return lanes_pair_(_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi));
}
INLINE lanes_t lanes_select_less(lanes_t a, lanes_t b, lanes_t x, lanes_t y)
{
    return lanes_pair_(_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
                       _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)));
}
INLINE lanes_t lanes_round(lanes_t a)
{
    return lanes_pair_(_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                       _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE __m256 lanes_ldexp_half_(__m256 a, __m256 n)
{
    __m256i shift = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), shift));
}
LANES_BINARY_(lanes_ldexp, lanes_ldexp_half_)
INLINE __m256 lanes_abs_half_(__m256 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
LANES_UNARY_(lanes_abs, lanes_abs_half_)
#define LANES_HALVES_
INLINE __m256 lanes_low_(lanes_t a) { return a.lo; }
INLINE __m256 lanes_high_(lanes_t a) { return a.hi; }

#else

typedef struct {
    float x[LANES];
} lanes_t;

#define LANES_EACH_(expression)                                                                    \
    do {                                                                                           \
        lanes_t out_;                                                                              \
        for (int i = 0; i < LANES; i++) {                                                          \
            out_.x[i] = (expression);                                                              \
        }                                                                                          \
        return out_;                                                                               \
    } while (0)

INLINE lanes_t lanes_set(float x) { LANES_EACH_(x); }
INLINE lanes_t lanes_load(const float *p) { LANES_EACH_(p[i]); }
INLINE void lanes_store(float *p, lanes_t a) { memcpy(p, a.x, sizeof a.x); }
INLINE lanes_t lanes_load_part(const float *p, size_t n) { LANES_EACH_((size_t)i < n ? p[i] : 0); }
INLINE void lanes_store_part(float *p, lanes_t a, size_t n) { memcpy(p, a.x, n * sizeof *p); }
INLINE lanes_t lanes_add(lanes_t a, lanes_t b) { LANES_EACH_(a.x[i] + b.x[i]); }
INLINE lanes_t lanes_sub(lanes_t a, lanes_t b) { LANES_EACH_(a.x[i] - b.x[i]); }
INLINE lanes_t lanes_mul(lanes_t a, lanes_t b) { LANES_EACH_(a.x[i] * b.x[i]); }
INLINE lanes_t lanes_div(lanes_t a, lanes_t b) { LANES_EACH_(a.x[i] / b.x[i]); }
INLINE lanes_t lanes_sqrt(lanes_t a) { LANES_EACH_(sqrtf(a.x[i])); }
INLINE lanes_t lanes_fma(lanes_t a, lanes_t b, lanes_t c)
{
    LANES_EACH_(fmaf(a.x[i], b.x[i], c.x[i]));
}
INLINE lanes_t lanes_max(lanes_t a, lanes_t b) { LANES_EACH_(a.x[i] > b.x[i] ? a.x[i] : b.x[i]); }
INLINE lanes_t lanes_min(lanes_t a, lanes_t b) { LANES_EACH_(a.x[i] < b.x[i] ? a.x[i] : b.x[i]); }
INLINE lanes_t lanes_select_less(lanes_t a, lanes_t b, lanes_t x, lanes_t y)
{
    LANES_EACH_(a.x[i] < b.x[i] ? x.x[i] : y.x[i]);
}
INLINE lanes_t lanes_round(lanes_t a) { LANES_EACH_(nearbyintf(a.x[i])); }
INLINE lanes_t lanes_ldexp(lanes_t a, lanes_t n) { LANES_EACH_(ldexpf(a.x[i], (int)n.x[i])); }
INLINE lanes_t lanes_abs(lanes_t a) { LANES_EACH_(fabsf(a.x[i])); }

#endif

/* clang-format on */

INLINE lanes_t lanes_zero(void)
{
    return lanes_set(0.0f);
}

/* Loads and stores of n <= LANES elements. */
INLINE lanes_t lanes_load_n(const float *p, size_t n)
{
    return n >= LANES ? lanes_load(p) : lanes_load_part(p, n);
}
INLINE void lanes_store_n(float *p, lanes_t a, size_t n)
{
    if (n >= LANES) {
        lanes_store(p, a);
    } else {
        lanes_store_part(p, a, n);
    }
}

/* Lanes i and i+8 first, then i and i+4, 2, 1. */
INLINE float lanes_sum(lanes_t a)
{
#if defined(LANES_HALVES_)
    __m256 eight = _mm256_add_ps(lanes_low_(a), lanes_high_(a));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) {
            a.x[i] += a.x[i + half];
        }
    }
    return a.x[0];
#endif
}

INLINE float lanes_largest(lanes_t a)
{
    float x[LANES], largest;
    lanes_store(x, a);
    largest = x[0];
    for (int i = 1; i < LANES; i++) {
        largest = largest > x[i] ? largest : x[i];
    }
    return largest;
}

#endif
