/* Every schedule over the product of ranks, stages a rank, microbatches, models and cuts (each plan is proved
 * where it is made); its idle time and bytes against closed forms; schedules as files; and a model whose
 * vocabulary is split over the ranks. */
#include "tests/test.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/rng.h"
#include "tests/schedule/graphs.h"

static const struct schedule {
    const char *name;
    int least, most; /* stages a rank */
    bool in_flight;  /* heeds it */
} schedules[] = {{"gpipe", 1, 1, false},
                 {"1f1b", 1, 1, true},
                 {"zb-h1", 1, 1, true},
                 {"interleaved", 1, 4, false},
                 {"zb-v", 2, 2, false}};
enum { SCHEDULES = sizeof schedules / sizeof schedules[0] };

static struct plan *plan_make(const struct graph *graph, const struct plan_options *options)
{
    struct plan *plan = NULL;
    assert_ok(plan_create(graph, options, &plan));
    return plan;
}

/* ---- the product, sampled ---- */

static int below(uint64_t seed, uint64_t what, int most)
{
    return (int)rng_below(seed, 1, what, (uint64_t)most);
}

static struct graph_test any_model(uint64_t seed, int stages)
{
    int layers = (stages + 1) / 2 + below(seed, 3, 4);
    struct graph_test test = {.layers = layers, .dilation = 1 + below(seed, 4, 3)};
    if (below(seed, 5, 2)) {
        test.dilation = 1;
        test.block = below(seed, 6, 4);
        test.raw = below(seed, 7, 6);
        test.period = below(seed, 8, 3);
    } else if (below(seed, 9, 8) == 0) {
        test.dilation = 0;
    }
    return test;
}

/* Uneven stages, also inside layers. */
static const char *any_partition(uint64_t seed, int units, int stages, char *text, size_t size)
{
    int left = units, used = 0;
    if (below(seed, 10, 2)) {
        return "auto";
    }
    for (int stage = 0; stage < stages; stage++) {
        int spare = left - (stages - stage), most = 2 * units / stages + 1;
        int count = stage + 1 == stages ? left
                                        : 1 + below(seed, (uint64_t)(11 + stage),
                                                    1 + (spare < most ? spare : most));
        used += snprintf(text + used, size - (size_t)used, "%s%d", stage > 0 ? "," : "", count);
        left -= count;
    }
    return text;
}

/* Forwards beside the plan, and fewer microbatches, are walked in its memory. */
static void check_rooms(const struct graph *graph, const struct plan_options *options,
                        const struct plan *plan)
{
    struct plan_options other = *options;
    other.schedule = "forward";
    other.beside = options->schedule;
    other.room = plan;
    struct plan *forwards = plan_make(graph, &other);
    assert_true(plan_has_room(plan, forwards));
    plan_destroy(forwards);
    if (options->microbatches > 1) {
        const int sizes[] = {1, 1 + options->microbatches / 2, options->microbatches - 1};
        other = *options;
        other.sizes = sizes;
        other.size_count = 3;
        struct plan *all = plan_make(graph, &other);
        other.size_count = 0;
        for (int i = 0; i < 3; i++) {
            other.microbatches = sizes[i];
            struct plan *fewer = plan_make(graph, &other);
            assert_true(plan_has_room(all, fewer));
            plan_destroy(fewer);
        }
        plan_destroy(all);
    }
}

static void test_product(void **state)
{
    enum { PLANS = 5000 };
    int made[SCHEDULES] = {0}, several = 0;
    (void)state;
    for (uint64_t seed = 0; seed < PLANS; seed++) {
        const struct schedule *schedule = &schedules[seed % SCHEDULES];
        int P = 1 + below(seed, 0, 8);
        int V = schedule->least + below(seed, 1, schedule->most - schedule->least + 1);
        char partition[256];
        struct graph_test test = any_model(seed, P * V);
        struct graph *graph = graph_test_make(&test);
        struct plan_options options = {
            .ranks = P,
            .microbatches = 1 + below(seed, 2, 32),
            .chunks = V,
            .schedule = schedule->name,
            .partition = any_partition(seed, graph->units, P * V, partition, sizeof partition),
            .prefetch = below(seed, 100, 3),
            .in_flight = schedule->in_flight ? below(seed, 103, 4) : 0,
            .weights_at_once = below(seed, 101, 4) == 0 && strncmp(schedule->name, "zb", 2) != 0,
            .sum_order = below(seed, 102, 2) ? SUM_PER_RANK : SUM_SERIAL};
        struct plan *plan = plan_make(graph, &options);
        if (seed % 8 < 2) {
            check_rooms(graph, &options, plan);
        }
        made[seed % SCHEDULES]++;
        several += V > 1;
        plan_destroy(plan);
        graph_test_destroy(graph);
    }
    for (int i = 0; i < SCHEDULES; i++) {
        assert_int_equal(made[i], PLANS / SCHEDULES);
    }
    assert_true(several > PLANS / 4);
}

