/* timeline.c - records spans, and lays the device's clock on the host's. */
#include "base/timeline.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/trace.h"

enum { TRIES = 32, TITLE = 64 };
static const int64_t event_resolution = 500; /* ns, of the CUDA runtime */

/* A moment on both clocks: the event came to pass between the two readings. */
struct anchor {
    struct device_event *event;
    int64_t earliest, latest;
};

struct track {
    void *stream;
    char title[TITLE];
    bool fed;
};

struct timeline {
    struct device *device; /* NULL: the host */
    struct timeline_span *span;
    struct device_event **pool; /* [2 * room] */
    size_t room, count;
    struct track track[TIMELINE_TRACKS];
    int tracks;
    int open[TIMELINE_DEPTH]; /* spans begun and not ended; -1: not recorded */
    int depth;
    bool full, broken;
    void *stream;               /* of the anchors */
    struct device_event *spare; /* for the next try of an anchor */
    struct anchor first, last;
    int64_t error;
};

/* ---- creation ---- */

static status_t create_events(struct timeline *timeline)
{
    struct device *device = timeline->device;
    timeline->pool = calloc(2 * timeline->room, sizeof(struct device_event *));
    if (!timeline->pool) {
        return FAIL(STATUS_NOMEM, "no memory for a timeline of %zu spans", timeline->room);
    }
    for (size_t i = 0; i < 2 * timeline->room; i++) {
        TRY(device_event_create(device, true, &timeline->pool[i]));
    }
    TRY(device_event_create(device, true, &timeline->first.event));
    TRY(device_event_create(device, true, &timeline->last.event));
    TRY(device_event_create(device, true, &timeline->spare));
    return device_stream_create(device, true, &timeline->stream);
}

status_t timeline_create(struct device *device, size_t spans, struct timeline **out)
{
    struct timeline *timeline = calloc(1, sizeof *timeline);
    if (!timeline) {
        return FAIL(STATUS_NOMEM, "no memory for a timeline");
    }
    timeline->room = spans;
    timeline->device = device && device_kind(device) != DEVICE_HOST ? device : NULL;
    timeline->span = calloc(spans, sizeof *timeline->span);
    status_t status = timeline->span
                          ? STATUS_OK
                          : FAIL(STATUS_NOMEM, "no memory for a timeline of %zu spans", spans);
    if (status == STATUS_OK && timeline->device) {
        status = create_events(timeline);
    }
    if (status != STATUS_OK) {
        timeline_destroy(timeline);
        return status;
    }
    *out = timeline;
    return STATUS_OK;
}

void timeline_destroy(struct timeline *timeline)
{
    if (!timeline) {
        return;
    }
    struct device *device = timeline->device;
    if (device) {
        for (size_t i = 0; timeline->pool && i < 2 * timeline->room; i++) {
            device_event_destroy(device, timeline->pool[i]);
        }
        device_event_destroy(device, timeline->first.event);
        device_event_destroy(device, timeline->last.event);
        device_event_destroy(device, timeline->spare);
        device_stream_destroy(device, timeline->stream);
    }
    free(timeline->pool);
    free(timeline->span);
    free(timeline);
}

/* ---- clocks ---- */

/* Asks again and again, for a moment: sleeping would widen the bracket. */
static status_t try_anchor(struct timeline *timeline, struct anchor *out)
{
    bool done = false;
    out->event = timeline->spare;
    out->earliest = trace_now();
    TRY(device_event_record(timeline->device, out->event, timeline->stream));
    while (!done) {
        TRY(device_event_done(timeline->device, out->event, &done));
    }
    out->latest = trace_now();
    return STATUS_OK;
}

