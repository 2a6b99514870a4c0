/* test_rows.c - a transport, a schedule and an operation that are added by a row (rows.h): what is made from the rows
 * has them, and nothing else had to change.
 */
#include "tests/test.h"

#include <string.h>

#include "base/log.h"
#include "base/timeline.h"
#include "comm/transport.h"
#include "kernels/kernels.h"
#include "schedule/plan_internal.h"
#include "tests/schedule/graphs.h"

/* ---- a transport that carries nothing ---- */

static int created;

static status_t dummy_create(struct wire *wire)
{
    (void)wire;
    created++;
    return FAIL(STATUS_UNSUPPORTED, "the dummy carries nothing");
}

const struct wire_class dummy_wire_class = {
    .name = "dummy", .threads = true, .create = dummy_create};

static status_t open_wire(struct group *group, void *arg)
{
    static void *slot[1] = {&created};
    struct wire_channel channel = {.from = 0, .to = 1, .bytes = 4, .slots = 1, .slot = slot};
    struct wire *wire;
    (void)arg;
    return wire_create(group, &(struct wire_options){.transport = "dummy"}, &channel, 1, &wire);
}

static void test_transport(void **state)
{
    struct group_options patient = {.deadline_s = 30, .heartbeat_s = 30};
    bool found = false;
    (void)state;
    for (int i = 0; transport_at(i); i++) {
        found = found || strcmp(transport_at(i), "dummy") == 0;
    }
    assert_true(found && strstr(transport_names(), "|dummy"));
    assert_true(transport_is_threads("dummy") && !transport_needs_gpus("dummy"));
    assert_status(group_run_threads(2, &patient, NULL, open_wire, NULL), STATUS_UNSUPPORTED);
    assert_true(created > 0);
}

/* ---- a schedule: one microbatch after the other ---- */

static void dummy_build(const struct layout *layout, int rank, struct phase_list *out)
{
    for (int m = 0; m < layout->microbatches; m++) {
        phase_add(out, PHASE_F, rank, m);
        phase_add_backward(out, rank, m);
    }
}

const struct builder dummy_builder = {.name = "dummy",
                                      .training = true,
                                      .chunks = 1,
                                      .most_chunks = 1,
                                      .rank_of = place_round,
                                      .build = dummy_build};

static void test_schedule(void **state)
{
    struct graph *graph = graph_test_create(4, 1);
    struct plan_options options = {
        .ranks = 3, .microbatches = 4, .schedule = "dummy", .partition = "auto"};
    struct plan *plan;
    char why[256];
    (void)state;
    assert_non_null(strstr(schedule_names(), "|dummy"));
    assert_ok(plan_create(graph, &options, &plan));
    assert_ok(plan_check(plan, why, sizeof why));
    for (int stage = 0; stage < 3; stage++) {
        assert_int_equal(plan->stage[stage].frames, 1);
    }
    plan_destroy(plan);
    graph_test_destroy(graph);
}

/* ---- an operation ---- */

static void dummy(const struct kernel_ctx *ctx, void *y, const void *x, size_t count)
{
    (void)ctx;
    for (size_t i = 0; i < count; i++) {
        ((float *)y)[i] = -((const float *)x)[i];
    }
}

static void test_operation(void **state)
{
    const struct kernels real = {.name = "dummies", .dummy = dummy};
    struct kernels timed;
    struct timeline *timeline;
    float x[2] = {1, -2}, y[2] = {0};
    (void)state;
    kernels_time(&real, &timed);
    assert_ok(timeline_create(NULL, 4, &timeline));
    assert_ok(timeline_start(timeline));
    struct kernel_ctx ctx = {.threads = 1, .timeline = timeline, .timed = &real};
    timed.dummy(&ctx, y, x, 2);
    assert_true(y[0] == -1 && y[1] == 2);
    assert_ok(timeline_resolve(timeline));
    assert_int_equal(timeline_count(timeline), 1);
    assert_string_equal(timeline_span(timeline, 0)->name, "dummy");
    assert_string_equal(timeline_span(timeline, 0)->category, "dummies");
    timeline_destroy(timeline);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_transport),
        cmocka_unit_test(test_schedule),
        cmocka_unit_test(test_operation),
    };
    log_set_level(LOG_WARN);
    return cmocka_run_group_tests_name("rows", tests, NULL, NULL);
}
