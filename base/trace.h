/* trace.h - where the time of a step went: nanoseconds by category, on one rank.
 *
 * Categories never nest: trace_switch closes the running one and opens the next, so that their sum
 * is the elapsed time. One struct trace per rank; not thread-safe (the rank's main thread uses it).
 * A NULL trace makes every call do nothing.
 */
#ifndef BASE_TRACE_H
#define BASE_TRACE_H

#include <stdint.h>

enum trace_category {
    TRACE_OTHER,         /* norms, activations, embedding, loss, bookkeeping */
    TRACE_GEMM,          /* library matrix products */
    TRACE_ATTENTION,     /* softmax attention, forward and backward */
    TRACE_AGGREGATE,     /* dense connections: mixing, dA, key gradients */
    TRACE_OPTIMIZER,     /* gradient norm and AdamW */
    TRACE_WAIT,          /* nothing ready: schedule or peer (the bubble) */
    TRACE_EXPOSED_PLAIN, /* bytes of the newest key, H_i or its gradient on the wire */
    TRACE_EXPOSED_DENSE, /* bytes of any other shipment on the wire */
    TRACE_COLLECTIVE,    /* until what replicas exchange is there */
    TRACE_TENSOR,        /* until what ranks that compute a stage together exchange is there */
    TRACE_CATEGORIES
};

struct trace {
    int64_t ns[TRACE_CATEGORIES];
    int64_t last; /* monotonic ns at the last switch */
    enum trace_category current;
};

int64_t trace_now(void); /* CLOCK_MONOTONIC, ns */
const char *trace_category_name(enum trace_category category);
void trace_reset(struct trace *trace); /* zeroes the sums; TRACE_OTHER runs from now on */
/* Closes the running category and opens `next`; returns the one that was running. */
enum trace_category trace_switch(struct trace *trace, enum trace_category next);
/* Moves `ns` from one category's sum to another's (a wait split after the fact). */
void trace_move(struct trace *trace, enum trace_category from, enum trace_category to, int64_t ns);

#endif
