/* The checker finds every single fault: an operation dropped, doubled, exchanged with a neighbour
 * that it conflicts with, or with a wrong number in it; an addition, a slot or a shipment changed.
 * Which operations conflict is defined here by what they touch, without the checker. */
#include "tests/test.h"

#include <stdio.h>
#include <string.h>

#include "tests/schedule/graphs.h"
#include "tests/schedule/touches.h"

static const struct layout {
    struct graph_test model;
    int ranks, microbatches;
    const char *schedule, *partition;
    int prefetch;
    bool weights_at_once;
    int chunks;
    enum sum_order sum_order;
    int replicas;
} layouts[] = {
    {{1, 1, 0, 0, RAW_NONE}, 1, 2, "1f1b", "auto", 1, false, 0, SUM_SERIAL, 1},
    {{1, 1, 0, 0, RAW_NONE}, 2, 2, "1f1b", "2,2", 0, false, 0, SUM_SERIAL, 1},
    {{2, 1, 0, 0, RAW_NONE}, 2, 3, "1f1b", "layers", 1, false, 0, SUM_SERIAL, 1},
    {{2, 1, 0, 0, RAW_NONE}, 3, 4, "1f1b", "2,2,2", 0, false, 0, SUM_SERIAL, 1},
    {{3, 1, 0, 0, RAW_NONE}, 3, 4, "1f1b", "3,3,2", 1, false, 0, SUM_SERIAL, 1},
    {{3, 2, 0, 0, RAW_NONE}, 3, 3, "gpipe", "2,3,3", 1, false, 0, SUM_SERIAL, 1},
    {{2, 1, 0, 0, RAW_NONE}, 4, 3, "gpipe", "1,2,2,1", 0, false, 0, SUM_SERIAL, 1},
    {{3, 0, 0, 0, RAW_NONE}, 2, 3, "1f1b", "layers", 0, false, 0, SUM_SERIAL, 1},
    {{2, 1, 0, 0, RAW_NONE}, 3, 5, "forward", "2,2,2", 0, false, 0, SUM_SERIAL, 1},
    {{3, 1, 0, 0, RAW_NONE}, 2, 4, "forward", "layers", 1, false, 0, SUM_SERIAL, 1},
    {{3, 1, 0, 0, RAW_NONE}, 4, 6, "1f1b", "2,2,2,2", 2, false, 0, SUM_SERIAL, 1},
    {{2, 1, 0, 0, RAW_NONE}, 6, 3, "1f1b", "1,1,1,1,1,1", 1, false, 0, SUM_SERIAL, 1},
    /* summaries: aligned, and of keys from other stages; raw keys; both */
    {{2, 1, 0, 1, RAW_NONE}, 2, 3, "1f1b", "layers", 0, false, 0, SUM_SERIAL, 1},
    {{3, 1, 0, 1, RAW_NONE}, 3, 4, "gpipe", "layers", 1, false, 0, SUM_SERIAL, 1},
    {{3, 1, 0, 2, RAW_NONE}, 3, 4, "1f1b", "3,3,2", 0, false, 0, SUM_SERIAL, 1},
    {{4, 1, 0, 3, RAW_NONE}, 3, 3, "1f1b", "4,2,4", 1, false, 0, SUM_SERIAL, 1},
    {{2, 1, 0, 0, RAW_STATIC}, 2, 3, "1f1b", "layers", 0, false, 0, SUM_SERIAL, 1},
    {{2, 1, 0, 0, RAW_NORMED}, 2, 3, "1f1b", "layers", 0, false, 0, SUM_SERIAL, 1},
    {{2, 1, 0, 0, RAW_ADDED}, 3, 4, "1f1b", "1,2,3", 1, false, 0, SUM_SERIAL, 1},
    {{3, 2, 2, 0, RAW_NORMED}, 2, 3, "gpipe", "3,5", 0, false, 0, SUM_SERIAL, 1},
    {{3, 1, 0, 2, RAW_ADDED}, 3, 4, "1f1b", "3,2,3", 0, false, 0, SUM_SERIAL, 1},
    {{3, 1, 2, 2, RAW_NORMED}, 4, 3, "1f1b", "1,2,2,3", 1, false, 0, SUM_SERIAL, 1},
    {{3, 1, 0, 2, RAW_ADDED}, 3, 4, "forward", "3,2,3", 0, false, 0, SUM_SERIAL, 1},
    /* weights at once */
    {{2, 1, 0, 0, RAW_NONE}, 1, 3, "1f1b", "auto", 1, true, 0, SUM_SERIAL, 1},
    {{3, 1, 0, 0, RAW_NONE}, 3, 4, "1f1b", "3,3,2", 1, true, 0, SUM_SERIAL, 1},
    {{3, 1, 0, 2, RAW_ADDED}, 3, 4, "1f1b", "3,2,3", 0, true, 0, SUM_SERIAL, 1},
    {{3, 1, 2, 2, RAW_NORMED}, 4, 3, "gpipe", "1,2,2,3", 1, true, 0, SUM_SERIAL, 1},
    /* weights put off */
    {{2, 1, 0, 0, RAW_NONE}, 3, 4, "zb-h1", "2,2,2", 0, false, 0, SUM_SERIAL, 1},
    {{3, 1, 0, 0, RAW_NONE}, 4, 6, "zb-h1", "2,2,2,2", 1, false, 0, SUM_SERIAL, 1},
    {{3, 1, 0, 2, RAW_ADDED}, 3, 4, "zb-h1", "3,2,3", 0, false, 0, SUM_SERIAL, 1},
    /* several stages a rank */
    {{2, 1, 0, 0, RAW_NONE}, 1, 2, "interleaved", "3,3", 1, false, 2, SUM_SERIAL, 1},
    {{2, 1, 0, 0, RAW_NONE}, 2, 3, "interleaved", "1,2,1,2", 0, false, 2, SUM_SERIAL, 1},
    {{3, 1, 0, 0, RAW_NONE}, 2, 4, "interleaved", "auto", 1, false, 3, SUM_SERIAL, 1},
    {{3, 1, 0, 2, RAW_ADDED}, 2, 3, "interleaved", "auto", 0, false, 2, SUM_SERIAL, 1},
    {{3, 1, 0, 0, RAW_NONE}, 2, 4, "interleaved", "auto", 1, false, 3, SUM_PER_RANK, 1},
    {{3, 1, 0, 2, RAW_ADDED}, 2, 3, "interleaved", "auto", 0, false, 2, SUM_PER_RANK, 1},
    {{3, 1, 0, 0, RAW_NONE}, 1, 3, "zb-v", "auto", 0, false, 2, SUM_SERIAL, 1},
    {{3, 1, 0, 0, RAW_NONE}, 2, 4, "zb-v", "auto", 0, false, 2, SUM_SERIAL, 1},
    {{3, 1, 0, 0, RAW_NONE}, 3, 6, "zb-v", "auto", 1, false, 2, SUM_SERIAL, 1},
    {{3, 1, 0, 0, RAW_NONE}, 3, 5, "zb-v", "auto", 0, false, 2, SUM_PER_RANK, 1},
    {{3, 1, 0, 2, RAW_NORMED}, 2, 4, "zb-v", "auto", 0, false, 2, SUM_PER_RANK, 1},
    {{3, 1, 0, 0, RAW_NONE}, 2, 4, "zb-v", "auto", 0, true, 2, SUM_SERIAL, 1},
    {{3, 1, 0, 0, RAW_NONE}, 2, 4, "forward", "auto", 0, false, 1, SUM_SERIAL, 1},
    /* additions that read the key; one key a unit */
    {{2, 0, 0, 0, SUBLAYERS}, 3, 4, "1f1b", "2,2,2", 0, false, 0, SUM_SERIAL, 1},
    {{2, 0, 0, 0, SUBLAYERS}, 2, 4, "zb-h1", "3,3", 1, false, 0, SUM_SERIAL, 1},
    {{2, 0, 0, 0, SUBLAYERS}, 2, 3, "gpipe", "3,3", 0, true, 0, SUM_SERIAL, 1},
    {{2, 0, 0, 0, SUBLAYERS}, 2, 4, "zb-v", "auto", 0, false, 2, SUM_SERIAL, 1},
    {{2, 0, 0, 0, SUBLAYERS}, 2, 3, "interleaved", "auto", 0, false, 2, SUM_PER_RANK, 1},
    {{4, 0, 0, 2, SUBLAYERS}, 3, 4, "1f1b", "2,5,3", 0, false, 0, SUM_SERIAL, 1},
    {{3, 0, 0, 2, SUBLAYERS}, 2, 4, "zb-v", "auto", 0, false, 2, SUM_PER_RANK, 1},
    {{2, 0, 0, 0, STREAMS}, 3, 4, "1f1b", "1,3,2", 0, false, 0, SUM_SERIAL, 1},
    {{2, 0, 0, 0, STREAMS}, 2, 4, "zb-v", "auto", 0, false, 2, SUM_SERIAL, 1},
    /* replicas */
    {{2, 1, 0, 0, RAW_NONE}, 1, 2, "1f1b", "auto", 1, false, 0, SUM_SERIAL, 2},
    {{2, 1, 0, 0, RAW_NONE}, 3, 3, "1f1b", "2,2,2", 0, true, 0, SUM_SERIAL, 4},
    {{2, 1, 0, 0, RAW_NONE}, 2, 1, "gpipe", "3,3", 0, false, 0, SUM_SERIAL, 2},
    {{2, 1, 0, 0, RAW_NONE}, 2, 4, "zb-h1", "3,3", 0, false, 0, SUM_SERIAL, 2},
    {{3, 1, 0, 0, RAW_NONE}, 2, 3, "interleaved", "auto", 0, false, 2, SUM_PER_RANK, 3},
    {{3, 1, 0, 0, RAW_NONE}, 2, 4, "zb-v", "auto", 0, false, 2, SUM_SERIAL, 2},
    {{2, 1, 0, 0, RAW_NONE}, 2, 3, "forward", "auto", 0, false, 0, SUM_SERIAL, 2},
};
enum { LAYOUTS = sizeof layouts / sizeof layouts[0] };

