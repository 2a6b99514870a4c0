/* one_f_one_b.c - one forward, one backward (PipeDream-Flush, Narayanan et al., 2021): as many
 * microbatches in flight as there are stages from this one on. */
#include "schedule/plan_internal.h"

static int one_f_one_b_frames(int stages, int stage, int microbatches)
{
    return microbatches < stages - stage ? microbatches : stages - stage;
}

static void one_f_one_b_build(int stages, int stage, int microbatches, struct phase_list *out)
{
    int ahead = one_f_one_b_frames(stages, stage, microbatches) - 1;
    for (int m = 0; m < ahead; m++) {
        phase_add(out, PHASE_F, m);
    }
    for (int m = 0; m < microbatches; m++) {
        if (m + ahead < microbatches) {
            phase_add(out, PHASE_F, m + ahead);
        }
        phase_add_backward(out, m);
    }
}

const struct builder one_f_one_b_builder = {
    .name = "1f1b", .training = true, .frames = one_f_one_b_frames, .build = one_f_one_b_build};
