/* test_threads.c - the contract over threads, and what only threads can show: delay, loss, death. */
#include "tests/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/trace.h"
#include "tests/comm/contract.h"

static const struct group_options patient = {.deadline_s = 20, .heartbeat_s = 10};

static status_t run_collectives(struct group *group, void *arg)
{
    (void)arg;
    return contract_collectives(group);
}

static status_t run_wire(struct group *group, void *arg)
{
    (void)arg;
    return contract_wire(group, "threads");
}

static status_t run_sums(struct group *group, void *arg)
{
    (void)arg;
    return contract_sums(group, "host");
}

static status_t run_split(struct group *group, void *arg)
{
    (void)arg;
    return contract_split(group, "threads");
}

static status_t run_sleep(struct group *group, void *arg)
{
    (void)arg;
    return contract_sleep(group, "threads");
}

static status_t run_bench(struct group *group, void *arg)
{
    (void)arg;
    return contract_bench(group, "threads");
}

static void test_contract(void **state)
{
    (void)state;
    for (int ranks = 2; ranks <= 4; ranks++) {
        assert_ok(group_run_threads(ranks, &patient, NULL, run_collectives, NULL));
        assert_ok(group_run_threads(ranks, &patient, NULL, run_wire, NULL));
    }
}

static void test_sums(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 5; ranks++) {
        assert_ok(group_run_threads(ranks, &patient, NULL, run_sums, NULL));
    }
}

static void test_split(void **state)
{
    (void)state;
    const int ranks[] = {1, 3, 5};
    for (size_t i = 0; i < sizeof ranks / sizeof ranks[0]; i++) {
        assert_ok(group_run_threads(ranks[i], &patient, NULL, run_split, NULL));
    }
}

static void test_sleep(void **state)
{
    (void)state;
    assert_ok(group_run_threads(3, &patient, NULL, run_sleep, NULL));
}

static void test_speed(void **state)
{
    (void)state;
    assert_ok(group_run_threads(2, &patient, NULL, run_bench, NULL));
}

static void test_alone(void **state)
{
    struct group *group;
    struct wire *wire;
    int64_t value = 5, out = 0;

    (void)state;
    assert_ok(group_open_alone(&patient, &group));
    assert_int_equal(group_size(group), 1);
    assert_int_equal(group_local_size(group), 1);
    assert_false(group_is_threads(group));
    assert_ok(group_barrier(group));
    assert_ok(group_allgather(group, &value, sizeof value, &out));
    assert_int_equal(out, 5);
    assert_ok(group_same(group, 1, "one"));
    assert_status(group_agree(group, STATUS_NUMERIC), STATUS_NUMERIC);
    assert_ok(wire_create(group, &(struct wire_options){.transport = "ucx"}, NULL, 0, &wire));
    wire_destroy(wire);
    group_close(group);
}

/* ---- faults ---- */

enum { RANKS = 3 };

struct outcome {
    int channels; /* of the ring; 0 = all */
    status_t status[RANKS];
    char text[RANKS][4096]; /* error lines */
    int64_t took[RANKS];    /* ns */
};

static void describe(void *arg, char *buffer, size_t size)
{
    (void)arg;
    snprintf(buffer, size, "step 12: wait for X_3 of microbatch 5");
}

static status_t run_exchange(struct group *group, void *arg)
{
    struct outcome *outcome = arg;
    int rank = group_rank(group);
    int64_t begin = trace_now();

    log_capture(outcome->text[rank], sizeof outcome->text[rank]);
    group_watch(group, describe, NULL);
    outcome->status[rank] =
        contract_exchange(group, "threads", outcome->channels > 0 ? outcome->channels : RANKS, 8);
    outcome->took[rank] = trace_now() - begin;
    return outcome->status[rank];
}

static void test_delay(void **state)
{
    struct loop_faults faults = {.delay_us = 20000};
    struct outcome outcome;

    (void)state;
    memset(&outcome, 0, sizeof outcome);
    assert_ok(group_run_threads(RANKS, &patient, &faults, run_exchange, &outcome));
    for (int i = 0; i < RANKS; i++) { /* eight messages, each waited for before the next is put */
        assert_true(outcome.took[i] >= 8 * 20000000);
    }
    assert_ok(loop_faults_read("10000,1,3", &faults)); /* every one is among the late ones */
    memset(&outcome, 0, sizeof outcome);
    assert_ok(group_run_threads(RANKS, &patient, &faults, run_exchange, &outcome));
    for (int i = 0; i < RANKS; i++) {
        assert_true(outcome.took[i] >= 8 * 30000000);
    }
}

