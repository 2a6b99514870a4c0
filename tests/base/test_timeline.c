/* test_timeline.c - spans on the host and on a made-up GPU with a clock and queues of its own. */
#include "tests/test.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/device_internal.h"
#include "base/json.h"
#include "base/log.h"
#include "base/timeline.h"
#include "base/trace.h"

/* ---- a GPU whose clock counts from another moment and runs 0.1 % fast ---- */

struct device_event {
    int64_t at; /* host's ns when it comes to pass */
};

static int64_t free_at[2]; /* when the work of a stream will be done */
static int64_t origin;
static int events_refused;

static int64_t stream_time(void *stream)
{
    int64_t now = trace_now(), *end = stream;
    return *end > now ? *end : now;
}

static void enqueue_work(int stream, int64_t ns)
{
    free_at[stream] = stream_time(&free_at[stream]) + ns;
}

static status_t fake_stream_create(struct device *device, bool urgent, void **out)
{
    static int64_t idle;
    (void)device, (void)urgent;
    *out = &idle;
    return STATUS_OK;
}

static void fake_stream_destroy(struct device *device, void *stream)
{
    (void)device, (void)stream;
}

static status_t fake_event_create(struct device *device, bool timed, struct device_event **out)
{
    (void)device;
    assert_true(timed);
    *out = calloc(1, sizeof **out);
    return *out ? STATUS_OK : STATUS_NOMEM;
}

static void fake_event_destroy(struct device *device, struct device_event *event)
{
    (void)device;
    free(event);
}

static status_t fake_event_record(struct device *device, struct device_event *event, void *stream)
{
    (void)device;
    event->at = stream_time(stream);
    return events_refused ? STATUS_INTERNAL : STATUS_OK;
}

static status_t fake_event_done(struct device *device, struct device_event *event, bool *out)
{
    (void)device;
    *out = trace_now() >= event->at;
    return STATUS_OK;
}

static status_t fake_event_sync(struct device *device, struct device_event *event)
{
    bool done = false;
    while (!done) {
        TRY(fake_event_done(device, event, &done));
    }
    return STATUS_OK;
}

static double fake_clock(int64_t at)
{
    return (double)(at - origin) * 1.001 / 1e6 + 12345;
}

static status_t fake_event_elapsed(struct device *device, struct device_event *begin,
                                   struct device_event *end, double *out_ms)
{
    (void)device;
    *out_ms = fake_clock(end->at) - fake_clock(begin->at);
    return STATUS_OK;
}

static struct device *fake_device(void)
{
    static const struct device_ops ops = {
        .stream_create = fake_stream_create,
        .stream_destroy = fake_stream_destroy,
        .event_create = fake_event_create,
        .event_destroy = fake_event_destroy,
        .event_record = fake_event_record,
        .event_done = fake_event_done,
        .event_sync = fake_event_sync,
        .event_elapsed = fake_event_elapsed,
    };
    static struct device device = {.ops = &ops, .kind = DEVICE_CUDA};
    origin = trace_now();
    return &device;
}

static void rest(int64_t ns)
{
    struct timespec time = {.tv_nsec = ns};
    nanosleep(&time, NULL);
}

enum { MS = 1000000 };

/* ---- the host ---- */

static void test_host_spans_nest(void **state)
{
    (void)state;
    struct timeline *timeline;
    struct timeline_sum *sums;
    size_t count;

    assert_int_equal(timeline_create(NULL, 8, &timeline), STATUS_OK);
    assert_int_equal(timeline_start(timeline), STATUS_OK);
    assert_false(timeline_on_device(timeline));
    timeline_begin(timeline, NULL, "unit", "units");
    timeline_begin(timeline, NULL, "gemm", "products");
    rest(3 * MS);
    timeline_end(timeline);
    timeline_begin(timeline, NULL, "gemm", "products");
    rest(2 * MS);
    timeline_end(timeline);
    rest(MS);
    timeline_end(timeline);
    assert_int_equal(timeline_resolve(timeline), STATUS_OK);

    assert_int_equal(timeline_count(timeline), 3);
    const struct timeline_span *outer = timeline_span(timeline, 0);
    assert_int_equal(outer->parent, -1);
    assert_true(outer->outer);
    assert_int_equal(timeline_span(timeline, 2)->parent, 0);
    assert_int_equal(outer->own + timeline_span(timeline, 1)->own + timeline_span(timeline, 2)->own,
                     outer->end - outer->begin);

    assert_int_equal(timeline_sums(timeline, &sums, &count), STATUS_OK);
    assert_int_equal(count, 2);
    assert_string_equal(sums[0].name, "gemm"); /* the larger */
    assert_int_equal(sums[0].count, 2);
    assert_true(sums[0].ns >= 5 * MS);
    assert_true(sums[1].ns >= MS);
    assert_int_equal(sums[1].ns, outer->own);
    free(sums);
    timeline_destroy(timeline);
}

