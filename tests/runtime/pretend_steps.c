/* pretend_steps.c - tells the GPU of threads (tests/comm/pretend.h) where a step begins and ends, so that
 * it sees what must not happen in one. Linked with --wrap of the functions below.
 *
 * A step is trainer_step and every walk, of an evaluation too; not the recording of steps that the user
 * asked for, nor the fetching of logits by `check`. With PRETEND_HOLD in the environment the stream does
 * not begin a walk before the host has enqueued all of it.
 */
#include <stdlib.h>

#include "runtime/trainer.h"
#include "runtime/worker.h"
#include "tests/comm/pretend.h"

#define WRAP(function, parameters)                                                                 \
    status_t __real_##function parameters;                                                         \
    status_t __wrap_##function parameters;                                                         \
    status_t __wrap_##function parameters

static int rules_of(const struct worker *worker)
{
    if (!worker->device) {
        return PRETEND_NO_STEP;
    }
    return !worker->wire || wire_is_streamed(worker->wire) ? PRETEND_STEP : PRETEND_DRY_STEP;
}

WRAP(trainer_step, (struct trainer * trainer, const struct batch *batch,
                    const struct optimizer_args *optimizer, struct step_result *out))
{
    int before = pretend_rules(rules_of(trainer->workers.train));
    status_t status = __real_trainer_step(trainer, batch, optimizer, out);
    pretend_rules(before);
    return status;
}

WRAP(profile_before, (struct trainer * trainer, int64_t step))
{
    int before = pretend_rules(PRETEND_NO_STEP);
    status_t status = __real_profile_before(trainer, step);
    pretend_rules(before);
    return status;
}

WRAP(profile_after, (struct trainer * trainer, int64_t step))
{
    int before = pretend_rules(PRETEND_NO_STEP);
    status_t status = __real_profile_after(trainer, step);
    pretend_rules(before);
    return status;
}

/* Stands before who fetches logits, which the device has yet to compute. */
struct head {
    trainer_head_fn fn;
    void *arg;
};

static void fetch_head(void *arg, struct part *part, int frame, int microbatch)
{
    const struct head *head = arg;
    pretend_release();
    int before = pretend_rules(PRETEND_NO_STEP);
    head->fn(head->arg, part, frame, microbatch);
    pretend_rules(before);
}

WRAP(worker_walk, (struct worker * stage, const struct batch *batch, float loss_scale,
                   const struct worker_hooks *hooks))
{
    struct head head = {stage->head.fn, stage->head.arg};
    int before = pretend_rules(rules_of(stage));
    if (rules_of(stage) == PRETEND_STEP && getenv("PRETEND_HOLD")) {
        pretend_hold(stage->stream);
    }
    if (head.fn) {
        stage->head.fn = fetch_head;
        stage->head.arg = &head;
    }
    status_t status = __real_worker_walk(stage, batch, loss_scale, hooks);
    pretend_release();
    stage->head.fn = head.fn;
    stage->head.arg = head.arg;
    pretend_rules(before);
    return status;
}
