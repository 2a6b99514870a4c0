/* graphs.h - graphs of small models for the tests of schedule/, without the model. */
#ifndef TESTS_SCHEDULE_GRAPHS_H
#define TESTS_SCHEDULE_GRAPHS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "schedule/schedule.h"

enum { GRAPH_KEY_BYTES = 1000 };

/* Units and reads of these models; schedule/ knows neither. */
enum test_unit { EMBED, ATTENTION, FFN, HEAD };
enum test_read { AGGREGATE, GENERATOR, DIRECT, MID, NORM, SUMMARY, SOURCE, TOTAL };

/* What a test's model looks like; all zero but the layers: a plain transformer. */
struct graph_test {
    int layers;
    int dilation; /* 0: no aggregates; 1: full connectivity */
    int period;   /* aggregates after every such layer and the last one; 0 is 1 */
    int block;    /* layers a block whose mean is a key; 0: none */
    enum {
        RAW_NONE,
        RAW_STATIC, /* keys are normed; the raw output is taken where no aggregate is */
        RAW_NORMED, /* and makes the weights where one is */
        RAW_ADDED,  /* and the aggregates are added to it */
        /* Another kind of model: every unit reads, and makes one key. */
        SUBLAYERS, /* units read the outputs of all units before; with blocks, sums of `block` layers */
        STREAMS /* units read the unit before, whose key has several tensors */
    } raw;
};

/* Is there an aggregate after layer i? */
static inline bool graph_test_aggregates(const struct graph_test *test, int i)
{
    bool first = i == 0 && (test->raw != RAW_NONE || test->block > 0);
    return test->dilation > 0 && !first &&
           (test->period <= 1 || i % test->period == 0 || i == test->layers);
}

/* Blocks whose mean some aggregate reads, and the block that the aggregate after layer i is in. */
static inline int graph_test_summaries(const struct graph_test *test)
{
    return test->block > 0 ? (test->layers - 1) / test->block : 0;
}

static inline int graph_test_block_of(const struct graph_test *test, int i)
{
    return i == test->layers ? graph_test_summaries(test) : i / test->block;
}

/* Does the aggregate after layer i read X_j? */
static inline bool graph_test_connects(const struct graph_test *test, int i, int j)
{
    if (!graph_test_aggregates(test, i) || j > i) {
        return false;
    }
    bool old =
        test->block > 0 ? j > graph_test_block_of(test, i) * test->block : j % test->dilation == 0;
    return j == 0 || j == i || old;
}

/* And the mean of block c? */
static inline bool graph_test_sums(const struct graph_test *test, int i, int c)
{
    return graph_test_aggregates(test, i) && c < graph_test_block_of(test, i);
}

static inline int graph_test_hidden(int j)
{
    return j;
}

static inline int graph_test_mid(const struct graph_test *test, int i)
{
    return test->layers + i;
}

static inline int graph_test_raw(const struct graph_test *test, int j)
{
    return 2 * test->layers + 1 + j;
}

static inline int graph_test_summary(const struct graph_test *test, int c)
{
    return 2 * test->layers + 1 + (test->raw != RAW_NONE ? test->layers + 1 : 0) + c;
}

static inline void graph_test_unit(struct graph *graph, int unit, enum test_unit kind, int layer)
{
    static const char *const name[] = {"embed", "attn", "ffn", "head"};
    bool in_layer = kind == ATTENTION || kind == FFN;
    graph->unit[unit] = (struct unit){
        .layer = in_layer ? layer : 0,
        .may_start = unit > 0,
        .forward_cost = kind == EMBED ? 0
                        : kind == FFN ? 20
                                      : 10 + layer,
        .backward_cost = kind == EMBED ? 0
                         : kind == FFN ? 20
                                       : 12 + 2 * layer,
        .weight_cost = kind == EMBED ? 1
                       : kind == FFN ? 20
                                     : 10,
        .parameter_bytes = 4096,
        .gradient_bytes = 4096,
        .moment_bytes = 4096,
        .training = {.frame = 8192, .backward = 512},
        .evaluation = {.frame = 8192},
    };
    snprintf(graph->unit[unit].name, GRAPH_NAME, in_layer ? "%s %d" : "%s", name[kind], layer);
}

