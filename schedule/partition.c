/* partition.c - where the stages are cut.
 *
 * "auto" is exact: the least possible cost of the largest stage; among those partitions the fewest
 * shipped bytes; among those the earliest cuts. Two dynamic programs: the first finds the cost, the
 * second, under that bound, the bytes (what a stage receives depends on its own units only).
 */
#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "schedule/plan_internal.h"

static bool may_cut(const struct graph *graph, int unit)
{
    return unit == 0 || unit == graph->units || graph->unit[unit].may_start;
}

/* "parallel.pp=7", or how many stages a rank there may be with these ranks. */
static void remedy_print(int most, int stages, int ranks, char *text, size_t size)
{
    if (stages == ranks) {
        snprintf(text, size, "parallel.pp=%d", most);
    } else if (most >= ranks) {
        snprintf(text, size, "parallel.virtual_stages=%d", most / ranks);
    } else {
        snprintf(text, size, "parallel.pp=%d and parallel.virtual_stages=1", most);
    }
}

status_t partition_check_stages(const struct graph *graph, int stages, int ranks)
{
    char remedy[80];
    int most = 0;
    for (int unit = 0; unit < graph->units; unit++) {
        most += may_cut(graph, unit);
    }
    if (stages > most) {
        remedy_print(most, stages, ranks, remedy, sizeof remedy);
        return FAIL(STATUS_INVALID, "%d stages, but the model can be cut into at most %d; use %s",
                    stages, most, remedy);
    }
    return STATUS_OK;
}

static void stages_set(struct plan *plan, int stage, int first, int end)
{
    plan->stage[stage].units = end - first;
    for (int unit = first; unit < end; unit++) {
        plan->stage[stage].unit[unit - first] = unit;
        plan->stage_of[unit] = stage;
    }
}

/* ---- auto ---- */

struct search {
    const struct graph *graph;
    int units, stages;
    int *reader_before; /* [reads] last unit that reads the key before this read does; -1: none */
    double *cost;       /* [units + 1][units + 1] of a stage [a, b) */
    int64_t *bytes;     /* same, received forward by it for a microbatch */
    double *worst; /* [stages + 1][units + 1] least largest cost of the last s stages from unit a */
    int64_t *least; /* same, least bytes under the bound; -1 = impossible */
};

static size_t pair(const struct search *search, int row, int unit)
{
    return (size_t)row * (size_t)(search->units + 1) + (size_t)unit;
}

static status_t search_init(struct search *search, const struct plan *plan)
{
    *search =
        (struct search){.graph = plan->graph, .units = plan->graph->units, .stages = plan->stages};
    size_t row = (size_t)search->units + 1;
    search->reader_before = calloc((size_t)plan->graph->reads + 1, sizeof *search->reader_before);
    search->cost = calloc(row * row, sizeof *search->cost);
    search->bytes = calloc(row * row, sizeof *search->bytes);
    search->worst = calloc(((size_t)search->stages + 1) * row, sizeof *search->worst);
    search->least = calloc(((size_t)search->stages + 1) * row, sizeof *search->least);
    if (search->reader_before == NULL || search->cost == NULL || search->bytes == NULL ||
        search->worst == NULL || search->least == NULL) {
        return FAIL(STATUS_NOMEM, "no memory to partition %d units", search->units);
    }
    return STATUS_OK;
}

static void search_fini(struct search *search)
{
    free(search->reader_before);
    free(search->cost);
    free(search->bytes);
    free(search->worst);
    free(search->least);
}

/* Bytes that unit `b` adds to what a stage that begins with unit `a` receives. */
static int64_t search_new_bytes(const struct search *search, int a, int b)
{
    const struct graph *graph = search->graph;
    int64_t bytes = 0;
    for (int i = graph->first_read[b]; i < graph->first_read[b + 1]; i++) {
        const struct key *key = &graph->key[graph->read[i].key];
        bool fresh = key->producer < a && search->reader_before[i] < a;
        bytes += fresh ? key->bytes : 0;
    }
    return bytes;
}

