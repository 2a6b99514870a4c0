/* What a plan says a rank holds, counted by hand. */
#include "tests/test.h"

#include "tests/schedule/graphs.h"

static struct plan *plan_make(const struct graph *graph, int ranks, int microbatches,
                              const char *schedule, const char *partition, int prefetch)
{
    struct plan_options options = {.ranks = ranks,
                                   .microbatches = microbatches,
                                   .schedule = schedule,
                                   .partition = partition,
                                   .prefetch = prefetch};
    struct plan *plan = NULL;
    assert_ok(plan_create(graph, &options, &plan));
    return plan;
}

static void test_memory(void **state)
{
    (void)state;
    struct graph *graph = graph_test_create(2, 1);
    struct plan *plan = plan_make(graph, 2, 4, "1f1b", "4,2", 1);
    struct plan_memory memory;
    plan_memory(plan, 0, &memory);
    assert_int_equal(memory.parameters, 4 * 4096);
    assert_int_equal(memory.optimizer, 2 * 4 * 4096);
    assert_int_equal(memory.frames, 2 * 4 * 8192);
    assert_int_equal(memory.arrivals, 0);
    /* X_0, X_1 and H_2 are received in 2 slots each, H_1 is local */
    assert_int_equal(memory.gradient_slots, (3 * 2 + 1) * GRAPH_KEY_BYTES);
    assert_int_equal(memory.staging, 2 * 3 * 2 * GRAPH_KEY_BYTES); /* and their keys are sent */
    plan_memory(plan, 1, &memory);
    assert_int_equal(memory.staging, 2 * 3 * 2 * GRAPH_KEY_BYTES);
    assert_int_equal(memory.frames, 2 * 8192);
    assert_int_equal(memory.arrivals, 3 * 2 * GRAPH_KEY_BYTES);
    /* X_0, X_1 and H_2 are sent from 2 slots each, X_2 is local */
    assert_int_equal(memory.gradient_slots, (3 * 2 + 1) * GRAPH_KEY_BYTES);
    assert_int_equal(memory.backward, 2 * 512);
    plan_destroy(plan);
    graph_test_destroy(graph);
}

/* Master weights beside rounded ones; units take turns in the largest one's shared bytes. */
static void test_memory_shared(void **state)
{
    (void)state;
    struct graph *graph = graph_test_create(2, 1);
    for (int unit = 0; unit < graph->units; unit++) {
        graph->unit[unit].master_bytes = 8192;
        graph->unit[unit].gradient_bytes = 8192;
        graph->unit[unit].moment_bytes = 2048;
        graph->unit[unit].training.shared = 1000 * (unit + 1);
        graph->unit[unit].evaluation = (struct unit_bytes){.frame = 64, .shared = 10 * (unit + 1)};
    }
    struct plan *plan = plan_make(graph, 2, 4, "1f1b", "4,2", 1);
    struct plan_memory memory;
    plan_memory(plan, 0, &memory); /* embed, attn 1, ffn 1, attn 2 */
    assert_int_equal(memory.parameters, 4 * (4096 + 8192));
    assert_int_equal(memory.gradients, 4 * 8192);
    assert_int_equal(memory.optimizer, 2 * 4 * 2048);
    assert_int_equal(memory.frames, 2 * 4 * 8192);
    assert_int_equal(memory.backward, 4 * 512 + 4000);
    plan_destroy(plan);
    plan = plan_make(graph, 2, 4, "forward", "4,2", 1);
    plan_memory(plan, 0, &memory);
    assert_int_equal(memory.parameters, 4 * 4096);
    assert_int_equal(memory.gradients + memory.optimizer + memory.backward, 0);
    assert_int_equal(memory.frames, 2 * 4 * 64 + 40);
    int64_t leaves = memory.staging;
    plan_memory(plan, 1, &memory); /* nothing comes back */
    assert_int_equal(leaves, memory.arrivals);
    assert_int_equal(memory.staging, memory.arrivals);
    plan_destroy(plan);
    graph_test_destroy(graph);
}

/* Normed and raw keys, blocks of one layer, cut after layer 1. */
static void test_memory_of_kinds(void **state)
{
    (void)state;
    static const struct graph_test test = {
        .layers = 2, .dilation = 1, .block = 1, .raw = RAW_ADDED};
    struct graph *graph = graph_test_make(&test);
    struct plan *plan = plan_make(graph, 2, 4, "1f1b", "3,3", 1);
    struct plan_memory memory;
    plan_memory(plan, 0, &memory);
    /* X_0, X_1, R_1 and S_0 are received in 2 slots each, R_0 and H_1 are local */
    assert_int_equal(memory.gradient_slots, (4 * 2 + 2) * GRAPH_KEY_BYTES);
    plan_memory(plan, 1, &memory);
    assert_int_equal(memory.arrivals, 4 * 2 * GRAPH_KEY_BYTES);
    /* the same four are sent from 2 slots each, X_2, R_2 and H_2 are local */
    assert_int_equal(memory.gradient_slots, (4 * 2 + 3) * GRAPH_KEY_BYTES);
    plan_destroy(plan);
    graph_test_destroy(graph);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_memory_shared),
        cmocka_unit_test(test_memory_of_kinds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
