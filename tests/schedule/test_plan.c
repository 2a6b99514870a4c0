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
    struct plan_options options = {.ranks = ranks,
                                   .microbatches = microbatches,
                                   .schedule = schedule,
                                   .partition = partition,
                                   .prefetch = prefetch};
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
static int serial_adds(const struct plan *plan, int key, int *out)
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
                if (plan->add[a].read != ADD_RECEIVED) {
                    out[count++] = plan->add[a].read;
                }
            }
        }
    }
    return count;
}

static void assert_same_order(const struct plan *plan, const struct plan *serial)
{
    int a[64], b[64];
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
                   : stage == plan->stages - 1           ? 1
                                                         : 2;
        int least = most < plan->microbatches ? most : plan->microbatches;
        assert_int_equal(plan->stage[stage].frames, least);
    }
}

/* ---- what crosses, counted from the rule of the connections ---- */

/* Does a unit from `first` to before `end` read X_j, R_j or S_c? */
static bool reads_hidden(const struct graph_test *test, int first, int end, int j)
{
    bool read = false;
    for (int i = j; i <= test->layers; i++) { /* by the consumer after layer i */
        bool taken = i == j && test->raw == RAW_NONE && !graph_test_aggregates(test, i);
        bool here = 2 * i + 1 >= first && 2 * i + 1 < end;
        read = read || (here && (taken || graph_test_connects(test, i, j)));
    }
    int c = test->block > 0 && j > 0 ? (j - 1) / test->block : graph_test_summaries(test);
    int ffn = 2 * (c + 1) * test->block; /* by the FFN that forms the mean of its block */
    return read || (c < graph_test_summaries(test) && ffn >= first && ffn < end);
}

static bool reads_raw(const struct graph_test *test, int first, int end, int j)
{
    bool read = test->raw == RAW_NORMED || test->raw == RAW_ADDED ||
                (test->raw == RAW_STATIC && !graph_test_aggregates(test, j));
    return read && 2 * j + 1 >= first && 2 * j + 1 < end;
}

static bool reads_summary(const struct graph_test *test, int first, int end, int c)
{
    bool read = false;
    for (int i = 0; i <= test->layers; i++) {
        read = read || (2 * i + 1 >= first && 2 * i + 1 < end && graph_test_sums(test, i, c));
    }
    return read;
}

struct count {
    int plain, dense;
};

/* Of a model with a key a unit: the newest, and what is finished of the blocks before it. */
static struct count counted_sublayers(const struct plan *plan, const struct graph_test *test)
{
    struct count count = {0, 0};
    int in_block = test->block > 0 ? 2 * test->block : 1;
    for (int stage = 1; stage < plan->stages; stage++) {
        int first = plan->stage[stage].unit[0];
        count.plain++;
        count.dense += test->raw == SUBLAYERS ? (first - 2 + in_block) / in_block : 0;
    }
    return count;
}

/* What each stage must receive. */
static struct count counted_units(const struct plan *plan, const struct graph_test *test)
{
    struct count count = {0, 0};
    if (test->raw == SUBLAYERS || test->raw == STREAMS) {
        return counted_sublayers(plan, test);
    }
    for (int stage = 1; stage < plan->stages; stage++) {
        int first = plan->stage[stage].unit[0], end = first + plan->stage[stage].units;
        count.plain += first % 2 == 0; /* begins with an FFN: H_i */
        for (int j = 0; 2 * j < first; j++) {
            bool newest = 2 * j == first - 1;
            int units = reads_hidden(test, first, end, j) + reads_raw(test, first, end, j);
            *(newest ? &count.plain : &count.dense) += units;
        }
        for (int c = 0; c < graph_test_summaries(test); c++) {
            bool made = 2 * (c + 1) * test->block < first;
            count.dense += made && reads_summary(test, first, end, c);
        }
    }
    return count;
}

static struct count shipped_units(const struct plan *plan, bool backward)
{
    struct count count = {0, 0};
    for (int i = 0; i < plan->shipments; i++) {
        const struct shipment *s = &plan->shipment[i];
        if (s->backward == backward) {
            *(s->plain ? &count.plain : &count.dense) += 1;
        }
    }
    return count;
}

static void assert_count(struct count count, int plain, int dense)
{
    assert_int_equal(count.plain, plain);
    assert_int_equal(count.dense, dense);
}

