/* stage_device.c - what a stage on a device needs because the host runs ahead of it: batches that wait
 * to be copied, marks of where the stream is, and the times it stood still.
 */
#include <stdlib.h>
#include <time.h>

#include "runtime/stage.h"

enum { TOKEN_LISTS = 4 };
enum { NAP_LEAST = 20000, NAP_MOST = 200000 }; /* ns between looks at a device */
#define GRACE INT64_C(2000000000)              /* ns for a stream whose waits have been released */

static size_t tokens_of(const struct stage *stage)
{
    return (size_t)(stage->plan->microbatches * stage->model->B * stage->model->T);
}

static bool waits(enum op_kind kind)
{
    return kind == OP_WAIT || kind == OP_SENT;
}

static int count_waits(const struct stage *stage)
{
    const struct rank_plan *list = &stage->plan->rank[stage->rank];
    int count = 0;
    for (int i = 0; i < list->ops; i++) {
        count += waits(list->op[i].kind);
    }
    return count;
}

/* Pinned: the word first, then the token lists. */
static status_t pinned_create(struct stage *stage)
{
    struct ahead *ahead = &stage->ahead;
    size_t lists = TOKEN_LISTS * tokens_of(stage) * sizeof(int32_t);
    size_t bytes = ARENA_ALIGN + WALKS_AHEAD * lists;
    TRY(device_alloc(stage->device, MEMORY_PINNED, bytes, "batches on their way to the GPU",
                     &ahead->pinned));
    ahead->reached = ahead->pinned;
    *ahead->reached = 0;
    for (int i = 0; i < WALKS_AHEAD; i++) {
        ahead->walked[i].tokens =
            (int32_t *)((char *)ahead->pinned + ARENA_ALIGN + (size_t)i * lists);
    }
    return STATUS_OK;
}

static status_t walked_create(struct stage *stage, struct walked *walked)
{
    size_t count = (size_t)stage->ahead.waits + 1;
    walked->begin = calloc(count, sizeof(struct device_event *));
    walked->end = calloc(count, sizeof(struct device_event *));
    walked->dense = calloc(count, sizeof *walked->dense);
    if (!walked->begin || !walked->end || !walked->dense) {
        return FAIL(STATUS_NOMEM, "no memory for the times of %d waits", stage->ahead.waits);
    }
    TRY(device_event_create(stage->device, false, &walked->done));
    for (int i = 0; i < stage->ahead.waits; i++) {
        TRY(device_event_create(stage->device, true, &walked->begin[i]));
        TRY(device_event_create(stage->device, true, &walked->end[i]));
    }
    return STATUS_OK;
}

status_t ahead_create(struct stage *stage)
{
    stage->ahead.waits = count_waits(stage);
    TRY(pinned_create(stage));
    TRY(device_event_create(stage->device, false, &stage->ahead.mark));
    for (int i = 0; i < WALKS_AHEAD; i++) {
        TRY(walked_create(stage, &stage->ahead.walked[i]));
    }
    return STATUS_OK;
}

void ahead_destroy(struct stage *stage)
{
    struct ahead *ahead = &stage->ahead;
    for (int w = 0; stage->device && w < WALKS_AHEAD; w++) {
        struct walked *walked = &ahead->walked[w];
        for (int i = 0; i < ahead->waits; i++) {
            device_event_destroy(stage->device, walked->begin ? walked->begin[i] : NULL);
            device_event_destroy(stage->device, walked->end ? walked->end[i] : NULL);
        }
        device_event_destroy(stage->device, walked->done);
        free(walked->begin);
        free(walked->end);
        free(walked->dense);
    }
    if (stage->device) {
        device_event_destroy(stage->device, ahead->mark);
        device_free(stage->device, MEMORY_PINNED, ahead->pinned);
    }
}

/* ---- waiting for the device ---- */

/* An operation of a walk as one word, never 0. */
static uint32_t place_of(const struct stage *stage, const struct walked *walked,
                         const struct op *op)
{
    uint32_t index = (uint32_t)(op - stage->active->rank[stage->rank].op);
    return (index + 1) * WALKS_AHEAD + (uint32_t)(walked - stage->ahead.walked);
}

const struct op *stage_doing(const struct stage *stage, const struct plan **out_plan)
{
    const struct op *op = atomic_load_explicit(&stage->now, memory_order_acquire);
    *out_plan = stage->active;
    if (!stage->device || !stage->ahead.reached) {
        return op;
    }
    uint32_t place = __atomic_load_n(stage->ahead.reached, __ATOMIC_ACQUIRE);
    const struct plan *plan = stage->ahead.walked[place % WALKS_AHEAD].plan;
    uint32_t index = place / WALKS_AHEAD - 1;
    if (place == 0 || index >= (uint32_t)plan->rank[stage->rank].ops) {
        return op;
    }
    *out_plan = plan;
    return &plan->rank[stage->rank].op[index];
}