static status_t set_anchor(struct timeline *timeline, struct anchor *anchor)
{
    anchor->earliest = 0;
    anchor->latest = INT64_MAX;
    for (int i = 0; i < TRIES; i++) {
        struct anchor mine;
        TRY(try_anchor(timeline, &mine));
        if (mine.latest - mine.earliest < anchor->latest - anchor->earliest) {
            timeline->spare = anchor->event;
            *anchor = mine;
        }
    }
    return STATUS_OK;
}

static int64_t middle(const struct anchor *anchor)
{
    return anchor->earliest + (anchor->latest - anchor->earliest) / 2;
}

static int64_t half_width(const struct anchor *anchor)
{
    return (anchor->latest - anchor->earliest + 1) / 2;
}

/* ---- recording ---- */

status_t timeline_start(struct timeline *timeline)
{
    if (!timeline) {
        return STATUS_OK;
    }
    timeline->count = 0;
    timeline->depth = 0;
    timeline->full = timeline->broken = false;
    return timeline->device ? set_anchor(timeline, &timeline->first) : STATUS_OK;
}

static int track_of(struct timeline *timeline, void *stream)
{
    for (int t = 0; t < timeline->tracks; t++) {
        if (timeline->track[t].stream == stream) {
            return t;
        }
    }
    CHECK(timeline->tracks < TIMELINE_TRACKS, "a timeline has at most %d streams", TIMELINE_TRACKS);
    struct track *track = &timeline->track[timeline->tracks];
    track->stream = stream;
    track->fed = true;
    snprintf(track->title, sizeof track->title, "stream %d", timeline->tracks);
    return timeline->tracks++;
}

void timeline_track(struct timeline *timeline, void *stream, const char *title, bool fed)
{
    if (timeline) {
        struct track *track = &timeline->track[track_of(timeline, stream)];
        snprintf(track->title, sizeof track->title, "%s", title);
        track->fed = fed;
    }
}

/* The span's event; a device that refuses ends the recording, and said why. */
static void mark(struct timeline *timeline, struct timeline_span *span, int which)
{
    if (timeline->device && !timeline->broken &&
        device_event_record(timeline->device, span->event[which],
                            timeline->track[span->track].stream) != STATUS_OK) {
        timeline->broken = true;
    }
}

/* The innermost open span of the track. */
static int parent_of(const struct timeline *timeline, int track)
{
    for (int d = timeline->depth - 1; d >= 0; d--) {
        int span = timeline->open[d];
        if (span >= 0 && timeline->span[span].track == track) {
            return span;
        }
    }
    return -1;
}

static bool has_room(struct timeline *timeline)
{
    if (timeline->count < timeline->room) {
        return true;
    }
    if (!timeline->full) {
        timeline->full = true;
        log_warn("the timeline is full after %zu operations: what follows is not in it (profile "
                 "fewer steps)",
                 timeline->room);
    }
    return false;
}

void timeline_begin(struct timeline *timeline, void *stream, const char *name, const char *category)
{
    if (!timeline) {
        return;
    }
    CHECK(timeline->depth < TIMELINE_DEPTH, "spans of a timeline nest at most %d deep",
          TIMELINE_DEPTH);
    if (timeline->broken || !has_room(timeline)) {
        timeline->open[timeline->depth++] = -1;
        return;
    }
    size_t at = timeline->count++;
    struct timeline_span *span = &timeline->span[at];
    int track = track_of(timeline, stream);
    *span = (struct timeline_span){
        .name = name, .category = category, .track = track, .parent = parent_of(timeline, track)};
    if (span->parent >= 0) {
        timeline->span[span->parent].outer = true;
    }
    if (timeline->device) {
        span->event[0] = timeline->pool[2 * at];
        span->event[1] = timeline->pool[2 * at + 1];
    }
    timeline->open[timeline->depth++] = (int)at;
    span->host_begin = trace_now();
    mark(timeline, span, 0);
}

void timeline_note(struct timeline *timeline, const char *fmt, ...)
{
    int span = timeline && timeline->depth > 0 ? timeline->open[timeline->depth - 1] : -1;
    if (span >= 0) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(timeline->span[span].note, TIMELINE_NOTE, fmt, args);
        va_end(args);
    }
}

