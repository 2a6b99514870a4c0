/* rng.c - Philox bits, and the uniforms and normals made of them. */
#include "base/rng.h"

#include <math.h>
#include <string.h>

#include "base/status.h"

uint64_t rng_stream(const char *name)
{
    uint64_t hash = 0xcbf29ce484222325u;

    for (; *name != '\0'; name++) {
        hash = (hash ^ (unsigned char)*name) * 0x100000001b3u;
    }
    return hash;
}

/* Philox 4x32-10 with counter (index, stream) and key seed; the first two words of four. */
uint64_t rng_bits(uint64_t seed, uint64_t stream, uint64_t index)
{
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32);
    uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);

    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xd2511f53u * c0;
        uint64_t p1 = (uint64_t)0xcd9e8d57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return (uint64_t)c1 << 32 | c0;
}

/* Centres of 2^52 equal cells: exact in double, and never 0 or 1. */
double rng_uniform(uint64_t seed, uint64_t stream, uint64_t index)
{
    uint64_t cell = rng_bits(seed, stream, index) >> 12;
    return ((double)cell + 0.5) * 0x1p-52;
}

uint64_t rng_below(uint64_t seed, uint64_t stream, uint64_t index, uint64_t bound)
{
    CHECK(bound > 0, "an empty range");
    return (uint64_t)(((unsigned __int128)rng_bits(seed, stream, index) * bound) >> 64);
}

/* Natural logarithm of a normal positive x: x = m 2^e with m near 1, log m = 2 artanh s with
 * s = (m - 1) / (m + 1), |s| < 0.172, by its series. */
static double log_portable(double x)
{
    const double ln2_high = 0x1.62e42fefa3800p-1, ln2_low = 0x1.ef35793c76730p-45;
    uint64_t bits;
    double m;

    memcpy(&bits, &x, sizeof bits);
    int e = (int)(bits >> 52) - 1023;
    bits = (bits & 0x000fffffffffffffu) | 0x3ff0000000000000u;
    memcpy(&m, &bits, sizeof m);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        e++;
    }
    double s = (m - 1.0) / (m + 1.0);
    double z = s * s;
    double sum = 0.0;
    for (int k = 23; k >= 3; k -= 2) {
        sum = (sum + 1.0 / k) * z;
    }
    return e * ln2_high + (e * ln2_low + 2.0 * (s + s * sum));
}

/* c[0] + c[1] x + ... + c[7] x^7 */
static double polynomial(const double c[8], double x)
{
    double value = c[7];

    for (int i = 6; i >= 0; i--) {
        value = value * x + c[i];
    }
    return value;
}

/* AS 241, PPND16: relative error about 1e-16. p in (0, 1). */
static double normal_quantile(double p)
{
    static const double centre_top[8] = {3.3871328727963666080e0, 1.3314166789178437745e2,
                                         1.9715909503065514427e3, 1.3731693765509461125e4,
                                         4.5921953931549871457e4, 6.7265770927008700853e4,
                                         3.3430575583588128105e4, 2.5090809287301226727e3};
    static const double centre_bottom[8] = {1.0,
                                            4.2313330701600911252e1,
                                            6.8718700749205790830e2,
                                            5.3941960214247511077e3,
                                            2.1213794301586595867e4,
                                            3.9307895800092710610e4,
                                            2.8729085735721942674e4,
                                            5.2264952788528545610e3};
    static const double middle_top[8] = {1.42343711074968357734e0,  4.63033784615654529590e0,
                                         5.76949722146069140550e0,  3.64784832476320460504e0,
                                         1.27045825245236838258e0,  2.41780725177450611770e-1,
                                         2.27238449892691845833e-2, 7.74545014278341407640e-4};
    static const double middle_bottom[8] = {1.0,
                                            2.05319162663775882187e0,
                                            1.67638483018380384940e0,
                                            6.89767334985100004550e-1,
                                            1.48103976427480074590e-1,
                                            1.51986665636164571966e-2,
                                            5.47593808499534494600e-4,
                                            1.05075007164441684324e-9};
    static const double tail_top[8] = {6.65790464350110377720e0,  5.46378491116411436990e0,
                                       1.78482653991729133580e0,  2.96560571828504891230e-1,
                                       2.65321895265761230930e-2, 1.24266094738807843860e-3,
                                       2.71155556874348757815e-5, 2.01033439929228813265e-7};
    static const double tail_bottom[8] = {1.0,
                                          5.99832206555887937690e-1,
                                          1.36929880922735805310e-1,
                                          1.48753612908506148525e-2,
                                          7.86869131145613259100e-4,
                                          1.84631831751005468180e-5,
                                          1.42151175831644588870e-7,
                                          2.04426310338993978564e-15};
    double q = p - 0.5;

    if (fabs(q) <= 0.425) {
        double r = 0.180625 - q * q;
        return q * polynomial(centre_top, r) / polynomial(centre_bottom, r);
    }
    double r = sqrt(-log_portable(q < 0.0 ? p : 1.0 - p));
    double value;
    if (r <= 5.0) {
        value = polynomial(middle_top, r - 1.6) / polynomial(middle_bottom, r - 1.6);
    } else {
        value = polynomial(tail_top, r - 5.0) / polynomial(tail_bottom, r - 5.0);
    }
    return q < 0.0 ? -value : value;
}

double rng_normal(uint64_t seed, uint64_t stream, uint64_t index)
{
    return normal_quantile(rng_uniform(seed, stream, index));
}
