/* store.h - private to model/: the values of some parameters, each a place in one arena.
 *
 * Kinds of values (model.h has enum store_kind) have the same offsets in memory of their own: the i-th
 * parameter begins at element offset[i] of each. In bf16 operations read rounded copies, made anew whenever
 * the weights change; a store that does not train has these copies alone.
 *
 * With several shares (model_use.shares) the moments, and in bf16 the float32 weights, are those of this store's
 * share: of the memory of each unit, parameters and room between them, so much in a row.
 *
 *     unit      [ W1 .......... | W2 ....... | scale ]
 *     shares    [ 0       | 1        | 2             ]
 *
 * With tensor parallelism a store has param->local elements of each parameter. Those whose gradients are added
 * up over the parts lie behind the others of their unit: what is added up is then one run.
 */
#ifndef MODEL_STORE_H
#define MODEL_STORE_H

#include "base/arena.h"
#include "model/model.h"

/* What is this store's share of a parameter. */
struct store_own {
    size_t begin, count; /* elements of the parameter */
    size_t offset;       /* of `begin` in the memory of a kind that is shared */
};

struct store {
    const struct model *model;
    struct device *device; /* NULL = the host */
    void *stream;
    int *param, params;         /* [params] numbers in the model's table, ascending */
    size_t *offset;             /* [params + 1] elements */
    struct store_own *own;      /* [params] */
    size_t own_total;           /* elements of a kind that is shared, room included */
    int share;                  /* of model->shares */
    int tp_rank;                /* of model->tp */
    int *place;                 /* [model->params] where in `param`; -1: not here */
    float *values[STORE_KINDS]; /* NULL where there are none */
    void *read; /* as operations read them: the weights themselves, or rounded copies */
    struct arena arena;
};

/* Elements from a parameter's start to the next one's. */
size_t store_room(const struct model *model, int param);

/* Elements that each share has of a unit's memory. */
size_t store_share_room(const struct model *model, int unit);
/* Elements of a unit's memory: those of its parameters, and what makes all shares equal. */
size_t store_unit_room(const struct model *model, int unit);

/* With tensor parallelism: elements of a unit's memory whose gradients are added up and that are of this share, and the
 * first of them, from the unit's first on; room between them included. */
size_t store_sum_run(const struct model *model, int unit, int share, size_t *out_begin);

/* model, device, stream, share, tp_rank, param and params are set; param is the store's from then on. */
MUST_USE status_t store_create(struct store *store, bool training);
void store_destroy(struct store *store);
bool store_owns(const struct store *store, int param);
/* Elements in all, room between parameters included. */
size_t store_total(const struct store *store);
size_t store_kind_total(const struct store *store, enum store_kind kind);
/* Does the store have its share alone of this kind? */
bool store_is_shared(const struct store *store, enum store_kind kind);
/* The share of this store; what is not shared has it too. Of what other parts of tensor parallelism have as well, too. */
struct slice store_own(const struct store *store, enum store_kind kind, int param);
/* Where a slice begins, which of a shared kind must be within store_own. */
float *store_slice(const struct store *store, const struct slice *slice);
float *store_values(const struct store *store, enum store_kind kind, int param); /* all of them */
/* As operations read it. */
void *store_read(const struct store *store, int param);
/* Do operations read rounded copies? */
bool store_rounds(const struct store *store);

#endif
