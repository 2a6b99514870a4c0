/* The order in which a rank waits: what is newest first, the rest as it is sent. */
#include "tests/test.h"

#include <stdio.h>

#include "tests/schedule/graphs.h"

static const struct shipment *shipment_of(const struct plan *plan, const struct op *op)
{
    return &plan->shipment[op->shipment];
}

/* Place of the put of what `wait` awaits, in its sender's list. */
static int put_of(const struct plan *plan, const struct op *wait)
{
    int rank = plan_rank_of(plan, shipment_of(plan, wait)->from);
    for (int i = 0; i < plan->rank[rank].ops; i++) {
        const struct op *op = &plan->rank[rank].op[i];
        if (op->kind == OP_PUT && op->shipment == wait->shipment &&
            op->microbatch == wait->microbatch) {
            return i;
        }
    }
    fail_msg("a wait without a put");
    return -1;
}

/* Of waits for one operation: how many, plain ones, and pairs that follow each other. */
struct seen {
    int waits, plain, pairs;
};

static bool ends_waits(enum op_kind kind)
{
    return kind == OP_F || kind == OP_B || kind == OP_W || kind == OP_PUT;
}

static void check_rank(const struct plan *plan, int rank, struct seen *seen)
{
    const struct op *last = NULL; /* wait for what the next unit needs */
    for (int i = 0; i < plan->rank[rank].ops; i++) {
        const struct op *op = &plan->rank[rank].op[i];
        last = ends_waits(op->kind) ? NULL : last;
        if (op->kind != OP_WAIT) {
            continue;
        }
        const struct shipment *s = shipment_of(plan, op);
        seen->waits++;
        seen->plain += s->plain;
        if (last != NULL) {
            const struct shipment *before = shipment_of(plan, last);
            assert_true(before->plain || !s->plain);
            seen->pairs++;
            if (before->plain == s->plain && before->from == s->from) {
                assert_true(put_of(plan, last) < put_of(plan, op));
            }
        }
        last = op;
    }
}

static struct seen check_plan(const struct graph_test *test, int ranks, const char *schedule,
                              const char *partition)
{
    struct graph *graph = graph_test_make(test);
    struct plan_options options = {.ranks = ranks,
                                   .microbatches = 5,
                                   .schedule = schedule,
                                   .partition = partition,
                                   .prefetch = 1};
    struct plan *plan = NULL;
    struct seen seen = {0, 0, 0};
    assert_ok(plan_create(graph, &options, &plan));
    for (int rank = 0; rank < ranks; rank++) {
        check_rank(plan, rank, &seen);
    }
    plan_destroy(plan);
    graph_test_destroy(graph);
    return seen;
}

/* Cut before an attention, which needs X_0 .. X_2 at once: X_2 is the one that it waits for. */
static void test_newest_first(void **state)
{
    (void)state;
    const struct graph_test test = {.layers = 4, .dilation = 1};
    struct graph *graph = graph_test_make(&test);
    struct plan_options options = {
        .ranks = 2, .microbatches = 2, .schedule = "1f1b", .partition = "5,5", .prefetch = 0};
    struct plan *plan = NULL;
    assert_ok(plan_create(graph, &options, &plan));
    static const int want[] = {2, 0, 1};
    const struct op *op = plan->rank[1].op;
    while (op->kind == OP_POST) {
        op++;
    }
    for (int i = 0; i < 3; i++, op++) {
        assert_int_equal(op->kind, OP_WAIT);
        assert_int_equal(op->key, want[i]);
        assert_int_equal(shipment_of(plan, op)->plain, i == 0);
    }
    assert_int_equal(op->kind, OP_F);
    plan_destroy(plan);
    graph_test_destroy(graph);
}

static void test_every_cut(void **state)
{
    (void)state;
    static const char *const schedules[] = {"gpipe", "1f1b", "forward"};
    struct seen all = {0, 0, 0};
    for (int v = 0; v < GRAPH_VARIANTS; v++) {
        const struct graph_test *test = &graph_test_variants[v];
        int units = 2 * test->layers + 2;
        for (int a = 1; a < units - 1; a++) {
            for (int b = 1; a + b < units; b++) {
                char text[64];
                snprintf(text, sizeof text, "%d,%d,%d", a, b, units - a - b);
                struct seen seen = check_plan(test, 3, schedules[(a + b) % 3], text);
                all.waits += seen.waits;
                all.plain += seen.plain;
                all.pairs += seen.pairs;
            }
        }
    }
    assert_true(all.plain > 0 && all.plain < all.waits && all.pairs > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_newest_first),
        cmocka_unit_test(test_every_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
