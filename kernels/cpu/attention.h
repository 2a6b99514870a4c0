/* attention.h - what attention's two directions share: blocks, masks, turning blocks around. */
#ifndef KERNELS_CPU_ATTENTION_H
#define KERNELS_CPU_ATTENTION_H

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/vec.h"

enum { BLOCK = ATTENTION_BLOCK };

#define ATTENTION_HIDDEN (-1e30f) /* score of a key that a query does not see */

/* A block of keys seen from a block of queries. */
struct attention_tile {
    size_t query, queries; /* first position and number */
    size_t key, keys;
    bool masked; /* some query does not see some key */
};

/* x where the lane's query sees key j of the tile, `hidden` elsewhere. */
INLINE lanes_t attention_mask(lanes_t x, lanes_t hidden, const float *first,
                              const struct attention_tile *tile, size_t lane, size_t j)
{
    static const float step[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    lanes_t key = lanes_set((float)(tile->key + j));
    lanes_t query = lanes_add(lanes_set((float)(tile->query + lane)), lanes_load(step));
    x = lanes_select_less(query, key, hidden, x);
    return lanes_select_less(key, lanes_load(first + lane), hidden, x);
}

/* first[BLOCK] of a block of queries (0 beyond `count`); returns the smallest of them. */
static inline size_t attention_first(float *first, const struct attention_shape *shape, size_t b,
                                     size_t begin, size_t count)
{
    size_t least = shape->first ? begin : 0;
    for (size_t i = 0; i < BLOCK; i++) {
        size_t at = i < count && shape->first ? (size_t)shape->first[b * shape->T + begin + i] : 0;
        first[i] = (float)at;
        if (i < count) {
            least = smaller(least, at);
        }
    }
    return least;
}

static inline struct attention_tile attention_tile_at(const struct attention_shape *shape,
                                                      const float *first, size_t query,
                                                      size_t queries, size_t key)
{
    struct attention_tile tile = {query, queries, key, smaller(shape->T - key, BLOCK), false};
    tile.masked = key + tile.keys > query + 1;
    for (size_t i = 0; i < queries && !tile.masked; i++) {
        tile.masked = first[i] > (float)key;
    }
    return tile;
}

/* turned [E, BLOCK] = rows [count, E] (`stride` apart), zeros beyond `count`. */
static inline void attention_transpose(float *turned, const float *rows, size_t stride,
                                       size_t count, size_t E)
{
    for (size_t e = 0; e < E; e++) {
        for (size_t i = 0; i < count; i++) {
            turned[e * BLOCK + i] = rows[i * stride + e];
        }
        for (size_t i = count; i < BLOCK; i++) {
            turned[e * BLOCK + i] = 0;
        }
    }
}

static inline void attention_untranspose(float *rows, size_t stride, const float *turned,
                                         size_t count, size_t E)
{
    for (size_t i = 0; i < count; i++) {
        for (size_t e = 0; e < E; e++) {
            rows[i * stride + e] = turned[e * BLOCK + i];
        }
    }
}

#endif
