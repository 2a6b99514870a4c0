/* lr.c - learning-rate schedules: a row each, a shape over the part of the run after the warm-up. */
#include <math.h>

#include "runtime/runtime.h"

/* Share of the peak's distance to the minimum that is left at `progress` in [0, 1]; `decay` is the part
 * of the whole run in which warm-up-stable-decay decays, given here as a part of what follows warm-up. */
typedef double (*lr_shape_fn)(double progress, double decay);

static double shape_cosine(double progress, double decay)
{
    (void)decay;
    return 0.5 * (1.0 + cos(acos(-1.0) * progress));
}

static double shape_linear(double progress, double decay)
{
    (void)decay;
    return 1.0 - progress;
}

static double shape_constant(double progress, double decay)
{
    (void)progress;
    (void)decay;
    return 1.0;
}

static double shape_stable_decay(double progress, double decay)
{
    double left = 1.0 - progress;
    return decay > 0 && left < decay ? left / decay : 1.0;
}

/* In the order of optimizer.schedule's choices. */
static const lr_shape_fn shapes[] = {shape_cosine, shape_linear, shape_constant,
                                     shape_stable_decay};

double lr_at(const struct lr_args *args, int64_t step)
{
    int64_t warm = (int64_t)floor(args->warmup * (double)args->steps);
    if (step <= warm) {
        return args->lr * (double)step / (double)warm;
    }
    double rest = (double)(args->steps - warm);
    double progress = (double)(step - warm) / rest;
    double decay = fmin(args->decay * (double)args->steps / rest, 1.0);
    CHECK(args->schedule >= 0 && (size_t)args->schedule < sizeof shapes / sizeof shapes[0],
          "no learning-rate schedule %d", args->schedule);
    double left = shapes[args->schedule](progress, decay);
    return args->lr * (args->min_lr_ratio + (1.0 - args->min_lr_ratio) * left);
}

/* Linear in steps, rounded down to what the ramp allows. */
int microbatches_at(int64_t step, int64_t steps, int first, int full, double ramp)
{
    int64_t ramp_steps = (int64_t)floor(ramp * (double)steps);
    if (first <= 0 || first >= full || step > ramp_steps) {
        return full;
    }
    return first + (int)((int64_t)(full - first) * (step - 1) / ramp_steps);
}
