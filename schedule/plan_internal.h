/* plan_internal.h - what the files of schedule/ share and nobody else sees.
 *
 *     design.c                  --> runs the following in their order
 *     builder (gpipe.c ...)     --> placement of stages; phases of a rank: F0 F1 B0 K0 W0 ...
 *     graph + partition --needs.c--> shipments, who waits where, where sums are formed
 *     rings.c                   --> how many slots everything needs, from the phases
 *     passes.c                  --> operations of a rank, with waits, puts, slots and additions
 *     replicas.c                --> what replicas do together
 *     credits.c                 --> more slots where messages in one queue would stand still
 *     deadlines.c               --> the order in which a rank's messages are needed
 *     check*.c                  --> proof; they share no code with the passes on purpose
 */
#ifndef SCHEDULE_PLAN_INTERNAL_H
#define SCHEDULE_PLAN_INTERNAL_H

#include "schedule/schedule.h"
#include "schedule/schedules.h"

/* ---- graph.c ---- */

/* Refuses graphs that these passes cannot expand: malformed ones are our bug (STATUS_INTERNAL). */
MUST_USE status_t graph_check(const struct graph *graph);
/* A key has a gradient if some unit reads it, not only to make keys that have none. */
bool graph_has_grad(const struct graph *graph, int key);

/* ---- plan.c ---- */

/* Tables of the stages and ranks; plan_destroy frees them, also after a failure. */
MUST_USE status_t plan_alloc(struct plan *plan);

/* ---- partition.c ---- */

/* Refuses more stages than cuts allow, however they are placed. */
MUST_USE status_t partition_check_stages(const struct graph *graph, int stages, int ranks);
/* Fills plan->stage[].unit and .units and stage_of as `text` says: "auto", "layers" or "5,4,4,5". */
MUST_USE status_t partition_make(struct plan *plan, const char *text);

/* ---- builders ---- */

struct phase_list {
    struct phase *phase;
    int count, capacity;
};
void phase_add(struct phase_list *list, enum phase_kind kind, int stage, int microbatch);
void phase_add_backward(struct phase_list *list, int stage, int microbatch); /* B, K, W */

struct schedule_text;

/* What a builder knows. */
struct layout {
    int ranks, stages, microbatches;
    int chunks;    /* stages a rank */
    int in_flight; /* of builders that may: microbatches in flight for each stage behind, beside one */
    int (*rank_of)(const struct layout *layout, int stage);
    int in_group; /* forward.c: microbatches that pass a stage before the rank turns to its next one */
    const struct schedule_text *text; /* of the file, or NULL */
};

/* A schedule: which rank hosts which stage, and in which order a rank runs its phases. Microbatches
 * ascend in each kind of phase of a stage, and K of a microbatch comes before its W. */
struct builder {
    const char *name;
    bool training;
    bool delays_weights;     /* there may be several microbatches between a B and its W */
    bool in_flight;          /* heeds layout.in_flight */
    int chunks, most_chunks; /* stages a rank: by default, at most */
    int (*rank_of)(const struct layout *layout, int stage);
    void (*build)(const struct layout *layout, int rank, struct phase_list *out);
};
/* A schedule is a file and a row in schedules.h: row(gpipe) is gpipe_builder. */
#define BUILDER_DECLARE_(row) extern const struct builder row##_builder;
SCHEDULES(BUILDER_DECLARE_)

/* Placements: stage s on rank s mod ranks; there and back again, 0 1 2 2 1 0. */
int place_round(const struct layout *layout, int stage);
int place_vee(const struct layout *layout, int stage);

/* ---- from_text.c: a schedule as a text ---- */

struct schedule_text {
    const char *path; /* for messages; borrowed */
    int microbatches, stages, ranks;
    int *rank_of; /* [stages] */
    char partition[1024];
    enum sum_order sum_order;
    bool has_sum_order;      /* false: auto */
    struct phase_list *rank; /* [ranks] */
    int *line;               /* [ranks] of the file */
};
/* Is it the path of one? */
bool schedule_is_file(const char *schedule);
MUST_USE status_t schedule_text_read(const char *path, struct schedule_text **out);
void schedule_text_free(struct schedule_text *text);
/* Phases as in the file; a rank's own stages in turn, all microbatches ascending (replay). */
extern const struct builder text_builder, replay_builder;

/* ---- phases.c: the phases of all ranks ---- */

struct phases {
    struct phase_list *rank; /* [ranks] */
    int *at;                 /* [stages][PHASE_KINDS][microbatches] place in its rank's list */
};
/* Phases that no plan can be made of are a bug, of a file (layout->text) STATUS_INVALID. */
MUST_USE status_t phases_create(const struct plan *plan, const struct builder *builder,
                                const struct layout *layout, struct phases **out);
void phases_destroy(struct phases *phases, int ranks);
int phases_at(const struct phases *phases, const struct plan *plan, enum phase_kind kind, int stage,
              int microbatch);

/* ---- needs.c ---- */