/* ---- idle time ---- */

enum { F = 6, B = 8, W = 4 }; /* of a rank: divides by 1 and 2 stages */

/* A layer a stage, no cost in embedding and head. */
static struct graph *uniform(int stages, int f, int b, int w)
{
    struct graph *graph = graph_test_create(stages, 1);
    for (int unit = 0; unit < graph->units; unit++) {
        bool ffn = graph->unit[unit].layer > 0 && unit % 2 == 0; /* all of the layer's */
        graph->unit[unit].forward_cost = ffn ? f : 0;
        graph->unit[unit].backward_cost = ffn ? b : 0;
        graph->unit[unit].weight_cost = ffn ? w : 0;
    }
    return graph;
}

/* Time that each rank idles in a step, the same for all. */
static double idle_of(const char *schedule, int P, int V, int M, int f, int b, int w)
{
    struct graph *graph = uniform(P * V, f, b, w);
    struct plan_options options = {.ranks = P,
                                   .microbatches = M,
                                   .chunks = V,
                                   .schedule = schedule,
                                   .partition = "layers",
                                   .prefetch = 1};
    struct plan *plan = plan_make(graph, &options);
    double busy[8], makespan = 0;
    assert_ok(plan_simulate(plan, busy, &makespan));
    for (int rank = 0; rank < P; rank++) {
        assert_int_equal((int)busy[rank], M * V * (f + b + w));
    }
    plan_destroy(plan);
    graph_test_destroy(graph);
    return makespan - busy[0];
}

static void test_idle(void **state)
{
    (void)state;
    for (int P = 1; P <= 8; P++) {
        for (int M = P; M <= 24; M++) {
            assert_int_equal((int)idle_of("gpipe", P, 1, M, F, B, W), (P - 1) * (F + B));
            assert_int_equal((int)idle_of("1f1b", P, 1, M, F, B, W), (P - 1) * (F + B));
            assert_int_equal((int)idle_of("zb-h1", P, 1, M, F, B, W), (P - 1) * (F + B - W));
            if (M % P == 0) { /* V = 2 has half of F and B in each stage, V = 3 all of them */
                assert_int_equal((int)idle_of("interleaved", P, 2, M, F / 2, B / 2, W / 2),
                                 (P - 1) * (F + B) / 2);
                assert_int_equal((int)idle_of("interleaved", P, 3, M, F, B, W), (P - 1) * (F + B));
            }
            if (M >= 2 * P) { /* F = B = W: what is left is the wait for the norm */
                assert_int_equal((int)idle_of("zb-v", P, 2, M, 5, 5, 5), (P - 1) * 5);
            }
        }
    }
}

/* No rank idles between its first and its last operation. */
static void test_zb_v_is_full(void **state)
{
    (void)state;
    for (int P = 1; P <= 8; P++) {
        struct graph *graph = uniform(2 * P, 1, 1, 1);
        struct plan_options options = {.ranks = P,
                                       .microbatches = 2 * P,
                                       .schedule = "zb-v",
                                       .partition = "layers",
                                       .prefetch = 1};
        struct plan *plan = plan_make(graph, &options);
        double busy[8], makespan = 0;
        assert_ok(plan_simulate(plan, busy, &makespan));
        /* Rank r begins after r forwards; the last one to end ends the step. */
        assert_int_equal((int)makespan, 2 * P * 6 + P - 1);
        plan_destroy(plan);
        graph_test_destroy(graph);
    }
}

/* As many microbatches between F and W as 1F1B's rank 0 has; with ZB-V as many halves of a rank. */
static void test_memory(void **state)
{
    (void)state;
    for (int P = 2; P <= 8; P++) {
        for (int v = 0; v < 2; v++) {
            struct graph *graph = uniform(P * (1 + v), 1, 1, 1);
            struct plan_options options = {.ranks = P,
                                           .microbatches = 3 * P,
                                           .schedule = v ? "zb-v" : "zb-h1",
                                           .partition = "layers"};
            struct plan *plan = plan_make(graph, &options);
            for (int rank = 0; rank < P; rank++) {
                int frames = 0;
                for (int stage = 0; stage < plan->stages; stage++) {
                    frames += plan_rank_of(plan, stage) == rank ? plan->stage[stage].frames : 0;
                }
                assert_true(frames <= (v ? 2 * P : P));
            }
            plan_destroy(plan);
            graph_test_destroy(graph);
        }
    }
}