void timeline_end(struct timeline *timeline)
{
    if (!timeline) {
        return;
    }
    CHECK(timeline->depth > 0, "the end of a span that was not begun");
    int at = timeline->open[--timeline->depth];
    if (at >= 0) {
        mark(timeline, &timeline->span[at], 1);
        timeline->span[at].host_end = trace_now();
    }
}

/* ---- times ---- */

/* Of the host's clock; the first anchor's event is where a device's times count from. */
static status_t event_time(struct timeline *timeline, struct device_event *event, double rate,
                           int64_t *out)
{
    double ms;
    TRY(device_event_elapsed(timeline->device, timeline->first.event, event, &ms));
    *out = middle(&timeline->first) + (int64_t)(ms * 1e6 * rate);
    return STATUS_OK;
}

static status_t resolve_device(struct timeline *timeline)
{
    double ms, rate = 1;
    for (size_t i = 0; i < timeline->count; i++) {
        TRY(device_event_sync(timeline->device, timeline->span[i].event[1]));
    }
    TRY(set_anchor(timeline, &timeline->last));
    TRY(device_event_elapsed(timeline->device, timeline->first.event, timeline->last.event, &ms));
    if (ms > 0) {
        rate = (double)(middle(&timeline->last) - middle(&timeline->first)) / (ms * 1e6);
    }
    for (size_t i = 0; i < timeline->count; i++) {
        struct timeline_span *span = &timeline->span[i];
        TRY(event_time(timeline, span->event[0], rate, &span->begin));
        TRY(event_time(timeline, span->event[1], rate, &span->end));
    }
    int64_t first = half_width(&timeline->first), last = half_width(&timeline->last);
    int64_t rounding = (int64_t)(ms * 1e6 * 0x1p-24) + 1; /* the runtime's floats */
    timeline->error = (first > last ? first : last) + event_resolution + rounding;
    return STATUS_OK;
}

status_t timeline_resolve(struct timeline *timeline)
{
    if (!timeline) {
        return STATUS_OK;
    }
    CHECK(timeline->depth == 0, "%d spans were begun and not ended", timeline->depth);
    if (timeline->broken) {
        return FAIL(STATUS_INTERNAL, "the timeline was cut short: the device refused an event");
    }
    if (timeline->device) {
        TRY(resolve_device(timeline));
    }
    for (size_t i = 0; i < timeline->count; i++) {
        struct timeline_span *span = &timeline->span[i];
        if (!timeline->device) {
            span->begin = span->host_begin;
            span->end = span->host_end;
        }
        span->own = span->end - span->begin;
        span->host_own = span->host_end - span->host_begin;
        if (span->parent >= 0) {
            timeline->span[span->parent].own -= span->end - span->begin;
            timeline->span[span->parent].host_own -= span->host_end - span->host_begin;
        }
    }
    return STATUS_OK;
}

/* ---- what was recorded ---- */

int64_t timeline_error(const struct timeline *timeline)
{
    return timeline->error;
}

bool timeline_full(const struct timeline *timeline)
{
    return timeline->full;
}

size_t timeline_count(const struct timeline *timeline)
{
    return timeline->count;
}

const struct timeline_span *timeline_span(const struct timeline *timeline, size_t i)
{
    CHECK(i < timeline->count, "span %zu of %zu", i, timeline->count);
    return &timeline->span[i];
}

bool timeline_fed(const struct timeline *timeline, int track)
{
    return timeline->track[track].fed;
}

int timeline_tracks(const struct timeline *timeline)
{
    return timeline->tracks;
}

const char *timeline_title(const struct timeline *timeline, int track)
{
    return timeline->track[track].title;
}

bool timeline_on_device(const struct timeline *timeline)
{
    return timeline->device != NULL;
}