static void assert_traffic(const struct plan *plan, const struct graph_test *test)
{
    struct count count = counted_units(plan, test);
    int both = 1 + plan->training;
    assert_count(shipped_units(plan, false), count.plain, count.dense);
    assert_count(shipped_units(plan, true), (both - 1) * count.plain, (both - 1) * count.dense);

    int64_t plain[36], dense[36], all_plain = 0, all_dense = 0;
    plan_traffic(plan, plain, dense);
    for (int i = 0; i < plan->ranks * plan->ranks; i++) {
        all_plain += plain[i];
        all_dense += dense[i];
    }
    int64_t step = (int64_t)both * plan->microbatches * GRAPH_KEY_BYTES;
    int64_t more = 0; /* of a stream's key several tensors, but for the embedding's: one is plain */
    for (int stage = 1; stage < plan->stages && test->raw == STREAMS; stage++) {
        more += plan->stage[stage].unit[0] > 1 ? 3 : 0;
    }
    assert_int_equal(all_plain, count.plain * step);
    assert_int_equal(all_dense, (count.dense + more) * step);
}

/* For as many forwards and for fewer, not for more, nor for backwards. */
static void assert_room(const struct plan *plan, const char *partition, int prefetch)
{
    const int count[] = {1, plan->microbatches, plan->microbatches + 1};
    for (int i = 0; i < 3; i++) {
        struct plan *forwards =
            plan_make(plan->graph, plan->ranks, count[i], "forward", partition, prefetch);
        assert_int_equal(plan_has_room(plan, forwards), i < 2);
        assert_false(plan->training && plan_has_room(forwards, plan));
        plan_destroy(forwards);
    }
    assert_true(plan_has_room(plan, plan));
}

static void check_layout(const struct graph *graph, const struct plan *serial,
                         const struct graph_test *test, int ranks, int microbatches)
{
    char text[64];
    unsigned seed =
        (unsigned)(1000 * test->layers + 100 * test->dilation + 10 * ranks + microbatches);
    for (int i = 0; i < 9; i++) {
        const char *partition =
            i / 3 == 0 ? "auto"
            : i / 3 == 1 && ranks <= test->layers
                ? "layers"
                : any_partition(graph->units, ranks, seed + (unsigned)i, text, sizeof text);
        struct plan *plan = plan_make(graph, ranks, microbatches, schedules[i % 3], partition,
                                      (int)(seed + (unsigned)i) % 3);
        assert_frames(plan);
        assert_traffic(plan, test);
        assert_same_order(plan, serial);
        if (i / 3 == (ranks + microbatches) % 3) {
            assert_room(plan, partition, (int)(seed + (unsigned)i) % 3);
        }
        double busy[6], makespan = 0;
        assert_ok(plan_simulate(plan, busy, &makespan));
        plan_destroy(plan);
    }
}

/* ---- the order of additions, from the rule of the connections ---- */

/* An addition as the rule of the connections knows it: how which unit reads, and what it makes. */
struct addition {
    enum test_read how;
    int unit, made;
};

static int push_add(struct addition *out, int count, enum test_read how, int unit, int made)
{
    out[count] = (struct addition){how, unit, made};
    return count + 1;
}

/* The mean's share comes before all consumers but for the block's last layer, where it is last. */
static int hidden_adds(const struct graph_test *test, int j, struct addition *out)
{
    int count = 0;
    int c = test->block > 0 && j > 0 ? (j - 1) / test->block : graph_test_summaries(test);
    bool summed = c < graph_test_summaries(test), last = summed && j % test->block == 0;
    int ffn = 2 * (c + 1) * test->block, summary = graph_test_summary(test, c);
    if (summed && !last) {
        count = push_add(out, count, SUMMARY, ffn, summary);
    }
    for (int i = test->layers; i >= j; i--) {
        if (graph_test_connects(test, i, j)) {
            count = push_add(out, count, AGGREGATE, 2 * i + 1, -1);
            bool makes = i == j && test->raw == RAW_NONE;
            count = makes ? push_add(out, count, GENERATOR, 2 * i + 1, -1) : count;
        } else if (i == j && test->raw == RAW_NONE) {
            count = push_add(out, count, DIRECT, 2 * i + 1, -1);
        }
    }
    return last ? push_add(out, count, SUMMARY, ffn, summary) : count;
}

static int raw_adds(const struct graph_test *test, int j, struct addition *out)
{
    struct addition hidden[64];
    int count = 0;
    bool aggregates = graph_test_aggregates(test, j);
    if (aggregates && test->raw != RAW_STATIC) {
        count = push_add(out, count, GENERATOR, 2 * j + 1, -1);
    }
    if (!aggregates || test->raw == RAW_ADDED) {
        count = push_add(out, count, DIRECT, 2 * j + 1, -1);
    }
    bool flows = hidden_adds(test, j, hidden) > 0;
    return flows ? push_add(out, count, NORM, 2 * j, graph_test_hidden(j)) : count;
}

