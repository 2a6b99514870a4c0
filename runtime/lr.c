/* lr.c - the learning rate of a step. */
#include <math.h>

#include "runtime/runtime.h"

double lr_at(int64_t step, int64_t steps, double lr, double warmup, double min_lr_ratio)
{
    int64_t warm = (int64_t)floor(warmup * (double)steps);
    if (step <= warm) {
        return lr * (double)step / (double)warm;
    }
    double progress = steps > warm ? (double)(step - warm) / (double)(steps - warm) : 1.0;
    double cosine = 0.5 * (1.0 + cos(acos(-1.0) * progress));
    return lr * (min_lr_ratio + (1.0 - min_lr_ratio) * cosine);
}
