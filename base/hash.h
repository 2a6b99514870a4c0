/* hash.h - 64-bit content hashes (xxHash: XXH3). Not cryptographic: they tell apart
 * configurations, plans and tensors that should be the same on every rank. */
#ifndef BASE_HASH_H
#define BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t hash_bytes(const void *data, size_t bytes, uint64_t seed);

struct hash128 {
    uint64_t low, high;
};
/* XXH3-128, seed 0: for what must be found to have changed, on disks and on the way. */
struct hash128 hash_bytes128(const void *data, size_t bytes);

#endif
