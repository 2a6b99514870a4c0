/* trace.c - one clock, one running category. */
#include "base/trace.h"

#include <stddef.h>
#include <time.h>

static const char *const names[TRACE_CATEGORIES] = {
    [TRACE_OTHER] = "other",
    [TRACE_GEMM] = "gemm",
    [TRACE_ATTENTION] = "attention",
    [TRACE_AGGREGATE] = "aggregate",
    [TRACE_OPTIMIZER] = "optimizer",
    [TRACE_WAIT] = "wait",
    [TRACE_EXPOSED_PLAIN] = "exposed_plain",
    [TRACE_EXPOSED_DENSE] = "exposed_dense",
    [TRACE_COLLECTIVE] = "collective",
    [TRACE_TENSOR] = "tensor parallel",
};

int64_t trace_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

const char *trace_category_name(enum trace_category category)
{
    return (unsigned)category < TRACE_CATEGORIES ? names[category] : "unknown";
}

void trace_reset(struct trace *trace)
{
    if (trace != NULL) {
        *trace = (struct trace){.last = trace_now(), .current = TRACE_OTHER};
    }
}

enum trace_category trace_switch(struct trace *trace, enum trace_category next)
{
    if (trace == NULL) {
        return TRACE_OTHER;
    }
    int64_t now = trace_now();
    enum trace_category before = trace->current;
    trace->ns[before] += now - trace->last;
    trace->last = now;
    trace->current = next;
    return before;
}

void trace_move(struct trace *trace, enum trace_category from, enum trace_category to, int64_t ns)
{
    if (trace != NULL) {
        trace->ns[from] -= ns;
        trace->ns[to] += ns;
    }
}