/* `made`: the key that the unit makes of this one, or -1. */
static inline void graph_test_read(struct graph *graph, int unit, int key, enum test_read how,
                                   int made)
{
    static const char *const what[] = {"aggregate of", "generator of", "direct use of",
                                       "backward of",  "norm",         "summary",
                                       "source of",    "sum"};
    const struct read read = {.unit = unit,
                              .key = key,
                              .order = how,
                              .kind = made >= 0    ? READ_MAKES
                                      : how == MID ? READ_FORMS
                                                   : READ_LEAVES,
                              .made = made,
                              .rereads = how == SOURCE,
                              .tag = how,
                              .what = what[how]};
    if (graph_add_read(graph, &read) != STATUS_OK) {
        abort();
    }
}

static inline void graph_test_key(struct graph *graph, int key, const char *letter, int index,
                                  int producer, int order)
{
    bool plain = letter[0] != 'S';
    graph->key[key] = (struct key){.producer = producer,
                                   .order = order,
                                   .plain = plain,
                                   .bytes = GRAPH_KEY_BYTES,
                                   .plain_bytes = plain ? GRAPH_KEY_BYTES : 0};
    snprintf(graph->key[key].name, GRAPH_NAME, "%s_%d", letter, index);
}

/* What the unit after layer i (attention i + 1 or the head) reads. */
static inline void graph_test_consumer(struct graph *graph, const struct graph_test *test, int i)
{
    int unit = 2 * i + 1;
    bool aggregates = graph_test_aggregates(test, i);
    int newest = test->raw != RAW_NONE ? graph_test_raw(test, i) : graph_test_hidden(i);
    if (!aggregates || test->raw == RAW_ADDED) {
        graph_test_read(graph, unit, newest, DIRECT, -1);
    }
    if (aggregates && test->raw != RAW_STATIC) {
        graph_test_read(graph, unit, newest, GENERATOR, -1);
    }
    for (int j = 0; j <= i; j++) {
        if (graph_test_connects(test, i, j)) {
            graph_test_read(graph, unit, graph_test_hidden(j), AGGREGATE, -1);
        }
    }
    for (int c = 0; c < graph_test_summaries(test); c++) {
        if (graph_test_sums(test, i, c)) {
            graph_test_read(graph, unit, graph_test_summary(test, c), AGGREGATE, -1);
        }
    }
}

/* The keys that the unit at the end of layer j makes. */
static inline void graph_test_products(struct graph *graph, const struct graph_test *test, int j)
{
    int unit = 2 * j, hidden = graph_test_hidden(j);
    graph_test_key(graph, hidden, "X", j, unit, 1);
    if (test->raw != RAW_NONE) {
        graph_test_key(graph, graph_test_raw(test, j), "R", j, unit, 0);
        graph_test_read(graph, unit, graph_test_raw(test, j), NORM, hidden);
    }
    int c = test->block > 0 && j > 0 && j % test->block == 0 ? j / test->block - 1 : -1;
    if (c < 0 || c >= graph_test_summaries(test)) {
        return;
    }
    graph_test_key(graph, graph_test_summary(test, c), "S", c, unit, 2);
    for (int i = c * test->block + 1; i <= j; i++) {
        graph_test_read(graph, unit, graph_test_hidden(i), SUMMARY, graph_test_summary(test, c));
    }
}

/* Unit u reads what is finished of the blocks before its own, and what its block has so far (block 0: each unit
 * is one). The keys are numbered like the units that make them. */
static inline void graph_test_sublayers(struct graph *graph, const struct graph_test *test)
{
    int units = 2 * test->layers, in_block = test->block > 0 ? 2 * test->block : 1;
    for (int u = 0; u <= units; u++) {
        bool ends = u % in_block == 0 || u == units, begins = u % in_block == 1 || in_block == 1;
        graph_test_key(graph, u, "X", u, u, 0);
        for (int reader = u + 1; reader <= units + 1; reader++) {
            bool same = (reader - 1) / in_block == (u - 1) / in_block && reader <= units && u > 0;
            if (ends ? true : same && reader == u + 1) {
                graph_test_read(graph, reader, u, SOURCE, -1);
            }
        }
        if (u > 0 && !begins) {
            graph_test_read(graph, u, u - 1, TOTAL, u);
        }
    }
}

