/* test_mixture.c - lists of weighted files, and the fairness of their mixture. */
#include "tests/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/rng.h"
#include "data/mixture.h"
#include "data/sources.h"

static char message[4096];

/* Every prefix gives each source its share to within less than one sequence, and each source's
 * indexes are 0, 1, 2, ... */
static void check_fair(const int64_t *weights, int sources, int64_t sequences)
{
    struct mixture *mixture = NULL;
    int64_t got[MIXTURE_SOURCES] = {0}, sum = 0;

    assert_ok(mixture_create(weights, sources, &mixture));
    for (int i = 0; i < sources; i++) {
        sum += weights[i];
    }
    for (int64_t s = 0; s < sequences; s++) {
        int source = -1;
        int64_t index = -1;
        mixture_at(mixture, s, &source, &index);
        assert_in_range(source, 0, sources - 1);
        assert_int_equal(index, got[source]);
        got[source]++;
        for (int i = 0; i < sources; i++) {
            int64_t error = got[i] * sum - (s + 1) * weights[i]; /* times the sum */
            assert_true(error < sum && error > -sum);
        }
    }
    mixture_destroy(mixture);
}

static void test_fair(void **state)
{
    static const int64_t cases[][5] = {
        {1}, {1, 1}, {7, 3}, {1, 999}, {5, 4, 3, 2, 1}, {100, 1, 1, 1, 1}, {33333, 33333, 33334}};

    (void)state;
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        int sources = 0;
        while (sources < 5 && cases[c][sources] > 0) {
            sources++;
        }
        check_fair(cases[c], sources, 5000);
    }
    for (uint64_t round = 0; round < 40; round++) {
        int64_t weights[12];
        int sources = 2 + (int)rng_below(1, 1, round, 11);
        for (int i = 0; i < sources; i++) {
            weights[i] = 1 + (int64_t)rng_below(1, 2, 16 * round + (uint64_t)i, 200);
        }
        check_fair(weights, sources, 3000);
    }
}

/* Far out, too: no state, no drift. */
static void test_far(void **state)
{
    static const int64_t weights[] = {617, 283, 100};
    struct mixture *mixture = NULL;
    int64_t far = (int64_t)1 << 50, index;
    int source;

    (void)state;
    assert_ok(mixture_create(weights, 3, &mixture));
    mixture_at(mixture, far, &source, &index);
    double share = (double)far / 1000 * (double)weights[source];
    assert_true(fabs((double)index - share) < 2);
    mixture_destroy(mixture);
}

static status_t parse_captured(const char *list, struct sources *out)
{
    message[0] = '\0';
    log_capture(message, sizeof message);
    status_t status = sources_parse("data.train", list, out);
    log_capture(NULL, 0);
    return status;
}

static void assert_refused(const char *list, const char *words)
{
    struct sources sources;

    assert_int_not_equal(parse_captured(list, &sources), STATUS_OK);
    if (strstr(message, words) == NULL || strstr(message, "data.train") == NULL) {
        fail_msg("'%s' is missing in: %s", words, message);
    }
}

static void test_lists(void **state)
{
    struct sources sources;

    (void)state;
    assert_ok(parse_captured("a.bin, dir/b=1", &sources));
    assert_int_equal(sources.files, 2);
    assert_int_equal(sources.sources, 1);
    assert_int_equal(sources.weight[0], 1);
    assert_string_equal(sources.file[1].path, "dir/b=1");
    sources_free(&sources);
    assert_ok(parse_captured("a:0.70,b,host:c:1.05", &sources));
    assert_int_equal(sources.files, 3);
    assert_int_equal(sources.sources, 2);
    assert_int_equal(sources.file[1].source, 0);
    assert_int_equal(sources.file[2].source, 1);
    assert_string_equal(sources.file[2].path, "host:c");
    assert_int_equal(sources.weight[0], 2);
    assert_int_equal(sources.weight[1], 3);
    sources_free(&sources);
    assert_refused("a,,b", "an empty entry");
    assert_refused(":1", "empty entry");
    assert_refused("a,b:2", "the first file has none");
    assert_refused("a:0", "weight of a:0 must be a number above 0");
    assert_refused("a:-1", "must be");
    assert_refused("a:1e3", "must be");
    assert_refused("a:.", "must be");
    assert_refused("a:0.0000001", "must be");
    assert_refused("a:99999999999999999999999999", "must be");
    assert_refused("a:999999.999999,b:1", "repeat only after");
    assert_refused("@no such list", "cannot open");
}

static void test_list_file(void **state)
{
    struct sources sources;
    char name[64], argument[80];

    (void)state;
    snprintf(name, sizeof name, "test_mixture.%d", (int)getpid());
    snprintf(argument, sizeof argument, "@%s", name);
    FILE *stream = fopen(name, "w");
    assert_non_null(stream);
    fputs("# two\n  a, b.bin:1  \n\nc:2\n", stream); /* no lists within a line */
    fclose(stream);
    assert_ok(parse_captured(argument, &sources));
    assert_int_equal(sources.files, 2);
    assert_string_equal(sources.file[0].path, "a, b.bin");
    assert_int_equal(sources.weight[1], 2);
    sources_free(&sources);
    stream = fopen(name, "w");
    assert_non_null(stream);
    fprintf(stream, "@%s\n", name);
    fclose(stream);
    assert_refused(argument, "names a list again");
    unlink(name);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fair),
        cmocka_unit_test(test_far),
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_list_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