/* With E in flight for each rank behind: 1 + (P - 1 - r)(1 + E) frames on rank r, ZB-H1's W being r
 * microbatches behind; and as long as a forward takes no longer than a backward, no time is lost. */
static void test_in_flight(void **state)
{
    (void)state;
    for (int P = 1; P <= 6; P++) {
        for (int E = 0; E <= 3; E++) {
            for (int h1 = 0; h1 < 2; h1++) {
                struct graph *graph = uniform(P, F, B, W);
                struct plan_options options = {.ranks = P,
                                               .microbatches = 4 * P + 1,
                                               .schedule = h1 ? "zb-h1" : "1f1b",
                                               .partition = "layers",
                                               .in_flight = E};
                struct plan *plan = plan_make(graph, &options);
                double busy[8], makespan = 0;
                assert_ok(plan_simulate(plan, busy, &makespan));
                assert_int_equal((int)(makespan - busy[0]), (P - 1) * (F + B - (h1 ? W : 0)));
                for (int r = 0; r < P; r++) {
                    int frames = 1 + (P - 1 - r) * (1 + E) + (h1 ? r : 0);
                    assert_int_equal(plan->stage[r].frames,
                                     frames < 4 * P + 1 ? frames : 4 * P + 1);
                }
                plan_destroy(plan);
                graph_test_destroy(graph);
            }
        }
    }
}

/* ---- bytes ---- */

static void count_shipments(const struct plan *plan, int *out_forward, int *out_backward)
{
    *out_forward = *out_backward = 0;
    for (int i = 0; i < plan->shipments; i++) {
        *(plan->shipment[i].backward ? out_backward : out_forward) += 1;
    }
}

/* n layers a stage, every key read by everyone after it. Forward each key once to each rank that reads it:
 * L(P-1)(2V-1)/(2V) + (P-1), or placed there and back 3L(P-1)/4 + (P-1). Backward the same per rank;
 * serially what a relay over all stages ships, L(PV-1)/2 + (PV-1), less what stays on a rank. */
static void test_bytes(void **state)
{
    (void)state;
    for (int P = 2; P <= 6; P++) {
        for (int V = 1; V <= 4; V++) {
            for (int n = 1; n <= 2; n++) {
                int L = n * P * V, forward, backward;
                struct graph *graph = graph_test_create(L, 1);
                for (int order = SUM_SERIAL; order <= SUM_PER_RANK; order++) {
                    struct plan_options options = {.ranks = P,
                                                   .microbatches = 4,
                                                   .chunks = V,
                                                   .schedule = "interleaved",
                                                   .partition = "layers",
                                                   .sum_order = (enum sum_order)order};
                    struct plan *plan = plan_make(graph, &options);
                    int once = L * (P - 1) * (2 * V - 1) / (2 * V) + P - 1;
                    int relay = L * (P * V - 1) / 2 + P * V - 1;
                    count_shipments(plan, &forward, &backward);
                    assert_int_equal(forward, once);
                    assert_int_equal(backward, order == SUM_SERIAL ? relay : once);
                    plan_destroy(plan);
                }
                struct plan_options vee = {
                    .ranks = P, .microbatches = 4, .schedule = "zb-v", .partition = "layers"};
                if (V == 2) {
                    struct plan *plan = plan_make(graph, &vee);
                    count_shipments(plan, &forward, &backward);
                    assert_int_equal(forward, 3 * L * (P - 1) / 4 + P - 1);
                    plan_destroy(plan);
                }
                graph_test_destroy(graph);
            }
        }
    }
}

/* ---- files ---- */

static const char *write_file(const char *text)
{
    static char path[] = "/tmp/muddpipe-schedule-XXXXXX";
    memcpy(path + sizeof path - 7, "XXXXXX", 6);
    int file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(write(file, text, strlen(text)), (ssize_t)strlen(text));
    close(file);
    return path;
}

