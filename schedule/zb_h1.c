/* zb_h1.c - 1F1B whose weight gradients fill the idle time at the end (ZB-H1 of Qi et al., Zero Bubble
 * Pipeline Parallelism, 2024). Rank r puts W off by r microbatches, so that no rank has more microbatches
 * between its F and its W than rank 0 has in 1F1B, also with layout.in_flight. A uniform model idles (P-1)(F+B-W) a step.
 */
#include "schedule/plan_internal.h"

static void zb_h1_build(const struct layout *layout, int rank, struct phase_list *out)
{
    int warmup = (layout->ranks - rank - 1) * (1 + layout->in_flight), M = layout->microbatches,
        w = 0;
    for (int m = 0; m < warmup && m < M; m++) {
        phase_add(out, PHASE_F, rank, m);
    }
    for (int m = 0; m < M; m++) {
        if (m + warmup < M) {
            phase_add(out, PHASE_F, rank, m + warmup);
        }
        phase_add(out, PHASE_B, rank, m);
        phase_add(out, PHASE_K, rank, m);
        if (m >= rank) {
            phase_add(out, PHASE_W, rank, w++);
        }
    }
    while (w < M) {
        phase_add(out, PHASE_W, rank, w++);
    }
}

const struct builder zb_h1_builder = {.name = "zb-h1",
                                      .training = true,
                                      .in_flight = true,
                                      .delays_weights = true,
                                      .chunks = 1,
                                      .most_chunks = 1,
                                      .rank_of = place_round,
                                      .build = zb_h1_build};
