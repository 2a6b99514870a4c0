/* check_report.h - private to `muddpipe check`: comparing with a reference and telling the outcome. */
#ifndef TOOLS_CHECK_REPORT_H
#define TOOLS_CHECK_REPORT_H

#include <stdint.h>

#include "comm/comm.h"

/* One compared tensor: max|a - b| / max|b|, or max|a| where the reference is all zero. NaN counts as
 * infinite. */
double check_error(const float *value, const float *reference, int64_t count);

/* Errors by item: this rank fills what it has (others stay negative), then everybody gets all. */
struct check_report {
    int items;
    double *error;     /* [items]; < 0: not looked at by this rank */
    double *limit;     /* [items] */
    const char **name; /* [items], borrowed */
};
MUST_USE status_t check_report_create(int items, struct check_report *out);
void check_report_free(struct check_report *report);
/* The errors of all ranks, on each. */
MUST_USE status_t check_report_merge(struct check_report *report, struct group *group);
/* Merges; rank 0 prints. STATUS_MISMATCH on every rank if an item is over its limit or was looked at by
 * nobody; `folder` is named then. */
MUST_USE status_t check_report_finish(struct check_report *report, struct group *group,
                                      const char *folder);
/* The item that comes nearest to its limit: "logits 3.4e-07 of 1e-05". Of a merged report. */
void check_report_worst(const struct check_report *report, char *buffer, size_t size);

#endif
