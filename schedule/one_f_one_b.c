/* one_f_one_b.c - one forward, one backward (PipeDream-Flush, Narayanan et al., 2021): as many
 * microbatches in flight as there are stages from this one on, and for each stage behind this one
 * layout.in_flight more. These give a message from a later stage so much longer to arrive. */
#include "schedule/plan_internal.h"

static void one_f_one_b_build(const struct layout *layout, int rank, struct phase_list *out)
{
    int warmup = (layout->ranks - rank - 1) * (1 + layout->in_flight), M = layout->microbatches;
    for (int m = 0; m < warmup && m < M; m++) {
        phase_add(out, PHASE_F, rank, m);
    }
    for (int m = 0; m < M; m++) {
        if (m + warmup < M) {
            phase_add(out, PHASE_F, rank, m + warmup);
        }
        phase_add_backward(out, rank, m);
    }
}

const struct builder one_f_one_b_builder = {.name = "1f1b",
                                            .training = true,
                                            .in_flight = true,
                                            .chunks = 1,
                                            .most_chunks = 1,
                                            .rank_of = place_round,
                                            .build = one_f_one_b_build};
