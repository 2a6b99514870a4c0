/* graph.c - names and lawfulness of graphs. */
#include <stdio.h>

#include "schedule/plan_internal.h"

uint16_t graph_reads(const struct graph *graph, int unit, int key)
{
    return graph->reads[(size_t)unit * (size_t)graph->keys + (size_t)key];
}

int graph_product(const struct graph *graph, int unit, enum key_kind kind)
{
    for (int key = 0; key < graph->keys; key++) {
        if (graph->key[key].producer == unit && graph->key[key].kind == kind) {
            return key;
        }
    }
    return -1;
}

uint16_t graph_adds(const struct graph *graph, int unit, int key)
{
    uint16_t use = graph_reads(graph, unit, key);
    if (use & READ_NORM) {
        int made = graph_product(graph, unit, KEY_HIDDEN);
        bool flows = graph->key[key].kind == KEY_RAW && graph_has_grad(graph, made);
        use = (uint16_t)(flows ? use : use & ~READ_NORM);
    }
    if (use & READ_SUMMARY) {
        int made = graph_product(graph, unit, KEY_SUMMARY);
        bool flows = graph->key[key].kind == KEY_HIDDEN && graph_has_grad(graph, made);
        use = (uint16_t)(flows ? use : use & ~READ_SUMMARY);
    }
    return use;
}

bool graph_has_grad(const struct graph *graph, int key)
{
    for (int unit = 0; key >= 0 && unit < graph->units; unit++) {
        if (graph_adds(graph, unit, key)) {
            return true;
        }
    }
    return false;
}

const char *unit_print(const struct unit *unit, char *buffer, size_t size)
{
    switch (unit->kind) {
    case UNIT_EMBED:
        snprintf(buffer, size, "embed");
        break;
    case UNIT_ATTENTION:
        snprintf(buffer, size, "attn %d", unit->layer);
        break;
    case UNIT_FFN:
        snprintf(buffer, size, "ffn %d", unit->layer);
        break;
    case UNIT_HEAD:
        snprintf(buffer, size, "head");
        break;
    }
    return buffer;
}

const char *key_print(const struct key *key, char *buffer, size_t size)
{
    static const char *const letter[] = {"X", "H", "S", "R"};
    snprintf(buffer, size, "%s_%d", letter[key->kind], key->index);
    return buffer;
}

/* May `unit` use the key like this? Of what it made itself it takes the norm and the summary only. */
static bool graph_use_lawful(const struct graph *graph, int unit, int key, uint16_t use)
{
    const uint16_t ways = READ_Q | READ_K | READ_V | READ_R;
    const struct key *k = &graph->key[key];
    bool summary = use == READ_SUMMARY && graph_product(graph, unit, KEY_SUMMARY) >= 0;
    switch (k->kind) {
    case KEY_HIDDEN:
        return unit >= k->producer &&
               (summary || (unit > k->producer && !(use & ~(ways | READ_GENERATOR | READ_DIRECT))));
    case KEY_RAW:
        return unit == k->producer
                   ? use == READ_NORM
                   : unit == k->producer + 1 && !(use & ~(READ_GENERATOR | READ_DIRECT));
    case KEY_SUMMARY:
        return unit > k->producer && !(use & ~ways);
    case KEY_MID: /* H_i: made by an attention, read by the next unit and by nothing else */
        return unit == k->producer + 1 && use == READ_MID;
    }
    return false;
}

static status_t graph_check_reads(const struct graph *graph, int key)
{
    char name[32], reader[32];
    key_print(&graph->key[key], name, sizeof name);
    for (int unit = 0; unit < graph->units; unit++) {
        uint16_t use = graph_reads(graph, unit, key);
        if (use && !graph_use_lawful(graph, unit, key, use)) {
            return FAIL(STATUS_INTERNAL, "key %s cannot be read by %s (unit %d) with uses %d", name,
                        unit_print(&graph->unit[unit], reader, sizeof reader), unit, use);
        }
    }
    int producer = graph->key[key].producer;
    if (graph->key[key].kind == KEY_RAW && !graph_reads(graph, producer, key)) {
        return FAIL(STATUS_INTERNAL, "key %s is not normed by its producer", name);
    }
    bool summed = graph->key[key].kind != KEY_SUMMARY;
    for (int made_of = 0; made_of < graph->keys && !summed; made_of++) {
        summed = graph_reads(graph, producer, made_of) & READ_SUMMARY;
    }
    return summed ? STATUS_OK : FAIL(STATUS_INTERNAL, "key %s is made of no key", name);
}

static int graph_count(const struct graph *graph, int unit, enum key_kind kind)
{
    int made = 0;
    for (int key = 0; key < graph->keys; key++) {
        made += graph->key[key].producer == unit && graph->key[key].kind == kind;
    }
    return made;
}

/* Embedding and FFNs make one hidden key each, and may make a raw one; FFNs also a summary;
 * attentions one mid key; the head none. */
static status_t graph_check_products(const struct graph *graph, int unit)
{
    enum unit_kind kind = graph->unit[unit].kind;
    bool layer = kind == UNIT_EMBED || kind == UNIT_FFN;
    if (graph_count(graph, unit, KEY_HIDDEN) != layer ||
        graph_count(graph, unit, KEY_MID) != (kind == UNIT_ATTENTION) ||
        graph_count(graph, unit, KEY_RAW) > layer ||
        graph_count(graph, unit, KEY_SUMMARY) > (kind == UNIT_FFN)) {
        return FAIL(STATUS_INTERNAL, "unit %d produces the wrong keys", unit);
    }
    return STATUS_OK;
}

/* What a unit computes must lead to the loss: its raw key, the hidden one where there is none, or
 * the mid key. Hidden keys beside a raw one and summaries may be read by nobody. */
static status_t graph_check_flow(const struct graph *graph, int unit)
{
    int key = graph_product(graph, unit, KEY_RAW);
    key = key >= 0 ? key : graph_product(graph, unit, KEY_HIDDEN);
    key = key >= 0 ? key : graph_product(graph, unit, KEY_MID);
    if (key >= 0 && !graph_has_grad(graph, key)) {
        char name[32];
        return FAIL(STATUS_INTERNAL, "key %s is read by no unit",
                    key_print(&graph->key[key], name, sizeof name));
    }
    return STATUS_OK;
}

status_t graph_check(const struct graph *graph)
{
    if (graph->units < 1 || graph->keys < 0) {
        return FAIL(STATUS_INTERNAL, "a graph of %d units and %d keys", graph->units, graph->keys);
    }
    for (int key = 0; key < graph->keys; key++) {
        if (graph->key[key].producer < 0 || graph->key[key].producer >= graph->units) {
            return FAIL(STATUS_INTERNAL, "key %d has no producer", key);
        }
    }
    for (int unit = 0; unit < graph->units; unit++) {
        TRY(graph_check_products(graph, unit));
    }
    for (int key = 0; key < graph->keys; key++) {
        TRY(graph_check_reads(graph, key));
    }
    for (int unit = 0; unit < graph->units; unit++) {
        TRY(graph_check_flow(graph, unit));
    }
    return STATUS_OK;
}
