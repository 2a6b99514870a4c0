/* timeline_print.c - a timeline as a table and as Chrome Trace JSON.
 *
 * Times in the file are microseconds of CLOCK_MONOTONIC, so that the files of ranks of one host lie on one
 * axis when they are merged.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/timeline.h"

enum { HOST_TRACK = TIMELINE_TRACKS }; /* tid of "host (enqueue)" */

/* ---- table ---- */

static double ms(int64_t ns, int steps)
{
    return (double)ns / 1e6 / (steps > 0 ? steps : 1);
}

struct table {
    const struct timeline *timeline;
    int steps;
    int64_t extent; /* of the track */
    FILE *out;
};

static void print_row(const struct table *table, const char *name, int64_t ns)
{
    fprintf(table->out, "  %-20s %10.3f ms %5.1f%%", name, ms(ns, table->steps),
            table->extent > 0 ? 100 * (double)ns / (double)table->extent : 0.0);
}

/* Operations only where the category has several. */
static void print_category(const struct table *table, const struct timeline_sum *sums, size_t count)
{
    int64_t ns = 0, host = 0, spans = 0;
    for (size_t i = 0; i < count; i++) {
        ns += sums[i].ns;
        host += sums[i].host_ns;
        spans += sums[i].count;
    }
    print_row(table, sums->category, ns);
    fprintf(table->out, " %9.1f times", (double)spans / (table->steps > 0 ? table->steps : 1));
    if (timeline_on_device(table->timeline)) {
        fprintf(table->out, " %10.3f ms of the host", ms(host, table->steps));
    }
    fprintf(table->out, "\n");
    for (size_t i = 0; i < count && count > 1; i++) {
        fprintf(table->out, "    %-32s %10.3f ms\n", sums[i].name, ms(sums[i].ns, table->steps));
    }
}

static status_t print_track(struct table *table, const struct timeline_sum *sums, size_t count)
{
    struct timeline_lead lead;
    int64_t rest;
    TRY(timeline_lead(table->timeline, sums->track, &lead));
    table->extent = rest = lead.extent;
    bool fed = timeline_fed(table->timeline, sums->track);
    fprintf(table->out, "%s: %s%.3f ms a step\n", timeline_title(table->timeline, sums->track),
            fed ? "" : "at work for ",
            ms(fed ? lead.extent : lead.extent - lead.idle, table->steps));
    for (size_t i = 0, next; i < count; i = next) {
        for (next = i; next < count && strcmp(sums[i].category, sums[next].category) == 0; next++) {
            rest -= sums[next].ns;
        }
        print_category(table, &sums[i], next - i);
    }
    if (!fed) {
        fprintf(table->out, "\n");
        return STATUS_OK;
    }
    print_row(table, "(not recorded)", rest > 0 ? rest : 0);
    fprintf(table->out, "\n");
    if (timeline_on_device(table->timeline)) {
        fprintf(table->out,
                "  without work for %.3f ms, in %.3f ms of which the host had not come to enqueue\n"
                "  the next; host ahead by %.3f ms (median), %.3f ms (least)\n",
                ms(lead.idle, table->steps), ms(lead.starved, table->steps), ms(lead.median, 1),
                ms(lead.least, 1));
    }
    return STATUS_OK;
}

status_t timeline_print(const struct timeline *timeline, int steps, FILE *out)
{
    struct timeline_sum *sums;
    struct table table = {.timeline = timeline, .steps = steps, .out = out};
    size_t count;
    status_t status = STATUS_OK;
    TRY(timeline_sums(timeline, &sums, &count));
    for (size_t i = 0, next; i < count && status == STATUS_OK; i = next) {
        for (next = i + 1; next < count && sums[i].track == sums[next].track;) {
            next++;
        }
        status = print_track(&table, &sums[i], next - i);
    }
    free(sums);
    return status;
}

/* ---- Chrome Trace JSON ---- */

static void write_text(const char *text, FILE *out)
{
    fputc('"', out);
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') {
            fprintf(out, "\\%c", *text);
        } else if ((unsigned char)*text < 0x20) {
            fprintf(out, "\\u%04x", (unsigned)*text);
        } else {
            fputc(*text, out);
        }
    }
    fputc('"', out);
}

/* A line of metadata: {"args":{KEY: text or number}}. */
static void write_meta(const char *what, int rank, int tid, const char *text, int number, FILE *out)
{
    fprintf(out, "{\"ph\":\"M\",\"name\":\"%s\",\"pid\":%d,\"tid\":%d,\"args\":{", what, rank, tid);
    if (text) {
        fprintf(out, "\"name\":");
        write_text(text, out);
    } else {
        fprintf(out, "\"sort_index\":%d", number);
    }
    fprintf(out, "}},\n");
}

static void write_track(int rank, int tid, const char *title, FILE *out)
{
    write_meta("thread_name", rank, tid, title, 0, out);
    write_meta("thread_sort_index", rank, tid, NULL, tid == HOST_TRACK ? -1 : tid, out);
}

