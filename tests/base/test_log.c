/* test_log.c - one write a line, prefixes and thresholds, looked at through stderr itself. */
#include "tests/test.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

enum { THREADS = 4, LINES = 200 };

static FILE *stderr_file;
static int stderr_saved;

static void stderr_divert(void)
{
    fflush(stderr);
    stderr_file = tmpfile();
    assert_non_null(stderr_file);
    stderr_saved = dup(STDERR_FILENO);
    assert_int_equal(dup2(fileno(stderr_file), STDERR_FILENO), STDERR_FILENO);
}

static void stderr_restore(char *text, size_t size)
{
    dup2(stderr_saved, STDERR_FILENO);
    close(stderr_saved);
    rewind(stderr_file);
    text[fread(text, 1, size - 1, stderr_file)] = '\0';
    fclose(stderr_file);
}

static void test_levels(void **state)
{
    (void)state;
    char text[1024];

    stderr_divert();
    log_info("step %d", 1);
    log_warn("slow");
    log_debug("hidden");
    log_set_level(LOG_DEBUG);
    log_debug("shown");
    log_set_level(LOG_ERROR);
    log_warn("hidden");
    log_set_level(LOG_INFO);
    stderr_restore(text, sizeof text);
    assert_string_equal(text, "step 1\nwarning: slow\ndebug: shown\n");
}

static void test_long_lines_are_cut(void **state)
{
    (void)state;
    static char body[20000], text[20000];

    memset(body, 'x', sizeof body - 1);
    stderr_divert();
    log_info("%s", body);
    log_info("next");
    stderr_restore(text, sizeof text);
    char *end = strchr(text, '\n');
    assert_non_null(end);
    assert_true(end - text > 4000);
    assert_string_equal(end + 1, "next\n");
}

static void test_kept_until_there_is_a_file(void **state)
{
    (void)state;
    char text[256];
    FILE *file = tmpfile();

    assert_non_null(file);
    log_info("before");
    log_keep();
    stderr_divert();
    log_info("early");
    log_debug("detail");
    log_trace("too much");
    stderr_restore(text, sizeof text);
    assert_string_equal(text, "early\n");
    log_keep();
    log_set_file(file);
    log_debug("late");
    log_set_file(NULL);
    rewind(file);
    text[fread(text, 1, sizeof text - 1, file)] = '\0';
    assert_string_equal(text, "early\ndebug: detail\ndebug: late\n");

    log_keep(); /* of a run that never began */
    log_debug("forgotten");
    log_set_file(NULL);
    rewind(file);
    log_set_file(file);
    log_set_file(NULL);
    rewind(file);
    text[fread(text, 1, sizeof text - 1, file)] = '\0';
    assert_string_equal(text, "early\ndebug: detail\ndebug: late\n");
    fclose(file);
}

static void test_too_much_is_not_kept(void **state)
{
    (void)state;
    enum { MUCH = 100000 };
    FILE *file = tmpfile();

    assert_non_null(file);
    log_keep();
    for (int i = 0; i < MUCH; i++) {
        log_debug("line");
    }
    log_set_file(file);
    log_set_file(NULL);
    long length = ftell(file);
    assert_true(length > 100000 && length < 400000 && length % (long)strlen("debug: line\n") == 0);
    fclose(file);
}

static void *rank_main(void *argument)
{
    int rank = *(int *)argument;

    log_set_rank(rank);
    for (int i = 0; i < LINES; i++) {
        log_info("line %d of rank %d", i, rank);
    }
    return log_rank() == rank ? argument : NULL;
}

static void test_ranks_are_threads(void **state)
{
    (void)state;
    static char text[THREADS * LINES * 64];
    pthread_t threads[THREADS];
    int ranks[THREADS], next[THREADS] = {0};

    stderr_divert();
    for (int i = 0; i < THREADS; i++) {
        ranks[i] = i;
        assert_int_equal(pthread_create(&threads[i], NULL, rank_main, &ranks[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        void *result;
        assert_int_equal(pthread_join(threads[i], &result), 0);
        assert_ptr_equal(result, &ranks[i]);
    }
    stderr_restore(text, sizeof text);

    assert_int_equal(log_rank(), -1);
    int lines = 0;
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n"), lines++) {
        int rank, i, again;
        assert_int_equal(sscanf(line, "[rank %d] line %d of rank %d", &rank, &i, &again), 3);
        assert_int_equal(rank, again);
        assert_int_equal(i, next[rank]++);
    }
    assert_int_equal(lines, THREADS * LINES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_levels),
        cmocka_unit_test(test_long_lines_are_cut),
        cmocka_unit_test(test_kept_until_there_is_a_file),
        cmocka_unit_test(test_too_much_is_not_kept),
        cmocka_unit_test(test_ranks_are_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
