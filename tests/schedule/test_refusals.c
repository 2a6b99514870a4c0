/* What plan_create refuses, and in which words: options of a user, graphs that break their own rules. */
#include "tests/test.h"

#include <string.h>

#include "base/log.h"
#include "tests/schedule/graphs.h"

static void test_refusals(void **state)
{
    (void)state;
    static const struct {
        struct plan_options options;
        status_t status;
        const char *says;
    } cases[] = {
        {{0, 4, 1, "1f1b", "auto", 1, false}, STATUS_INVALID, "parallel.pp"},
        {{2, 0, 1, "1f1b", "auto", 1, false}, STATUS_INVALID, "parallel.microbatches"},
        {{2, 4, 2, "1f1b", "auto", 1, false}, STATUS_UNSUPPORTED, "stages a rank"},
        {{2, 4, 1, "zigzag", "auto", 1, false}, STATUS_INVALID, "zigzag"},
        {{2, 4, 1, "1f1b", "auto", -1, false}, STATUS_INVALID, "parallel.prefetch"},
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

enum change { READ, KIND, PRODUCER };

/* A graph of raw keys and blocks of two layers with one thing changed is our bug, in words. */
static void test_graph_rules(void **state)
{
    (void)state;
    static const struct graph_test test = {
        .layers = 4, .dilation = 1, .block = 2, .raw = RAW_ADDED};
    /* keys: X_0..X_4 0..4, H_1..H_4 5..8, R_0..R_4 9..13, S_0 14 made by ffn 2 (unit 4) */
    static const struct {
        enum change change;
        int unit, key, value; /* READ: uses; KIND, PRODUCER: of the key */
        const char *says;
    } cases[] = {
        {READ, 4, 2, READ_SUMMARY | READ_DIRECT, "X_2 cannot be read by ffn 2"},
        {READ, 4, 2, READ_NORM, "X_2 cannot be read by ffn 2"},
        {READ, 6, 1, READ_SUMMARY, "X_1 cannot be read by ffn 3"},
        {READ, 4, 3, READ_SUMMARY, "X_3 cannot be read by ffn 2"},
        {READ, 3, 2, READ_R, "X_2 cannot be read by attn 2"},
        {READ, 4, 11, 0, "R_2 is not normed"},
        {READ, 4, 11, READ_NORM | READ_DIRECT, "R_2 cannot be read by ffn 2"},
        {READ, 5, 11, READ_R, "R_2 cannot be read by attn 3"},
        {READ, 5, 11, READ_NORM, "R_2 cannot be read by attn 3"},
        {READ, 7, 11, READ_DIRECT, "R_2 cannot be read by attn 4"},
        {READ, 5, 14, READ_DIRECT, "S_0 cannot be read by attn 3"},
        {READ, 3, 14, READ_R, "S_0 cannot be read by attn 2"},
        {READ, 4, 14, READ_SUMMARY, "S_0 cannot be read by ffn 2"},
        {READ, 5, 6, READ_MID, "H_2 cannot be read by attn 3"},
        {READ, 4, 6, 0, "H_2 is read by no unit"},
        {KIND, 0, 14, KEY_RAW, "unit 4 produces the wrong keys"},
        {KIND, 0, 2, KEY_MID, "unit 4 produces the wrong keys"},
        {PRODUCER, 0, 14, 6, "X_1 cannot be read by ffn 2"},
        {PRODUCER, 0, 14, 5, "unit 5 produces the wrong keys"},
        {PRODUCER, 0, 14, 0, "unit 0 produces the wrong keys"},
        {PRODUCER, 0, 14, 10, "key 14 has no producer"},
        {PRODUCER, 0, 11, 2, "unit 2 produces the wrong keys"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct graph *graph = graph_test_make(&test);
        int key = cases[i].key, value = cases[i].value;
        if (cases[i].change == READ) {
            graph->reads[cases[i].unit * graph->keys + key] = (uint16_t)value;
        } else if (cases[i].change == KIND) {
            graph->key[key].kind = (enum key_kind)value;
        } else {
            graph->key[key].producer = value;
        }
        char text[512] = "";
        struct plan_options options = {1, 1, 1, "1f1b", "auto", 0, false};
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