static struct plan *layout_plan(const struct layout *layout, const struct graph *graph)
{
    struct plan_options options = {.ranks = layout->ranks,
                                   .microbatches = layout->microbatches,
                                   .replicas = layout->replicas,
                                   .chunks = layout->chunks,
                                   .schedule = layout->schedule,
                                   .partition = layout->partition,
                                   .prefetch = layout->prefetch,
                                   .weights_at_once = layout->weights_at_once,
                                   .sum_order = layout->sum_order};
    struct plan *plan = NULL;
    assert_ok(plan_create(graph, &options, &plan));
    return plan;
}

/* Of plan_internal.h, whose struct layout is another. */
void plan_group(const struct plan *plan, struct rank_plan *list);

static void group_all(const struct plan *plan)
{
    for (int rank = 0; rank < plan->ranks; rank++) {
        plan_group(plan, &plan->rank[rank]);
    }
}

static void assert_right(const struct plan *plan)
{
    group_all(plan);
    char why[512] = "";
    if (plan_check(plan, why, sizeof why) != STATUS_OK) {
        fail_msg("the plan was right before: %s", why);
    }
}

/* `what` happened to operation `index` of `rank`. */
static void assert_found_as_it_is(const struct plan *plan, const char *what, int rank, int index)
{
    char why[512] = "", op[128] = "";
    status_t status = plan_check(plan, why, sizeof why);
    if (status != STATUS_INTERNAL || why[0] == '\0') {
        if (index >= 0) {
            op_print(plan, &plan->rank[rank].op[index], op, sizeof op);
        }
        fail_msg("not found: %s, rank %d, operation %d (now %s)", what, rank, index, op);
    }
}

