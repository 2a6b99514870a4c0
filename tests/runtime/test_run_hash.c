/* test_run_hash.c - what of the ranks' devices, tables of algorithms and cuts is in a run's hash; over a
 * setup that names a model and nothing else. tests/tools/test_hash.sh has whole runs. */
#include "tests/test.h"

/* One rank's. */
static _Thread_local uint64_t fake_table;
static _Thread_local struct plan fake_cuts;

#define algorithms_hash fake_hash
#define trainer_plan fake_plan
#include "base/log.h"
#include "runtime/run_hash.c"

uint64_t fake_hash(const struct trainer *trainer)
{
    assert_non_null(trainer);
    return fake_table;
}

const struct plan *fake_plan(const struct trainer *trainer)
{
    assert_non_null(trainer);
    return &fake_cuts;
}

enum { RANKS = 3 };

struct task {
    const char *kernels[RANKS];
    uint64_t table[RANKS];
    const char *overrides[2]; /* of the configuration; NULL = none */
    int units;                /* of stage 0, and 10 less those of stage 1 */
    status_t expected[RANKS];
    const char *says;     /* by the rank that fails as STATUS_MISMATCH */
    struct run_hash hash; /* out: rank 0's, without text */
    char text[1 << 14];   /* out */
};

static status_t run_rank(struct group *group, void *argument)
{
    struct task *task = argument;
    int rank = group_rank(group);
    struct stage_plan stage[2] = {{.units = task->units}, {.units = 10 - task->units}};
    struct job job = {.command = "train"};
    struct kernels kernels = {.name = task->kernels[rank]};
    struct trainer trainer = {.group = group, .place.kernels = &kernels};
    struct setup setup = {.job = &job,
                          .group = group,
                          .T = 32,
                          .microbatches = 4,
                          .fingerprint = {1, 2},
                          .trainer = &trainer};
    char *overrides[] = {"model.n_layer=4", "model.n_head=2", "model.dim=32",
                         (char *)(uintptr_t)task->overrides[0],
                         (char *)(uintptr_t)task->overrides[1]};
    char error[1024] = "";
    struct run_hash hash;
    assert_ok(config_load(NULL, 5, overrides, 1, &job.config));
    assert_ok(model_config_load("", &job.config.model_keys, NULL, &setup.model));
    fake_table = task->table[rank];
    fake_cuts = (struct plan){.stages = 2, .stage = stage};
    log_capture(error, sizeof error);
    status_t status = run_hash_create(&setup, &hash);
    log_capture(NULL, 0);
    assert_int_equal(status, task->expected[rank]);
    assert_true(status != STATUS_MISMATCH || strstr(error, task->says));
    if (status == STATUS_OK && rank == 0) {
        task->hash = hash;
        task->hash.text = NULL;
        snprintf(task->text, sizeof task->text, "%s", hash.text);
    }
    if (status == STATUS_OK) {
        run_hash_free(&hash);
    }
    config_free(&job.config);
    return STATUS_OK;
}

static void check(struct task *task)
{
    struct group_options patient = {.deadline_s = 30, .heartbeat_s = 30};
    assert_ok(group_run_threads(RANKS, &patient, NULL, run_rank, task));
}

static struct task task_of(const char *last, uint64_t last_table)
{
    struct task task = {.kernels = {"one", "one", last}, .table = {7, 7, last_table}, .units = 5};
    check(&task);
    return task;
}

/* Differ in these parts, a bit each, and as a whole. */
static void assert_differ(const struct task *a, const struct task *b, unsigned parts)
{
    unsigned found = 0;
    for (int p = 0; p < RUN_PARTS; p++) {
        found |= (unsigned)(a->hash.part[p] != b->hash.part[p]) << p;
    }
    assert_int_equal(found, parts);
    assert_int_equal(a->hash.run != b->hash.run, parts != 0);
}

static void test_like(void **state)
{
    (void)state;
    static struct task one, other;
    one = task_of("one", 7);
    assert_int_equal(one.hash.part[RUN_ALGORITHMS], 7);
    assert_int_equal(one.hash.part[RUN_WEIGHTS], 0);
    assert_non_null(strstr(one.text, "device: muddpipe " MUDDPIPE_VERSION ", one\n"));
    assert_null(strstr(one.text, "units of the stages"));
    other = one;
    other.units = 4;
    check(&other);
    assert_differ(&one, &other, 0);
    memcpy(other.table, (uint64_t[]){8, 8, 8}, sizeof other.table);
    check(&other);
    assert_differ(&one, &other, 1u << RUN_ALGORITHMS);
}

/* bf16 rounds where stages meet. */
static void test_cuts(void **state)
{
    (void)state;
    static struct task one, other;
    one = task_of("one", 7);
    one.overrides[0] = "precision=bf16";
    check(&one);
    assert_non_null(strstr(one.text, "\nunits of the stages: 5 5\n"));
    other = one;
    other.overrides[1] = "parallel.schedule=gpipe";
    check(&other);
    assert_differ(&one, &other, 0);
    other.units = 4;
    check(&other);
    assert_differ(&one, &other, 1u << RUN_CONFIG);
}

static void test_unlike(void **state)
{
    (void)state;
    static struct task one, other;
    one = task_of("two", 9);
    assert_non_null(strstr(one.text, ", two, rank 2\n"));
    assert_non_null(strstr(one.text, "\nunits of the stages: 5 5\n"));
    other = task_of("two", 7);
    assert_differ(&one, &other, 1u << RUN_ALGORITHMS);
    other = task_of("three", 9);
    assert_differ(&one, &other, 1u << RUN_DEVICE);
}

static void test_refused(void **state)
{
    (void)state;
    static struct task task = {.kernels = {"one", "two", "one"},
                               .table = {7, 8, 9},
                               .expected = {STATUS_PEER, STATUS_PEER, STATUS_MISMATCH},
                               .says = "0000000000000007 on rank 0 and 0000000000000009 on rank 2"};
    check(&task);
}

static void test_print(void **state)
{
    (void)state;
    char line[256];
    struct run_hash hash = {.run = 0x123456789abcdefu,
                            .part = {0xfedcba9876543210u, 0, 1, 2, 0xabcdefu}};
    assert_string_equal(run_hash_print(&hash, line, sizeof line),
                        "run 0123456789abcdef: config fedcba98, weights none, data 00000000, "
                        "device 00000000, algorithms 00000000");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_like), cmocka_unit_test(test_cuts), cmocka_unit_test(test_unlike),
        cmocka_unit_test(test_refused), cmocka_unit_test(test_print)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
