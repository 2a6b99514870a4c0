/* The order in which the messages of a plan are needed, against what is known of it without a clock. */
#include "tests/test.h"

#include "tests/schedule/graphs.h"

/* Is `a` needed before `b` for sure? To one rank: by microbatches. Of one key of a microbatch, forward: by the rank that
 * comes first in the pipeline, which hands on what the others wait for. */
static bool needed_before(const struct plan *plan, const struct op *a, const struct op *b)
{
    const struct shipment *x = &plan->shipment[a->shipment], *y = &plan->shipment[b->shipment];
    if (x->backward || y->backward) {
        return x->backward && y->backward && a->microbatch < b->microbatch;
    }
    return x->to == y->to ? a->microbatch < b->microbatch
                          : x->to < y->to && a->microbatch == b->microbatch && x->key == y->key;
}

static void test_orders(void **state)
{
    (void)state;
    struct graph *graph = graph_test_create(6, 1);
    struct plan_options options = {
        .ranks = 4, .microbatches = 6, .schedule = "1f1b", .partition = "layers", .prefetch = 1};
    struct plan *plan = NULL;
    assert_ok(plan_create(graph, &options, &plan));
    int pairs = 0, against = 0;
    for (int rank = 0; rank < 4; rank++) {
        const struct rank_plan *list = &plan->rank[rank];
        for (int i = 0; i < list->ops; i++) {
            for (int j = 0; j < list->ops; j++) {
                const struct op *a = &list->op[i], *b = &list->op[j];
                if (a->kind == OP_PUT && b->kind == OP_PUT && needed_before(plan, a, b)) {
                    assert_true(a->order < b->order);
                    pairs++;
                }
                against += a->kind == OP_PUT && b->kind == OP_PUT && i < j && a->order > b->order;
            }
        }
    }
    assert_true(pairs > 500 && against > 100); /* it is not the order of the list */
    plan_destroy(plan);
    graph_test_destroy(graph);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_orders)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
