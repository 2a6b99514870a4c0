/* test_start_limit.c - a start that hangs is ended, one that does not is left alone. */
#include "tests/test.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/trace.h"
#include "comm/health/start_limit.h"

static void rest(int ms)
{
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000L}, NULL);
}

/* Forks a rank that hangs in its start under a limit of `seconds`; what it says goes to `pipe`. */
static pid_t start_hanging(double seconds, const int pipe[2])
{
    pid_t child = fork();

    assert_true(child >= 0);
    if (child == 0) {
        struct start_limit *limit;
        setenv("OMPI_COMM_WORLD_RANK", "7", 1);
        dup2(pipe[1], STDERR_FILENO);
        if (start_limit_begin(seconds, "MPI_Init_thread", &limit) != STATUS_OK) {
            _exit(3);
        }
        start_limit_move(limit, "the first exchange");
        rest(20000);
        _exit(4);
    }
    return child;
}

static void test_hanging(void **state)
{
    char text[512] = "";
    int pipes[2], end;

    (void)state;
    assert_int_equal(pipe(pipes), 0);
    pid_t child = start_hanging(0.5, pipes);
    assert_int_equal(waitpid(child, &end, 0), child);
    assert_true(WIFEXITED(end) && WEXITSTATUS(end) == 1);
    assert_true(read(pipes[0], text, sizeof text - 1) > 0);
    assert_non_null(strstr(text, "[rank 7] error: rank 7: MPI has not started after 0.5 s"));
    assert_non_null(strstr(text, "waiting in the first exchange"));
    close(pipes[0]);
    close(pipes[1]);
}

/* Who was stopped itself has not waited. */
static void test_stopped(void **state)
{
    int pipes[2], end;

    (void)state;
    assert_int_equal(pipe(pipes), 0);
    pid_t child = start_hanging(2, pipes);
    rest(200);
    kill(child, SIGSTOP);
    rest(2500);
    kill(child, SIGCONT);
    rest(300);
    assert_int_equal(waitpid(child, &end, WNOHANG), 0);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &end, 0), child);
    close(pipes[0]);
    close(pipes[1]);
}

static void test_ended_in_time(void **state)
{
    struct start_limit *limit;

    (void)state;
    assert_ok(start_limit_begin(0.3, "MPI_Init_thread", &limit));
    start_limit_end(limit);
    rest(600); /* would end this process */
    assert_ok(start_limit_begin(0, "MPI_Init_thread", &limit));
    assert_null(limit);
    start_limit_move(limit, "nothing");
    start_limit_end(limit);
}

static void test_length(void **state)
{
    (void)state;
    assert_true(start_limit_seconds(30) == 45);
    assert_true(start_limit_seconds(4) == 45);
    assert_true(start_limit_seconds(100) == 150);
    assert_true(start_limit_seconds(0) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hanging),
        cmocka_unit_test(test_stopped),
        cmocka_unit_test(test_ended_in_time),
        cmocka_unit_test(test_length),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
