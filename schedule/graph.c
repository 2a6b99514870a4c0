/* graph.c - names and lawfulness of graphs. */
#include <stdio.h>

#include "schedule/plan_internal.h"

uint16_t graph_reads(const struct graph *graph, int unit, int key)
{
    return graph->reads[(size_t)unit * (size_t)graph->keys + (size_t)key];
}

int graph_produced(const struct graph *graph, int unit)
{
    for (int key = 0; key < graph->keys; key++) {
        if (graph->key[key].producer == unit) {
            return key;
        }
    }
    return -1;
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

/* H_i: made by an attention, read by the next unit and by nothing else. */
static status_t graph_check_mid(const struct graph *graph, int key)
{
    for (int unit = 0; unit < graph->units; unit++) {
        uint16_t expected = unit == graph->key[key].producer + 1 ? READ_MID : 0;
        if (graph_reads(graph, unit, key) != expected) {
            return FAIL(STATUS_INTERNAL, "key H_%d may be read by the FFN after it only, as mid",
                        graph->key[key].index);
        }
    }
    return STATUS_OK;
}

static status_t graph_check_hidden(const struct graph *graph, int key)
{
    int readers = 0;
    for (int unit = 0; unit < graph->units; unit++) {
        uint16_t use = graph_reads(graph, unit, key);
        if (use & READ_SUMMARY) {
            return FAIL(STATUS_UNSUPPORTED, "plans with block summaries cannot be made yet");
        }
        if ((use & READ_MID) || (use && unit <= graph->key[key].producer)) {
            return FAIL(STATUS_INTERNAL, "key X_%d cannot be read by unit %d",
                        graph->key[key].index, unit);
        }
        readers += use != 0;
    }
    if (readers == 0) {
        return FAIL(STATUS_INTERNAL, "key X_%d is read by no unit", graph->key[key].index);
    }
    return STATUS_OK;
}

/* Embedding and FFNs make one hidden key each, attentions one mid key, the head none. */
static status_t graph_check_unit(const struct graph *graph, int unit)
{
    int made = 0;
    for (int key = 0; key < graph->keys; key++) {
        made += graph->key[key].producer == unit;
    }
    int key = graph_produced(graph, unit);
    enum unit_kind kind = graph->unit[unit].kind;
    bool mid = key >= 0 && graph->key[key].kind == KEY_MID;
    if (made != (kind != UNIT_HEAD) || mid != (kind == UNIT_ATTENTION)) {
        return FAIL(STATUS_INTERNAL, "unit %d produces the wrong keys", unit);
    }
    return STATUS_OK;
}

status_t graph_check(const struct graph *graph)
{
    if (graph->units < 1 || graph->keys < 0) {
        return FAIL(STATUS_INTERNAL, "a graph of %d units and %d keys", graph->units, graph->keys);
    }
    for (int key = 0; key < graph->keys; key++) {
        enum key_kind kind = graph->key[key].kind;
        if (kind == KEY_SUMMARY || kind == KEY_RAW) {
            return FAIL(STATUS_UNSUPPORTED, "plans with summaries or raw keys cannot be made yet");
        }
        if (graph->key[key].producer < 0 || graph->key[key].producer >= graph->units) {
            return FAIL(STATUS_INTERNAL, "key %d has no producer", key);
        }
        TRY(kind == KEY_MID ? graph_check_mid(graph, key) : graph_check_hidden(graph, key));
    }
    for (int unit = 0; unit < graph->units; unit++) {
        TRY(graph_check_unit(graph, unit));
    }
    return STATUS_OK;
}
