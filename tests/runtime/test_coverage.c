/* test_coverage.c - chunks of a checkpoint that are runs of rows: all elements once, or the manifest is refused. */
#include "tests/test.h"

#include <string.h>

#include "base/log.h"
#include "runtime/checkpoint/private.h"

/* One tensor of 6 rows of 8 columns, whose chunks a test chooses. */
enum { ROWS = 6, COLUMNS = 8, CHUNKS = 4 };

struct made {
    Muddpipe__Manifest manifest;
    Muddpipe__Tensor tensor, *tensors[1];
    Muddpipe__Shard shard, *shards[1];
    Muddpipe__Chunk chunk[CHUNKS], *chunks[CHUNKS];
    uint64_t shape[2];
    char *kinds[1];
};

struct place {
    uint64_t begin, count, run, stride; /* run 0: consecutive elements */
};

static void make(const struct place *place, size_t count, struct made *out)
{
    static char kind[] = "weights", name[] = "w", file[] = "rank-0.shard";

    muddpipe__manifest__init(&out->manifest);
    muddpipe__tensor__init(&out->tensor);
    muddpipe__shard__init(&out->shard);
    out->shape[0] = ROWS;
    out->shape[1] = COLUMNS;
    out->tensor.name = name;
    out->tensor.shape = out->shape;
    out->tensor.n_shape = 2;
    out->tensors[0] = &out->tensor;
    out->shards[0] = &out->shard;
    out->kinds[0] = kind;
    out->shard.file = file;
    out->shard.bytes = 1 << 20;
    out->shard.chunk = out->chunks;
    out->shard.n_chunk = count;
    for (size_t i = 0; i < count; i++) {
        muddpipe__chunk__init(&out->chunk[i]);
        out->chunk[i].begin = place[i].begin;
        out->chunk[i].count = place[i].count;
        out->chunk[i].has_run = out->chunk[i].has_stride = place[i].run > 0;
        out->chunk[i].run = place[i].run;
        out->chunk[i].stride = place[i].stride;
        out->chunks[i] = &out->chunk[i];
    }
    out->manifest.tensor = out->tensors;
    out->manifest.kind = out->kinds;
    out->manifest.shard = out->shards;
    out->manifest.n_tensor = out->manifest.n_kind = out->manifest.n_shard = 1;
}

/* words: NULL: it is fine. */
static void check(const char *words, const struct place *place, size_t count)
{
    struct made made;
    char text[512] = "";

    make(place, count, &made);
    log_capture(text, sizeof text);
    status_t status = coverage_check("manifest", &made.manifest);
    log_capture(NULL, 0);
    if (words == NULL ? status != STATUS_OK
                      : status != STATUS_INVALID || strstr(text, words) == NULL) {
        fail_msg("%s, and not: %s", text[0] ? text : "accepted", words ? words : "accepted");
    }
}

#define CHECK_PLACES(words, ...)                                                                   \
    do {                                                                                           \
        const struct place place[] = {__VA_ARGS__};                                                \
        check(words, place, sizeof place / sizeof place[0]);                                       \
    } while (0)

static void test_runs(void **state)
{
    (void)state;
    CHECK_PLACES(NULL, {0, 48, 0, 0});
    CHECK_PLACES(NULL, {0, 24, 4, 8}, {4, 24, 4, 8});
    /* Shares that begin within a row: its end, whole rows, the beginning of another. */
    CHECK_PLACES(NULL, {2, 2, 0, 0}, {8, 20, 4, 8}, {0, 2, 0, 0}, {4, 24, 4, 8});
    CHECK_PLACES(NULL, {0, 18, 3, 8}, {3, 30, 5, 8});
}

static void test_refused(void **state)
{
    (void)state;
    CHECK_PLACES("element 4 of the weights of w is missing", {0, 24, 4, 8});
    CHECK_PLACES("element 44 of the weights of w is missing", {0, 24, 4, 8}, {4, 20, 4, 8});
    CHECK_PLACES("element 4 of the weights of w is there twice", {0, 24, 4, 8}, {0, 24, 4, 8});
    CHECK_PLACES("element 5 of the weights of w is there twice", {0, 30, 5, 8}, {4, 24, 4, 8});
    CHECK_PLACES("no such place", {0, 24, 4, 3}, {4, 24, 4, 8});  /* runs over each other */
    CHECK_PLACES("no such place", {0, 24, 5, 8}, {4, 24, 4, 8});  /* half a run */
    CHECK_PLACES("no such place", {5, 24, 4, 8}, {4, 24, 4, 8});  /* beyond the end */
    CHECK_PLACES("no such place", {0, 24, 4, 49}, {4, 24, 4, 8}); /* the same */
    CHECK_PLACES("no such place", {0, 24, 4, UINT64_MAX / 2}, {4, 24, 4, 8});
    CHECK_PLACES("no such place", {UINT64_MAX - 3, 24, 4, 8}, {4, 24, 4, 8});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_runs),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