static int summary_adds(const struct graph_test *test, int c, struct addition *out)
{
    int count = 0;
    for (int i = test->layers; i >= 0; i--) {
        if (graph_test_sums(test, i, c)) {
            count = push_add(out, count, AGGREGATE, 2 * i + 1, -1);
        }
    }
    return count;
}

static void assert_adds(const struct plan *plan, int key, const struct addition *want, int count)
{
    int is[64];
    assert_int_equal(serial_adds(plan, key, is), count);
    for (int i = 0; i < count; i++) {
        const struct read *read = &plan->graph->read[is[i]];
        assert_int_equal(read->key, key);
        assert_int_equal(read->tag, want[i].how);
        assert_int_equal(read->unit, want[i].unit);
        assert_int_equal(read->made, want[i].made);
    }
}

/* Sources of later units, descending; of the next unit then what it added to the key. */
static int sublayer_adds(const struct graph_test *test, int u, struct addition *out)
{
    int count = 0, S = 2 * test->block, units = 2 * test->layers;
    bool whole = S == 0 || u % S == 0 || u == units; /* a block's sum, or no blocks */
    for (int reader = whole ? units + 1 : u + 1; reader > u; reader--) {
        count = push_add(out, count, SOURCE, reader, -1);
    }
    return whole ? count : push_add(out, count, TOTAL, u + 1, u + 1);
}

static void assert_serial_order(const struct plan *serial, const struct graph_test *test)
{
    struct addition want[64];
    for (int u = 0; u <= 2 * test->layers && test->raw == SUBLAYERS; u++) {
        assert_adds(serial, u, want, sublayer_adds(test, u, want));
    }
    if (test->raw == SUBLAYERS || test->raw == STREAMS) {
        return; /* of streams B forms every gradient */
    }
    for (int j = 0; j <= test->layers; j++) {
        assert_adds(serial, graph_test_hidden(j), want, hidden_adds(test, j, want));
        if (test->raw != RAW_NONE) {
            assert_adds(serial, graph_test_raw(test, j), want, raw_adds(test, j, want));
        }
    }
    for (int c = 0; c < graph_test_summaries(test); c++) {
        assert_adds(serial, graph_test_summary(test, c), want, summary_adds(test, c, want));
    }
}

/* ---- every layout ---- */

static void check_model(const struct graph_test *test, int microbatches_step)
{
    struct graph *graph = graph_test_make(test);
    struct plan *serial = plan_make(graph, 1, 1, "gpipe", "auto", 0);
    assert_serial_order(serial, test);
    for (int ranks = 1; ranks <= 6 && ranks <= graph->units; ranks++) {
        for (int microbatches = 1; microbatches <= 8; microbatches += microbatches_step) {
            check_layout(graph, serial, test, ranks, microbatches);
        }
    }
    plan_destroy(serial);
    graph_test_destroy(graph);
}

static void test_every_layout(void **state)
{
    (void)state;
    for (int layers = 1; layers <= 6; layers++) {
        for (int dilation = 0; dilation <= 3; dilation++) {
            const struct graph_test test = {.layers = layers, .dilation = dilation};
            check_model(&test, 1);
        }
    }
}

static void test_every_variant(void **state)
{
    (void)state;
    for (int i = 0; i < GRAPH_VARIANTS; i++) {
        check_model(&graph_test_variants[i], 1);
    }
    for (int layers = 1; layers <= 6; layers++) {
        for (int mix = 0; mix < 4 * 3 * 4; mix++) { /* blocks, periods, raw keys */
            const struct graph_test test = {layers, 1 + mix % 2, 1 + mix / 4 % 3, mix % 4,
                                            mix / 12};
            check_model(&test, 3);
        }
    }
}

/* Every cut of the units into up to 4 stages. */
static void test_every_cut(void **state)
{
    (void)state;
    static const struct graph_test tests[] = {
        {.layers = 3, .dilation = 1, .block = 2, .raw = RAW_ADDED},
        {.layers = 4, .dilation = 1, .block = 2, .period = 2, .raw = RAW_NORMED},
    };
    for (size_t t = 0; t < sizeof tests / sizeof tests[0]; t++) {
        struct graph *graph = graph_test_make(&tests[t]);
        for (int a = 1; a < graph->units - 2; a++) {
            for (int b = 1; a + b < graph->units - 1; b++) {
                for (int c = 1; a + b + c < graph->units; c++) {
                    char text[64];
                    snprintf(text, sizeof text, "%d,%d,%d,%d", a, b, c, graph->units - a - b - c);
                    struct plan *plan = plan_make(graph, 4, 5, "1f1b", text, a % 2);
                    assert_traffic(plan, &tests[t]);
                    plan_destroy(plan);
                }
            }
        }
        graph_test_destroy(graph);
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
                if (n % k == 0) {
                    int dense = n / k * ranks * (ranks - 1) / 2;
                    assert_count(shipped_units(plan, false), ranks - 1, dense);
                }
                plan_destroy(plan);
                graph_test_destroy(graph);
            }
        }
    }
}