/* A unit's second read of a key comes after its first, and costs nothing anywhere. */
static void search_find_readers(struct search *search)
{
    const struct graph *graph = search->graph;
    for (int i = 0; i < graph->reads; i++) {
        int before = i - 1;
        while (before >= 0 && graph->read[before].key != graph->read[i].key) {
            before--;
        }
        search->reader_before[i] = before < 0 ? -1 : graph->read[before].unit;
    }
}

static void search_weigh(struct search *search)
{
    search_find_readers(search);
    for (int a = 0; a < search->units; a++) {
        for (int b = a; b < search->units; b++) {
            const struct unit *unit = &search->graph->unit[b];
            double cost = unit->forward_cost + unit->backward_cost + unit->weight_cost;
            search->cost[pair(search, a, b + 1)] = search->cost[pair(search, a, b)] + cost;
            search->bytes[pair(search, a, b + 1)] =
                search->bytes[pair(search, a, b)] + search_new_bytes(search, a, b);
        }
    }
}

static void search_worst(struct search *search)
{
    for (int s = 0; s <= search->stages; s++) {
        for (int a = 0; a <= search->units; a++) {
            double best = s == 0 && a == search->units ? 0 : DBL_MAX;
            for (int b = a + 1; s > 0 && b <= search->units; b++) {
                double rest = search->worst[pair(search, s - 1, b)];
                double own = search->cost[pair(search, a, b)];
                double worst = own > rest ? own : rest;
                if (may_cut(search->graph, b) && worst < best) {
                    best = worst;
                }
            }
            search->worst[pair(search, s, a)] = best;
        }
    }
}

/* Bytes of the last s stages from unit a if the first of them ends before b; -1 = impossible. */
static int64_t search_bytes(const struct search *search, int s, int a, int b)
{
    double bound = search->worst[pair(search, search->stages, 0)];
    int64_t rest = search->least[pair(search, s - 1, b)];
    bool possible =
        rest >= 0 && may_cut(search->graph, b) && search->cost[pair(search, a, b)] <= bound;
    return possible ? rest + search->bytes[pair(search, a, b)] : -1;
}

static void search_least(struct search *search)
{
    for (int s = 0; s <= search->stages; s++) {
        for (int a = 0; a <= search->units; a++) {
            int64_t best = s == 0 && a == search->units ? 0 : -1;
            for (int b = a + 1; s > 0 && b <= search->units; b++) {
                int64_t bytes = search_bytes(search, s, a, b);
                best = bytes >= 0 && (best < 0 || bytes < best) ? bytes : best;
            }
            search->least[pair(search, s, a)] = best;
        }
    }
}

static status_t partition_auto(struct plan *plan)
{
    struct search search;
    status_t status = search_init(&search, plan);
    if (status == STATUS_OK) {
        search_weigh(&search);
        search_worst(&search);
        search_least(&search);
        int a = 0;
        for (int s = plan->stages; s > 0; s--) {
            int b = a + 1;
            while (search_bytes(&search, s, a, b) != search.least[pair(&search, s, a)]) {
                b++;
            }
            stages_set(plan, plan->stages - s, a, b);
            a = b;
        }
    }
    search_fini(&search);
    return status;
}

/* ---- cuts that were asked for ---- */

static status_t partition_cut_check(const struct graph *graph, const char *text, int stage, int cut)
{
    if (may_cut(graph, cut)) {
        return STATUS_OK;
    }
    int down = cut, up = cut;
    while (!may_cut(graph, down)) {
        down--;
    }
    while (!may_cut(graph, up)) {
        up++;
    }
    bool less = down > 0 && (up == graph->units || cut - down <= up - cut);
    int nearest = less ? down : up;
    return FAIL(STATUS_INVALID,
                "partition \"%s\" ends stage %d before %s, where no stage may begin; give it %d "
                "unit%s %s: the nearest cut is before %s",
                text, stage, graph->unit[cut].name, abs(nearest - cut),
                abs(nearest - cut) == 1 ? "" : "s", less ? "less" : "more",
                graph->unit[nearest].name);
}

