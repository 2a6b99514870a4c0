/* forward.c - evaluation: forwards only, on the ranks where a schedule of training has the stages. A rank
 * turns to its next stage after `in_group` microbatches: as many as the memory of that training holds.
 */
#include "schedule/plan_internal.h"

static void forward_build(const struct layout *layout, int rank, struct phase_list *out)
{
    int M = layout->microbatches, size = layout->in_group;
    for (int first = 0; first < M; first += size) {
        for (int stage = 0; stage < layout->stages; stage++) {
            for (int m = first; m < first + size && m < M; m++) {
                if (layout->rank_of(layout, stage) == rank) {
                    phase_add(out, PHASE_F, stage, m);
                }
            }
        }
    }
}

const struct builder forward_builder = {.name = "forward",
                                        .training = false,
                                        .chunks = 1,
                                        .most_chunks = 64,
                                        .rank_of = place_round,
                                        .build = forward_build};