/* What streams do at once follows from the lists: that is not to be what is found. */
static void assert_found(const struct plan *plan, const char *what, int rank, int index)
{
    group_all(plan);
    assert_found_as_it_is(plan, what, rank, index);
}

typedef void (*plan_test)(struct plan *plan);

static void for_all_layouts(plan_test test)
{
    for (size_t i = 0; i < LAYOUTS; i++) {
        struct graph *graph = graph_test_make(&layouts[i].model);
        struct plan *plan = layout_plan(&layouts[i], graph);
        test(plan);
        assert_right(plan);
        plan_destroy(plan);
        graph_test_destroy(graph);
    }
}

/* ---- dropped, doubled ---- */

static void drop_and_double(struct plan *plan)
{
    for (int rank = 0; rank < plan->ranks; rank++) {
        struct rank_plan *list = &plan->rank[rank];
        struct op *right = list->op;
        size_t ops = (size_t)list->ops;
        list->op = malloc((ops + 1) * sizeof *list->op);
        for (size_t i = 0; i < ops; i++) {
            memcpy(list->op, right, i * sizeof *right);
            memcpy(list->op + i, right + i + 1, (ops - i - 1) * sizeof *right);
            list->ops = (int)ops - 1;
            assert_found(plan, "dropped", rank, -1);

            memcpy(list->op, right, (i + 1) * sizeof *right);
            memcpy(list->op + i + 1, right + i, (ops - i) * sizeof *right);
            list->ops = (int)ops + 1;
            assert_found(plan, "doubled", rank, (int)i);
        }
        free(list->op);
        list->op = right;
        list->ops = (int)ops;
    }
}

