/* watch.c - a thread that says when an operation takes much longer than steps do, long before the deadline of a
 * wait ends the job: which operation, since when, and what is usual. All ranks that stand still say their own,
 * so that the one that is not waiting for another is the one to look at.
 */
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "base/log.h"
#include "runtime/trainer.h"

enum { FIRST_STEP = 3, USUAL_STEPS = 3 }; /* times health.slow_s before a step is known; steps */

struct watch {
    struct trainer *trainer;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool quit;
};

/* What a rank was seen in. */
struct sight {
    const struct op *op;
    int64_t step, since; /* ns */
    double told_s;       /* the last line was about so long; 0 = none yet */
};

static void watch_tell(const struct trainer *trainer, const struct plan *plan,
                       const struct sight *sight, double seconds)
{
    char what[160];
    double usual = (double)atomic_load(&trainer->usual_step) * 1e-9;
    op_print(plan, sight->op, what, sizeof what);
    if (usual > 0) {
        log_warn("step %lld: for %.0f s in %s; a whole step usually takes %.2f s "
                 "(health.deadline_s ends a wait "
                 "of %.0f s)",
                 (long long)sight->step, seconds, what, usual, trainer->config.health.deadline_s);
    } else {
        log_warn("step %lld: for %.0f s in %s; no step has been made yet (health.deadline_s ends a "
                 "wait of "
                 "%.0f s)",
                 (long long)sight->step, seconds, what, trainer->config.health.deadline_s);
    }
}

static void watch_look(const struct trainer *trainer, struct sight *sight)
{
    const struct worker *worker =
        atomic_load_explicit(&trainer->workers.walking, memory_order_acquire);
    const struct plan *plan = NULL;
    const struct op *op = worker ? worker_doing(worker, &plan) : NULL;
    int64_t step = atomic_load(&trainer->step), now = trace_now();
    if (op != sight->op || step != sight->step || !op) {
        *sight = (struct sight){op, step, now, 0};
        return;
    }
    double seconds = (double)(now - sight->since) * 1e-9, slow = trainer->config.health.slow_s;
    double usual = (double)atomic_load(&trainer->usual_step) * 1e-9;
    double limit = usual > 0 ? slow : FIRST_STEP * slow;
    limit = limit > USUAL_STEPS * usual ? limit : USUAL_STEPS * usual;
    if (seconds >= limit && seconds >= 2 * sight->told_s) {
        watch_tell(trainer, plan, sight, seconds);
        sight->told_s = seconds;
    }
}

static void *watch_run(void *argument)
{
    struct watch *watch = argument;
    struct sight sight = {0};
    log_set_rank(group_size(watch->trainer->group) > 1 ? group_rank(watch->trainer->group) : -1);
    pthread_mutex_lock(&watch->mutex);
    while (!watch->quit) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec++;
        pthread_cond_timedwait(&watch->changed, &watch->mutex, &until);
        if (!watch->quit) {
            watch_look(watch->trainer, &sight);
        }
    }
    pthread_mutex_unlock(&watch->mutex);
    return NULL;
}

void watch_start(struct trainer *trainer)
{
    struct watch *watch = trainer->config.health.slow_s > 0 ? calloc(1, sizeof *watch) : NULL;
    pthread_condattr_t clock;
    if (!watch) {
        return;
    }
    watch->trainer = trainer;
    pthread_mutex_init(&watch->mutex, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&watch->changed, &clock);
    pthread_condattr_destroy(&clock);
    if (pthread_create(&watch->thread, NULL, watch_run, watch) != 0) {
        log_warn("no thread to say when an operation takes long");
        free(watch);
        return;
    }
    trainer->watch = watch;
}

void watch_stop(struct trainer *trainer)
{
    struct watch *watch = trainer->watch;
    if (!watch) {
        return;
    }
    pthread_mutex_lock(&watch->mutex);
    watch->quit = true;
    pthread_cond_broadcast(&watch->changed);
    pthread_mutex_unlock(&watch->mutex);
    pthread_join(watch->thread, NULL);
    pthread_cond_destroy(&watch->changed);
    pthread_mutex_destroy(&watch->mutex);
    free(watch);
    trainer->watch = NULL;
}