/* Printed and read back: the same plan. */
static void test_round_trip(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 200; seed++) {
        const struct schedule *schedule = &schedules[seed % SCHEDULES];
        int P = 1 + below(seed, 0, 5);
        int V = schedule->least + below(seed, 1, schedule->most - schedule->least + 1);
        struct graph_test test = any_model(seed, P * V);
        struct graph *graph = graph_test_make(&test);
        struct plan_options options = {.ranks = P,
                                       .microbatches = 1 + below(seed, 2, 9),
                                       .chunks = V,
                                       .schedule = schedule->name,
                                       .partition = "auto",
                                       .sum_order = seed % 2 ? SUM_PER_RANK : SUM_SERIAL};
        struct plan *plan = plan_make(graph, &options);
        char *text = NULL;
        size_t size = 0;
        FILE *out = open_memstream(&text, &size);
        plan_print_schedule(plan, out);
        assert_int_equal(fclose(out), 0);
        const char *path = write_file(text);
        options.schedule = path;
        options.chunks = 0;
        options.sum_order = SUM_SERIAL; /* the file says what it was */
        struct plan *again = plan_make(graph, &options);
        assert_true(plan_hash(again) == plan_hash(plan));
        unlink(path);
        free(text);
        plan_destroy(again);
        plan_destroy(plan);
        graph_test_destroy(graph);
    }
}

static void test_refusals(void **state)
{
    static const char head[] = "microbatches 2\nranks 0 1\npartition 3,3\nsum_order auto\n";
    static const char one[] = "rank 1: F1.0 B1.0 K1.0 W1.0 F1.1 B1.1 K1.1 W1.1\n";
    static const struct {
        const char *first, *zero, *says;
    } cases[] = {
        {head, "rank 0: F0.0 F0.1 B0.0 K0.0 W0.0 B0.1 K0.1\n", ":5: rank 0: W0.1 is missing"},
        {head, "rank 0: F0.0 F0.0\n", ":5: rank 0: F0.0 is there twice"},
        {head, "rank 0: F0.1 F0.0\n", ":5: rank 0: F0.1 comes before F0.0"},
        {head, "rank 0: F0.0 W0.0 F0.1 B0.0 K0.0 B0.1 K0.1 W0.1\n", "W0.0 comes before K0.0"},
        {head, "rank 0: F1.0\n", ":5: rank 0: F1.0 is of another rank's stage"},
        {head, "rank 0: F0.2\n", ":5: rank 0: F0.2: the microbatches are 0 to 1"},
        {head, "rank 0: F0\n", ":5: \"F0\" is no phase; expected F, B, K or W"},
        {head, "rank 0: X0.0\n", ":5: \"X0.0\" is no phase"},
        {head, "rank 2: F0.0\n", ":5: expected \"rank N:\", N from 0 to 1"},
        {head, "", ":5: rank 0 has no line of phases"},
        {head, "what\n", ":5: expected microbatches, ranks, partition"},
        {"microbatches 2\n", "rank 0: F0.0\n", ":2: the ranks of the stages come first"},
        {"microbatches 2\nranks 0 2\n", "", ":2: rank 1 has no stage"},
        {"ranks 0 1\n", "rank 0: F0.0\n", "does not say for how many microbatches"},
        {"microbatches 3\nranks 0 1\n", "rank 0: F0.0\n", "for 3 microbatches, not for 2"},
        {"microbatches 2\nranks 0 1\npartition 3,4\n", "rank 0: F0.0\n", "adds up to 7 units"},
        {"microbatches 0\n", "", ":1: expected a number of microbatches, 1 to"},
        {"sum_order any\n", "", ":1: expected sum_order serial, per_rank or auto"},
        /* Rank 0 wants a gradient of microbatch 0 before it has sent anything of microbatch 1, which rank
         * 1 wants first: rank 1 runs both forwards before a backward. */
        {"microbatches 2\nranks 0 1\nrank 0: F0.0 B0.0 K0.0 W0.0 F0.1 B0.1 K0.1 W0.1\n",
         "rank 1: F1.0 F1.1 B1.0 K1.0 W1.0 B1.1 K1.1 W1.1\n#",
         ":3: this schedule cannot work: deadlock: rank 0 at"},
    };
    struct graph *graph = graph_test_create(2, 1);
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[1024], said[1024] = "";
        snprintf(text, sizeof text, "%s%s%s", cases[i].first, cases[i].zero, one);
        const char *path = write_file(text);
        struct plan_options options = {
            .ranks = 2, .microbatches = 2, .schedule = path, .partition = "auto"};
        struct plan *plan = NULL;
        log_capture(said, sizeof said);
        status_t status = plan_create(graph, &options, &plan);
        log_capture(NULL, 0);
        unlink(path);
        assert_status(status, STATUS_INVALID);
        if (strstr(said, cases[i].says) == NULL) {
            fail_msg("\"%s\" does not say \"%s\"", said, cases[i].says);
        }
    }
    struct plan_options options = {
        .ranks = 2, .microbatches = 2, .schedule = "/nowhere/at/all", .partition = "auto"};
    struct plan *plan = NULL;
    char said[1024] = "";
    log_capture(said, sizeof said);
    status_t status = plan_create(graph, &options, &plan);
    log_capture(NULL, 0);
    assert_status(status, STATUS_INVALID);
    assert_non_null(strstr(said, "cannot open the schedule /nowhere/at/all"));
    graph_test_destroy(graph);
}

