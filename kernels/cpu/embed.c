/* embed.c - rows of the embedding table. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

static void embed_forward(const struct kernel_ctx *ctx, void *out, const void *table,
                          const int32_t *ids, size_t first, size_t V, size_t N, size_t D)
{
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t t = 0; t < N; t++) {
        size_t row = (size_t)ids[t] - first; /* below `first`: huge */
        if (row < V) {
            memcpy((float *)out + t * D, (const float *)table + row * D, D * sizeof(float));
        } else {
            memset((float *)out + t * D, 0, D * sizeof(float));
        }
    }
}

/* Threads share out the columns, so that each row of the table gets its tokens in ascending order.
 * */
static void embed_backward(const struct kernel_ctx *ctx, float *dtable, const void *dout,
                           const int32_t *ids, size_t first, size_t V, size_t N, size_t D)
{
    enum { COLUMNS = 128 };
    size_t blocks = blocks_of(D, COLUMNS);
#pragma omp parallel for num_threads(ctx->threads) schedule(static)
    for (size_t block = 0; block < blocks; block++) {
        size_t begin = block * COLUMNS, count = smaller(D - begin, COLUMNS);
        for (size_t t = 0; t < N; t++) {
            size_t row = (size_t)ids[t] - first;
            float *into = dtable + row * D + begin;
            const float *from = (const float *)dout + t * D + begin;
            for (size_t d = 0; row < V && d < count; d++) {
                into[d] += from[d];
            }
        }
    }
}

void ISA(embed_fill)(struct kernels *table)
{
    table->embed_forward = embed_forward;
    table->embed_backward = embed_backward;
}
