/* Partitions against brute force, and what is refused. */
#include "tests/test.h"

#include <string.h>

#include "base/log.h"
#include "base/rng.h"
#include "tests/schedule/graphs.h"

static struct graph *random_graph(const struct graph_test *test, uint64_t seed)
{
    struct graph *graph = graph_test_make(test);
    for (int unit = 0; unit < graph->units; unit++) {
        uint64_t at = (uint64_t)unit * 4;
        graph->unit[unit].forward_cost = (double)rng_below(seed, 1, at, 5);
        graph->unit[unit].backward_cost = (double)rng_below(seed, 1, at + 1, 4);
        graph->unit[unit].weight_cost = (double)rng_below(seed, 1, at + 2, 3);
        graph->unit[unit].may_start = unit > 0 && rng_below(seed, 1, at + 3, 4) > 0;
    }
    return graph;
}

static double cost_of(const struct graph *graph, int first, int end)
{
    double cost = 0;
    for (int unit = first; unit < end; unit++) {
        const struct unit *u = &graph->unit[unit];
        cost += u->forward_cost + u->backward_cost + u->weight_cost;
    }
    return cost;
}

static int64_t bytes_of(const struct graph *graph, int first, int end)
{
    int64_t bytes = 0;
    for (int key = 0; key < graph->keys; key++) {
        bool read = false;
        for (int unit = first; unit < end; unit++) {
            read = read || (graph->key[key].producer < first && graph_reads(graph, unit, key));
        }
        bytes += read ? graph->key[key].bytes : 0;
    }
    return bytes;
}

struct best {
    int stages;
    int cut[8], best_cut[8]; /* first unit of every stage */
    double cost;
    int64_t bytes;
};

/* All partitions in the order of their cuts, so that the earliest of the best comes first. */
static void try_all(const struct graph *graph, struct best *best, int stage, int first, double cost,
                    int64_t bytes)
{
    best->cut[stage] = first;
    bool last = stage + 1 == best->stages;
    for (int end = last ? graph->units : first + 1; end <= graph->units; end++) {
        if (end < graph->units ? last || !graph->unit[end].may_start : !last) {
            continue;
        }
        double own = cost_of(graph, first, end), worst = own > cost ? own : cost;
        int64_t sum = bytes + bytes_of(graph, first, end);
        if (!last) {
            try_all(graph, best, stage + 1, end, worst, sum);
        } else if (best->cost < 0 || worst < best->cost ||
                   (!(worst > best->cost) && sum < best->bytes)) {
            best->cost = worst;
            best->bytes = sum;
            memcpy(best->best_cut, best->cut, sizeof best->cut);
        }
    }
}

static void test_auto_is_best(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 60 + 4 * GRAPH_VARIANTS; seed++) {
        const struct graph_test plain = {.layers = 2 + (int)(seed % 4),
                                         .dilation = 1 + (int)(seed % 3)};
        bool variant = seed >= 60;
        struct graph *graph = random_graph(
            variant ? &graph_test_variants[(seed - 60) % GRAPH_VARIANTS] : &plain, seed);
        int most = 1;
        for (int unit = 1; unit < graph->units; unit++) {
            most += graph->unit[unit].may_start;
        }
        for (int stages = 1; stages <= 5 && stages <= most; stages++) {
            struct best best = {.stages = stages, .cost = -1};
            try_all(graph, &best, 0, 0, 0, 0);
            struct plan_options options = {.ranks = stages,
                                           .microbatches = 1,
                                           .schedule = "1f1b",
                                           .partition = "auto",
                                           .prefetch = 1};
            struct plan *plan = NULL;
            assert_ok(plan_create(graph, &options, &plan));
            for (int stage = 0; stage < stages; stage++) {
                assert_int_equal(plan->stage[stage].unit[0], best.best_cut[stage]);
            }
            plan_destroy(plan);
        }
        graph_test_destroy(graph);
    }
}

static void assert_cuts(const struct graph *graph, int stages, const char *partition,
                        const int *units)
{
    struct plan_options options = {.ranks = stages,
                                   .microbatches = 1,
                                   .schedule = "1f1b",
                                   .partition = partition,
                                   .prefetch = 1};
    struct plan *plan = NULL;
    assert_ok(plan_create(graph, &options, &plan));
    for (int stage = 0; stage < stages; stage++) {
        assert_int_equal(plan->stage[stage].units, units[stage]);
        assert_int_equal(plan_stage_of(plan, plan->stage[stage].unit[0]), stage);
        assert_int_equal(plan_rank_of(plan, stage), stage);
    }
    plan_destroy(plan);
}

