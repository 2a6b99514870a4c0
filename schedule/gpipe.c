/* gpipe.c - all forwards, then all backwards (Huang et al., 2019). Every microbatch of the step is
 * in flight at once. */
#include "schedule/plan_internal.h"

static void gpipe_build(const struct layout *layout, int rank, struct phase_list *out)
{
    for (int m = 0; m < layout->microbatches; m++) {
        phase_add(out, PHASE_F, rank, m);
    }
    for (int m = 0; m < layout->microbatches; m++) {
        phase_add_backward(out, rank, m);
    }
}

const struct builder gpipe_builder = {.name = "gpipe",
                                      .training = true,
                                      .chunks = 1,
                                      .most_chunks = 1,
                                      .rank_of = place_round,
                                      .build = gpipe_build};