/* Blocks of S layers that do not straddle stages of n: beside X_0 (which is the newest key of no
 * later stage) a stage receives the newest key, its raw form if that is used, and one summary
 * of each block before it. With n = S that is one summary a stage. */
static void test_closed_form_blocks(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 6; ranks++) {
        for (int n = 1; n <= 4; n++) {
            for (int S = 1; S <= n; S++) {
                for (int raw = RAW_NONE; raw <= RAW_ADDED && n % S == 0; raw++) {
                    const struct graph_test test = {
                        .layers = n * ranks, .dilation = 1, .block = S, .raw = raw};
                    struct graph *graph = graph_test_make(&test);
                    struct plan *plan = plan_make(graph, ranks, 2, "1f1b", "layers", 1);
                    int plain = (ranks - 1) * (raw == RAW_NORMED || raw == RAW_ADDED ? 2 : 1);
                    int dense = n / S * ranks * (ranks - 1) / 2 + (ranks - 1);
                    assert_count(shipped_units(plan, false), plain, dense);
                    assert_count(shipped_units(plan, true), plain, dense);
                    plan_destroy(plan);
                    graph_test_destroy(graph);
                }
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

/* W right after B leaves the same operations and the same additions, in other places. */
static void test_weights_at_once(void **state)
{
    (void)state;
    struct graph *graph = graph_test_create(3, 1);
    struct plan_options options = {
        .ranks = 2, .microbatches = 4, .schedule = "1f1b", .partition = "auto", .prefetch = 1};
    struct plan *late = NULL, *at_once = NULL;
    assert_ok(plan_create(graph, &options, &late));
    options.weights_at_once = true;
    assert_ok(plan_create(graph, &options, &at_once));
    assert_same_order(at_once, late);
    assert_true(plan_hash(at_once) != plan_hash(late));
    for (int rank = 0; rank < 2; rank++) {
        const struct rank_plan *list = &at_once->rank[rank];
        int pairs = 0;
        assert_int_equal(list->ops, late->rank[rank].ops);
        for (int i = 0; i + 1 < list->ops; i++) {
            const struct op *b = &list->op[i], *next = &list->op[i + 1];
            if (b->kind == OP_B) { /* posts of slots that B has freed may come between */
                while (next->kind == OP_POST) {
                    next++;
                }
                assert_int_equal(next->kind, OP_W);
                assert_int_equal(next->unit, b->unit);
                pairs++;
            }
        }
        assert_int_equal(pairs, at_once->stage[rank].units * 4);
    }
    plan_destroy(late);
    plan_destroy(at_once);
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

/* What nobody reads, or only something that nobody reads, has no gradient; the rest is planned. */
static void test_unread(void **state)
{
    (void)state;
    static const struct graph_test test = {
        .layers = 4, .dilation = 1, .block = 2, .raw = RAW_ADDED};
    struct graph *graph = graph_test_make(&test);
    int kept = 0;
    for (int i = 0; i < graph->reads; i++) {
        const struct read *read = &graph->read[i];
        bool gone = read->key == 14 || read->key == 4 || (read->key == 1 && read->tag != SUMMARY);
        if (!gone) { /* of S_0 and X_4 nothing is left, of X_1 that S_0 is made of it */
            graph->read[kept++] = *read;
        }
    }
    graph->reads = kept;
    graph_finish(graph);
    struct plan *plan = plan_make(graph, 3, 3, "1f1b", "3,3,4", 1);
    static const int unread[] = {1, 4, 14};
    for (int stage = 0; stage < plan->stages; stage++) {
        for (int i = 0; i < 3; i++) {
            assert_int_equal(plan->stage[stage].sum[unread[i]], -1);
        }
    }
    for (int i = 0; i < plan->shipments; i++) { /* X_1 goes to the FFN that makes S_0 of it */
        const struct shipment *s = &plan->shipment[i];
        assert_true(s->key != 4 && s->key != 14);
        assert_true(s->key != 1 || (!s->backward && s->from == 0 && s->to == 1));
    }
    plan_destroy(plan);
    graph_test_destroy(graph);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_layout),
        cmocka_unit_test(test_unread),
        cmocka_unit_test(test_every_variant),
        cmocka_unit_test(test_every_cut),
        cmocka_unit_test(test_closed_form_blocks),
        cmocka_unit_test(test_closed_form),
        cmocka_unit_test(test_makespan),
        cmocka_unit_test(test_weights_at_once),
        cmocka_unit_test(test_hash),
        cmocka_unit_test(test_fast),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
