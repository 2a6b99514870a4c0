/* gpipe.c - all forwards, then all backwards (Huang et al., 2019). Every microbatch of the step is
 * in flight at once. */
#include "schedule/plan_internal.h"

static int gpipe_frames(int stages, int stage, int microbatches)
{
    (void)stages;
    (void)stage;
    return microbatches;
}

static void gpipe_build(int stages, int stage, int microbatches, struct phase_list *out)
{
    (void)stages;
    (void)stage;
    for (int m = 0; m < microbatches; m++) {
        phase_add(out, PHASE_F, m);
    }
    for (int m = 0; m < microbatches; m++) {
        phase_add_backward(out, m);
    }
}

const struct builder gpipe_builder = {
    .name = "gpipe", .training = true, .frames = gpipe_frames, .build = gpipe_build};
