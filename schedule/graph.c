/* graph.c - graphs: made, looked into, and held to their rules. */
#include <stdio.h>
#include <stdlib.h>

#include "schedule/plan_internal.h"

status_t graph_init(struct graph *graph, int units, int keys)
{
    *graph = (struct graph){.units = units, .keys = keys};
    graph->unit = calloc((size_t)units + 1, sizeof *graph->unit);
    graph->key = calloc((size_t)keys + 1, sizeof *graph->key);
    graph->first_read = calloc((size_t)units + 1, sizeof *graph->first_read);
    if (!graph->unit || !graph->key || !graph->first_read) {
        graph_fini(graph);
        return FAIL(STATUS_NOMEM, "no memory for a graph of %d units and %d keys", units, keys);
    }
    return STATUS_OK;
}

void graph_fini(struct graph *graph)
{
    free(graph->unit);
    free(graph->key);
    free(graph->read);
    free(graph->first_read);
    *graph = (struct graph){0};
}

status_t graph_add_read(struct graph *graph, const struct read *read)
{
    if (graph->reads == graph->capacity) {
        int capacity = graph->capacity > 0 ? 2 * graph->capacity : 64;
        struct read *larger = realloc(graph->read, (size_t)capacity * sizeof *larger);
        if (!larger) {
            return FAIL(STATUS_NOMEM, "no memory for %d reads", capacity);
        }
        graph->read = larger;
        graph->capacity = capacity;
    }
    graph->read[graph->reads++] = *read;
    return STATUS_OK;
}

static int read_compare(const void *a, const void *b)
{
    const struct read *r = a, *s = b;
    if (r->unit != s->unit) {
        return r->unit < s->unit ? -1 : 1;
    }
    if (r->key != s->key) {
        return r->key < s->key ? -1 : 1;
    }
    return (r->order > s->order) - (r->order < s->order);
}

void graph_finish(struct graph *graph)
{
    if (graph->reads > 0) {
        qsort(graph->read, (size_t)graph->reads, sizeof *graph->read, read_compare);
    }
    int read = 0;
    for (int unit = 0; unit <= graph->units; unit++) {
        while (read < graph->reads && graph->read[read].unit < unit) {
            read++;
        }
        graph->first_read[unit] = read;
    }
}

bool graph_reads(const struct graph *graph, int unit, int key)
{
    int low = graph->first_read[unit], high = graph->first_read[unit + 1];
    while (low < high) {
        int middle = (low + high) / 2;
        if (graph->read[middle].key < key) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < graph->first_read[unit + 1] && graph->read[low].key == key;
}

int graph_formed_by(const struct graph *graph, int unit)
{
    for (int i = graph->first_read[unit]; i < graph->first_read[unit + 1]; i++) {
        if (graph->read[i].kind == READ_FORMS) {
            return graph->read[i].key;
        }
    }
    return -1;
}

/* ---- rules ---- */

static status_t graph_refuse(const struct graph *graph, const struct read *read, const char *reason)
{
    return FAIL(STATUS_INTERNAL, "%s cannot be read by %s (unit %d): %s",
                graph->key[read->key].name, graph->unit[read->unit].name, read->unit, reason);
}

/* Is `key` formed before `later`? */
static bool is_formed_before(const struct key *key, const struct key *later)
{
    return key->producer < later->producer ||
           (key->producer == later->producer && key->order < later->order);
}

static status_t graph_check_made(const struct graph *graph, const struct read *read)
{
    bool known = read->made >= 0 && read->made < graph->keys;
    if (!known || graph->key[read->made].producer != read->unit) {
        return graph_refuse(graph, read, "it forms no key of it");
    }
    if (!is_formed_before(&graph->key[read->key], &graph->key[read->made])) {
        return graph_refuse(graph, read, "it forms a key of it that comes first");
    }
    return STATUS_OK;
}

static status_t graph_check_read(const struct graph *graph, int index)
{
    const struct read *read = &graph->read[index];
    bool known =
        read->unit >= 0 && read->unit < graph->units && read->key >= 0 && read->key < graph->keys;
    if (!known) {
        return FAIL(STATUS_INTERNAL, "read %d is of unit %d and key %d", index, read->unit,
                    read->key);
    }
    if (index > 0 && read_compare(read - 1, read) >= 0) {
        return graph_refuse(graph, read, "its additions have no order");
    }
    if (read->rereads && read->kind != READ_LEAVES) {
        return graph_refuse(graph, read, "no addition reads the key again");
    }
    if (read->kind == READ_MAKES) {
        return graph_check_made(graph, read);
    }
    if (graph->key[read->key].producer >= read->unit) {
        return graph_refuse(graph, read, "it is formed later");
    }
    return STATUS_OK;
}

/* A gradient that B of a unit forms has no other part, and its unit forms no other. */
static status_t graph_check_formed(const struct graph *graph)
{
    for (int i = 0; i < graph->reads; i++) {
        const struct read *read = &graph->read[i];
        for (int j = 0; read->kind == READ_FORMS && j < graph->reads; j++) {
            const struct read *other = &graph->read[j];
            if (j != i && (other->key == read->key ||
                           (other->unit == read->unit && other->kind == READ_FORMS))) {
                return graph_refuse(graph, read, "its gradient has another part");
            }
        }
    }
    return STATUS_OK;
}

static status_t graph_check_keys(const struct graph *graph)
{
    for (int key = 0; key < graph->keys; key++) {
        const struct key *k = &graph->key[key];
        if (k->producer < 0 || k->producer >= graph->units) {
            return FAIL(STATUS_INTERNAL, "key %d has no producer", key);
        }
        if (k->bytes < k->plain_bytes || k->plain_bytes < 0 || k->plain != (k->plain_bytes > 0)) {
            return FAIL(STATUS_INTERNAL, "key %d has %lld bytes, %lld of them plain", key,
                        (long long)k->bytes, (long long)k->plain_bytes);
        }
        for (int other = 0; other < key; other++) {
            const struct key *o = &graph->key[other];
            if (o->producer == k->producer && o->order == k->order) {
                return FAIL(STATUS_INTERNAL, "keys %s and %s are formed at once", o->name, k->name);
            }
        }
    }
    return STATUS_OK;
}

bool graph_has_grad(const struct graph *graph, int key)
{
    for (int i = 0; i < graph->reads; i++) {
        const struct read *read = &graph->read[i];
        if (read->key == key && (read->kind != READ_MAKES || graph_has_grad(graph, read->made))) {
            return true;
        }
    }
    return false;
}

/* What a unit computes must lead to the end of the model. */
static status_t graph_check_flow(const struct graph *graph, int unit)
{
    const char *name = NULL;
    for (int key = 0; key < graph->keys; key++) {
        if (graph->key[key].producer == unit) {
            name = graph->key[key].name;
            if (graph_has_grad(graph, key)) {
                return STATUS_OK;
            }
        }
    }
    return name == NULL ? STATUS_OK
                        : FAIL(STATUS_INTERNAL, "no key of %s is read: neither %s nor another",
                               graph->unit[unit].name, name);
}

status_t graph_check(const struct graph *graph)
{
    if (graph->units < 1 || graph->keys < 0) {
        return FAIL(STATUS_INTERNAL, "a graph of %d units and %d keys", graph->units, graph->keys);
    }
    TRY(graph_check_keys(graph));
    for (int i = 0; i < graph->reads; i++) {
        TRY(graph_check_read(graph, i));
    }
    TRY(graph_check_formed(graph));
    for (int unit = 0; unit < graph->units; unit++) {
        TRY(graph_check_flow(graph, unit));
    }
    return STATUS_OK;
}
