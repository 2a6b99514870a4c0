#include "tools/check_report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

double check_error(const float *value, const float *reference, int64_t count)
{
    double difference = 0, largest = 0;
    for (int64_t i = 0; i < count; i++) {
        double off = fabs((double)value[i] - (double)reference[i]);
        if (!isfinite(off)) {
            return INFINITY;
        }
        difference = fmax(difference, off);
        largest = fmax(largest, fabs((double)reference[i]));
    }
    return largest > 0 ? difference / largest : difference;
}

status_t check_report_create(int items, struct check_report *out)
{
    out->items = items;
    out->error = malloc((size_t)items * sizeof *out->error);
    out->limit = calloc((size_t)items, sizeof *out->limit);
    out->name = calloc((size_t)items, sizeof *out->name);
    if (!out->error || !out->limit || !out->name) {
        return FAIL(STATUS_NOMEM, "no memory to compare %d tensors", items);
    }
    for (int i = 0; i < items; i++) {
        out->error[i] = -1;
    }
    return STATUS_OK;
}

void check_report_free(struct check_report *report)
{
    free(report->error);
    free(report->limit);
    free(report->name);
}

status_t check_report_merge(struct check_report *report, struct group *group)
{
    size_t items = (size_t)report->items;
    double *all = malloc((size_t)group_size(group) * items * sizeof *all);
    if (!all) {
        return FAIL(STATUS_NOMEM, "no memory to compare %d tensors", report->items);
    }
    status_t status = group_allgather(group, report->error, items * sizeof *all, all);
    for (size_t i = 0; status == STATUS_OK && i < items; i++) {
        for (int rank = 0; rank < group_size(group); rank++) {
            report->error[i] = fmax(report->error[i], all[(size_t)rank * items + i]);
        }
    }
    free(all);
    return status;
}

void check_report_worst(const struct check_report *report, char *buffer, size_t size)
{
    int worst = 0;
    for (int i = 1; i < report->items; i++) {
        if (report->error[i] / report->limit[i] > report->error[worst] / report->limit[worst]) {
            worst = i;
        }
    }
    snprintf(buffer, size, "%s %.3g of %.2g", report->name[worst], report->error[worst],
             report->limit[worst]);
}

status_t check_report_finish(struct check_report *report, struct group *group, const char *folder)
{
    int failed = 0;
    TRY(check_report_merge(report, group));
    for (int i = 0; i < report->items; i++) {
        bool good = report->error[i] >= 0 && report->error[i] <= report->limit[i];
        failed += !good;
        if (group_rank(group) == 0) {
            printf("%-44s %10.3g  (limit %.2g)%s\n", report->name[i], report->error[i],
                   report->limit[i], good ? "" : "  FAILED");
        }
    }
    if (failed > 0) {
        if (group_rank(group) == 0) {
            fflush(stdout); /* the lines above stand above the message */
            (void)FAIL(STATUS_MISMATCH, "%s: %d of %d comparisons are over their limit", folder,
                       failed, report->items);
        }
        return STATUS_MISMATCH;
    }
    return STATUS_OK;
}