static inline void graph_test_streams(struct graph *graph, const struct graph_test *test)
{
    for (int u = 0; u <= 2 * test->layers; u++) {
        graph_test_key(graph, u, "H", u, u, 0);
        graph->key[u].bytes *= u > 0 ? 4 : 1;
        graph_test_read(graph, u + 1, u, MID, -1);
    }
}

/* Keys X_0..X_L, then H_1..H_L, then R_0..R_L and S_0.. if there are any. */
static inline struct graph *graph_test_make(const struct graph_test *test)
{
    struct graph *graph = calloc(1, sizeof *graph);
    bool one_a_unit = test->raw == SUBLAYERS || test->raw == STREAMS;
    int layers = test->layers;
    int keys = one_a_unit ? 2 * layers + 1 : graph_test_summary(test, graph_test_summaries(test));
    if (!graph || graph_init(graph, 2 * layers + 2, keys) != STATUS_OK) {
        abort();
    }
    graph_test_unit(graph, 0, EMBED, 0);
    for (int i = 1; i <= layers; i++) {
        graph_test_unit(graph, 2 * i - 1, ATTENTION, i);
        graph_test_unit(graph, 2 * i, FFN, i);
    }
    graph_test_unit(graph, 2 * layers + 1, HEAD, layers + 1);
    for (int i = 1; i <= layers && !one_a_unit; i++) {
        int mid = graph_test_mid(test, i);
        graph_test_key(graph, mid, "H", i, 2 * i - 1, 0);
        graph_test_read(graph, 2 * i, mid, MID, -1);
    }
    if (one_a_unit) {
        (test->raw == SUBLAYERS ? graph_test_sublayers : graph_test_streams)(graph, test);
    }
    for (int i = 0; i <= layers && !one_a_unit; i++) {
        graph_test_products(graph, test, i);
        graph_test_consumer(graph, test, i);
    }
    graph_finish(graph);
    return graph;
}

static inline struct graph *graph_test_create(int layers, int dilation)
{
    const struct graph_test test = {.layers = layers, .dilation = dilation};
    return graph_test_make(&test);
}

/* Models with raw keys and summaries, alone and together. */
static const struct graph_test graph_test_variants[] = {
    {.layers = 3, .dilation = 1, .block = 1},
    {.layers = 5, .dilation = 1, .block = 2},
    {.layers = 6, .dilation = 1, .block = 3},
    {.layers = 6, .dilation = 1, .block = 2, .period = 2},
    {.layers = 5, .dilation = 1, .block = 2, .period = 3},
    {.layers = 3, .dilation = 1, .raw = RAW_STATIC},
    {.layers = 4, .dilation = 1, .period = 2, .block = 2, .raw = RAW_STATIC},
    {.layers = 3, .dilation = 1, .raw = RAW_NORMED},
    {.layers = 3, .dilation = 1, .raw = RAW_ADDED},
    {.layers = 4, .dilation = 1, .period = 2, .raw = RAW_NORMED},
    {.layers = 5, .dilation = 2, .period = 2, .raw = RAW_NORMED},
    {.layers = 5, .dilation = 3, .period = 2, .raw = RAW_ADDED},
    {.layers = 3, .dilation = 1, .block = 1, .raw = RAW_NORMED},
    {.layers = 5, .dilation = 1, .block = 2, .raw = RAW_ADDED},
    {.layers = 6, .dilation = 1, .block = 3, .period = 2, .raw = RAW_NORMED},
    {.layers = 5, .dilation = 1, .block = 3, .period = 5, .raw = RAW_ADDED},
    {.layers = 2, .dilation = 0, .raw = RAW_NORMED},
    {.layers = 3, .raw = SUBLAYERS},
    {.layers = 5, .block = 2, .raw = SUBLAYERS},
    {.layers = 3, .raw = STREAMS},
};
enum { GRAPH_VARIANTS = sizeof graph_test_variants / sizeof graph_test_variants[0] };

static inline void graph_test_destroy(struct graph *graph)
{
    graph_fini(graph);
    free(graph);
}

#endif
