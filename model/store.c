/* store.c - memory of parameters. */
#include "model/store.h"

#include <stdlib.h>

size_t store_room(const struct model *model, int param)
{
    size_t alignment = ARENA_ALIGN / dtype_size(model->dtype);
    return ((size_t)model->param[param].local + alignment - 1) / alignment * alignment;
}

size_t store_share_room(const struct model *model, int unit)
{
    size_t room = 0, shares = (size_t)model->shares;
    for (int p = model->unit_param[unit]; p < model->unit_param[unit + 1]; p++) {
        room += store_room(model, p);
    }
    size_t alignment = ARENA_ALIGN / dtype_size(model->dtype);
    size_t each = (room + shares - 1) / shares;
    return (each + alignment - 1) / alignment * alignment;
}

size_t store_unit_room(const struct model *model, int unit)
{
    return store_share_room(model, unit) * (size_t)model->shares;
}

bool store_rounds(const struct store *store)
{
    return store->model->dtype != DTYPE_F32;
}

size_t store_total(const struct store *store)
{
    return store->offset[store->params];
}

bool store_is_shared(const struct store *store, enum store_kind kind)
{
    bool weights = kind == STORE_WEIGHTS && store_rounds(store);
    return store->model->shares > 1 &&
           (weights || kind == STORE_FIRST_MOMENT || kind == STORE_SECOND_MOMENT);
}

size_t store_kind_total(const struct store *store, enum store_kind kind)
{
    return store_is_shared(store, kind) ? store->own_total : store_total(store);
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* The part of parameter i between the elements `begin` and `end` of the store. */
static void find_own(struct store *store, int i, size_t begin, size_t end)
{
    size_t first = store->offset[i];
    const struct model *model = store->model;
    size_t last =
        first + (size_t)param_local(&model->param[store->param[i]], model->tp, store->tp_rank);
    size_t from = begin > first ? smaller(begin, last) : first;
    size_t to = smaller(end, last);
    store->own[i] =
        (struct store_own){.begin = from - first,
                           .count = to > from ? to - from : 0,
                           .offset = store->own_total + (from > begin ? from - begin : 0)};
}

/* Is its gradient added up over the parts of tensor parallelism? Then it lies behind the others of its unit. */
static bool is_behind(const struct model *model, int param)
{
    return model->tp > 1 && model->param[param].summed;
}

size_t store_sum_run(const struct model *model, int unit, int share, size_t *out_begin)
{
    size_t each = store_share_room(model, unit), before = 0, behind = 0;
    for (int p = model->unit_param[unit]; p < model->unit_param[unit + 1]; p++) {
        *(is_behind(model, p) ? &behind : &before) += store_room(model, p);
    }
    size_t begin = (size_t)share * each, end = smaller(begin + each, before + behind);
    *out_begin = begin > before ? begin : before;
    return behind > 0 && end > *out_begin ? end - *out_begin : 0;
}

/* Places for the parameters i .. last - 1 of a unit, from element `first` of the store on. */
static void place_unit(struct store *store, int i, int last, size_t first)
{
    for (int behind = 0; behind < 2; behind++) {
        for (int p = i; p < last; p++) {
            if (is_behind(store->model, store->param[p]) == (behind > 0)) {
                store->offset[p] = first;
                first += store_room(store->model, store->param[p]);
            }
        }
    }
}

static void find_shares(struct store *store)
{
    const struct model *model = store->model;
    size_t first = 0;
    for (int i = 0, last; i < store->params; i = last) {
        int unit = model->param[store->param[i]].unit;
        size_t each = store_share_room(model, unit), begin = first + (size_t)store->share * each;
        for (last = i; last < store->params && model->param[store->param[last]].unit == unit;) {
            last++;
        }
        place_unit(store, i, last, first);
        for (int p = i; p < last; p++) {
            find_own(store, p, begin, begin + each);
        }
        first += each * (size_t)model->shares;
        store->own_total += each;
    }
    store->offset[store->params] = first;
}

static status_t create_tables(struct store *store)
{
    store->offset = calloc((size_t)store->params + 1, sizeof *store->offset);
    store->own = calloc((size_t)store->params + 1, sizeof *store->own);
    store->place = malloc(((size_t)store->model->params + 1) * sizeof *store->place);
    if (!store->offset || !store->own || !store->place) {
        return FAIL(STATUS_NOMEM, "no memory for a table of %d parameters", store->params);
    }
    for (int p = 0; p < store->model->params; p++) {
        store->place[p] = -1;
    }
    for (int i = 0; i < store->params; i++) {
        store->place[store->param[i]] = i;
    }
    find_shares(store);
    return STATUS_OK;
}

/* Has it memory of its own for the kind? */
static bool has_kind(const struct store *store, bool training, enum store_kind kind)
{
    return training && (kind != STORE_WEIGHTS || store_rounds(store));
}

status_t store_create(struct store *store, bool training)
{
    TRY(create_tables(store));
    size_t bytes = store_total(store) * dtype_size(store->model->dtype), read = bytes;
    for (int kind = 0; kind < STORE_KINDS; kind++) {
        if (has_kind(store, training, (enum store_kind)kind)) {
            bytes += store_kind_total(store, (enum store_kind)kind) * sizeof(float);
        }
    }
    TRY(arena_create_on(&store->arena, store->device, MEMORY_DEVICE, store->stream, bytes,
                        training ? "parameters and optimizer state" : "parameters"));
    store->read = arena_alloc(&store->arena, read);
    store->values[STORE_WEIGHTS] = store_rounds(store) ? NULL : store->read;
    for (int kind = 0; kind < STORE_KINDS; kind++) {
        if (has_kind(store, training, (enum store_kind)kind)) {
            size_t count = store_kind_total(store, (enum store_kind)kind);
            store->values[kind] = arena_alloc(&store->arena, count * sizeof(float));
        }
    }
    return STATUS_OK;
}

void store_destroy(struct store *store)
{
    free(store->param);
    free(store->offset);
    free(store->own);
    free(store->place);
    arena_destroy(&store->arena);
}

bool store_owns(const struct store *store, int param)
{
    return store->place[param] >= 0;
}

struct slice store_own(const struct store *store, enum store_kind kind, int param)
{
    CHECK(store_owns(store, param), "parameter %d is not of this part", param);
    const struct store_own *own = &store->own[store->place[param]];
    return (struct slice){kind, param, (int64_t)own->begin, (int64_t)own->count};
}

float *store_slice(const struct store *store, const struct slice *slice)
{
    CHECK(store_owns(store, slice->param), "parameter %d is not of this part", slice->param);
    CHECK(store->values[slice->kind], "this part has no %s of parameter %d",
          store_kind_name(slice->kind), slice->param);
    int place = store->place[slice->param];
    size_t begin = (size_t)slice->begin, count = (size_t)slice->count;
    if (!store_is_shared(store, slice->kind)) {
        return store->values[slice->kind] + store->offset[place] + begin;
    }
    const struct store_own *own = &store->own[place];
    CHECK(begin >= own->begin && begin + count <= own->begin + own->count,
          "the %s of elements %zu to %zu of parameter %d are of another share",
          store_kind_name(slice->kind), begin, begin + count, slice->param);
    return store->values[slice->kind] + own->offset + (begin - own->begin);
}

float *store_values(const struct store *store, enum store_kind kind, int param)
{
    struct slice whole = slice_whole(store->model, kind, param);
    return store_slice(store, &whole);
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
    return (struct slice){kind, param, 0, model->param[param].local};
}