static void test_drop_and_double(void **state)
{
    (void)state;
    for_all_layouts(drop_and_double);
}

/* ---- exchanged ---- */

static int exchanged; /* how many pairs conflicted, over all layouts */

static void exchange(struct plan *plan)
{
    for (int rank = 0; rank < plan->ranks; rank++) {
        struct rank_plan *list = &plan->rank[rank];
        for (int i = 0; i + 1 < list->ops; i++) {
            struct op first = list->op[i], second = list->op[i + 1];
            if (!conflict(plan, &first, &second)) {
                continue;
            }
            list->op[i] = second;
            list->op[i + 1] = first;
            assert_found(plan, "exchanged with the next", rank, i);
            list->op[i] = first;
            list->op[i + 1] = second;
            exchanged++;
        }
    }
}

static void test_exchange(void **state)
{
    (void)state;
    exchanged = 0;
    for_all_layouts(exchange);
    assert_true(exchanged > 500);
}

static void op_move(struct rank_plan *list, int from, int to)
{
    struct op op = list->op[from];
    if (from > to) {
        memmove(list->op + to + 1, list->op + to, (size_t)(from - to) * sizeof op);
    } else {
        memmove(list->op + from, list->op + from + 1, (size_t)(to - from) * sizeof op);
    }
    list->op[to] = op;
}

/* Every operation moved before every earlier one that it conflicts with. */
static void move_ahead(struct plan *plan)
{
    for (int rank = 0; rank < plan->ranks; rank++) {
        struct rank_plan *list = &plan->rank[rank];
        for (int i = 1; i < list->ops; i++) {
            for (int j = 0; j < i; j++) {
                if (conflict(plan, &list->op[j], &list->op[i])) {
                    op_move(list, i, j);
                    assert_found(plan, "moved ahead", rank, j);
                    op_move(list, j, i);
                    exchanged++;
                }
            }
        }
    }
}

static void test_move_ahead(void **state)
{
    (void)state;
    exchanged = 0;
    for_all_layouts(move_ahead);
    assert_true(exchanged > 5000);
}

/* ---- numbers ---- */

static void wrong_numbers(struct plan *plan)
{
    enum { FIELDS = sizeof(struct op) / sizeof(int) };
    const size_t first_add = offsetof(struct op, first_add) / sizeof(int);
    for (int rank = 0; rank < plan->ranks; rank++) {
        for (int i = 0; i < plan->rank[rank].ops; i++) {
            struct op *op = &plan->rank[rank].op[i], right = *op;
            for (size_t f = 0; f < 2 * FIELDS; f++) {
                int field[FIELDS];
                memcpy(field, &right, sizeof field);
                field[f / 2] += f % 2 == 0 ? 1 : -1;
                memcpy(op, field, sizeof field);
                /* Equal additions may lie elsewhere in the table: that is no fault. */
                if (f / 2 != first_add || right.kind != OP_GRAD) {
                    assert_found_as_it_is(plan, "wrong number", rank, i);
                }
                *op = right;
            }
        }
    }
}

static void test_wrong_numbers(void **state)
{
    (void)state;
    for_all_layouts(wrong_numbers);
}

