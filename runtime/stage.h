/* stage.h - private to runtime/: one stage of a plan on this rank, with all its memory and its wire.
 *
 *     arrival[s][slot]    where shipment s (to this rank) lands
 *     gradient[k][slot]   where the gradient of key k is formed: the arrival slot itself where a running
 *                         sum is received, else memory of its own
 */
#ifndef RUNTIME_STAGE_H
#define RUNTIME_STAGE_H

#include <stdatomic.h>

#include "base/arena.h"
#include "runtime/runtime.h"

struct stage_options {
    const struct model *model;
    const struct kernels *kernels;
    struct group *group;
    const char *transport;
    const char *purpose; /* for messages; "" = training steps */
    struct plan_options plan;
    bool training;
    int threads;
    struct trace *trace;
    struct device *device; /* NULL = the host */
    void *stream;
    struct part *weights_of; /* share this part's weights; NULL = own */
};

struct stage {
    const struct model *model;
    struct plan *plan;     /* with all microbatches: what memory was made for */
    struct plan *active;   /* of the walk: the same, or one of `shorter` */
    struct plan **shorter; /* [microbatches] made when first wanted; [m] has m microbatches */
    struct plan_options plan_options;
    struct part *part;
    struct wire *wire; /* NULL with one rank */
    struct group *group;
    struct trace *trace;
    int rank;
    void ***arrival;  /* [shipments][slots] */
    void ***gradient; /* [keys][slots] */
    struct arena memory;
    int64_t arrival_bytes, gradient_bytes; /* used */
    int64_t messages;               /* microbatches walked so far, which number the messages */
    _Atomic(const struct op *) now; /* for the liveness thread */
    const char *purpose;

    trainer_head_fn on_head;
    void *head_arg;
    double *loss; /* [microbatches] sums, on the host after stage_read_loss; the head's rank only */

    struct device *device; /* NULL = the host */
    void *stream;
    double *loss_there; /* the same where the part lives */
    /* [microbatches * B*T] the batch where the part lives; on the host only position is ours. */
    int32_t *inputs, *targets, *first, *position;
    int32_t *positions; /* on the host */
};

/* Everything that the walk calls back for: the norm's exchange and the optimizer. */
struct stage_hooks {
    status_t (*norm)(void *arg);
    status_t (*step)(void *arg);
    void *arg;
};

MUST_USE status_t stage_create(const struct stage_options *options, struct stage **out);
void stage_destroy(struct stage *stage);
/* Walks this rank's operations once. loss_scale multiplies gradients. */
MUST_USE status_t stage_walk(struct stage *stage, const struct batch *batch, float loss_scale,
                             const struct stage_hooks *hooks);
/* Fetches the losses of the last walk into stage->loss. */
MUST_USE status_t stage_read_loss(struct stage *stage);
bool stage_hosts(const struct stage *stage, int unit);
/* Microbatches of the walks from now on, at most those of the plan. */
MUST_USE status_t stage_set_microbatches(struct stage *stage, int microbatches);
/* Compares the wire's counters with the plan after the walks so far. */
MUST_USE status_t stage_check_traffic(const struct stage *stage);

#endif