static void test_null_does_nothing(void **state)
{
    (void)state;
    timeline_begin(NULL, NULL, "gemm", "products");
    timeline_note(NULL, "nothing");
    timeline_end(NULL);
    timeline_track(NULL, NULL, "compute", true);
    assert_int_equal(timeline_start(NULL), STATUS_OK);
    assert_int_equal(timeline_resolve(NULL), STATUS_OK);
    timeline_destroy(NULL);
}

/* What is full leaves out whole spans, and a new start has room again. */
static void test_full(void **state)
{
    (void)state;
    struct timeline *timeline;

    assert_int_equal(timeline_create(NULL, 2, &timeline), STATUS_OK);
    for (int round = 0; round < 2; round++) {
        assert_int_equal(timeline_start(timeline), STATUS_OK);
        assert_false(timeline_full(timeline));
        timeline_begin(timeline, NULL, "first", "all");
        timeline_begin(timeline, NULL, "second", "all");
        timeline_begin(timeline, NULL, "third", "all");
        timeline_note(timeline, "is not there");
        timeline_end(timeline);
        timeline_end(timeline);
        timeline_end(timeline);
        assert_true(timeline_full(timeline));
        assert_int_equal(timeline_resolve(timeline), STATUS_OK);
        assert_int_equal(timeline_count(timeline), 2);
        assert_string_equal(timeline_span(timeline, 1)->note, "");
        assert_true(timeline_span(timeline, 0)->end >= timeline_span(timeline, 1)->end);
    }
    timeline_destroy(timeline);
}

/* ---- the made-up GPU ---- */

static void near(const struct timeline *timeline, int64_t time, int64_t truth)
{
    int64_t error = timeline_error(timeline);
    if (time - truth > error || truth - time > error) {
        fail_msg("%lld ns off, more than %lld", (long long)(time - truth), (long long)error);
    }
}

/* A host that enqueues three pieces of 20 ms at once, then rests until the device has been idle. */
static void record_ahead_and_behind(struct timeline *timeline)
{
    void *compute = &free_at[0];
    free_at[0] = free_at[1] = 0;
    timeline_track(timeline, compute, "compute", true);
    for (int i = 0; i < 4; i++) {
        if (i == 3) {
            rest(90 * MS);
        }
        timeline_begin(timeline, compute, "piece", "work");
        timeline_note(timeline, "number %d", i);
        enqueue_work(0, 20 * MS);
        timeline_end(timeline);
    }
}

/* On a busy machine the host may be held up anywhere, which is not what is tested. */
static bool leads_are_right(const struct timeline *timeline)
{
    struct timeline_lead lead;
    assert_int_equal(timeline_lead(timeline, 0, &lead), STATUS_OK);
    assert_true(lead.starved <= lead.idle && lead.least <= lead.median);
    return lead.idle >= 29 * MS && /* 90 - 60, and whatever the sleep took longer */
           lead.starved >= lead.idle - 5 * MS && lead.median >= 19 * MS && lead.median <= 41 * MS &&
           lead.least < 10 * MS;
}

static void test_device_times_are_the_hosts(void **state)
{
    (void)state;
    struct timeline *timeline;
    bool right = false;

    assert_int_equal(timeline_create(fake_device(), 16, &timeline), STATUS_OK);
    for (int try = 0; try < 20 && !right; try++) {
        assert_int_equal(timeline_start(timeline), STATUS_OK);
        record_ahead_and_behind(timeline);
        assert_int_equal(timeline_resolve(timeline), STATUS_OK);
        assert_true(timeline_on_device(timeline));
        assert_true(timeline_error(timeline) > 0);
        for (size_t i = 0; i < 4; i++) {
            const struct timeline_span *span = timeline_span(timeline, i);
            near(timeline, span->begin, span->event[0]->at);
            near(timeline, span->end, span->event[1]->at);
        }
        right = leads_are_right(timeline);
    }
    assert_true(right);
    timeline_destroy(timeline);
}

