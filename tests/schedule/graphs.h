/* graphs.h - graphs of small models for the tests of schedule/, without the model. */
#ifndef TESTS_SCHEDULE_GRAPHS_H
#define TESTS_SCHEDULE_GRAPHS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "schedule/schedule.h"

enum { GRAPH_KEY_BYTES = 1000 };

/* Does the consumer that feeds layer i + 1 read X_j? Dilation 1 is full connectivity. */
static inline bool graph_test_connects(int i, int j, int dilation)
{
    return j <= i && (j == 0 || j % dilation == 0 || j == i);
}

static inline void graph_test_unit(struct graph *graph, int unit, enum unit_kind kind, int layer)
{
    graph->unit[unit] = (struct unit){
        .kind = kind,
        .layer = layer,
        .may_start = unit > 0,
        .forward_cost = kind == UNIT_EMBED ? 0
                        : kind == UNIT_FFN ? 20
                                           : 10 + layer,
        .backward_cost = kind == UNIT_EMBED ? 0
                         : kind == UNIT_FFN ? 20
                                            : 12 + 2 * layer,
        .weight_cost = kind == UNIT_EMBED ? 1
                       : kind == UNIT_FFN ? 20
                                          : 10,
        .parameter_bytes = 4096,
        .stash_bytes = 8192,
        .backward_bytes = 512,
    };
}

/* What the consumer after layer i (unit: attention i + 1 or the head) reads. */
static inline void graph_test_consumer(struct graph *graph, int unit, int i, int dilation)
{
    for (int j = 0; j <= i; j++) {
        uint16_t use = dilation == 0 && j == i ? READ_DIRECT : 0;
        if (dilation > 0 && graph_test_connects(i, j, dilation)) {
            bool head = graph->unit[unit].kind == UNIT_HEAD;
            use = (uint16_t)((head ? READ_R : READ_Q | READ_K | READ_V | READ_R) |
                             (j == i ? READ_GENERATOR : 0));
        }
        graph->reads[unit * graph->keys + j] = use;
    }
}

/* Keys X_0..X_L, then H_1..H_L. `dilation` 0 makes a plain transformer. */
static inline struct graph *graph_test_create(int layers, int dilation)
{
    struct graph *graph = calloc(1, sizeof *graph);
    graph->units = 2 * layers + 2;
    graph->keys = 2 * layers + 1;
    graph->unit = calloc((size_t)graph->units, sizeof *graph->unit);
    graph->key = calloc((size_t)graph->keys, sizeof *graph->key);
    graph->reads = calloc((size_t)graph->units * (size_t)graph->keys, sizeof *graph->reads);
    graph_test_unit(graph, 0, UNIT_EMBED, 0);
    graph->key[0] = (struct key){KEY_HIDDEN, 0, 0, GRAPH_KEY_BYTES};
    for (int i = 1; i <= layers; i++) {
        graph_test_unit(graph, 2 * i - 1, UNIT_ATTENTION, i);
        graph_test_unit(graph, 2 * i, UNIT_FFN, i);
        graph->key[i] = (struct key){KEY_HIDDEN, i, 2 * i, GRAPH_KEY_BYTES};
        graph->key[layers + i] = (struct key){KEY_MID, i, 2 * i - 1, GRAPH_KEY_BYTES};
        graph_test_consumer(graph, 2 * i - 1, i - 1, dilation);
        graph->reads[2 * i * graph->keys + layers + i] = READ_MID;
    }
    graph_test_unit(graph, 2 * layers + 1, UNIT_HEAD, layers + 1);
    graph_test_consumer(graph, 2 * layers + 1, layers, dilation);
    return graph;
}

static inline void graph_test_destroy(struct graph *graph)
{
    free(graph->unit);
    free(graph->key);
    free(graph->reads);
    free(graph);
}

#endif
