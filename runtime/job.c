/* job.c - one command on all ranks: who takes part, do they agree, what is the exit code. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/trace.h"
#include "runtime/agree.h"
#include "runtime/mesh.h"
#include "runtime/runtime.h"

static atomic_bool stop_requested;
static bool hangup_ignored;

enum { TICK_MS = 100, FAREWELL_MS = 200 };

static pthread_t signal_thread;
static atomic_int own_rank = -1;

/* What mpirun still prints of a job that it ends is said in the second between its SIGCONT and its
 * SIGTERM. Who is not there any more after a moment ended by himself. */
static void say_ended(void)
{
    nanosleep(&(struct timespec){0, FAREWELL_MS * 1000000}, NULL);
    if (atomic_load(&own_rank) == 0) {
        log_set_rank(0);
        log_warn("the launcher ends this job (Ctrl-C, or a rank failed): no weights are written "
                 "(`kill -USR1` on mpirun would finish the step and write them)");
    }
}

static void ask_to_stop(void)
{
    atomic_store(&stop_requested, true);
}

static void *take_signals(void *argument)
{
    const struct timespec tick = {0, TICK_MS * 1000000};
    int64_t last = trace_now();
    for (;;) {
        int number = sigtimedwait(argument, NULL, &tick);
        bool was_stopped = trace_now() - last > INT64_C(3000000) * TICK_MS;
        if (number == SIGINT && atomic_load(&stop_requested)) {
            _exit(128 + SIGINT); /* the second Ctrl-C */
        } else if (number == SIGTERM && atomic_load(&stop_requested)) {
            _exit(128 + SIGTERM);
        } else if (number > 0 && number != SIGCONT) {
            ask_to_stop();
        } else if (number == SIGCONT && !was_stopped) {
            say_ended();
        }
        last = trace_now();
    }
    return NULL;
}

static void pass_on(int number)
{
    pthread_kill(signal_thread, number);
}

static bool is_ignored(int number)
{
    return number == SIGHUP && hangup_ignored;
}

void job_before_libraries(void)
{
    struct sigaction action;
    hangup_ignored = sigaction(SIGHUP, NULL, &action) == 0 && action.sa_handler == SIG_IGN;
}

/* Signals are taken by a thread of their own: oneDNN's generated code moves the stack pointer into its
 * packing buffers, and a handler that ran on a computing thread would write over them. The handler is
 * for threads that libraries made when they were loaded (OpenBLAS), which do not have the mask. */
void job_catch_signals(void)
{
    static sigset_t set;
    const int alone[] = {SIGUSR1, SIGHUP, SIGINT, SIGTERM}, launched[] = {SIGUSR1, SIGHUP, SIGCONT};
    const int *numbers = group_launched() ? launched : alone;
    const int count = group_launched() ? 3 : 4;
    const struct sigaction action = {.sa_handler = pass_on, .sa_flags = SA_RESTART};
    sigemptyset(&set);
    for (int i = 0; i < count; i++) {
        if (!is_ignored(numbers[i])) {
            sigaddset(&set, numbers[i]);
        }
    }
    /* Threads made from now on inherit the mask. */
    if (pthread_sigmask(SIG_BLOCK, &set, NULL) != 0 ||
        pthread_create(&signal_thread, NULL, take_signals, &set) != 0) {
        log_warn("no thread for signals: SIGUSR1 will not end this run in order");
        return;
    }
    pthread_detach(signal_thread);
    group_on_sigterm(ask_to_stop); /* of a launched rank the liveness thread takes that one */
    for (int i = 0; i < count; i++) {
        if (sigismember(&set, numbers[i])) {
            sigaction(numbers[i], &action, NULL);
        } else {
            signal(numbers[i], SIG_IGN);
        }
    }
}

bool job_stop_requested(void)
{
    return atomic_load(&stop_requested);
}

status_t job_stop_agreed(struct group *group, bool *out)
{
    char own = job_stop_requested() ? 1 : 0, all[group_size(group)];
    TRY(group_allgather(group, &own, sizeof own, all));
    *out = memchr(all, 1, sizeof all) != NULL;
    return STATUS_OK;
}

static bool is_plain(const char *word)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                "_-+=.,:/@%";
    return word[0] != '\0' && word[strspn(word, plain)] == '\0';
}

/* The command line as typed behind an mpirun of `ranks`, quoted for a shell. */
static void print_launch(const struct job *job, int64_t ranks, FILE *out)
{
    fprintf(out, "mpirun -n %lld", (long long)ranks);
    for (int i = 0; i < job->argc; i++) {
        const char *word = job->argv[i];
        if (is_plain(word)) {
            fprintf(out, " %s", word);
            continue;
        }
        fprintf(out, " '");
        for (; *word; word++) {
            fprintf(out, *word == '\'' ? "'\\''" : "%c", *word);
        }
        fprintf(out, "'");
    }
}

