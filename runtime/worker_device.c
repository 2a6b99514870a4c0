/* worker_device.c - what a worker on a device needs because the host runs ahead of it: batches that wait
 * to be copied, marks of where the stream is, and the times it stood still.
 */
#include <stdlib.h>
#include <time.h>

#include "runtime/worker.h"

enum { TOKEN_LISTS = 4 };
enum { NAP_LEAST = 20000, NAP_MOST = 200000 }; /* ns between looks at a device */
#define GRACE INT64_C(2000000000)              /* ns for a stream whose waits have been released */

static size_t tokens_of(const struct worker *worker)
{
    return (size_t)(worker->plan->microbatches * worker->model->B * worker->model->T);
}

static bool waits(enum op_kind kind)
{
    return kind == OP_WAIT || kind == OP_SENT;
}

static int count_waits(const struct worker *worker)
{
    const struct rank_plan *list = &worker->plan->rank[worker->rank];
    int count = 0;
    for (int i = 0; i < list->ops; i++) {
        count += waits(list->op[i].kind);
    }
    return count;
}

/* Pinned: the word first, then the token lists. */
static status_t pinned_create(struct worker *worker)
{
    struct ahead *ahead = &worker->ahead;
    size_t lists = TOKEN_LISTS * tokens_of(worker) * sizeof(int32_t);
    size_t bytes = ARENA_ALIGN + WALKS_AHEAD * lists;
    TRY(device_alloc(worker->device, MEMORY_PINNED, bytes, "batches on their way to the GPU",
                     &ahead->pinned));
    ahead->reached = ahead->pinned;
    *ahead->reached = 0;
    for (int i = 0; i < WALKS_AHEAD; i++) {
        ahead->walked[i].tokens =
            (int32_t *)((char *)ahead->pinned + ARENA_ALIGN + (size_t)i * lists);
    }
    return STATUS_OK;
}

static status_t walked_create(struct worker *worker, struct walked *walked)
{
    size_t count = (size_t)worker->ahead.waits + 1;
    walked->begin = calloc(count, sizeof(struct device_event *));
    walked->end = calloc(count, sizeof(struct device_event *));
    walked->dense = calloc(count, sizeof *walked->dense);
    if (!walked->begin || !walked->end || !walked->dense) {
        return FAIL(STATUS_NOMEM, "no memory for the times of %d waits", worker->ahead.waits);
    }
    TRY(device_event_create(worker->device, false, &walked->done));
    for (int i = 0; i < worker->ahead.waits; i++) {
        TRY(device_event_create(worker->device, true, &walked->begin[i]));
        TRY(device_event_create(worker->device, true, &walked->end[i]));
    }
    return STATUS_OK;
}

status_t ahead_create(struct worker *worker)
{
    worker->ahead.waits = count_waits(worker);
    TRY(pinned_create(worker));
    TRY(device_event_create(worker->device, false, &worker->ahead.mark));
    for (int i = 0; i < WALKS_AHEAD; i++) {
        TRY(walked_create(worker, &worker->ahead.walked[i]));
    }
    return STATUS_OK;
}

void ahead_destroy(struct worker *worker)
{
    struct ahead *ahead = &worker->ahead;
    for (int w = 0; worker->device && w < WALKS_AHEAD; w++) {
        struct walked *walked = &ahead->walked[w];
        for (int i = 0; i < ahead->waits; i++) {
            device_event_destroy(worker->device, walked->begin ? walked->begin[i] : NULL);
            device_event_destroy(worker->device, walked->end ? walked->end[i] : NULL);
        }
        device_event_destroy(worker->device, walked->done);
        free(walked->begin);
        free(walked->end);
        free(walked->dense);
    }
    if (worker->device) {
        device_event_destroy(worker->device, ahead->mark);
        device_free(worker->device, MEMORY_PINNED, ahead->pinned);
    }
}

/* ---- waiting for the device ---- */

/* An operation of a walk as one word, never 0. */
static uint32_t place_of(const struct worker *worker, const struct walked *walked,
                         const struct op *op)
{
    uint32_t index = (uint32_t)(op - worker->active->rank[worker->rank].op);
    return (index + 1) * WALKS_AHEAD + (uint32_t)(walked - worker->ahead.walked);
}

const struct op *worker_doing(const struct worker *worker, const struct plan **out_plan)
{
    const struct op *op = atomic_load_explicit(&worker->now, memory_order_acquire);
    *out_plan = worker->active;
    if (!worker->device || !worker->ahead.reached) {
        return op;
    }
    uint32_t place = __atomic_load_n(worker->ahead.reached, __ATOMIC_ACQUIRE);
    const struct plan *plan = worker->ahead.walked[place % WALKS_AHEAD].plan;
    uint32_t index = place / WALKS_AHEAD - 1;
    if (place == 0 || index >= (uint32_t)plan->rank[worker->rank].ops) {
        return op;
    }
    *out_plan = plan;
    return &plan->rank[worker->rank].op[index];
}

