/* What plan_create refuses, and in which words: options of a user, graphs that break their own rules. */
#include "tests/test.h"

#include <string.h>

#include "base/log.h"
#include "tests/schedule/graphs.h"

#define OPTIONS(p, m, v, name, slots)                                                              \
    {                                                                                              \
        .ranks = p, .microbatches = m, .chunks = v, .schedule = name, .partition = "auto",         \
        .prefetch = slots                                                                          \
    }

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        struct plan_options options;
        status_t status;
        const char *says;
    } cases[] = {
        {OPTIONS(0, 4, 1, "1f1b", 1), STATUS_INVALID, "parallel.pp"},
        {OPTIONS(2, 0, 1, "1f1b", 1), STATUS_INVALID, "parallel.microbatches"},
        {OPTIONS(2, 4, 2, "1f1b", 1), STATUS_INVALID, "1f1b has 1 stage a rank, not 2"},
        {OPTIONS(2, 4, 2, "zb-h1", 1), STATUS_INVALID, "parallel.virtual_stages=0"},
        {OPTIONS(2, 4, 3, "zb-v", 1), STATUS_INVALID, "zb-v has 2 stages a rank, not 3"},
        {OPTIONS(2, 4, 65, "interleaved", 1), STATUS_INVALID, "use 1 to 64"},
        {OPTIONS(2, 4, 4, "interleaved", 1), STATUS_INVALID, "8 stages, but the model can be cut"},
        {OPTIONS(2, 4, 1, "zigzag", 1), STATUS_INVALID,
         "there are gpipe, 1f1b, interleaved, zb-h1"},
        {OPTIONS(2, 4, 1, "1f1b", -1), STATUS_INVALID, "parallel.prefetch"},
        {{.ranks = 2, .microbatches = 4, .schedule = "zb-v", .partition = "auto", .in_flight = 1},
         STATUS_INVALID,
         "zb-v has as many microbatches in flight as it says itself"},
        {{.ranks = 2, .microbatches = 4, .schedule = "1f1b", .partition = "auto", .in_flight = -1},
         STATUS_INVALID,
         "parallel.in_flight"},
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

/* ---- lawfulness of graphs ---- */

enum change { ADD_READ, DROP_READ, MADE, KIND, PRODUCER, ORDER };

struct change_case {
    enum change change;
    int unit, key, value; /* of the read; the key made, a read's kind, a key's producer or order */
    const char *says;
};

static struct read *find_read(struct graph *graph, int unit, int key)
{
    for (int i = 0; i < graph->reads; i++) {
        if (graph->read[i].unit == unit && graph->read[i].key == key) {
            return &graph->read[i];
        }
    }
    return NULL;
}

static void apply(const struct change_case *change, struct graph *graph)
{
    struct read *read = find_read(graph, change->unit, change->key);
    switch (change->change) {
    case ADD_READ:
        graph_test_read(graph, change->unit, change->key, (enum test_read)change->value, -1);
        break;
    case DROP_READ:
        *read = graph->read[--graph->reads];
        break;
    case MADE:
        read->made = change->value;
        break;
    case KIND:
        read->kind = (enum read_kind)change->value;
        break;
    case PRODUCER:
        graph->key[change->key].producer = change->value;
        break;
    case ORDER:
        graph->key[change->key].order = change->value;
        break;
    }
    graph_finish(graph);
}

/* A graph of raw keys and blocks of two layers with one thing changed is our bug, in words. */
static void test_graph_rules(void **state)
{
    (void)state;
    static const struct graph_test test = {
        .layers = 4, .dilation = 1, .block = 2, .raw = RAW_ADDED};
    /* keys: X_0..X_4 0..4, H_1..H_4 5..8, R_0..R_4 9..13, S_0 14 made by ffn 2 (unit 4) */
    static const struct change_case cases[] = {
        {ADD_READ, 3, 2, AGGREGATE, "X_2 cannot be read by attn 2 (unit 3): it is formed later"},
        {ADD_READ, 4, 2, DIRECT, "X_2 cannot be read by ffn 2 (unit 4): it is formed later"},
        {ADD_READ, 5, 0, AGGREGATE, "X_0 cannot be read by attn 3 (unit 5): its additions have"},
        {ADD_READ, 5, 6, DIRECT, "H_2 cannot be read by ffn 2 (unit 4): its gradient has another"},
        {ADD_READ, 4, 0, MID, "X_0 cannot be read by ffn 2 (unit 4): its gradient has another"},
        {ADD_READ, 10, 0, DIRECT, "is of unit 10 and key 0"},
        {ADD_READ, 9, 15, DIRECT, "is of unit 9 and key 15"},
        {DROP_READ, 4, 6, 0, "no key of attn 2 is read: neither H_2 nor another"},
        {MADE, 4, 11, 11, "R_2 cannot be read by ffn 2 (unit 4): it forms a key of it that comes"},
        {MADE, 4, 11, -1, "R_2 cannot be read by ffn 2 (unit 4): it forms no key of it"},
        {MADE, 4, 11, 3, "R_2 cannot be read by ffn 2 (unit 4): it forms no key of it"},
        {MADE, 4, 2, 11, "X_2 cannot be read by ffn 2 (unit 4): it forms a key of it that comes"},
        {KIND, 4, 11, READ_LEAVES, "R_2 cannot be read by ffn 2 (unit 4): it is formed later"},
        {KIND, 5, 11, READ_MAKES, "R_2 cannot be read by attn 3 (unit 5): it forms no key of it"},
        {PRODUCER, 0, 14, 6, "X_1 cannot be read by ffn 2 (unit 4): it forms no key of it"},
        {PRODUCER, 0, 14, 10, "key 14 has no producer"},
        {PRODUCER, 0, 14, -1, "key 14 has no producer"},
        {PRODUCER, 0, 11, 2, "keys R_1 and R_2 are formed at once"},
        {PRODUCER, 0, 3, 7, "cannot be read by"},
        {ORDER, 0, 14, 1, "keys X_2 and S_0 are formed at once"},
        {ORDER, 0, 14, -1, "cannot be read by ffn 2 (unit 4): it forms a key of it that comes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct graph *graph = graph_test_make(&test);
        apply(&cases[i], graph);
        char text[512] = "";
        struct plan_options options = {
            .ranks = 1, .microbatches = 1, .schedule = "1f1b", .partition = "auto", .prefetch = 0};
        struct plan *plan = NULL;
        log_capture(text, sizeof text);
        status_t status = plan_create(graph, &options, &plan);
        log_capture(NULL, 0);
        assert_status(status, STATUS_INTERNAL);
        if (strstr(text, cases[i].says) == NULL) {
            fail_msg("\"%s\" does not say \"%s\"", text, cases[i].says);
        }
        graph_test_destroy(graph);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_graph_rules),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
