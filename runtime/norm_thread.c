/* norm_thread.c - the thread between a device's stream and the exchange of a step (norm_exchange.h).
 *
 *     stream   squares, losses -> pinned; ready = step; waits for go >= step; AdamW with the factor
 *     main     asks for step n's exchange when it enqueues that, and goes on enqueueing; before step
 *              n + 2 it takes the outcome of exchange n
 *     thread   waits until ready >= step; the exchange among the ranks; writes the factor, then go
 *
 * So enqueueing never waits for an exchange that is under way. The group's collectives belong to this
 * thread from a request to its end: main first collects what it asked for (norm_exchange_collect). A step
 * that is refused has a negative factor, which AdamW takes for "leave everything as it is", and so have all
 * steps after it.
 */
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "base/log.h"
#include "runtime/trainer.h"

enum { LOOK_NS = 20000 }; /* between looks at the stream's word */

struct norm_thread {
    pthread_t thread;
    bool started;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    atomic_bool quit;
    int64_t asked, done; /* steps */
    struct norm_request request[WALKS_IN_FLIGHT];
    status_t refused;   /* sticky */
    int64_t last_ready; /* ns, of the exchange before */
    struct trainer *trainer;
};

/* Until the stream has left the step's squares; STATUS_PEER or STATUS_TIMEOUT otherwise. */
static status_t squares_wait(struct norm_thread *self, int64_t step)
{
    const uint32_t *ready = self->trainer->exchange.ready;
    struct group *group = self->trainer->group;
    int64_t until = group_deadline(group);
    while ((int32_t)(__atomic_load_n(ready, __ATOMIC_ACQUIRE) - (uint32_t)step) < 0) {
        TRY(group_check(group));
        if (atomic_load(&self->quit)) {
            return STATUS_INTERRUPTED;
        }
        if (trace_now() > until) {
            return worker_too_late(self->trainer->workers.train);
        }
        nanosleep(&(struct timespec){0, LOOK_NS}, NULL);
    }
    return group_check(group);
}

static void norm_thread_exchange(struct norm_thread *self, const struct norm_request *request,
                                 struct norm_outcome *out)
{
    struct norm_exchange *exchange = &self->trainer->exchange;
    int turn = (int)(request->step % exchange->depth);
    *out = (struct norm_outcome){.step = request->step, .status = self->refused, .scale = -1};
    if (self->refused == STATUS_OK) {
        out->status = squares_wait(self, request->step);
    }
    int64_t ready = trace_now();
    if (out->status == STATUS_OK) {
        norm_exchange_resolve(self->trainer, exchange->own[turn], request, out);
    }
    self->refused = out->status;
    int64_t begun = request->begun > self->last_ready ? request->begun : self->last_ready;
    out->seconds = (double)(ready - begun) * 1e-9;
    self->last_ready = ready;
    exchange->scale[turn] = (float)out->scale;
    __atomic_store_n(exchange->go, (uint32_t)request->step, __ATOMIC_RELEASE);
}

static void *norm_thread_run(void *argument)
{
    struct norm_thread *self = argument;
    struct norm_exchange *exchange = &self->trainer->exchange;
    log_set_rank(group_rank(self->trainer->group));
    pthread_mutex_lock(&self->mutex);
    for (;;) {
        while (self->asked == self->done && !self->quit) {
            pthread_cond_wait(&self->changed, &self->mutex);
        }
        if (self->asked == self->done) {
            break;
        }
        int64_t step = self->done + 1;
        struct norm_request request = self->request[step % WALKS_IN_FLIGHT];
        struct norm_outcome outcome;
        pthread_mutex_unlock(&self->mutex);
        norm_thread_exchange(self, &request, &outcome);
        pthread_mutex_lock(&self->mutex);
        exchange->outcome[step % exchange->depth] = outcome;
        self->done = step;
        pthread_cond_broadcast(&self->changed);
    }
    pthread_mutex_unlock(&self->mutex);
    return NULL;
}

status_t norm_thread_create(struct trainer *trainer)
{
    struct norm_thread *self = calloc(1, sizeof *self);
    if (!self) {
        return FAIL(STATUS_NOMEM, "no memory for the exchange of a step");
    }
    self->trainer = trainer;
    trainer->exchange.thread = self;
    pthread_mutex_init(&self->mutex, NULL);
    pthread_cond_init(&self->changed, NULL);
    self->started = pthread_create(&self->thread, NULL, norm_thread_run, self) == 0;
    return self->started ? STATUS_OK : FAIL(STATUS_NOMEM, "no thread for the exchange of a step");
}

void norm_thread_destroy(struct trainer *trainer)
{
    struct norm_thread *self = trainer->exchange.thread;
    if (!self) {
        return;
    }
    pthread_mutex_lock(&self->mutex);
    self->quit = true;
    pthread_cond_broadcast(&self->changed);
    pthread_mutex_unlock(&self->mutex);
    if (self->started) {
        pthread_join(self->thread, NULL);
    }
    pthread_cond_destroy(&self->changed);
    pthread_mutex_destroy(&self->mutex);
    free(self);
}

void norm_thread_resume(struct trainer *trainer, int64_t step)
{
    struct norm_thread *self = trainer->exchange.thread;
    pthread_mutex_lock(&self->mutex);
    self->asked = self->done = step;
    pthread_mutex_unlock(&self->mutex);
}

status_t norm_thread_request(struct trainer *trainer, const struct norm_request *request)
{
    struct norm_thread *self = trainer->exchange.thread;
    struct worker *worker = trainer->workers.train;
    uint32_t step = (uint32_t)request->step;
    TRY(device_word_write(worker->device, trainer->exchange.ready, step, worker->stream));
    pthread_mutex_lock(&self->mutex);
    CHECK(self->asked + 1 == request->step && self->asked - self->done < WALKS_IN_FLIGHT,
          "exchange %lld asked for after %lld, of which %lld are done", (long long)request->step,
          (long long)self->asked, (long long)self->done);
    self->request[request->step % WALKS_IN_FLIGHT] = *request;
    self->asked = request->step;
    pthread_cond_broadcast(&self->changed);
    pthread_mutex_unlock(&self->mutex);
    return device_word_wait(worker->device, trainer->exchange.go, step, worker->stream);
}

void norm_thread_wait(struct trainer *trainer, int64_t step)
{
    struct norm_thread *self = trainer->exchange.thread;
    pthread_mutex_lock(&self->mutex);
    CHECK(step <= self->asked && step + WALKS_IN_FLIGHT > self->asked, "exchange %lld of %lld",
          (long long)step, (long long)self->asked);
    while (self->done < step) {
        pthread_cond_wait(&self->changed, &self->mutex);
    }
    pthread_mutex_unlock(&self->mutex);
}