status_t worker_too_late(struct worker *worker)
{
    char what[160] = "the end of a step", reason[256];
    const struct plan *plan;
    const struct op *op = worker_doing(worker, &plan);
    if (op) {
        op_print(plan, op, what, sizeof what);
    }
    snprintf(reason, sizeof reason,
             "rank %d: the GPU has waited longer than health.deadline_s allows (%s)", worker->rank,
             what);
    group_give_up(worker->group, reason);
    return FAIL(STATUS_TIMEOUT, "%s; see what the other ranks did last, or raise the limit",
                reason);
}

/* Never by a call that only the device could end. */
static status_t await(struct worker *worker, struct device_event *event)
{
    int64_t until = group_deadline(worker->group);
    struct timespec nap = {0, NAP_LEAST};
    for (;;) {
        bool done;
        TRY(group_check(worker->group));
        TRY(device_event_done(worker->device, event, &done));
        if (done) {
            return STATUS_OK;
        }
        if (trace_now() > until) {
            return worker_too_late(worker);
        }
        nanosleep(&nap, NULL);
        nap.tv_nsec = nap.tv_nsec < NAP_MOST ? nap.tv_nsec * 2 : NAP_MOST;
    }
}

status_t worker_settle(struct worker *worker)
{
    if (!worker->device) {
        return STATUS_OK;
    }
    TRY(device_event_record(worker->device, worker->ahead.mark, worker->stream));
    TRY(await(worker, worker->ahead.mark));
    return group_check(worker->group);
}

static bool drain(struct worker *worker, struct device_event *event)
{
    int64_t until = group_deadline(worker->group);
    bool lost = false, done = false;
    for (;;) {
        if (device_event_done(worker->device, event, &done) != STATUS_OK || done) {
            return done;
        }
        if (!lost && group_is_lost(worker->group)) {
            lost = true;
            until = trace_now() + GRACE;
        } else if (trace_now() > until) {
            if (lost) {
                return false;
            }
            (void)worker_too_late(worker);
        }
        nanosleep(&(struct timespec){0, NAP_MOST}, NULL);
    }
}

bool worker_drain(struct worker *worker)
{
    struct device_event *event;
    if (!worker->device || device_event_create(worker->device, false, &event) != STATUS_OK) {
        return !worker->device;
    }
    bool done = device_event_record(worker->device, event, worker->stream) == STATUS_OK &&
                drain(worker, event);
    device_event_destroy(worker->device, event);
    return done;
}

/* ---- a walk ---- */

status_t ahead_begin(struct worker *worker, struct walked **out)
{
    struct ahead *ahead = &worker->ahead;
    struct walked *walked = &ahead->walked[ahead->walks % WALKS_AHEAD];
    if (ahead->walks >= WALKS_AHEAD) {
        TRY(await(worker, walked->done));
    }
    walked->waits = 0;
    walked->plan = worker->active;
    *out = walked;
    return STATUS_OK;
}

status_t ahead_end(struct worker *worker, struct walked *walked)
{
    TRY(device_word_write(worker->device, worker->ahead.reached, 0, worker->stream));
    TRY(device_event_record(worker->device, walked->done, worker->stream));
    worker->ahead.walks++;
    return STATUS_OK;
}

status_t ahead_wait_begin(struct worker *worker, struct walked *walked, const struct op *op,
                          bool dense)
{
    CHECK(walked->waits < worker->ahead.waits, "more than %d waits in a walk", worker->ahead.waits);
    walked->dense[walked->waits] = dense;
    TRY(device_word_write(worker->device, worker->ahead.reached, place_of(worker, walked, op),
                          worker->stream));
    return device_event_record(worker->device, walked->begin[walked->waits], worker->stream);
}

status_t ahead_wait_end(struct worker *worker, struct walked *walked)
{
    return device_event_record(worker->device, walked->end[walked->waits++], worker->stream);
}

status_t ahead_stalls(struct worker *worker, int64_t walk, int64_t *out_plain, int64_t *out_dense)
{
    const struct walked *walked = &worker->ahead.walked[walk % WALKS_AHEAD];
    TRY(await(worker, walked->done));
    double plain = 0, dense = 0;
    for (int i = 0; i < walked->waits; i++) {
        double ms;
        TRY(device_event_elapsed(worker->device, walked->begin[i], walked->end[i], &ms));
        *(walked->dense[i] ? &dense : &plain) += ms;
    }
    *out_plain = (int64_t)(plain * 1e6);
    *out_dense = (int64_t)(dense * 1e6);
    return STATUS_OK;
}
