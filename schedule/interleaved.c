/* interleaved.c - 1F1B with V chunks a rank (Narayanan et al., 2021): stage s is on rank s mod P, and a
 * rank turns to its next chunk after every P microbatches. A uniform model idles (P-1)(F+B)/V a step where
 * P divides M.
 *
 * All ranks run the same list of forwards (group by group of microbatches; in each, chunk by chunk) and of
 * backwards (the same, last chunk first). A group of fewer than P microbatches would come round to a rank
 * before the last rank has passed it on, and could stand still; so the first group also has what P leaves
 * of M. Rank r begins with 2(P-r-1) + (V-1)G forwards, G the size of the first group, then takes forwards
 * and backwards in turn.
 */
#include "schedule/plan_internal.h"

static int interleaved_first_group(const struct layout *layout)
{
    int P = layout->ranks, M = layout->microbatches;
    return M < P ? M : P + M % P;
}

/* Place `i` of the list. */
static void interleaved_at(const struct layout *layout, int i, int *out_chunk, int *out_microbatch)
{
    int V = layout->chunks, first = 0, size = interleaved_first_group(layout);
    while (i >= size * V) {
        i -= size * V;
        first += size;
        size = layout->ranks;
    }
    *out_chunk = i / size;
    *out_microbatch = first + i % size;
}

static void interleaved_forward(const struct layout *layout, int rank, int i,
                                struct phase_list *out)
{
    int chunk, m;
    interleaved_at(layout, i, &chunk, &m);
    phase_add(out, PHASE_F, chunk * layout->ranks + rank, m);
}

static void interleaved_build(const struct layout *layout, int rank, struct phase_list *out)
{
    int P = layout->ranks, V = layout->chunks, all = layout->microbatches * V;
    int after = P - rank - 1, groups = (V - 1) * interleaved_first_group(layout);
    int warmup = V == 1 ? after : 2 * after + groups;
    for (int i = 0; i < warmup && i < all; i++) {
        interleaved_forward(layout, rank, i, out);
    }
    for (int i = 0; i < all; i++) {
        int chunk, m;
        if (i + warmup < all) {
            interleaved_forward(layout, rank, i + warmup, out);
        }
        interleaved_at(layout, i, &chunk, &m);
        phase_add_backward(out, (V - 1 - chunk) * P + rank, m);
    }
}

const struct builder interleaved_builder = {.name = "interleaved",
                                            .training = true,
                                            .chunks = 2,
                                            .most_chunks = 64,
                                            .rank_of = place_round,
                                            .build = interleaved_build};