/* ---- a vocabulary split over the ranks ---- */

enum { RANKS = 4, LAYERS = 8 };

/* After the layers: the final norm makes Y; each rank's share of the output reads Y and makes the statistics
 * of its softmax, which the loss reads. */
static struct graph *split_graph(void)
{
    struct graph *graph = calloc(1, sizeof *graph);
    int units = 1 + 2 * LAYERS + 1 + RANKS + 1, keys = 2 * LAYERS + 2 + RANKS;
    int final = 1 + 2 * LAYERS, y = 2 * LAYERS + 1;
    assert_non_null(graph);
    assert_ok(graph_init(graph, units, keys));
    graph_test_unit(graph, 0, EMBED, 0);
    for (int i = 0; i <= LAYERS; i++) {
        graph_test_key(graph, i, "X", i, 2 * i, 0);
        for (int j = 0; j <= i; j++) {
            graph_test_read(graph, 2 * i + 1, j, AGGREGATE, -1);
        }
        if (i > 0) {
            graph_test_unit(graph, 2 * i - 1, ATTENTION, i);
            graph_test_unit(graph, 2 * i, FFN, i);
            graph_test_key(graph, LAYERS + i, "H", i, 2 * i - 1, 0);
            graph_test_read(graph, 2 * i, LAYERS + i, MID, -1);
        }
    }
    for (int unit = final; unit < units; unit++) {
        graph_test_unit(graph, unit, HEAD, 0);
    }
    graph_test_key(graph, y, "Y", 0, final, 0);
    for (int r = 0; r < RANKS; r++) {
        graph_test_read(graph, final + 1 + r, y, DIRECT, -1);
        graph_test_key(graph, y + 1 + r, "Z", r, final + 1 + r, 0);
        graph->key[y + 1 + r].bytes = graph->key[y + 1 + r].plain_bytes = 8;
        graph_test_read(graph, units - 1, y + 1 + r, DIRECT, -1);
    }
    graph_finish(graph);
    return graph;
}

/* Stages 0..3 are layers on ranks 0..3, 4..7 shares of the vocabulary there, 8 the loss on rank 3. */
static void test_vocabulary(void **state)
{
    enum { M = 3 };
    struct graph *graph = split_graph();
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    (void)state;
    fprintf(out, "microbatches %d\nranks 0 1 2 3 0 1 2 3 3\npartition 5,4,4,5,1,1,1,1,1\n", M);
    for (int rank = 0; rank < RANKS; rank++) {
        const int own[] = {rank, RANKS + rank, 2 * RANKS};
        int stages = rank == RANKS - 1 ? 3 : 2;
        fprintf(out, "rank %d:", rank);
        for (int m = 0; m < M; m++) {
            for (int i = 0; i < stages; i++) {
                fprintf(out, " F%d.%d", own[i], m);
            }
        }
        for (int m = 0; m < M; m++) {
            for (int i = stages; i-- > 0;) {
                fprintf(out, " B%d.%d K%d.%d", own[i], m, own[i], m);
            }
        }
        for (int m = 0; m < M; m++) { /* all weights put off */
            for (int i = stages; i-- > 0;) {
                fprintf(out, " W%d.%d", own[i], m);
            }
        }
        fprintf(out, "\n");
    }
    assert_int_equal(fclose(out), 0);
    const char *path = write_file(text);
    for (int order = SUM_SERIAL; order <= SUM_PER_RANK; order++) {
        struct plan_options options = {.ranks = RANKS,
                                       .microbatches = M,
                                       .schedule = path,
                                       .partition = "auto",
                                       .sum_order = (enum sum_order)order};
        struct plan *plan = plan_make(graph, &options);
        int statistics = 0;
        for (int i = 0; i < plan->shipments; i++) {
            statistics += plan->shipment[i].bytes == 8;
        }
        assert_int_equal(statistics, 2 * (RANKS - 1)); /* to the loss, and their gradients back */
        assert_int_equal(plan->stage[RANKS].backwards, M);
        plan_destroy(plan);
    }
    unlink(path);
    free(text);
    graph_test_destroy(graph);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_product),      cmocka_unit_test(test_idle),
        cmocka_unit_test(test_zb_v_is_full), cmocka_unit_test(test_memory),
        cmocka_unit_test(test_in_flight),    cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_round_trip),   cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_vocabulary),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
