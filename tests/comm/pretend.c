/* pretend.c - a GPU of threads: device.h with streams that run behind the caller's back, in place of
 * base/device.c in a program that tests the order of streams where there is no GPU.
 *
 * A stream is a thread with a queue of finite length; now and then it rests, so that whoever does not
 * wait for it comes too early. Memory (pretend_memory.c) is shared memory that other processes can map. All
 * is forgetful of errors: what fails here ends the program, but for the allocation that PRETEND_NO_MEMORY
 * names, for which there is no memory, and the question how much is free, which is not answered from the
 * PRETEND_DUMB-th time on. There are PRETEND_GPUS of them, else enough; the first is number PRETEND_FIRST
 * of the host (as CUDA_VISIBLE_DEVICES does it). With PRETEND_HOLD in the environment queues are long, for
 * steps that are held back (pretend_hold).
 */
#include <execinfo.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/device.h"
#include "base/trace.h"
#include "tests/comm/pretend.h"

enum {
    QUEUE = 1000,   /* operations, then the caller waits */
    LONG = 1 << 16, /* the same, with PRETEND_HOLD */
    HOLD_S = 20,    /* at least, for a host that does not come to an end */
    CALLS = 24,     /* of a trace, at most */
    REST_US = 200,  /* at most, every fourth operation */
    POLL_US = 20    /* while a stream or a caller waits */
};

struct device_event {
    atomic_uint_fast64_t recorded, done; /* how many times */
    atomic_int_fast64_t ns;              /* when it was, last */
    atomic_int users;                    /* the owner and what is enqueued */
};

enum work_kind {
    WORK_COPY,
    WORK_FILL,
    WORK_WRITE,
    WORK_WAIT,
    WORK_RECORD,
    WORK_EVENT,
    WORK_LAUNCH,
    WORK_END
};

struct work {
    enum work_kind kind;
    void *dst;
    const void *src;
    size_t bytes;
    uint32_t value;
    struct device_event *event;
    uint64_t turn; /* of the event */
    void (*run)(void *arguments);
};

struct stream {
    pthread_t thread;
    struct work *work; /* [queue] */
    uint64_t queue;
    atomic_uint_fast64_t first, end; /* done up to; enqueued up to */
    uint32_t dice;
};

static void rest_us(long us)
{
    nanosleep(&(struct timespec){0, us * 1000}, NULL);
}

/* ---- steps ---- */

static atomic_int rules = PRETEND_NO_STEP;
static atomic_llong holds, released;

int pretend_rules(int next)
{
    return atomic_exchange(&rules, next);
}

static void keep_rules(bool kept, const char *call, const char *what)
{
    if (!kept) {
        void *calls[CALLS];
        backtrace_symbols_fd(calls, backtrace(calls, CALLS), STDERR_FILENO);
    }
    CHECK(kept,
          "%s(%s) in a step, where nothing waits for the device, takes memory or gives it back",
          call, what);
}

void pretend_wants_memory(const char *call, const char *what)
{
    keep_rules(rules == PRETEND_NO_STEP, call, what);
}

static void waits(const char *call, bool for_stream)
{
    keep_rules(rules == PRETEND_NO_STEP || (for_stream && rules == PRETEND_DRY_STEP), call, "");
}

/* Naps are counted, not seconds: the process may be stopped meanwhile. */
static void hold_run(void *turn)
{
    for (long naps = 0; released < *(long long *)turn; naps++) {
        CHECK(naps < HOLD_S * (1000000L / REST_US),
              "the host has not enqueued a step in %d s: something in it waits for the device",
              HOLD_S);
        rest_us(REST_US);
    }
}

void pretend_hold(void *stream)
{
    long long *turn = malloc(sizeof *turn);

    CHECK(turn, "no memory for a hold");
    *turn = ++holds;
    pretend_launch(stream, hold_run, turn);
}

void pretend_release(void)
{
    released = holds;
}

/* ---- streams ---- */

static void event_leave(struct device_event *event)
{
    if (atomic_fetch_sub(&event->users, 1) == 1) {
        free(event);
    }
}

/* PRETEND_SLOW_COPY=BYTES:MS: one of so many bytes or more takes so long between its halves. */
static void copy(unsigned char *to, const unsigned char *from, size_t bytes)
{
    const char *order = getenv("PRETEND_SLOW_COPY");
    size_t least, half = 0;
    int ms;
    if (order && sscanf(order, "%zu:%d", &least, &ms) == 2 && bytes >= least) {
        half = bytes / 2;
        memmove(to, from, half);
        nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000L}, NULL);
    }
    memmove(to + half, from + half, bytes - half);
}

static void work_run(const struct work *work)
{
    switch (work->kind) {
    case WORK_COPY:
        copy(work->dst, work->src, work->bytes);
        break;
    case WORK_FILL:
        memset(work->dst, (int)work->value, work->bytes);
        break;
    case WORK_WRITE:
        __atomic_store_n((uint32_t *)work->dst, work->value, __ATOMIC_RELEASE);
        break;
    case WORK_WAIT:
        while ((int32_t)(__atomic_load_n((uint32_t *)work->dst, __ATOMIC_ACQUIRE) - work->value) <
               0) {
            rest_us(POLL_US);
        }
        break;
    case WORK_RECORD:
        work->event->ns = trace_now();
        work->event->done = work->turn;
        event_leave(work->event);
        break;
    case WORK_EVENT:
        while (work->event->done < work->turn) {
            rest_us(POLL_US);
        }
        event_leave(work->event);
        break;
    case WORK_LAUNCH:
        work->run(work->dst);
        free(work->dst);
        break;
    case WORK_END:
        break;
    }
}

