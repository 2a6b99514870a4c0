/* hash.h - 64-bit content hashes (xxHash: XXH3). Not cryptographic: they tell apart
 * configurations, plans and tensors that should be the same on every rank. */
#ifndef BASE_HASH_H
#define BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t hash_bytes(const void *data, size_t bytes, uint64_t seed);

#endif