/* Lookups; -1 where there is none. By stage: [stage * keys + key]; by rank: [rank * keys + key]. */
struct needs {
    bool *graded;      /* [keys] has a gradient */
    int *low, *high;   /* by stage: lowest and highest unit that reads the key */
    int *formed;       /* by stage: B of some unit forms the key's gradient whole */
    int *arrives;      /* by rank: shipment that brings the key */
    bool *rereads;     /* by rank: additions to the key's gradient read the key itself */
    int *last_reader;  /* by rank: highest unit of a stage there that reads the key */
    int *backward_in;  /* by stage: shipment that brings the sum of the key's gradient */
    int *backward_out; /* and the one that takes it on */
    int *local_in;     /* by stage: the stage of this rank in whose slot it goes on */
    int *
        partial_in; /* by stage: the stage of this rank whose sum it adds to that, or to a received one */
    int *urgent; /* by stage: the gradient of a plain key that the stage before waits for */
};
/* Writes plan->shipment and plan->sum (slots still 0), stage.sum and stage.partial, and the lookups. */
MUST_USE status_t needs_create(struct plan *plan, struct needs **out);
void needs_destroy(struct needs *needs);
/* Does the read add to the key's gradient? */
bool needs_adds(const struct needs *needs, const struct read *read);

/* ---- rings.c ---- */

/* Frames, backward memories, arrival slots and slots of sums, from the order of the phases. */
MUST_USE status_t plan_size_rings(struct plan *plan, const struct needs *needs,
                                  const struct phases *phases, int prefetch);

/* ---- passes.c ---- */

/* Additions of every gradient, then the operations of every rank; in place of those that there were. */
MUST_USE status_t plan_expand(struct plan *plan, const struct needs *needs,
                              const struct phases *phases);

/* Sets op.together of a rank's list; plan_expand does so for all. */
void plan_group(const struct plan *plan, struct rank_plan *list);

/* ---- deadlines.c ---- */

/* Sets op.order of all puts. */
MUST_USE status_t plan_order_puts(struct plan *plan);

/* ---- replicas.c ---- */

/* Adds what replicas do together to the list of a rank. */
MUST_USE status_t plan_add_replicas(const struct plan *plan, struct rank_plan *list);

/* ---- credits.c ---- */

/* Adds arrival slots where the plan's queues would stand still; then it has to be expanded anew. */
MUST_USE status_t plan_grow_slots(struct plan *plan, bool *out_grown);
/* Adds arrival slots where a rank would wait for one, by the graph's costs. */
MUST_USE status_t plan_quicken_slots(struct plan *plan, bool *out_grown);

/* ---- check.c, check_ops.c, check_machine.c, check_replicas.c ---- */

struct checker {
    const struct plan *plan;
    char *why;
    size_t size;
    bool *graded;    /* [keys] has a gradient */
    int *host;       /* [units] stage */
    int *low, *high; /* [stages * keys] lowest and highest unit of the stage that adds to the key's
                         gradient; -1 */
    int *next; /* [stages * keys] the stage that gets this one's sum of the key's gradient; -1 */
};
/* Writes the sentence and returns false; `index` is the operation's place in the rank's list. */
bool check_refuse(const struct checker *checker, int rank, int index, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* Does the read lead a gradient? Does a unit of the stage read the key? And add to its gradient? Stage
 * of a key's producer. */
bool check_adds_read(const struct checker *checker, const struct read *read);
bool check_reads(const struct plan *plan, int stage, int key);
bool check_adds_to(const struct checker *checker, int stage, int key);
int check_home(const struct checker *checker, int key);
/* Has the stage a part in the key's gradient: by reads, or as its producer? */
bool check_sums(const struct checker *checker, int stage, int key);
/* The stages whose sums this one gets; -1: out_mate's is the sum of its own sum_rank (SUM_PER_RANK),
 * out_relay's the one to which that is added. */
void check_sum_before(const struct checker *checker, int stage, int key, int *out_relay,
                      int *out_mate);
/* What is written in the lists; stages, shipments and sums are already proved. */
MUST_USE status_t check_ops(const struct checker *checker);
/* What replicas do together, in the list of each rank. STATUS_INTERNAL with a sentence, or STATUS_NOMEM. */
MUST_USE status_t check_replicas(const struct checker *checker);
/* Runs all ranks against each other. The plan's operations, fields and counts are already proved.
 * STATUS_INTERNAL with a sentence, or STATUS_NOMEM. */
MUST_USE status_t check_machine(const struct checker *checker);

/* ---- simulate.c ---- */

struct span {
    double start, end;
};
/* plan_simulate that also tells when each operation ran: span[rank][op]; NULL if not wanted. */
MUST_USE status_t simulate_run(const struct plan *plan, struct span *const *span, double *out_busy,
                               double *out_makespan);
/* The same of a plan that is not proved yet: out_stands_still where it deadlocks. */
MUST_USE status_t simulate_times(const struct plan *plan, struct span *const *span,
                                 double *out_makespan, bool *out_stands_still);
/* With more [shipments] slots than the plan has: sets out_held_up [shipments] where a sender waits only
 * because no slot is posted. */
MUST_USE status_t simulate_slots(const struct plan *plan, const int *more, bool *out_held_up);

#endif
