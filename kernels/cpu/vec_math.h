/* vec_math.h - exp, the normal distribution and log of our own, since libraries' differ between
 * machines. Errors: exp 1e-7 relative; phi 1.5e-7 of itself or 6e-8 absolute, whichever is larger.
 * The polynomials are minimax fits made for this file.
 */
#ifndef KERNELS_CPU_VEC_MATH_H
#define KERNELS_CPU_VEC_MATH_H

#include "kernels/cpu/vec.h"

/* e^x; 0 below -87.33 (no subnormals), 3.4e38 above 88.72; NaN stays. */
INLINE lanes_t lanes_exp(lanes_t x)
{
    lanes_t bounded = lanes_min(lanes_set(88.72f), lanes_max(lanes_set(-87.33f), x));
    lanes_t n = lanes_round(lanes_mul(bounded, lanes_set(0x1.715476p+0f)));
    lanes_t r = lanes_fma(n, lanes_set(-0x1.62e400p-1f), bounded);
    r = lanes_fma(n, lanes_set(-0x1.7f7d1cp-20f), r);

    lanes_t p = lanes_set(0.0013950360007584095f);
    p = lanes_fma(p, r, lanes_set(0.008368882350623608f));
    p = lanes_fma(p, r, lanes_set(0.04166620597243309f));
    p = lanes_fma(p, r, lanes_set(0.1666651964187622f));
    p = lanes_fma(p, r, lanes_set(0.5f));
    p = lanes_fma(p, lanes_mul(r, r), r);
    p = lanes_add(p, lanes_set(1.0f));
    p = lanes_ldexp(p, n);
    return lanes_select_less(x, lanes_set(-87.33f), lanes_zero(), p);
}

/* 1 / (1 + e^-x) */
INLINE lanes_t lanes_sigmoid(lanes_t x)
{
    lanes_t e = lanes_exp(lanes_sub(lanes_zero(), x));
    return lanes_div(lanes_set(1.0f), lanes_add(lanes_set(1.0f), e));
}

/* Normal distribution function (1 + erf(x / sqrt 2)) / 2. Near 0 an odd polynomial of erf; further
 * out log(erfc(t)) + t^2 is smooth, which keeps the lower tail's relative accuracy. */
INLINE lanes_t lanes_phi(lanes_t x)
{
    lanes_t scaled = lanes_mul(x, lanes_set(0.70710678118654752f));
    lanes_t t = lanes_abs(scaled);
    lanes_t s = lanes_mul(scaled, scaled);

    lanes_t p = lanes_set(8.345227251993492e-05f);
    p = lanes_fma(p, s, lanes_set(-0.0008137437980622053f));
    p = lanes_fma(p, s, lanes_set(0.005200634244829416f));
    p = lanes_fma(p, s, lanes_set(-0.02685927040874958f));
    p = lanes_fma(p, s, lanes_set(0.11283694207668304f));
    p = lanes_fma(p, s, lanes_set(-0.37612634897232056f));
    p = lanes_fma(p, s, lanes_set(0.12837916612625122f));
    lanes_t half_erf = lanes_mul(lanes_set(0.5f), lanes_fma(p, scaled, scaled));
    lanes_t near = lanes_add(lanes_set(0.5f), half_erf);

    lanes_t u = lanes_min(lanes_set(5.0f), t);
    lanes_t q = lanes_set(1.323865944868885e-06f);
    q = lanes_fma(q, u, lanes_set(-4.060415813000873e-05f));
    q = lanes_fma(q, u, lanes_set(0.000556546205189079f));
    q = lanes_fma(q, u, lanes_set(-0.004595012869685888f));
    q = lanes_fma(q, u, lanes_set(0.02601349912583828f));
    q = lanes_fma(q, u, lanes_set(-0.10945340245962143f));
    q = lanes_fma(q, u, lanes_set(0.36758953332901f));
    q = lanes_fma(q, u, lanes_set(-1.129930853843689f));
    q = lanes_fma(q, u, lanes_set(0.00025348630151711404f));
    lanes_t tail = lanes_mul(lanes_set(0.5f), lanes_exp(lanes_sub(q, s)));
    lanes_t far = lanes_select_less(x, lanes_zero(), tail, lanes_sub(lanes_set(1.0f), tail));

    return lanes_select_less(lanes_set(0.92f), t, far, near);
}

/* Natural logarithm of a positive finite number, to 1e-15 relative. */
INLINE double log_positive(double x)
{
    int exponent;
    double m = frexp(x, &exponent);
    if (m < 0.70710678118654752) {
        m *= 2;
        exponent--;
    }
    double z = (m - 1) / (m + 1), z2 = z * z, sum = 0;
    for (int k = 25; k >= 1; k -= 2) {
        sum = fma(sum, z2, 1.0 / k);
    }
    return fma((double)exponent, 0.69314718055994531, 2 * z * sum);
}

#endif