/* Two messages of a shipment leave in the wrong order. */
static void wrong_orders(struct plan *plan)
{
    for (int rank = 0; rank < plan->ranks; rank++) {
        struct rank_plan *list = &plan->rank[rank];
        for (int i = 0; i < list->ops; i++) {
            for (int j = i + 1; j < list->ops; j++) {
                struct op *a = &list->op[i], *b = &list->op[j];
                if (a->kind != OP_PUT || b->kind != OP_PUT || a->shipment != b->shipment) {
                    continue;
                }
                int before = a->order;
                a->order = b->order;
                b->order = before;
                assert_found(plan, "orders exchanged", rank, j);
                b->order = a->order;
                a->order = before;
                exchanged++;
            }
        }
    }
}

static void test_wrong_orders(void **state)
{
    (void)state;
    exchanged = 0;
    for_all_layouts(wrong_orders);
    assert_true(exchanged > 1000);
}

static void assert_number_matters(struct plan *plan, int *number, int by, const char *what)
{
    *number += by;
    assert_found(plan, what, -1, -1);
    *number -= by;
}

static void wrong_sizes(struct plan *plan)
{
    assert_number_matters(plan, &plan->puts, 1, "a put more");
    for (int i = 0; i < plan->shipments; i++) {
        struct shipment *s = &plan->shipment[i];
        assert_number_matters(plan, &s->slots, -1, "a slot less");
        assert_number_matters(plan, &s->key, 1, "another key");
        assert_number_matters(plan, &s->from, 1, "another sender");
        assert_number_matters(plan, &s->to, -1, "another receiver");
        s->plain = !s->plain;
        assert_found(plan, "another colour", -1, -1);
        s->plain = !s->plain;
        s->bytes++;
        assert_found(plan, "other bytes", -1, -1);
        s->bytes--;
    }
    for (int stage = 0; stage < plan->stages; stage++) {
        struct stage_plan *s = &plan->stage[stage];
        assert_number_matters(plan, &s->frames, -1, "a frame less");
        assert_number_matters(plan, &s->backwards, -1, "a backward memory less");
        assert_number_matters(plan, &s->units, -1, "a unit less");
        assert_number_matters(plan, &s->unit[0], 1, "another first unit");
        assert_number_matters(plan, &s->rank, 1, "another rank");
        if (plan->ranks > 1) { /* one rank replays the order of any placement */
            assert_number_matters(plan, &s->sum_rank, 1, "another rank's order");
        }
        assert_number_matters(plan, &plan->stage_of[s->unit[0]], 1, "a unit elsewhere");
        for (int key = 0; key < plan->graph->keys; key++) {
            assert_number_matters(plan, &s->sum[key], 1, "another sum");
            assert_number_matters(plan, &s->sum[key], -1, "another sum");
            assert_number_matters(plan, &s->partial[key], 1, "another partial sum");
        }
    }
    for (int i = 0; i < plan->sums; i++) {
        assert_number_matters(plan, &plan->sum[i].slots, -1, "a slot of a sum less");
        assert_number_matters(plan, &plan->sum[i].key, 1, "the sum of another key");
        assert_number_matters(plan, &plan->sum[i].rank, 1, "the sum of another rank");
        assert_number_matters(plan, &plan->sum[i].shipment, 1, "a sum received otherwise");
    }
}

static void test_wrong_sizes(void **state)
{
    (void)state;
    for_all_layouts(wrong_sizes);
}

/* ---- additions ---- */

/* Is the entry of the table used by some gradient together with the one after it? */
static bool used_with_next(const struct plan *plan, int add)
{
    for (int rank = 0; rank < plan->ranks; rank++) {
        for (int i = 0; i < plan->rank[rank].ops; i++) {
            const struct op *op = &plan->rank[rank].op[i];
            if (op->kind == OP_GRAD && add >= op->first_add && add + 1 < op->first_add + op->adds) {
                return true;
            }
        }
    }
    return false;
}

static void wrong_additions(struct plan *plan)
{
    for (int i = 0; i + 1 < plan->adds; i++) {
        struct add first = plan->add[i], second = plan->add[i + 1];
        if (!used_with_next(plan, i)) {
            continue;
        }
        plan->add[i] = second;
        plan->add[i + 1] = first;
        assert_found(plan, "additions exchanged", -1, -1);
        plan->add[i] = first;
        plan->add[i + 1] = first;
        assert_found(plan, "an addition doubled", -1, -1);
        plan->add[i + 1] = second;
        assert_number_matters(plan, &plan->add[i].read, 1, "another read adds");
        assert_number_matters(plan, &plan->add[i].read, -1, "another read adds");
    }
}