static void write_event(const struct timeline_span *span, int rank, bool host, FILE *out)
{
    int64_t begin = host ? span->host_begin : span->begin;
    int64_t end = host ? span->host_end : span->end;
    fprintf(out, "{\"ph\":\"X\",\"pid\":%d,\"tid\":%d,\"ts\":%.3f,\"dur\":%.3f,\"name\":", rank,
            host ? HOST_TRACK : span->track, (double)begin / 1e3, (double)(end - begin) / 1e3);
    write_text(span->name, out);
    fprintf(out, ",\"cat\":");
    write_text(span->category, out);
    if (span->note[0]) {
        fprintf(out, ",\"args\":{\"note\":");
        write_text(span->note, out);
        fputc('}', out);
    }
    fputc('}', out);
}

static void write_sums(const struct timeline *timeline, const struct timeline_sum *sums,
                       size_t count, FILE *out)
{
    fprintf(out, "\"sums\":[");
    for (size_t i = 0; i < count; i++) {
        fprintf(out, "%s\n{\"track\":", i > 0 ? "," : "");
        write_text(timeline_title(timeline, sums[i].track), out);
        fprintf(out, ",\"category\":");
        write_text(sums[i].category, out);
        fprintf(out, ",\"name\":");
        write_text(sums[i].name, out);
        fprintf(out, ",\"count\":%lld,\"ns\":%lld,\"host_ns\":%lld}", (long long)sums[i].count,
                (long long)sums[i].ns, (long long)sums[i].host_ns);
    }
    fprintf(out, "]");
}

static status_t write_leads(const struct timeline *timeline, FILE *out)
{
    fprintf(out, "\"tracks\":[");
    for (int t = 0; t < timeline_tracks(timeline); t++) {
        struct timeline_lead lead;
        TRY(timeline_lead(timeline, t, &lead));
        fprintf(out, "%s\n{\"track\":", t > 0 ? "," : "");
        write_text(timeline_title(timeline, t), out);
        fprintf(out,
                ",\"fed\":%s,\"extent_ns\":%lld,\"idle_ns\":%lld,\"starved_ns\":%lld,"
                "\"lead_median_ns\":%lld,\"lead_least_ns\":%lld}",
                timeline_fed(timeline, t) ? "true" : "false", (long long)lead.extent,
                (long long)lead.idle, (long long)lead.starved, (long long)lead.median,
                (long long)lead.least);
    }
    fprintf(out, "]");
    return STATUS_OK;
}

static status_t write_all(const struct timeline *timeline, const struct timeline_sum *sums,
                          size_t count, int rank, const char *process, int steps, FILE *out)
{
    bool device = timeline_on_device(timeline);
    fprintf(out,
            "{\"displayTimeUnit\":\"ms\",\"rank\":%d,\"steps\":%d,\"device\":%s,"
            "\"complete\":%s,\"error_ns\":%lld,\n",
            rank, steps, device ? "true" : "false", timeline_full(timeline) ? "false" : "true",
            (long long)timeline_error(timeline));
    write_sums(timeline, sums, count, out);
    fprintf(out, ",\n");
    TRY(write_leads(timeline, out));
    fprintf(out, ",\n\"traceEvents\":[\n");
    write_meta("process_name", rank, 0, process, 0, out);
    write_meta("process_sort_index", rank, 0, NULL, rank, out);
    for (int t = 0; t < timeline_tracks(timeline); t++) {
        write_track(rank, t, timeline_title(timeline, t), out);
    }
    if (device) {
        write_track(rank, HOST_TRACK, "host (enqueue)", out);
    }
    for (size_t i = 0; i < timeline_count(timeline); i++) {
        write_event(timeline_span(timeline, i), rank, false, out);
        if (device) {
            fprintf(out, ",\n");
            write_event(timeline_span(timeline, i), rank, true, out);
        }
        fprintf(out, ",\n");
    }
    fprintf(out,
            "{\"ph\":\"M\",\"name\":\"process_labels\",\"pid\":%d,\"args\":{\"labels\":"
            "\"times +- %.1f us\"}}]}\n",
            rank, (double)timeline_error(timeline) / 1e3);
    return STATUS_OK;
}

status_t timeline_write(const struct timeline *timeline, const char *path, int rank,
                        const char *process, int steps)
{
    struct timeline_sum *sums;
    size_t count;
    FILE *out = fopen(path, "w");
    if (!out) {
        return FAIL(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
    }
    status_t status = timeline_sums(timeline, &sums, &count);
    if (status == STATUS_OK) {
        status = write_all(timeline, sums, count, rank, process, steps, out);
        free(sums);
    }
    bool failed = ferror(out) != 0;
    if ((fclose(out) != 0 || failed) && status == STATUS_OK) {
        status = FAIL(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
    }
    return status;
}