static status_t check_ranks(const struct job *job, const struct group *group)
{
    char line[2048] = "";
    const struct run_config *config = &job->config;
    int64_t pp = config->parallel.pp, ranks = pp * config->parallel.tp * config->parallel.dp;
    int size = group_size(group);
    if (pp == 0 || ranks == size) {
        return mesh_check(&job->config, size);
    }
    FILE *text = fmemopen(line, sizeof line, "w");
    if (text) {
        print_launch(job, ranks, text);
        fclose(text);
    }
    char others[96] = "";
    if (config->parallel.tp > 1) {
        snprintf(others, sizeof others, ", parallel.tp %lld and parallel.dp %lld (%lld ranks)",
                 (long long)config->parallel.tp, (long long)config->parallel.dp, (long long)ranks);
    } else if (ranks != pp) {
        snprintf(others, sizeof others, " and parallel.dp %lld (%lld ranks)",
                 (long long)config->parallel.dp, (long long)ranks);
    }
    bool threads =
        transport_is_threads(job->config.parallel.transport); /* under a launcher, so not heeded */
    return FAIL(
        STATUS_INVALID,
        "parallel.pp is %lld%s but %d rank%s started: run `%s` (or all ranks as threads of one "
        "process%s)",
        (long long)pp, others, size, size == 1 ? " was" : "s were", line,
        threads ? ": without mpirun or srun, as parallel.transport=threads wants it"
                : ": parallel.transport=threads");
}

/* ---- the same configuration everywhere ---- */

static status_t print_config(const struct run_config *config, char **out)
{
    size_t size;
    FILE *file = open_memstream(out, &size);
    if (!file) {
        return FAIL(STATUS_NOMEM, "no memory to print the configuration");
    }
    config_print(config, file);
    fclose(file);
    return STATUS_OK;
}

/* Ranks of several builds may compute other bits, or not understand each other. */
static status_t tell_builds(struct group *group)
{
    uint64_t own = program_id(), all[group_size(group)];
    TRY(group_allgather(group, &own, sizeof own, all));
    for (int rank = 1; rank < group_size(group) && group_rank(group) == 0; rank++) {
        if (all[rank] != all[0]) {
            log_warn(
                "rank %d runs another build of this program than rank 0: give all hosts the same "
                "file (`muddpipe preflight` names every host that differs)",
                rank);
            break;
        }
    }
    return STATUS_OK;
}

static status_t same_config(const struct job *job, struct group *group)
{
    char *own = NULL;
    status_t status = group_agree(group, print_config(&job->config, &own));
    if (status == STATUS_OK) {
        status = agree_on_text(group, own, "was started with another configuration",
                               "start all ranks with the same file and arguments");
    }
    free(own);
    return status;
}

/* ---- running ---- */

struct body {
    struct job *job;
    job_body_fn fn;
    void *arg;
};

static status_t run_body(struct group *group, void *argument)
{
    struct body *body = argument;
    TRY(group_agree(group, check_ranks(body->job, group)));
    TRY(same_config(body->job, group));
    TRY(tell_builds(group));
    return body->fn(body->job, group, body->arg);
}

/* After most failures all ranks come to the shut-down: they agreed on it (group_agree, the exchange), or
 * a rank was lost, and then the shut-down does not wait. After the others, peers may wait for us for
 * ever. */
static bool left_together(status_t status)
{
    return status != STATUS_TIMEOUT && status != STATUS_INTERNAL;
}

static int run_process(struct body *body, struct group *group)
{
    status_t status = run_body(group, body);
    if (status == STATUS_OK) {
        group_close(group);
        return body->job->exit_code;
    }
    if (group_size(group) == 1 || left_together(status)) {
        group_close(group);
    } else {
        group_abandon(group, 1);
    }
    return 1;
}

/* For measurements of what a schedule makes of slow messages (tests/acceptance/delays.sh). */
static status_t read_delay(struct loop_faults *out)
{
    const char *text = getenv("MUDDPIPE_DELAY");
    if (text == NULL || text[0] == '\0') {
        return STATUS_OK;
    }
    log_warn("messages land later: MUDDPIPE_DELAY=%s", text);
    return loop_faults_read(text, out);
}

int job_run(struct job *job, job_body_fn fn, void *arg)
{
    struct body body = {job, fn, arg};
    struct group_options options = {job->config.health.deadline_s, job->config.health.heartbeat_s};
    struct group *group;
    bool threads = transport_is_threads(job->config.parallel.transport);
    job_catch_signals();
    if (threads && !group_launched()) {
        int pp = job->config.parallel.pp > 0 ? (int)job->config.parallel.pp : 1;
        int ranks = pp * (int)(job->config.parallel.tp * job->config.parallel.dp);
        struct loop_faults faults = {0};
        return read_delay(&faults) == STATUS_OK &&
                       group_run_threads(ranks, &options, &faults, run_body, &body) == STATUS_OK
                   ? job->exit_code
                   : 1;
    }
    if (getenv("MUDDPIPE_DELAY") != NULL) {
        log_warn("MUDDPIPE_DELAY is not used: only transport threads can delay messages");
    }
    status_t status =
        group_launched() ? group_open_mpi(&options, &group) : group_open_alone(&options, &group);
    if (status != STATUS_OK) {
        return 1;
    }
    log_set_rank(group_size(group) > 1 ? group_rank(group) : -1);
    atomic_store(&own_rank, group_rank(group));
    return run_process(&body, group);
}