static void test_wrong_additions(void **state)
{
    (void)state;
    for_all_layouts(wrong_additions);
}

/* ---- across ranks ---- */

static int find_op(const struct rank_plan *list, enum op_kind kind)
{
    int i = 0;
    while (list->op[i].kind != kind) {
        i++;
    }
    return i;
}

/* Rank 0 wants a gradient before it has sent anything: the sentence names both sides. */
static void test_deadlock(void **state)
{
    (void)state;
    struct graph *graph = graph_test_create(2, 1);
    struct plan *plan = layout_plan(&layouts[2], graph);
    struct rank_plan *list = &plan->rank[0];
    op_move(list, find_op(list, OP_WAIT), find_op(list, OP_F));
    char why[512] = "";
    assert_status(plan_check(plan, why, sizeof why), STATUS_INTERNAL);
    assert_non_null(strstr(why, "deadlock: rank 0 at"));
    assert_non_null(strstr(why, "wait for dX_1 of microbatch 0 from stage 1"));
    assert_non_null(strstr(why, "rank 1 at"));
    assert_non_null(strstr(why, "wait for X_1 of microbatch 0 from stage 0"));
    plan_destroy(plan);
    graph_test_destroy(graph);
}

static int find_message(const struct rank_plan *list, enum op_kind kind, int shipment)
{
    int i = 0;
    while (list->op[i].kind != kind || list->op[i].shipment != shipment) {
        i++;
    }
    return i;
}

/* The receiver wants the second of two messages of one rank before it makes room for the first, which
 * queues that hold their order cannot serve. */
static void test_queue(void **state)
{
    (void)state;
    struct graph *graph = graph_test_create(4, 1);
    struct plan *plan = layout_plan(&layouts[2], graph);
    struct rank_plan *list = &plan->rank[1];
    const struct rank_plan *sender = &plan->rank[0];
    int first = sender->op[find_op(sender, OP_PUT)].shipment, second = -1;
    for (int i = 0; second < 0; i++) {
        if (sender->op[i].kind == OP_PUT && sender->op[i].shipment != first) {
            second = sender->op[i].shipment;
        }
    }
    op_move(list, find_message(list, OP_WAIT, second), find_message(list, OP_POST, second) + 1);
    int wait = find_message(list, OP_WAIT, second), post = find_message(list, OP_POST, first);
    assert_true(post < wait);
    op_move(list, post, wait);
    group_all(plan);
    char why[512] = "";
    assert_status(plan_check(plan, why, sizeof why), STATUS_INTERNAL);
    assert_non_null(strstr(why, "deadlock:"));
    plan_destroy(plan);
    graph_test_destroy(graph);
}

/* A put and its SENT taken away at the sender: a receive that nobody sends. */
static void test_nobody_sends(void **state)
{
    (void)state;
    struct graph *graph = graph_test_create(2, 1);
    struct plan *plan = layout_plan(&layouts[2], graph);
    struct rank_plan *list = &plan->rank[1];
    int shipment = list->op[find_op(list, OP_PUT)].shipment;
    for (int i = list->ops; i-- > 0;) {
        if ((list->op[i].kind == OP_PUT || list->op[i].kind == OP_SENT) &&
            list->op[i].shipment == shipment) {
            op_move(list, i, list->ops - 1);
            list->ops--;
        }
    }
    assert_found(plan, "a receive that nobody sends", 1, -1);
    plan_destroy(plan);
    graph_test_destroy(graph);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_drop_and_double), cmocka_unit_test(test_exchange),
        cmocka_unit_test(test_move_ahead),      cmocka_unit_test(test_wrong_numbers),
        cmocka_unit_test(test_wrong_orders),    cmocka_unit_test(test_wrong_sizes),
        cmocka_unit_test(test_wrong_additions), cmocka_unit_test(test_deadlock),
        cmocka_unit_test(test_queue),           cmocka_unit_test(test_nobody_sends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
