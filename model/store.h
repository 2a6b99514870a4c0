/* store.h - private to model/: the values of some parameters, each a place in one arena.
 *
 * Kinds of values (model.h has enum store_kind) have the same offsets in memory of their own: the i-th
 * parameter begins at element offset[i] of each. In bf16 operations read rounded copies, made anew whenever
 * the weights change; a store that does not train has these copies alone.
 */
#ifndef MODEL_STORE_H
#define MODEL_STORE_H

#include "base/arena.h"
#include "model/model.h"

struct store {
    const struct model *model;
    struct device *device; /* NULL = the host */
    void *stream;
    int *param, params;         /* [params] numbers in the model's table, ascending */
    size_t *offset;             /* [params + 1] elements */
    int *place;                 /* [model->params] where in `param`; -1: not here */
    float *values[STORE_KINDS]; /* NULL where there are none */
    void *read; /* as operations read them: the weights themselves, or rounded copies */
    struct arena arena;
};

/* Elements from a parameter's start to the next one's. */
size_t store_room(const struct model *model, int param);

/* model, device, stream, param and params are set; param is the store's from then on. */
MUST_USE status_t store_create(struct store *store, bool training);
void store_destroy(struct store *store);
bool store_owns(const struct store *store, int param);
/* Elements in all, room between parameters included. */
size_t store_total(const struct store *store);
float *store_values(const struct store *store, enum store_kind kind, int param);
/* As operations read it. */
void *store_read(const struct store *store, int param);
/* Do operations read rounded copies? */
bool store_rounds(const struct store *store);

#endif