static void test_device_that_refuses(void **state)
{
    (void)state;
    struct timeline *timeline;
    char words[512];

    assert_int_equal(timeline_create(fake_device(), 4, &timeline), STATUS_OK);
    assert_int_equal(timeline_start(timeline), STATUS_OK);
    events_refused = 1;
    timeline_begin(timeline, &free_at[0], "piece", "work");
    timeline_end(timeline);
    events_refused = 0;
    log_capture(words, sizeof words);
    assert_int_equal(timeline_resolve(timeline), STATUS_INTERNAL);
    log_capture(NULL, 0);
    timeline_destroy(timeline);
}

/* ---- the file ---- */

static const struct json *find_event(const struct json *events, const char *name, int tid)
{
    for (size_t i = 0; i < json_size(events); i++) {
        const struct json *event = json_at(events, i);
        const char *is = json_get_string(json_get(event, "name"));
        int64_t at = -1;
        json_get_int(json_get(event, "tid"), &at);
        if (is && strcmp(is, name) == 0 && at == tid) {
            return event;
        }
    }
    return NULL;
}

static double number(const struct json *object, const char *key)
{
    double value = -1;
    assert_true(json_get_real(json_get(object, key), &value));
    return value;
}

static void test_file_is_json(void **state)
{
    (void)state;
    struct timeline *timeline;
    struct json *trace;
    const char *path = "timeline.json";

    assert_int_equal(timeline_create(fake_device(), 16, &timeline), STATUS_OK);
    assert_int_equal(timeline_start(timeline), STATUS_OK);
    record_ahead_and_behind(timeline);
    timeline_begin(timeline, &free_at[1], "wait \"plain\"\n", "waits");
    timeline_end(timeline);
    assert_int_equal(timeline_resolve(timeline), STATUS_OK);
    assert_int_equal(timeline_write(timeline, path, 3, "rank 3 (a \\ card)", 2), STATUS_OK);

    assert_int_equal(json_load(path, &trace), STATUS_OK);
    const struct json *events = json_get(trace, "traceEvents");
    const struct json *piece = find_event(events, "piece", 0);
    const struct json *enqueued = find_event(events, "piece", 16);
    assert_non_null(piece);
    assert_non_null(enqueued);
    assert_non_null(find_event(events, "wait \"plain\"\n", 1));
    assert_string_equal(json_get_string(json_get(json_get(piece, "args"), "note")), "number 0");
    assert_true(number(piece, "dur") > 19e3); /* us */
    assert_true(number(enqueued, "ts") <= number(piece, "ts") + number(trace, "error_ns") / 1e3);
    assert_true(number(piece, "pid") == 3);
    assert_true(number(trace, "error_ns") > 0);
    const struct json *sums = json_get(trace, "sums");
    assert_int_equal(json_size(sums), 2);
    assert_true(number(json_at(sums, 0), "ns") > 79e6);
    assert_int_equal(json_size(json_get(trace, "tracks")), 2);
    json_free(trace);
    unlink(path);

    char words[512];
    log_capture(words, sizeof words);
    assert_int_equal(timeline_write(timeline, "no/such/folder", 0, "", 1), STATUS_IO);
    log_capture(NULL, 0);
    assert_non_null(strstr(words, "no/such/folder"));
    timeline_destroy(timeline);
}

static void test_table(void **state)
{
    (void)state;
    struct timeline *timeline;
    char text[2048] = "";

    assert_int_equal(timeline_create(fake_device(), 16, &timeline), STATUS_OK);
    assert_int_equal(timeline_start(timeline), STATUS_OK);
    record_ahead_and_behind(timeline);
    assert_int_equal(timeline_resolve(timeline), STATUS_OK);
    FILE *out = fmemopen(text, sizeof text, "w");
    assert_int_equal(timeline_print(timeline, 2, out), STATUS_OK);
    fclose(out);
    assert_non_null(strstr(text, "compute: "));
    assert_non_null(strstr(text, "work"));
    assert_non_null(strstr(text, "40.0")); /* 80 ms in two steps */
    assert_non_null(strstr(text, "host ahead by"));
    timeline_destroy(timeline);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_host_spans_nest),
        cmocka_unit_test(test_null_does_nothing),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_device_times_are_the_hosts),
        cmocka_unit_test(test_device_that_refuses),
        cmocka_unit_test(test_file_is_json),
        cmocka_unit_test(test_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
