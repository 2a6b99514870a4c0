/* What holds for every plan: sizes, closed forms of the traffic, the order of additions. That each
 * plan is right by itself is proved inside plan_create. */
#include "tests/test.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "tests/schedule/graphs.h"

static const char *const schedules[] = {"gpipe", "1f1b", "forward"};

static struct plan *plan_make(const struct graph *graph, int ranks, int microbatches,
                              const char *schedule, const char *partition, int prefetch)
{
    struct plan_options options = {ranks, microbatches, 1, schedule, partition, prefetch};
    struct plan *plan = NULL;
    assert_ok(plan_create(graph, &options, &plan));
    return plan;
}

/* Some partition of the units, cuts inside layers included; the same for the same `seed`. */
static const char *any_partition(int units, int stages, unsigned seed, char *text, size_t size)
{
    int left = units, used = 0;
    for (int stage = 0; stage < stages; stage++) {
        seed = seed * 1103515245u + 12345u;
        int spare = left - (stages - stage);
        int count = stage + 1 == stages ? left : 1 + (int)(seed / 65536u % (unsigned)(spare + 1));
        used += snprintf(text + used, size - (size_t)used, "%s%d", stage > 0 ? "," : "", count);
        left -= count;
    }
    return text;
}

/* Serial additions of a key: those of all stages, last stage first, without the sums received. */
static int serial_adds(const struct plan *plan, int key, struct add *out)
{
    int count = 0;
    for (int stage = plan->stages; stage-- > 0;) {
        const struct rank_plan *list = &plan->rank[plan_rank_of(plan, stage)];
        for (int i = 0; i < list->ops; i++) {
            const struct op *op = &list->op[i];
            if (op->kind != OP_GRAD || op->microbatch != 0 || op->key != key) {
                continue;
            }
            for (int a = op->first_add; a < op->first_add + op->adds; a++) {
                if (plan->add[a].kind != ADD_RECEIVED) {
                    out[count++] = plan->add[a];
                }
            }
        }
    }
    return count;
}

static void assert_same_order(const struct plan *plan, const struct plan *serial)
{
    struct add a[64], b[64];
    for (int key = 0; key < plan->graph->keys && plan->training; key++) {
        int count = serial_adds(plan, key, a);
        assert_int_equal(count, serial_adds(serial, key, b));
        assert_memory_equal(a, b, (size_t)count * sizeof a[0]);
    }
}

static void assert_frames(const struct plan *plan)
{
    for (int stage = 0; stage < plan->stages; stage++) {
        int most = strcmp(plan->schedule, "gpipe") == 0  ? plan->microbatches
                   : strcmp(plan->schedule, "1f1b") == 0 ? plan->stages - stage
                                                         : 2;
        int least = most < plan->microbatches ? most : plan->microbatches;
        assert_int_equal(plan->stage[stage].frames, least);
    }
}

/* What each stage must receive, counted from the rule of the connections. */
static int64_t counted_units(const struct plan *plan, int layers, int dilation)
{
    int64_t units = 0;
    for (int stage = 1; stage < plan->stages; stage++) {
        int first = plan->stage[stage].first_unit, end = first + plan->stage[stage].units;
        units += first % 2 == 0 && first > 0 && first <= 2 * layers; /* begins with an FFN: H_i */
        for (int j = 0; j <= layers; j++) {
            bool read = false;
            for (int i = j; i <= layers; i++) { /* unit of the consumer after layer i */
                bool here = 2 * i + 1 >= first && 2 * i + 1 < end && 2 * j < first;
                read = read ||
                       (here && (dilation == 0 ? i == j : graph_test_connects(i, j, dilation)));
            }
            units += read;
        }
    }
    return units;
}

static int64_t shipped_units(const struct plan *plan, bool backward, bool *out_plain_ok)
{
    int64_t units = 0, plain = 0;
    for (int i = 0; i < plan->shipments; i++) {
        units += plan->shipment[i].backward == backward;
        plain += plan->shipment[i].backward == backward && plan->shipment[i].plain;
    }
    *out_plain_ok = plain == (plan->training || !backward ? plan->stages - 1 : 0);
    return units;
}

static void assert_traffic(const struct plan *plan, int layers, int dilation)
{
    int64_t units = counted_units(plan, layers, dilation);
    bool plain_ok = false;
    assert_int_equal(shipped_units(plan, false, &plain_ok), units);
    assert_true(plain_ok);
    assert_int_equal(shipped_units(plan, true, &plain_ok), plan->training ? units : 0);
    assert_true(plain_ok);

    int64_t plain[36], dense[36], sum = 0;
    plan_traffic(plan, plain, dense);
    for (int i = 0; i < plan->ranks * plan->ranks; i++) {
        sum += plain[i] + dense[i];
    }
    assert_int_equal(sum, units * (1 + plan->training) * plan->microbatches * GRAPH_KEY_BYTES);
}

static void check_layout(const struct graph *graph, const struct plan *serial, int layers,
                         int dilation, int ranks, int microbatches)
{
    char text[64];
    unsigned seed = (unsigned)(1000 * layers + 100 * dilation + 10 * ranks + microbatches);
    for (int i = 0; i < 9; i++) {
        const char *partition =
            i / 3 == 0 ? "auto"
            : i / 3 == 1 && ranks <= layers
                ? "layers"
                : any_partition(graph->units, ranks, seed + (unsigned)i, text, sizeof text);
        struct plan *plan = plan_make(graph, ranks, microbatches, schedules[i % 3], partition,
                                      (int)(seed + (unsigned)i) % 3);
        assert_frames(plan);
        assert_traffic(plan, layers, dilation);
        assert_same_order(plan, serial);
        double busy[6], makespan = 0;
        assert_ok(plan_simulate(plan, busy, &makespan));
        plan_destroy(plan);
    }
}