status_t stage_too_late(struct stage *stage)
{
    char what[160] = "the end of a step", reason[256];
    const struct plan *plan;
    const struct op *op = stage_doing(stage, &plan);
    if (op) {
        op_print(plan, op, what, sizeof what);
    }
    snprintf(reason, sizeof reason,
             "rank %d: the GPU has waited longer than health.deadline_s allows (%s)", stage->rank,
             what);
    group_give_up(stage->group, reason);
    return FAIL(STATUS_TIMEOUT, "%s; see what the other ranks did last, or raise the limit",
                reason);
}

/* Never by a call that only the device could end. */
static status_t await(struct stage *stage, struct device_event *event)
{
    int64_t until = group_deadline(stage->group);
    struct timespec nap = {0, NAP_LEAST};
    for (;;) {
        bool done;
        TRY(group_check(stage->group));
        TRY(device_event_done(stage->device, event, &done));
        if (done) {
            return STATUS_OK;
        }
        if (trace_now() > until) {
            return stage_too_late(stage);
        }
        nanosleep(&nap, NULL);
        nap.tv_nsec = nap.tv_nsec < NAP_MOST ? nap.tv_nsec * 2 : NAP_MOST;
    }
}

status_t stage_settle(struct stage *stage)
{
    if (!stage->device) {
        return STATUS_OK;
    }
    TRY(device_event_record(stage->device, stage->ahead.mark, stage->stream));
    TRY(await(stage, stage->ahead.mark));
    return group_check(stage->group);
}

static bool drain(struct stage *stage, struct device_event *event)
{
    int64_t until = group_deadline(stage->group);
    bool lost = false, done = false;
    for (;;) {
        if (device_event_done(stage->device, event, &done) != STATUS_OK || done) {
            return done;
        }
        if (!lost && group_is_lost(stage->group)) {
            lost = true;
            until = trace_now() + GRACE;
        } else if (trace_now() > until) {
            if (lost) {
                return false;
            }
            (void)stage_too_late(stage);
        }
        nanosleep(&(struct timespec){0, NAP_MOST}, NULL);
    }
}

bool stage_drain(struct stage *stage)
{
    struct device_event *event;
    if (!stage->device || device_event_create(stage->device, false, &event) != STATUS_OK) {
        return !stage->device;
    }
    bool done = device_event_record(stage->device, event, stage->stream) == STATUS_OK &&
                drain(stage, event);
    device_event_destroy(stage->device, event);
    return done;
}

/* ---- a walk ---- */

status_t ahead_begin(struct stage *stage, struct walked **out)
{
    struct ahead *ahead = &stage->ahead;
    struct walked *walked = &ahead->walked[ahead->walks % WALKS_AHEAD];
    if (ahead->walks >= WALKS_AHEAD) {
        TRY(await(stage, walked->done));
    }
    walked->waits = 0;
    walked->plan = stage->active;
    *out = walked;
    return STATUS_OK;
}

status_t ahead_end(struct stage *stage, struct walked *walked)
{
    TRY(device_word_write(stage->device, stage->ahead.reached, 0, stage->stream));
    TRY(device_event_record(stage->device, walked->done, stage->stream));
    stage->ahead.walks++;
    return STATUS_OK;
}

status_t ahead_wait_begin(struct stage *stage, struct walked *walked, const struct op *op,
                          bool dense)
{
    CHECK(walked->waits < stage->ahead.waits, "more than %d waits in a walk", stage->ahead.waits);
    walked->dense[walked->waits] = dense;
    TRY(device_word_write(stage->device, stage->ahead.reached, place_of(stage, walked, op),
                          stage->stream));
    return device_event_record(stage->device, walked->begin[walked->waits], stage->stream);
}

status_t ahead_wait_end(struct stage *stage, struct walked *walked)
{
    return device_event_record(stage->device, walked->end[walked->waits++], stage->stream);
}

status_t ahead_stalls(struct stage *stage, int64_t walk, int64_t *out_plain, int64_t *out_dense)
{
    const struct walked *walked = &stage->ahead.walked[walk % WALKS_AHEAD];
    TRY(await(stage, walked->done));
    double plain = 0, dense = 0;
    for (int i = 0; i < walked->waits; i++) {
        double ms;
        TRY(device_event_elapsed(stage->device, walked->begin[i], walked->end[i], &ms));
        *(walked->dense[i] ? &dense : &plain) += ms;
    }
    *out_plain = (int64_t)(plain * 1e6);
    *out_dense = (int64_t)(dense * 1e6);
    return STATUS_OK;
}
