/* timeline_sums.c - what the spans of a timeline add up to. */
#include <stdlib.h>
#include <string.h>

#include "base/timeline.h"

/* ---- by operation ---- */

static bool is_sum_of(const struct timeline_sum *sum, const struct timeline_span *span)
{
    return sum->track == span->track && strcmp(sum->name, span->name) == 0 &&
           strcmp(sum->category, span->category) == 0;
}

/* Of the whole category, on its track. */
static int64_t category_ns(const struct timeline_sum *sums, size_t count,
                           const struct timeline_sum *of)
{
    int64_t ns = 0;
    for (size_t i = 0; i < count; i++) {
        if (sums[i].track == of->track && strcmp(sums[i].category, of->category) == 0) {
            ns += sums[i].ns;
        }
    }
    return ns;
}

struct ranked {
    struct timeline_sum sum;
    int64_t category;
};

static int sign(int64_t difference)
{
    return (difference > 0) - (difference < 0);
}

static int compare(const void *left, const void *right)
{
    const struct ranked *a = left, *b = right;
    if (a->sum.track != b->sum.track) {
        return a->sum.track - b->sum.track;
    }
    int order = sign(b->category - a->category);
    order = order != 0 ? order : strcmp(a->sum.category, b->sum.category);
    order = order != 0 ? order : sign(b->sum.ns - a->sum.ns);
    return order != 0 ? order : strcmp(a->sum.name, b->sum.name);
}

static status_t sort(struct timeline_sum *sums, size_t count)
{
    struct ranked *ranked = calloc(count + 1, sizeof *ranked);
    if (!ranked) {
        return FAIL(STATUS_NOMEM, "no memory to sort %zu sums", count);
    }
    for (size_t i = 0; i < count; i++) {
        ranked[i] = (struct ranked){sums[i], category_ns(sums, count, &sums[i])};
    }
    qsort(ranked, count, sizeof *ranked, compare);
    for (size_t i = 0; i < count; i++) {
        sums[i] = ranked[i].sum;
    }
    free(ranked);
    return STATUS_OK;
}

status_t timeline_sums(const struct timeline *timeline, struct timeline_sum **out,
                       size_t *out_count)
{
    size_t count = 0, room = 0;
    struct timeline_sum *sums = NULL;
    for (size_t i = 0; i < timeline_count(timeline); i++) {
        const struct timeline_span *span = timeline_span(timeline, i);
        size_t s = 0;
        while (s < count && !is_sum_of(&sums[s], span)) {
            s++;
        }
        if (s == room) {
            room = 2 * room + 16;
            struct timeline_sum *grown = realloc(sums, room * sizeof *sums);
            if (!grown) {
                free(sums);
                return FAIL(STATUS_NOMEM, "no memory for %zu sums of a timeline", room);
            }
            sums = grown;
        }
        if (s == count) {
            sums[count++] = (struct timeline_sum){
                .category = span->category, .name = span->name, .track = span->track};
        }
        sums[s].count++;
        sums[s].ns += span->own;
        sums[s].host_ns += span->host_own;
    }
    status_t status = sort(sums, count);
    if (status != STATUS_OK) {
        free(sums);
        return status;
    }
    *out = sums;
    *out_count = count;
    return STATUS_OK;
}

/* ---- the host's lead ---- */

static int ascending(const void *left, const void *right)
{
    const int64_t *a = left, *b = right;
    return sign(*a - *b);
}

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

status_t timeline_lead(const struct timeline *timeline, int track, struct timeline_lead *out)
{
    struct timeline_lead lead = {0};
    size_t count = 0;
    int64_t first = 0, reached = 0; /* everything before `reached` has ended */
    int64_t *leads = calloc(timeline_count(timeline) + 1, sizeof *leads);
    if (!leads) {
        return FAIL(STATUS_NOMEM, "no memory for the leads of a timeline");
    }
    for (size_t i = 0; i < timeline_count(timeline); i++) {
        const struct timeline_span *span = timeline_span(timeline, i);
        if (span->track != track || span->outer) {
            continue;
        }
        if (count == 0) {
            first = reached = span->begin;
        }
        lead.idle += larger(span->begin - reached, 0);
        lead.starved += larger(smaller(span->begin, span->host_begin) - reached, 0);
        reached = larger(reached, span->end);
        leads[count++] = span->begin - span->host_begin;
    }
    if (count > 0) {
        qsort(leads, count, sizeof *leads, ascending);
        lead.extent = reached - first;
        lead.least = leads[0];
        lead.median = leads[count / 2];
    }
    free(leads);
    *out = lead;
    return STATUS_OK;
}
