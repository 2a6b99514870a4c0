/* rng.h - counter-based random numbers: value = f(seed, stream, index), no state.
 *
 * So any layout, thread count or device makes the same bits: the value of an element depends on the
 * seed, on its tensor's name (stream = rng_stream(name)) and on its index, never on who asks.
 * Philox 4x32-10 (Salmon et al., SC'11) makes the bits; the normal is an inverse-CDF rational
 * approximation (Wichura, AS 241, PPND16) in double with only + - * / sqrt and a logarithm
 * of our own, since library logs differ between machines.
 */
#ifndef BASE_RNG_H
#define BASE_RNG_H

#include <stdint.h>

uint64_t rng_stream(const char *name); /* 64-bit FNV-1a of the name */
uint64_t rng_bits(uint64_t seed, uint64_t stream, uint64_t index);
double rng_uniform(uint64_t seed, uint64_t stream, uint64_t index); /* in (0, 1) */
double rng_normal(uint64_t seed, uint64_t stream, uint64_t index);  /* N(0, 1) */
/* Uniform integer in [0, bound), bound > 0, without modulo bias beyond 2^-64. */
uint64_t rng_below(uint64_t seed, uint64_t stream, uint64_t index, uint64_t bound);

#endif