static void test_layers_and_counts(void **state)
{
    (void)state;
    struct graph *graph = graph_test_create(5, 1);
    assert_cuts(graph, 1, "layers", (const int[]){12});
    assert_cuts(graph, 2, "layers", (const int[]){7, 5});
    assert_cuts(graph, 3, "layers", (const int[]){5, 4, 3});
    assert_cuts(graph, 5, "layers", (const int[]){3, 2, 2, 2, 3});
    assert_cuts(graph, 4, "1,6,3,2", (const int[]){1, 6, 3, 2});
    graph_test_destroy(graph);
}

/* Parallel residuals: attention and FFN of a layer stay together, however the stages are cut. */
static void test_whole_layers(void **state)
{
    (void)state;
    for (int i = 0; i < GRAPH_VARIANTS; i++) {
        struct graph *graph = graph_test_make(&graph_test_variants[i]);
        for (int unit = 0; unit < graph->units; unit++) {
            graph->unit[unit].may_start = unit % 2 == 1;
        }
        for (int stages = 1; stages <= graph_test_variants[i].layers; stages++) {
            for (int by_layers = 0; by_layers < 2; by_layers++) {
                struct plan_options options = {.ranks = stages,
                                               .microbatches = 2,
                                               .schedule = "1f1b",
                                               .partition = by_layers ? "layers" : "auto",
                                               .prefetch = 1};
                struct plan *plan = NULL;
                assert_ok(plan_create(graph, &options, &plan));
                for (int stage = 1; stage < stages; stage++) {
                    assert_int_equal(plan->stage[stage].unit[0] % 2, 1);
                }
                plan_destroy(plan);
            }
        }
        graph_test_destroy(graph);
    }
}

static void assert_refused(const struct graph *graph, int stages, const char *partition,
                           const char *says)
{
    char text[512] = "";
    struct plan_options options = {.ranks = stages,
                                   .microbatches = 1,
                                   .schedule = "1f1b",
                                   .partition = partition,
                                   .prefetch = 1};
    struct plan *plan = NULL;
    log_capture(text, sizeof text);
    status_t status = plan_create(graph, &options, &plan);
    log_capture(NULL, 0);
    assert_status(status, STATUS_INVALID);
    assert_null(plan);
    if (strstr(text, says) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", text, says);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    struct graph *graph = graph_test_create(3, 1);
    for (int i = 1; i <= 3; i++) {
        graph->unit[2 * i].may_start = i != 2; /* no stage may begin with ffn 2 */
    }
    assert_refused(graph, 8, "auto", "at most 7; use parallel.pp=7");
    assert_refused(graph, 4, "layers", "has 3 layers; use parallel.pp=3");
    assert_refused(graph, 3, "4,4", "names 2 stages, but there are 3");
    assert_refused(graph, 2, "4,5", "adds up to 9 units, but the model has 8");
    assert_refused(graph, 2, "4,4",
                   "before ffn 2, where no stage may begin; give it 1 unit less: the nearest cut "
                   "is before attn 2");
    for (int unit = 1; unit <= 4; unit++) {
        graph->unit[unit].may_start = false;
    }
    assert_refused(graph, 2, "3,5",
                   "before attn 2, where no stage may begin; give it 2 units more");
    assert_refused(graph, 2, "1,7", "give it 4 units more: the nearest cut is before attn 3");
    assert_refused(graph, 3, "layers", "before attn 2, where no stage may begin");
    for (int unit = 1; unit < graph->units; unit++) {
        graph->unit[unit].may_start = unit == 1;
    }
    assert_refused(graph, 2, "7,1", "before head, where no stage may begin; give it 6 units less");
    assert_refused(graph, 2, "8,0", "stage 1 needs a number");
    assert_refused(graph, 2, "x,7", "stage 0 needs a number");
    assert_refused(graph, 2, "1,7x", "stage 1 needs a number");
    assert_refused(graph, 2, "1,", "stage 1 needs a number");
    assert_refused(graph, 2, "99999999999999999999,1", "stage 0 needs a number");
    assert_refused(graph, 1, "", "stage 0 needs a number");
    graph_test_destroy(graph);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_auto_is_best),
        cmocka_unit_test(test_layers_and_counts),
        cmocka_unit_test(test_whole_layers),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