static void test_every_layout(void **state)
{
    (void)state;
    for (int layers = 1; layers <= 6; layers++) {
        for (int dilation = 0; dilation <= 3; dilation++) {
            struct graph *graph = graph_test_create(layers, dilation);
            struct plan *serial = plan_make(graph, 1, 1, "gpipe", "auto", 0);
            for (int ranks = 1; ranks <= 6 && ranks <= graph->units; ranks++) {
                for (int microbatches = 1; microbatches <= 8; microbatches++) {
                    check_layout(graph, serial, layers, dilation, ranks, microbatches);
                }
            }
            plan_destroy(serial);
            graph_test_destroy(graph);
        }
    }
}

/* Equal cuts at layers, n layers a stage, k divides n: n/k P(P-1)/2 + (P-1) keys a microbatch. */
static void test_closed_form(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 6; ranks++) {
        for (int n = 1; n <= 4; n++) {
            for (int k = 1; k <= n; k++) {
                struct graph *graph = graph_test_create(n * ranks, k);
                struct plan *plan = plan_make(graph, ranks, 2, "1f1b", "layers", 1);
                bool plain_ok = false;
                int64_t units = n / k * ranks * (ranks - 1) / 2 + (ranks - 1);
                if (n % k == 0) {
                    assert_int_equal(shipped_units(plan, false, &plain_ok), units);
                    assert_true(plain_ok);
                }
                plan_destroy(plan);
                graph_test_destroy(graph);
            }
        }
    }
}

/* Equal stages: the last one never idles between its first F and its last W. */
static void test_makespan(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 6; ranks++) {
        struct graph *graph = graph_test_create(ranks, 1);
        for (int unit = 0; unit < graph->units; unit++) {
            bool inside = unit > 0 && unit < graph->units - 1;
            graph->unit[unit].forward_cost = inside ? 3 : 0;
            graph->unit[unit].backward_cost = inside ? 4 : 0;
            graph->unit[unit].weight_cost = inside ? 2 : 0;
        }
        for (int microbatches = ranks; microbatches <= 12; microbatches++) {
            struct plan *plan = plan_make(graph, ranks, microbatches, "1f1b", "layers", 1);
            double busy[6], makespan = 0;
            assert_ok(plan_simulate(plan, busy, &makespan));
            assert_int_equal((int)makespan, (ranks - 1) * (6 + 8) + microbatches * (6 + 8 + 4));
            assert_int_equal((int)busy[ranks - 1], microbatches * (6 + 8 + 4));
            plan_destroy(plan);
        }
        graph_test_destroy(graph);
    }
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
    plan_memory(plan, 1, &memory);
    assert_int_equal(memory.frames, 2 * 8192);
    assert_int_equal(memory.arrivals, 3 * 2 * GRAPH_KEY_BYTES);
    /* X_0, X_1 and H_2 are sent from 2 slots each, X_2 is local */
    assert_int_equal(memory.gradient_slots, (3 * 2 + 1) * GRAPH_KEY_BYTES);
    assert_int_equal(memory.backward, 2 * 512);
    plan_destroy(plan);
    graph_test_destroy(graph);
}

static void test_hash(void **state)
{
    (void)state;
    struct graph *graph = graph_test_create(3, 1);
    struct plan *a = plan_make(graph, 3, 4, "1f1b", "auto", 1);
    struct plan *b = plan_make(graph, 3, 4, "1f1b", "auto", 1);
    assert_true(plan_hash(a) == plan_hash(b));
    plan_destroy(b);
    b = plan_make(graph, 3, 4, "gpipe", "auto", 1);
    assert_true(plan_hash(a) != plan_hash(b));
    plan_destroy(b);
    b = plan_make(graph, 3, 4, "1f1b", "auto", 0);
    assert_true(plan_hash(a) != plan_hash(b));
    uint64_t before = plan_hash(b);
    b->rank[2].op[5].microbatch++;
    assert_true(plan_hash(b) != before);
    plan_destroy(b);
    plan_destroy(a);
    plan_destroy(NULL);
    graph_test_destroy(graph);
}

static void test_fast(void **state)
{
    (void)state;
    struct graph *graph = graph_test_create(32, 1);
    plan_destroy(plan_make(graph, 8, 64, "1f1b", "auto", 1));
    plan_destroy(plan_make(graph, 8, 64, "gpipe", "auto", 1));
    graph_test_destroy(graph);
}

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        struct plan_options options;
        status_t status;
        const char *says;
    } cases[] = {
        {{0, 4, 1, "1f1b", "auto", 1}, STATUS_INVALID, "parallel.pp"},
        {{2, 0, 1, "1f1b", "auto", 1}, STATUS_INVALID, "parallel.microbatches"},
        {{2, 4, 2, "1f1b", "auto", 1}, STATUS_UNSUPPORTED, "stages a rank"},
        {{2, 4, 1, "zigzag", "auto", 1}, STATUS_INVALID, "zigzag"},
        {{2, 4, 1, "1f1b", "auto", -1}, STATUS_INVALID, "parallel.prefetch"},
    };
    struct graph *graph = graph_test_create(2, 1);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[512] = "";
        struct plan *plan = NULL;
        log_capture(text, sizeof text);
        status_t status = plan_create(graph, &cases[i].options, &plan);
        log_capture(NULL, 0);
        assert_status(status, cases[i].status);
        assert_null(plan);
        assert_non_null(strstr(text, cases[i].says));
    }
    graph_test_destroy(graph);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_layout), cmocka_unit_test(test_closed_form),
        cmocka_unit_test(test_makespan),     cmocka_unit_test(test_memory),
        cmocka_unit_test(test_hash),         cmocka_unit_test(test_fast),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
