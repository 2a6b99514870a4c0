/* exchanger.c - the thread between a device's stream and the exchange of a step.
 *
 *     stream     squares, losses -> pinned; ready = step; waits for go >= step; AdamW with the factor
 *     main       asks for step n's exchange when it enqueues that, and goes on enqueueing; before step
 *                n + 2 it takes what exchange n told
 *     exchanger  waits until ready >= step; the exchange among the ranks; writes the factor, then go
 *
 * So nobody who enqueues waits for an exchange that is under way. The group's collectives belong to
 * this thread from a request to its end: main first collects what it asked for (exchange_collect). A
 * step that is refused has a negative factor, which AdamW takes for "leave everything as it is", and
 * so have all after it.
 */
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "base/log.h"
#include "runtime/trainer.h"

enum { LOOK_NS = 20000 }; /* between looks at the stream's word */

struct exchanger {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    atomic_bool quit;
    int64_t asked, done; /* steps */
    struct exchange_request request[WALKS_AHEAD];
    struct exchanged exchanged[WALKS_AHEAD];
    void *pinned;
    uint32_t *ready, *go; /* steps; written by the stream, by the thread */
    float *scale;         /* [WALKS_AHEAD] */
    status_t refused;     /* sticky */
    int64_t last_ready;   /* ns, of the exchange before */
    struct trainer *trainer;
};

/* Until the stream has left the step's squares; STATUS_PEER or STATUS_TIMEOUT otherwise. */
static status_t squares_wait(struct exchanger *self, int64_t step)
{
    struct group *group = self->trainer->group;
    int64_t until = group_deadline(group);
    while ((int32_t)(__atomic_load_n(self->ready, __ATOMIC_ACQUIRE) - (uint32_t)step) < 0) {
        TRY(group_check(group));
        if (atomic_load(&self->quit)) {
            return STATUS_INTERRUPTED;
        }
        if (trace_now() > until) {
            return worker_too_late(self->trainer->train);
        }
        nanosleep(&(struct timespec){0, LOOK_NS}, NULL);
    }
    return group_check(group);
}

static void exchange_one(struct exchanger *self, const struct exchange_request *request,
                         struct exchanged *out)
{
    *out = (struct exchanged){.step = request->step, .status = self->refused, .scale = -1};
    if (self->refused == STATUS_OK) {
        out->status = squares_wait(self, request->step);
    }
    int64_t ready = trace_now();
    if (out->status == STATUS_OK) {
        exchange_resolve(self->trainer, self->trainer->exchange.own[request->step % WALKS_AHEAD],
                         request, out);
    }
    self->refused = out->status;
    int64_t begun = request->begun > self->last_ready ? request->begun : self->last_ready;
    out->seconds = (double)(ready - begun) * 1e-9;
    self->last_ready = ready;
    self->scale[request->step % WALKS_AHEAD] = (float)out->scale;
    __atomic_store_n(self->go, (uint32_t)request->step, __ATOMIC_RELEASE);
}

static void *exchanger_run(void *argument)
{
    struct exchanger *self = argument;
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
        struct exchange_request request = self->request[step % WALKS_AHEAD];
        struct exchanged exchanged;
        pthread_mutex_unlock(&self->mutex);
        exchange_one(self, &request, &exchanged);
        pthread_mutex_lock(&self->mutex);
        self->exchanged[step % WALKS_AHEAD] = exchanged;
        self->done = step;
        pthread_cond_broadcast(&self->changed);
    }
    pthread_mutex_unlock(&self->mutex);
    return NULL;
}

/* Pinned: the words, the factors, then own[0], own[1]. */
static status_t pinned_create(struct trainer *trainer, struct exchanger *self)
{
    struct exchange *exchange = &trainer->exchange;
    size_t own = exchange->own_count * sizeof(double);
    TRY(device_alloc(trainer->device, MEMORY_PINNED, ARENA_ALIGN + WALKS_AHEAD * own,
                     "the exchange of a step", &self->pinned));
    self->ready = self->pinned;
    self->go = self->ready + 1;
    self->scale = (float *)(self->go + 1);
    *self->ready = *self->go = 0;
    for (int i = 0; i < WALKS_AHEAD; i++) {
        self->scale[i] = -1;
    }
    for (int i = 0; i < WALKS_AHEAD; i++) {
        exchange->own[i] = (double *)((char *)self->pinned + ARENA_ALIGN + (size_t)i * own);
    }
    return STATUS_OK;
}

status_t exchanger_create(struct trainer *trainer)
{
    struct exchanger *self = calloc(1, sizeof *self);
    if (!self) {
        return FAIL(STATUS_NOMEM, "no memory for the exchange of a step");
    }
    self->trainer = trainer;
    trainer->exchange.exchanger = self;
    TRY(pinned_create(trainer, self));
    pthread_mutex_init(&self->mutex, NULL);
    pthread_cond_init(&self->changed, NULL);
    if (pthread_create(&self->thread, NULL, exchanger_run, self) != 0) {
        device_free(trainer->device, MEMORY_PINNED, self->pinned);
        self->pinned = NULL;
        return FAIL(STATUS_NOMEM, "no thread for the exchange of a step");
    }
    return STATUS_OK;
}

void exchanger_destroy(struct trainer *trainer)
{
    struct exchanger *self = trainer->exchange.exchanger;
    if (!self) {
        return;
    }
    if (self->pinned) {
        pthread_mutex_lock(&self->mutex);
        self->quit = true;
        pthread_cond_broadcast(&self->changed);
        pthread_mutex_unlock(&self->mutex);
        pthread_join(self->thread, NULL);
        pthread_cond_destroy(&self->changed);
        pthread_mutex_destroy(&self->mutex);
        device_free(trainer->device, MEMORY_PINNED, self->pinned);
    }
    free(self);
}

status_t exchanger_request(struct trainer *trainer, const struct exchange_request *request)
{
    struct exchanger *self = trainer->exchange.exchanger;
    struct worker *worker = trainer->train;
    uint32_t step = (uint32_t)request->step;
    TRY(exchange_fill(trainer, trainer->exchange.own[request->step % WALKS_AHEAD]));
    TRY(device_word_write(worker->device, self->ready, step, worker->stream));
    pthread_mutex_lock(&self->mutex);
    CHECK(self->asked + 1 == request->step && self->asked - self->done < WALKS_AHEAD,
          "exchange %lld asked for after %lld, of which %lld are done", (long long)request->step,
          (long long)self->asked, (long long)self->done);
    self->request[request->step % WALKS_AHEAD] = *request;
    self->request[request->step % WALKS_AHEAD].begun = trainer->step_start;
    self->asked = request->step;
    pthread_cond_broadcast(&self->changed);
    pthread_mutex_unlock(&self->mutex);
    return device_word_wait(worker->device, self->go, step, worker->stream);
}

status_t exchanger_wait(struct trainer *trainer, int64_t step, struct exchanged *out)
{
    struct exchanger *self = trainer->exchange.exchanger;
    pthread_mutex_lock(&self->mutex);
    CHECK(step <= self->asked && step + WALKS_AHEAD > self->asked, "exchange %lld of %lld",
          (long long)step, (long long)self->asked);
    while (self->done < step) {
        pthread_cond_wait(&self->changed, &self->mutex);
    }
    *out = self->exchanged[step % WALKS_AHEAD];
    pthread_mutex_unlock(&self->mutex);
    trainer->seconds[step % WALKS_AHEAD] = out->seconds;
    return STATUS_OK;
}

const float *exchanger_scale(const struct trainer *trainer, int64_t step)
{
    return &trainer->exchange.exchanger->scale[step % WALKS_AHEAD];
}
