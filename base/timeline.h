/* timeline.h - what the streams of a rank did and when, beside what the host did to enqueue it.
 *
 *     timeline_start      once the device is idle: the clock is set, nothing is recorded yet
 *     timeline_begin/end  around everything that is enqueued: the host's time of the call, and two timed
 *                         events of a pool in the stream
 *     timeline_resolve    once the device is idle again: the events become times of the host's clock
 *     timeline_write      Chrome Trace JSON (opens in https://ui.perfetto.dev)
 *
 * Spans nest: an end closes the begin before it, whichever the stream. A recorder belongs to the thread
 * that enqueues. A NULL timeline makes every call do nothing. Nothing here allocates between start and
 * resolve: the pool is made at creation, and once it is used up nothing more is recorded (said once).
 *
 * The host's clock is CLOCK_MONOTONIC. A device's clock is laid on it at two moments, start and resolve:
 * an event is recorded between two readings of the host's clock, several times, and the smallest bracket
 * counts. In between the clocks are taken to run evenly, so that a time is wrong by half the wider of the
 * two brackets at most, plus the resolution of the events: timeline_error says how much.
 *
 * On the host (device NULL or DEVICE_HOST) a span is the execution itself. Events cost about a
 * microsecond each of the host's time and keep kernels from overlapping: a profiled step is a little
 * slower than others.
 */
#ifndef BASE_TIMELINE_H
#define BASE_TIMELINE_H

#include <stdint.h>
#include <stdio.h>

#include "base/device.h"

enum { TIMELINE_NOTE = 40, TIMELINE_TRACKS = 16, TIMELINE_DEPTH = 16 };

struct timeline;

struct timeline_span {
    const char *name, *category;   /* literals */
    char note[TIMELINE_NOTE];      /* "X_3 of microbatch 2"; not part of what sums go by */
    int track, parent;             /* parent: the span it lies in, of the same track; -1 */
    bool outer;                    /* others lie in it */
    int64_t host_begin, host_end;  /* ns: when it was enqueued */
    int64_t begin, end;            /* ns of the host's clock: when it ran; after timeline_resolve */
    int64_t own, host_own;         /* ns without the spans inside it; after timeline_resolve */
    struct device_event *event[2]; /* of the pool; NULL on the host */
};

/* How far the host was ahead of one track, by its innermost spans; after timeline_resolve. */
struct timeline_lead {
    int64_t extent;        /* ns from the first begin to the last end */
    int64_t idle;          /* ns of it in which none ran */
    int64_t starved;       /* ns of idle because the host had not yet come to enqueue the next */
    int64_t least, median; /* ns from the call that enqueued a span to its begin */
};

/* Room for so many spans. */
MUST_USE status_t timeline_create(struct device *device, size_t spans, struct timeline **out);
void timeline_destroy(struct timeline *timeline);
/* Forgets what was recorded. The device should be idle. */
MUST_USE status_t timeline_start(struct timeline *timeline);
/* Names the track of a stream; without it, "stream 0", "stream 1", ... as they are first seen, fed.
 * fed: there is always something for it to do, so that it stands idle if the host comes late. Else (a
 * wire's) only what it did is told. */
void timeline_track(struct timeline *timeline, void *stream, const char *title, bool fed);

void timeline_begin(struct timeline *timeline, void *stream, const char *name,
                    const char *category);
/* Notes something about the span that was begun last. */
void timeline_note(struct timeline *timeline, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void timeline_end(struct timeline *timeline);

/* Waits for what was recorded. */
MUST_USE status_t timeline_resolve(struct timeline *timeline);
int64_t timeline_error(const struct timeline *timeline); /* ns that a time may be wrong by */
bool timeline_full(const struct timeline *timeline);     /* something was left out */
size_t timeline_count(const struct timeline *timeline);
const struct timeline_span *timeline_span(const struct timeline *timeline, size_t i);
int timeline_tracks(const struct timeline *timeline);
const char *timeline_title(const struct timeline *timeline, int track);
bool timeline_fed(const struct timeline *timeline, int track);
bool timeline_on_device(const struct timeline *timeline);

/* ---- what they add up to (timeline_sums.c) and how it is shown (timeline_print.c) ---- */

MUST_USE status_t timeline_lead(const struct timeline *timeline, int track,
                                struct timeline_lead *out);

struct timeline_sum {
    const char *category, *name;
    int track;
    int64_t count, ns, host_ns; /* own times */
};
/* Sums of own times by track, category and name: tracks in order, in each the largest category first;
 * out must be freed. */
MUST_USE status_t timeline_sums(const struct timeline *timeline, struct timeline_sum **out,
                                size_t *out_count);
/* A table of the sums, divided by `steps`. */
MUST_USE status_t timeline_print(const struct timeline *timeline, int steps, FILE *out);
/* One process `rank`, named `process`: a track a stream, and one "host (enqueue)" where the host is
 * not where things run. Sums, leads and the error are in the file too. STATUS_IO. */
MUST_USE status_t timeline_write(const struct timeline *timeline, const char *path, int rank,
                                 const char *process, int steps);

#endif