static status_t partition_check_cuts(const struct plan *plan, const char *text)
{
    for (int stage = 0; stage + 1 < plan->stages; stage++) {
        TRY(partition_cut_check(plan->graph, text, stage, plan->stage[stage + 1].unit[0]));
    }
    return STATUS_OK;
}

/* ---- layers ---- */

/* First unit of the n-th layer (from 0) of `layers`; the whole model's end after the last. */
static int layer_first(const struct graph *graph, int n, int layers)
{
    if (n == 0 || n == layers) {
        return n == 0 ? 0 : graph->units;
    }
    int unit = 0;
    while (graph->unit[unit].layer != n + 1) {
        unit++;
    }
    return unit;
}

static status_t partition_layers(struct plan *plan)
{
    char remedy[80];
    int layers = 0;
    for (int unit = 0; unit < plan->graph->units; unit++) {
        int layer = plan->graph->unit[unit].layer;
        layers = layer > layers ? layer : layers;
    }
    if (plan->stages > layers && plan->stages > 1) {
        remedy_print(layers, plan->stages, plan->ranks, remedy, sizeof remedy);
        return FAIL(STATUS_INVALID,
                    "%d stages of whole layers, but the model has %d layers; use %s or "
                    "parallel.partition=auto",
                    plan->stages, layers, remedy);
    }
    int first = 0;
    for (int stage = 0; stage < plan->stages; stage++) { /* the earlier ones get one more */
        int end = first + layers / plan->stages + (stage < layers % plan->stages);
        int first_unit = stage == 0 ? 0 : layer_first(plan->graph, first, layers);
        bool last = stage + 1 == plan->stages;
        stages_set(plan, stage, first_unit,
                   last ? plan->graph->units : layer_first(plan->graph, end, layers));
        first = end;
    }
    return partition_check_cuts(plan, "layers");
}

/* ---- counts ---- */

/* Reads one count; `*text` moves behind it and its comma. 0 if there is none. */
static int count_read(const char **text, int most)
{
    char *end = NULL;
    long count = strtol(*text, &end, 10);
    bool good = end != *text && count >= 1 && count <= most && (*end == ',' || *end == '\0');
    if (!good) {
        return 0;
    }
    *text = *end == ',' ? end + 1 : end;
    return (int)count;
}

static int counts_in(const char *text)
{
    int counts = 1;
    for (; *text != '\0'; text++) {
        counts += *text == ',';
    }
    return counts;
}

static status_t partition_counts(struct plan *plan, const char *text)
{
    const struct graph *graph = plan->graph;
    if (counts_in(text) != plan->stages) {
        return FAIL(STATUS_INVALID,
                    "partition \"%s\" names %d stages, but there are %d; use auto, layers, or the "
                    "units of each stage, as in \"5,4,4,5\"",
                    text, counts_in(text), plan->stages);
    }
    const char *rest = text;
    int first = 0;
    for (int stage = 0; stage < plan->stages; stage++) {
        int count = count_read(&rest, graph->units);
        if (count == 0) {
            return FAIL(
                STATUS_INVALID,
                "partition \"%s\": stage %d needs a number of units from 1 to %d; use auto, "
                "layers, or the units of each stage, as in \"5,4,4,5\"",
                text, stage, graph->units);
        }
        if (first + count <= graph->units) {
            stages_set(plan, stage, first, first + count);
        }
        first += count;
    }
    if (first != graph->units) {
        return FAIL(STATUS_INVALID, "partition \"%s\" adds up to %d units, but the model has %d",
                    text, first, graph->units);
    }
    return partition_check_cuts(plan, text);
}

status_t partition_make(struct plan *plan, const char *text)
{
    if (strcmp(text, "auto") == 0) {
        return partition_auto(plan);
    }
    return strcmp(text, "layers") == 0 ? partition_layers(plan) : partition_counts(plan, text);
}
