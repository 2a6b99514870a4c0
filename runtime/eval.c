/* eval.c - the held-out loss of a model folder. */
#include <math.h>

#include "runtime/setup.h"

status_t eval_run(struct job *job, struct group *group, void *argument)
{
    struct setup setup;
    double loss;
    int64_t tokens;
    bool whole = false;
    (void)argument;
    TRY(setup_create(job, group, false, &setup));
    status_t status = setup_heldout(&setup, &loss, &tokens, &whole);
    bool root = group_rank(group) == 0;
    if (status == STATUS_OK && !whole) {
        status = root ? FAIL(STATUS_INTERRUPTED,
                             "stopped by a signal after %lld held-out tokens: no loss is known",
                             (long long)tokens)
                      : STATUS_INTERRUPTED;
    }
    if (status == STATUS_OK && root) {
        printf("held-out loss %.17g nats over %lld tokens of %s, %.6f %s\n", loss,
               (long long)tokens, job->config.data.valid, loss / log(2.0), setup_bits_name(&setup));
    }
    setup_destroy(&setup);
    return status;
}
