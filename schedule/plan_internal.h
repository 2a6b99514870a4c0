/* plan_internal.h - what the files of schedule/ share and nobody else sees.
 *
 *     graph + partition --needs.c--> shipments, who waits where
 *     builder (gpipe.c ...)     --> phases of a stage: F0 F1 B0 K0 W0 ...
 *     passes.c                  --> operations of a rank, with waits, puts, slots and additions
 *     check*.c                 --> proof; they share no code with passes.c on purpose
 */
#ifndef SCHEDULE_PLAN_INTERNAL_H
#define SCHEDULE_PLAN_INTERNAL_H

#include "schedule/schedule.h"

/* ---- graph.c ---- */

/* Refuses graphs that these passes cannot expand: malformed ones are our bug (STATUS_INTERNAL). */
MUST_USE status_t graph_check(const struct graph *graph);
/* A key has a gradient if some unit reads it, not only to make keys that have none. */
bool graph_has_grad(const struct graph *graph, int key);

/* ---- partition.c ---- */

/* Refuses more stages than cuts allow, however they are placed. */
MUST_USE status_t partition_check_stages(const struct graph *graph, int stages);
/* Fills plan->stage[].first_unit and .units as `text` says: "auto", "layers" or "5,4,4,5". */
MUST_USE status_t partition_make(struct plan *plan, const char *text);

/* ---- needs.c ---- */

/* Lookups from (stage, key) at [stage * keys + key]; -1 where there is none. */
struct needs {
    bool *graded;                    /* [keys] has a gradient */
    int *low, *high;                 /* lowest and highest unit of the stage that reads the key */
    int *grad;                       /* some unit of the stage adds to the key's gradient */
    int *formed;                     /* B of some unit of the stage forms it whole */
    int *forward_in;                 /* shipment that brings the key here */
    int *backward_in, *backward_out; /* shipment that brings and takes its gradient's sum */
};
/* Writes plan->shipment (slots still 0) and the lookups. */
MUST_USE status_t needs_create(struct plan *plan, struct needs **out);
void needs_destroy(struct needs *needs);
/* Does the read add to the key's gradient? */
bool needs_adds(const struct needs *needs, const struct read *read);

/* ---- builders ---- */

enum phase_kind { PHASE_F, PHASE_B, PHASE_K, PHASE_W };
struct phase {
    enum phase_kind kind;
    int microbatch;
};
struct phase_list {
    struct phase *phase; /* room for 4 a microbatch */
    int count;
};
void phase_add(struct phase_list *list, enum phase_kind kind, int microbatch);
void phase_add_backward(struct phase_list *list, int microbatch); /* B, K, W */

struct builder {
    const char *name;
    bool training;
    int (*frames)(int stages, int stage, int microbatches);
    void (*build)(int stages, int stage, int microbatches, struct phase_list *out);
};
extern const struct builder gpipe_builder, one_f_one_b_builder, forward_builder;

/* ---- passes.c ---- */

/* Frames, arrival slots and gradient slots. */
void plan_size_slots(struct plan *plan, const struct needs *needs, const struct builder *builder,
                     int prefetch);
/* Additions of every gradient, then the operations of every rank. */
MUST_USE status_t plan_expand(struct plan *plan, const struct needs *needs,
                              const struct builder *builder);

/* ---- check.c, check_ops.c, check_machine.c ---- */

struct checker {
    const struct plan *plan;
    char *why;
    size_t size;
    bool *graded; /* [keys] has a gradient */
};
/* Writes the sentence and returns false; `index` is the operation's place in the rank's list. */
bool check_refuse(const struct checker *checker, int rank, int index, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* Does the read lead a gradient? Does a unit of the stage read the key? And add to its gradient? Stage
 * of a key's producer. Stage whose sum of the key's gradient reaches stage `to`, the next adding one
 * after it; -1 if none. */
bool check_adds_read(const struct checker *checker, const struct read *read);
bool check_reads(const struct plan *plan, int stage, int key);
bool check_adds_to(const struct checker *checker, int stage, int key);
int check_home(const struct plan *plan, int key);
int check_sum_sender(const struct checker *checker, int to, int key);
/* What is written in the lists; stages and shipments are already proved. */
MUST_USE status_t check_ops(const struct checker *checker);
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

#endif