static void test_loss(void **state)
{
    struct group_options options = {.deadline_s = 0.5};
    struct loop_faults faults = {.lose = true, .lose_channel = 0, .lose_message = 7};
    struct outcome outcome;

    (void)state;
    memset(&outcome, 0, sizeof outcome);
    outcome.channels = 1;
    assert_status(group_run_threads(RANKS, &options, &faults, run_exchange, &outcome),
                  STATUS_TIMEOUT);
    assert_status(outcome.status[1], STATUS_TIMEOUT);
    assert_non_null(strstr(outcome.text[1], "message 7 of channel 0 (rank 0 to rank 1"));
    assert_non_null(strstr(outcome.text[1], "step 12: wait for X_3 of microbatch 5"));
    assert_true(outcome.took[1] >= 500000000 && outcome.took[1] < 5000000000);
}

static void test_death(void **state)
{
    struct loop_faults faults = {.die = true, .die_rank = 1, .die_put = 4};
    struct outcome outcome;

    (void)state;
    memset(&outcome, 0, sizeof outcome);
    assert_status(group_run_threads(RANKS, &patient, &faults, run_exchange, &outcome),
                  STATUS_INTERRUPTED);
    assert_status(outcome.status[1], STATUS_INTERRUPTED);
    for (int i = 0; i < RANKS; i += 2) {
        assert_status(outcome.status[i], STATUS_PEER);
        assert_non_null(strstr(outcome.text[i], "rank 1 died"));
        assert_non_null(strstr(outcome.text[i], "step 12: wait for X_3 of microbatch 5"));
        assert_true(outcome.took[i] < 2000000000);
    }
}

static status_t run_sums_outcome(struct group *group, void *arg)
{
    struct outcome *outcome = arg;
    int rank = group_rank(group);

    log_capture(outcome->text[rank], sizeof outcome->text[rank]);
    outcome->status[rank] = contract_sums(group, "host");
    return outcome->status[rank];
}

/* At each of the first calls, which are of all kinds. */
static void test_death_in_sums(void **state)
{
    (void)state;
    for (int64_t put = 0; put < 2 * COLLECTIVE_KINDS; put++) {
        struct loop_faults faults = {.die = true, .die_rank = 1, .die_put = put};
        struct outcome outcome;
        memset(&outcome, 0, sizeof outcome);
        assert_status(group_run_threads(RANKS, &patient, &faults, run_sums_outcome, &outcome),
                      STATUS_INTERRUPTED);
        for (int i = 0; i < RANKS; i += 2) {
            assert_status(outcome.status[i], STATUS_PEER);
            assert_non_null(strstr(outcome.text[i], "rank 1 died"));
        }
    }
}

/* Rank 0 fails by itself while the others are in a barrier, which must not hang. */
static status_t run_give_up(struct group *group, void *arg)
{
    struct outcome *outcome = arg;
    int rank = group_rank(group);

    log_capture(outcome->text[rank], sizeof outcome->text[rank]);
    if (rank == 0) {
        return FAIL(STATUS_NUMERIC, "the loss is not a number");
    }
    outcome->status[rank] = group_barrier(group);
    return outcome->status[rank];
}

static void test_give_up(void **state)
{
    struct outcome outcome;

    (void)state;
    memset(&outcome, 0, sizeof outcome);
    assert_status(group_run_threads(RANKS, &patient, NULL, run_give_up, &outcome), STATUS_NUMERIC);
    assert_status(outcome.status[1], STATUS_PEER);
    assert_non_null(strstr(outcome.text[1], "rank 0"));
    assert_non_null(strstr(outcome.text[2], "a barrier"));
}

static status_t run_late(struct group *group, void *arg)
{
    struct outcome *outcome = arg;
    int rank = group_rank(group);

    log_capture(outcome->text[rank], sizeof outcome->text[rank]);
    if (rank == 0) {
        nanosleep(&(struct timespec){1, 0}, NULL);
        return STATUS_OK;
    }
    outcome->status[rank] = group_barrier(group);
    return outcome->status[rank];
}

static void test_late(void **state)
{
    struct group_options options = {.deadline_s = 0.3};
    struct outcome outcome;

    (void)state;
    memset(&outcome, 0, sizeof outcome);
    assert_status(group_run_threads(RANKS, &options, NULL, run_late, &outcome), STATUS_TIMEOUT);
    assert_true(strstr(outcome.text[1], "came within") != NULL ||
                strstr(outcome.text[2], "came within") != NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alone), cmocka_unit_test(test_contract),
        cmocka_unit_test(test_delay), cmocka_unit_test(test_loss),
        cmocka_unit_test(test_death), cmocka_unit_test(test_give_up),
        cmocka_unit_test(test_late),  cmocka_unit_test(test_sleep),
        cmocka_unit_test(test_speed), cmocka_unit_test(test_sums),
        cmocka_unit_test(test_split), cmocka_unit_test(test_death_in_sums),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
