/* tp_group.h - private to runtime/: the ranks that compute every unit of a stage together (parallel.tp), as the
 * functions that a part of the model exchanges rows by (model.h), and what else is put together from them.
 */
#ifndef RUNTIME_TP_GROUP_H
#define RUNTIME_TP_GROUP_H

#include "comm/comm.h"
#include "model/model.h"

struct tp_group;

struct tp_group_options {
    struct group *group;   /* NULL: one rank */
    struct device *device; /* of the part; NULL = the host */
    void *stream;
    const char *carrier; /* collective_options */
    struct trace *trace; /* time until rows are there is TRACE_TENSOR; may be NULL */
};

/* NULL where there is one rank. Collective. */
MUST_USE status_t tp_group_create(const struct tp_group_options *options, struct tp_group **out);
void tp_group_destroy(struct tp_group *tp);
/* For part_options; zeros of NULL. */
struct tp_exchange tp_group_exchange(struct tp_group *tp);
/* Called around every wait for an exchange from now on; NULL: no more. A failure is one of the exchange. */
struct tp_watch {
    status_t (*begin)(void *arg);
    status_t (*end)(void *arg);
    void *arg;
};
void tp_group_watch(struct tp_group *tp, const struct tp_watch *watch);
/* What the first exchange that failed said: what came after it is garbage. */
MUST_USE status_t tp_group_status(const struct tp_group *tp);
/* "nccl" or "host"; "" of NULL. */
const char *tp_group_carrier(const struct tp_group *tp);
/* Of the host's memory, beside a GPU. */
int64_t tp_group_pinned_bytes(const struct tp_group *tp);
/* Payload received so far. */
int64_t tp_group_bytes(const struct tp_group *tp);
/* What a rank receives in a step: so many microbatches of its units, and the sums of gradients at their end. */
int64_t tp_group_step_bytes(const struct tp_group *tp, const struct part *part,
                            const struct model *model, int microbatches);

#endif
