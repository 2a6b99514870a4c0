/* store.c - memory of parameters. */
#include "model/store.h"

#include <stdlib.h>

size_t store_room(const struct model *model, int param)
{
    size_t alignment = ARENA_ALIGN / dtype_size(model->dtype);
    return ((size_t)model->param[param].count + alignment - 1) / alignment * alignment;
}

bool store_rounds(const struct store *store)
{
    return store->model->dtype != DTYPE_F32;
}

size_t store_total(const struct store *store)
{
    return store->offset[store->params];
}

status_t store_create(struct store *store, bool training)
{
    store->offset = calloc((size_t)store->params + 1, sizeof *store->offset);
    store->place = malloc(((size_t)store->model->params + 1) * sizeof *store->place);
    if (!store->offset || !store->place) {
        return FAIL(STATUS_NOMEM, "no memory for a table of %d parameters", store->params);
    }
    for (int p = 0; p < store->model->params; p++) {
        store->place[p] = -1;
    }
    for (int i = 0; i < store->params; i++) {
        store->place[store->param[i]] = i;
        store->offset[i + 1] = store->offset[i] + store_room(store->model, store->param[i]);
    }
    size_t single = store_total(store) * sizeof(float);
    size_t read = store_total(store) * dtype_size(store->model->dtype);
    bool masters = training && store_rounds(store);
    size_t kinds = training ? (size_t)STORE_KINDS - !masters : 0;
    TRY(arena_create_on(&store->arena, store->device, MEMORY_DEVICE, store->stream,
                        read + kinds * single,
                        training ? "parameters and optimizer state" : "parameters"));
    store->read = arena_alloc(&store->arena, read);
    store->values[STORE_WEIGHTS] = store_rounds(store) ? NULL : store->read;
    for (int kind = 0; training && kind < STORE_KINDS; kind++) {
        if (kind != STORE_WEIGHTS || masters) {
            store->values[kind] = arena_alloc(&store->arena, single);
        }
    }
    return STATUS_OK;
}

void store_destroy(struct store *store)
{
    free(store->param);
    free(store->offset);
    free(store->place);
    arena_destroy(&store->arena);
}

bool store_owns(const struct store *store, int param)
{
    return store->place[param] >= 0;
}

float *store_values(const struct store *store, enum store_kind kind, int param)
{
    CHECK(store_owns(store, param), "parameter %d is not of this part", param);
    CHECK(store->values[kind], "this part has no %s of parameter %d", store_kind_name(kind), param);
    return store->values[kind] + store->offset[store->place[param]];
}

void *store_read(const struct store *store, int param)
{
    CHECK(store_owns(store, param), "parameter %d is not of this part", param);
    size_t offset = store->offset[store->place[param]];
    return (unsigned char *)store->read + offset * dtype_size(store->model->dtype);
}

/* ---- slices ---- */

const char *store_kind_name(enum store_kind kind)
{
    static const char *const name[STORE_KINDS] = {[STORE_WEIGHTS] = "weights",
                                                  [STORE_GRADIENTS] = "gradients",
                                                  [STORE_FIRST_MOMENT] = "first_moment",
                                                  [STORE_SECOND_MOMENT] = "second_moment"};
    return name[kind];
}

struct slice slice_whole(const struct model *model, enum store_kind kind, int param)
{
    return (struct slice){kind, param, 0, model->param[param].count};
}