static void *stream_main(void *argument)
{
    struct stream *stream = argument;

    for (;;) {
        while (stream->first == stream->end) {
            rest_us(POLL_US);
        }
        struct work *work = &stream->work[stream->first % stream->queue];
        stream->dice = stream->dice * 1664525u + 1013904223u;
        if (stream->dice >> 30 == 0) {
            rest_us(stream->dice >> 8 & (REST_US - 1));
        }
        if (work->kind == WORK_END) {
            return NULL;
        }
        work_run(work);
        stream->first++;
    }
}

static status_t enqueue(void *where, struct work work)
{
    struct stream *stream = where;

    while (stream->end - stream->first == stream->queue) {
        rest_us(POLL_US);
    }
    stream->work[stream->end % stream->queue] = work;
    stream->end++;
    return STATUS_OK;
}

status_t device_stream_create(struct device *device, bool urgent, void **out)
{
    struct stream *stream = calloc(1, sizeof *stream);

    (void)device, (void)urgent;
    pretend_wants_memory("device_stream_create", "");
    CHECK(stream, "no memory for a stream");
    stream->queue = getenv("PRETEND_HOLD") ? LONG : QUEUE;
    stream->work = calloc(stream->queue, sizeof *stream->work);
    CHECK(stream->work, "no memory for a stream");
    stream->dice = (uint32_t)getpid() * 2654435761u;
    CHECK(pthread_create(&stream->thread, NULL, stream_main, stream) == 0, "no thread");
    *out = stream;
    return STATUS_OK;
}

void device_stream_destroy(struct device *device, void *stream)
{
    (void)device;
    if (stream) {
        pretend_wants_memory("device_stream_destroy", "");
        (void)enqueue(stream, (struct work){.kind = WORK_END});
        pthread_join(((struct stream *)stream)->thread, NULL);
        free(((struct stream *)stream)->work);
        free(stream);
    }
}

status_t device_stream_sync(struct device *device, void *where)
{
    struct stream *stream = where;

    (void)device;
    waits("device_stream_sync", true);
    while (stream->first < stream->end) {
        rest_us(POLL_US);
    }
    return STATUS_OK;
}

status_t device_copy(struct device *device, void *dst, const void *src, size_t bytes, void *stream)
{
    (void)device;
    return enqueue(stream,
                   (struct work){.kind = WORK_COPY, .dst = dst, .src = src, .bytes = bytes});
}

status_t device_fill(struct device *device, void *dst, int value, size_t bytes, void *stream)
{
    (void)device;
    return enqueue(
        stream, (struct work){
                    .kind = WORK_FILL, .dst = dst, .value = (unsigned char)value, .bytes = bytes});
}

status_t device_word_write(struct device *device, uint32_t *word, uint32_t value, void *stream)
{
    (void)device;
    return enqueue(stream, (struct work){.kind = WORK_WRITE, .dst = word, .value = value});
}

status_t device_word_wait(struct device *device, uint32_t *word, uint32_t value, void *stream)
{
    (void)device;
    return enqueue(stream, (struct work){.kind = WORK_WAIT, .dst = word, .value = value});
}

status_t device_words_write(struct device *device, const struct device_word *words, int count,
                            void *stream)
{
    for (int i = 0; i < count; i++) {
        TRY(device_word_write(device, words[i].word, words[i].value, stream));
    }
    return STATUS_OK;
}

status_t device_words_wait(struct device *device, const struct device_word *words, int count,
                           void *stream)
{
    for (int i = 0; i < count; i++) {
        TRY(device_word_wait(device, words[i].word, words[i].value, stream));
    }
    return STATUS_OK;
}

void pretend_launch(void *stream, void (*run)(void *arguments), void *arguments)
{
    CHECK(stream, "an operation without a stream");
    (void)enqueue(stream, (struct work){.kind = WORK_LAUNCH, .run = run, .dst = arguments});
}

/* ---- events ---- */

status_t device_event_create(struct device *device, bool timed, struct device_event **out)
{
    (void)device, (void)timed;
    pretend_wants_memory("device_event_create", "");
    *out = calloc(1, sizeof **out);
    CHECK(*out, "no memory for an event");
    (*out)->users = 1;
    return STATUS_OK;
}

void device_event_destroy(struct device *device, struct device_event *event)
{
    (void)device;
    if (event) {
        pretend_wants_memory("device_event_destroy", "");
        event_leave(event);
    }
}

status_t device_event_record(struct device *device, struct device_event *event, void *stream)
{
    (void)device;
    event->users++;
    return enqueue(stream,
                   (struct work){.kind = WORK_RECORD, .event = event, .turn = ++event->recorded});
}

status_t device_event_wait(struct device *device, struct device_event *event, void *stream)
{
    (void)device;
    event->users++;
    return enqueue(stream,
                   (struct work){.kind = WORK_EVENT, .event = event, .turn = event->recorded});
}

status_t device_event_done(struct device *device, struct device_event *event, bool *out)
{
    (void)device;
    *out = event->done == event->recorded;
    return STATUS_OK;
}

status_t device_event_sync(struct device *device, struct device_event *event)
{
    (void)device;
    waits("device_event_sync", false);
    while (event->done < event->recorded) {
        rest_us(POLL_US);
    }
    return STATUS_OK;
}

status_t device_event_elapsed(struct device *device, struct device_event *begin,
                              struct device_event *end, double *out_ms)
{
    (void)device;
    CHECK(begin->done == begin->recorded && end->done == end->recorded, "events under way");
    *out_ms = (double)(end->ns - begin->ns) * 1e-6;
    return STATUS_OK;
}
