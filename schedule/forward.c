/* forward.c - evaluation: forwards only. Two frames, so that one is sent while the next is made; the last
 * stage sends nothing. No schedule of training has fewer, so evaluation finds room in its memory.
 */
#include "schedule/plan_internal.h"

static int forward_frames(int stages, int stage, int microbatches)
{
    return microbatches < 2 || stage == stages - 1 ? 1 : 2;
}

static void forward_build(int stages, int stage, int microbatches, struct phase_list *out)
{
    (void)stages;
    (void)stage;
    for (int m = 0; m < microbatches; m++) {
        phase_add(out, PHASE_F, m);
    }
}

const struct builder forward_builder = {
    .name = "forward", .training = false, .frames = forward_frames, .build = forward_build};
