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
    return kind == OP_WAIT || kind == OP_SENT || kind == OP_REDUCED || kind == OP_GATHERED;
}

static int count_waits(const struct worker *worker)
{
    const struct rank_plan *list = &worker->plan->rank[worker->rank];
    int count = 0;
    for (int i = 0; i < list->ops; i++) {
        count += waits(list->op[i].kind);
    }
    for (int u = 0; worker->tp && u < worker->model->graph.units; u++) {
        if (worker_hosts(worker, u)) {
            count += worker->plan->microbatches *
                     model_tp_exchanges(worker->model, u, worker->plan->training);
            count += part_sum_count(worker->part, u) > 0;
        }
    }
    return count;
}

/* Pinned: the word first, then the token lists. */
static status_t pinned_create(struct worker *worker)
{
    struct in_flight *flight = &worker->in_flight;
    size_t lists = TOKEN_LISTS * tokens_of(worker) * sizeof(int32_t);
    size_t bytes = ARENA_ALIGN + WALKS_IN_FLIGHT * lists;
    TRY(device_alloc(worker->device, MEMORY_PINNED, bytes, "batches on their way to the GPU",
                     &flight->pinned));
    flight->reached = flight->pinned;
    *flight->reached = 0;
    for (int i = 0; i < WALKS_IN_FLIGHT; i++) {
        flight->record[i].tokens =
            (int32_t *)((char *)flight->pinned + ARENA_ALIGN + (size_t)i * lists);
    }
    return STATUS_OK;
}

static status_t walk_record_create(struct worker *worker, struct walk_record *record)
{
    size_t count = (size_t)worker->in_flight.waits + 1;
    record->begin = calloc(count, sizeof(struct device_event *));
    record->end = calloc(count, sizeof(struct device_event *));
    record->stall = calloc(count, sizeof *record->stall);
    if (!record->begin || !record->end || !record->stall) {
        return FAIL(STATUS_NOMEM, "no memory for the times of %d waits", worker->in_flight.waits);
    }
    TRY(device_event_create(worker->device, false, &record->done));
    for (int i = 0; i < worker->in_flight.waits; i++) {
        TRY(device_event_create(worker->device, true, &record->begin[i]));
        TRY(device_event_create(worker->device, true, &record->end[i]));
    }
    return STATUS_OK;
}

status_t in_flight_create(struct worker *worker)
{
    worker->in_flight.waits = count_waits(worker);
    TRY(pinned_create(worker));
    TRY(device_event_create(worker->device, false, &worker->in_flight.mark));
    for (int i = 0; i < WALKS_IN_FLIGHT; i++) {
        TRY(walk_record_create(worker, &worker->in_flight.record[i]));
    }
    return STATUS_OK;
}

void in_flight_destroy(struct worker *worker)
{
    struct in_flight *flight = &worker->in_flight;
    for (int w = 0; worker->device && w < WALKS_IN_FLIGHT; w++) {
        struct walk_record *record = &flight->record[w];
        for (int i = 0; i < flight->waits; i++) {
            device_event_destroy(worker->device, record->begin ? record->begin[i] : NULL);
            device_event_destroy(worker->device, record->end ? record->end[i] : NULL);
        }
        device_event_destroy(worker->device, record->done);
        free(record->begin);
        free(record->end);
        free(record->stall);
    }
    if (worker->device) {
        device_event_destroy(worker->device, flight->mark);
        device_free(worker->device, MEMORY_PINNED, flight->pinned);
    }
}

/* ---- waiting for the device ---- */

/* An operation of a walk as one word, never 0. */
static uint32_t place_of(const struct worker *worker, const struct walk_record *record,
                         const struct op *op)
{
    uint32_t index = (uint32_t)(op - worker->active->rank[worker->rank].op);
    return (index + 1) * WALKS_IN_FLIGHT + (uint32_t)(record - worker->in_flight.record);
}

const struct op *worker_doing(const struct worker *worker, const struct plan **out_plan)
{
    const struct op *op = atomic_load_explicit(&worker->now, memory_order_acquire);
    *out_plan = worker->active;
    if (!worker->device || !worker->in_flight.reached) {
        return op;
    }
    uint32_t place = __atomic_load_n(worker->in_flight.reached, __ATOMIC_ACQUIRE);
    const struct plan *plan = worker->in_flight.record[place % WALKS_IN_FLIGHT].plan;
    uint32_t index = place / WALKS_IN_FLIGHT - 1;
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
             "rank %d: the GPU has waited longer than health.deadline_s allows (%s)",
             group_named(worker->group, worker->rank), what);
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
    TRY(device_event_record(worker->device, worker->in_flight.mark, worker->stream));
    TRY(await(worker, worker->in_flight.mark));
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

status_t in_flight_begin(struct worker *worker, struct walk_record **out)
{
    struct in_flight *flight = &worker->in_flight;
    struct walk_record *record = &flight->record[flight->walks % WALKS_IN_FLIGHT];
    if (flight->walks >= WALKS_IN_FLIGHT) {
        TRY(await(worker, record->done));
    }
    record->waits = 0;
    record->plan = worker->active;
    *out = record;
    return STATUS_OK;
}

status_t in_flight_end(struct worker *worker, struct walk_record *record)
{
    TRY(device_word_write(worker->device, worker->in_flight.reached, 0, worker->stream));
    TRY(device_event_record(worker->device, record->done, worker->stream));
    worker->in_flight.walks++;
    return STATUS_OK;
}

status_t in_flight_wait_begin(struct worker *worker, struct walk_record *record,
                              const struct op *op, enum stall stall)
{
    CHECK(record->waits < worker->in_flight.waits, "more than %d waits in a walk",
          worker->in_flight.waits);
    record->stall[record->waits] = stall;
    TRY(device_word_write(worker->device, worker->in_flight.reached, place_of(worker, record, op),
                          worker->stream));
    return device_event_record(worker->device, record->begin[record->waits], worker->stream);
}

status_t in_flight_wait_end(struct worker *worker, struct walk_record *record)
{
    return device_event_record(worker->device, record->end[record->waits++], worker->stream);
}

status_t in_flight_stalls(struct worker *worker, int64_t walk, int64_t *out)
{
    const struct walk_record *record = &worker->in_flight.record[walk % WALKS_IN_FLIGHT];
    TRY(await(worker, record->done));
    double ms_of[STALLS] = {0};
    for (int i = 0; i < record->waits; i++) {
        double ms;
        TRY(device_event_elapsed(worker->device, record->begin[i], record->end[i], &ms));
        ms_of[record->stall[i]] += ms;
    }
    for (int stall = 0; stall < STALLS; stall++) {
        out[stall] = (int64_t)(ms_of[stall] * 1e6);
    }
    return STATUS_OK;
}
