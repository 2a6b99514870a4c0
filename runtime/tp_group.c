/* tp_group.c - exchanges of tensor parallelism over collectives (tp_group.h). */
#include "runtime/tp_group.h"

#include <stdlib.h>

struct tp_group {
    struct group *group;
    struct collective *collective;
    struct trace *trace;
    size_t *counts;               /* [ranks] scratch */
    int64_t number[TP_UNDER_WAY]; /* of exchanges begun and not ended, in turn */
    int64_t begun, ended;
    const struct tp_watch *watch;
    status_t failed;
};

status_t tp_group_create(const struct tp_group_options *options, struct tp_group **out)
{
    struct group *group = options->group;
    *out = NULL;
    if (!group) {
        return STATUS_OK;
    }
    struct tp_group *tp = calloc(1, sizeof *tp);
    if (tp) {
        *tp = (struct tp_group){.group = group, .trace = options->trace};
        tp->counts = calloc((size_t)group_size(group), sizeof *tp->counts);
    }
    const struct collective_options collective = {.under_way = TP_UNDER_WAY,
                                                  .device = options->device,
                                                  .stream = options->stream,
                                                  .carrier = options->carrier,
                                                  .whose = "ranks of a stage"};
    status_t status = group_agree(
        group, tp && tp->counts ? STATUS_OK
                                : FAIL(STATUS_NOMEM, "no memory for the exchanges of %d ranks",
                                       group_size(group)));
    if (status == STATUS_OK) {
        status = collective_create(group, &collective, &tp->collective);
    }
    if (status != STATUS_OK) {
        tp_group_destroy(tp);
        return status;
    }
    *out = tp;
    return STATUS_OK;
}

void tp_group_destroy(struct tp_group *tp)
{
    if (tp) {
        collective_destroy(tp->collective);
        free(tp->counts);
        free(tp);
    }
}

/* ---- what a part calls ---- */

static void begin(struct tp_group *tp, const struct collective_call *call)
{
    CHECK(tp->begun - tp->ended < TP_UNDER_WAY, "%d exchanges under way", TP_UNDER_WAY);
    int64_t *number = &tp->number[tp->begun % TP_UNDER_WAY];
    tp->begun++;
    if (tp->failed == STATUS_OK) {
        enum trace_category before = trace_switch(tp->trace, TRACE_TENSOR);
        tp->failed = collective_start(tp->collective, call, number);
        trace_switch(tp->trace, before);
    }
}

static void end(void *arg)
{
    struct tp_group *tp = arg;
    CHECK(tp->ended < tp->begun, "no exchange under way");
    int64_t number = tp->number[tp->ended % TP_UNDER_WAY];
    tp->ended++;
    if (tp->failed == STATUS_OK && tp->watch) {
        tp->failed = tp->watch->begin(tp->watch->arg);
    }
    if (tp->failed == STATUS_OK) {
        enum trace_category before = trace_switch(tp->trace, TRACE_TENSOR);
        tp->failed = collective_wait(tp->collective, number);
        trace_switch(tp->trace, before);
    }
    if (tp->failed == STATUS_OK && tp->watch) {
        tp->failed = tp->watch->end(tp->watch->arg);
    }
}

static void set_counts(struct tp_group *tp, size_t count)
{
    for (int r = 0; r < group_size(tp->group); r++) {
        tp->counts[r] = count;
    }
}

static void gather(void *arg, const void *in, void *out, size_t count, size_t element)
{
    struct tp_group *tp = arg;
    set_counts(tp, count);
    begin(tp, &(struct collective_call){.kind = COLLECTIVE_ALL_GATHER,
                                        .counts = tp->counts,
                                        .element = element,
                                        .in = in,
                                        .out = out});
}

static void scatter(void *arg, void *inout, size_t count, enum dtype dtype)
{
    struct tp_group *tp = arg;
    size_t before = (size_t)group_rank(tp->group) * count * dtype_size(dtype);
    set_counts(tp, count);
    begin(tp, &(struct collective_call){.kind = COLLECTIVE_REDUCE_SCATTER,
                                        .counts = tp->counts,
                                        .element = dtype_size(dtype),
                                        .bf16 = dtype == DTYPE_BF16,
                                        .out = (unsigned char *)inout + before});
}

/* Each rank adds up a part of the values. */
static void sum_counts(const struct tp_group *tp, size_t count)
{
    size_t ranks = (size_t)group_size(tp->group);
    for (size_t r = 0; r < ranks; r++) {
        tp->counts[r] = count / ranks + (r < count % ranks);
    }
}

static void sum(void *arg, void *inout, size_t count, enum dtype dtype)
{
    struct tp_group *tp = arg;
    sum_counts(tp, count);
    begin(tp, &(struct collective_call){.kind = COLLECTIVE_ALL_REDUCE,
                                        .counts = tp->counts,
                                        .element = dtype_size(dtype),
                                        .bf16 = dtype == DTYPE_BF16,
                                        .out = inout});
}

struct tp_exchange tp_group_exchange(struct tp_group *tp)
{
    return tp ? (struct tp_exchange){gather, scatter, sum, end, tp} : (struct tp_exchange){0};
}

/* ---- what others ask ---- */

void tp_group_watch(struct tp_group *tp, const struct tp_watch *watch)
{
    if (tp) {
        tp->watch = watch;
    }
}

status_t tp_group_status(const struct tp_group *tp)
{
    return tp ? tp->failed : STATUS_OK;
}

const char *tp_group_carrier(const struct tp_group *tp)
{
    return tp ? collective_carrier(tp->collective) : "";
}

int64_t tp_group_pinned_bytes(const struct tp_group *tp)
{
    return tp ? (int64_t)collective_pinned_bytes(tp->collective) : 0;
}

int64_t tp_group_bytes(const struct tp_group *tp)
{
    return tp ? collective_bytes(tp->collective) : 0;
}

int64_t tp_group_step_bytes(const struct tp_group *tp, const struct part *part,
                            const struct model *model, int microbatches)
{
    int64_t bytes = 0;
    for (int u = 0; tp && u < model->graph.units; u++) {
        struct tp_bytes unit;
        if (!part_owns(part, model->unit_param[u])) {
            continue;
        }
        model_tp_bytes(model, u, group_rank(tp->group), &unit);
        bytes += microbatches * (unit.forward + unit.backward + unit.weight);
        struct collective_call call = {
            .kind = COLLECTIVE_ALL_REDUCE, .counts = tp->counts, .element = sizeof(float)};
        sum_counts(tp, part_sum_count(part, u));
        bytes += collective_call_bytes(&call, group_rank(tp->group), group_size(tp->group));
    }
    return bytes;
}
