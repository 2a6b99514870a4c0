/* health.c - the liveness thread. */
#include "comm/health/health.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/trace.h"

#define MILLISECOND INT64_C(1000000)

enum {
    TICK_MS = 50,
    SETTLE_MS = 10,      /* for notes that are here already to be read */
    SUSPECT_TICK_MS = 2, /* while an end is to be explained */
    SUSPECT_MS = 250,    /* for the note of a rank that ended, or of whoever knows why it did */
    FAREWELL_MS = 300,   /* for the last notes to leave */
    TERMINATED_MS = 100, /* between SIGTERMs of one cause */
    ALONE_MS = 250,      /* without SIGTERM for so long, the other's was for it alone */
    /* Launchers lose lines of ranks that speak after the first has ended, so whoever ends lets the
     * others speak; mpirun sends SIGKILL 1 s after SIGTERM. */
    LAST_WORDS_MS = 500, /* of a rank that got SIGTERM, from its own on */
    LOST_WORDS_MS = 200  /* of one that lost another, from its own on */
};

enum { FD_WAKE, FD_SIGTERM, FDS_FIRST };

struct health {
    struct group *group;
    struct health_line line;
    struct health_peer *peer; /* [size] */
    struct pollfd *fds;       /* [FDS_FIRST + 3 size]: wake, SIGTERM, pidfds and peer sockets */
    int *watched;             /* the rank that each of `fds` tells of */
    nfds_t fd_count;
    bool *poll_pid; /* [size] no pidfd here: ask with kill(pid, 0) */
    pthread_t thread;
    atomic_bool stopping, leaving;
    atomic_int exit_code; /* asked by health_give_up; 0 = not */

    int terminated_first;  /* of the ranks that said that SIGTERM ends them; -1 = none */
    int64_t terminated_at; /* when it said so */
    int suspect;           /* the first rank that ended without a word; -1 = none */
    int64_t suspect_at;

    int lost_rank; /* -1 = none */
    enum health_cause lost_cause;
    int64_t lost_at;
    int64_t beat_sent, beat_heard, last_turn;
    struct sigaction old_action;
    sigset_t old_mask; /* of the thread that opened the group */
};

static int term_fd = -1; /* written by the signal handler */

static void on_sigterm(int signal)
{
    uint64_t one = 1;
    int saved = errno;

    (void)signal;
    ssize_t written = write(term_fd, &one, sizeof one);
    (void)written;
    errno = saved;
}

static void rest(int64_t ns)
{
    struct timespec time = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
    nanosleep(&time, NULL);
}

/* ---- losing a rank ---- */

static void print_reason(const struct health *health, int rank, enum health_cause cause,
                         char *buffer, size_t size)
{
    switch (cause) {
    case CAUSE_DIED:
        snprintf(buffer, size, "rank %d died (killed?)", rank);
        break;
    case CAUSE_STOPPED:
        if (rank == health->group->rank) {
            snprintf(buffer, size, "rank %d was silent for so long that the others gave it up",
                     rank);
            break;
        }
        snprintf(buffer, size, "rank %d has not answered for %g s (stopped or unreachable)", rank,
                 health->group->options.heartbeat_s);
        break;
    case CAUSE_GAVE_UP:
        snprintf(buffer, size, "rank %d gave up (its own message says why)", rank);
        break;
    case CAUSE_TERMINATED:
        snprintf(buffer, size, "rank %d was ended by SIGTERM", rank);
        break;
    }
}

static void tell_all(struct health *health, int subject, enum health_cause cause)
{
    struct health_note note = {HEALTH_LOST, subject, (int32_t)cause};

    for (int i = 0; i < health->group->size; i++) {
        /* Who was stopped learns of it when it wakes; who died or knows needs no note. */
        if (i != health->group->rank && (i != subject || cause == CAUSE_STOPPED)) {
            health->line.send(health->line.arg, i, &note);
        }
    }
}

static void lose(struct health *health, int rank, enum health_cause cause)
{
    struct group *group = health->group;
    char reason[REASON_SIZE], doing[DOING_SIZE];

    if (health->leaving || health->lost_rank >= 0) {
        return;
    }
    health->lost_rank = rank;
    health->lost_cause = cause;
    health->lost_at = trace_now();
    print_reason(health, rank, cause, reason, sizeof reason);
    log_error("%s while rank %d was in %s", reason, group->rank,
              group_doing(group, doing, sizeof doing));
    group->shared->told = true;
    tell_all(health, rank, cause);
    group_fail(group, false, reason);
}

/* Maybe we are next: see check_terminated. A suspect's last word explains its end; that others were
 * ended after it, as the launcher does, explains nothing. */
static void hear_terminated(struct health *health, int from, int subject)
{
    if (health->terminated_first < 0 || from == health->suspect) {
        health->terminated_first = subject;
        health->terminated_at = trace_now();
    }
    if (from == health->suspect) {
        health->suspect = -1;
    }
}

static void drain_notes(struct health *health)
{
    struct group *group = health->group;
    int before = (group->rank + group->size - 1) % group->size;
    struct health_note note;
    int from;

    while (health->line.receive(health->line.arg, &from, &note)) {
        if (from == before) {
            health->beat_heard = trace_now();
        }
        if (note.word == HEALTH_LOST && note.cause == CAUSE_TERMINATED) {
            hear_terminated(health, from, note.subject);
        } else if (note.word == HEALTH_LOST) {
            lose(health, note.subject, (enum health_cause)note.cause);
        }
    }
}

/* Lets the last notes leave, within FAREWELL_MS; returns after `least_ms` at the earliest. */
static void send_last_words(struct health *health, int least_ms)
{
    int64_t begin = trace_now();

    for (;;) {
        bool idle = health->line.idle(health->line.arg); /* moves them */
        int64_t past = trace_now() - begin;
        if (past >= least_ms * MILLISECOND && (idle || past >= FAREWELL_MS * MILLISECOND)) {
            return;
        }
        rest(MILLISECOND / 5);
    }
}

static void end_process(struct health *health, int code)
{
    int lost = health->lost_rank;

    while (lost >= 0 && trace_now() - health->lost_at < LOST_WORDS_MS * MILLISECOND) {
        rest(MILLISECOND);
    }
    if (lost >= 0 && lost != health->group->rank && health->lost_cause == CAUSE_STOPPED &&
        health->peer[lost].visible) {
        kill((pid_t)health->peer[lost].pid, SIGKILL); /* it would outlive the job */
    }
    _exit(code);
}

/* ---- one turn of the thread ---- */

static bool has_no_culprit(const struct health *health)
{
    return !health->leaving && health->lost_rank < 0 && health->suspect < 0 &&
           health->terminated_first < 0;
}

/* A rank's process has ended. If SIGTERM ended one before, this one left because of it. */
static void suspect(struct health *health, int rank)
{
    for (int64_t until = trace_now() + SETTLE_MS * MILLISECOND;
         has_no_culprit(health) && trace_now() < until; rest(MILLISECOND / 5)) {
        drain_notes(health);
    }
    if (has_no_culprit(health)) {
        health->suspect = rank;
        health->suspect_at = trace_now();
    }
}

/* A pidfd, a socket or kill(pid, 0) tells of an end. */
static void check_ends(struct health *health)
{
    for (nfds_t i = FDS_FIRST; i < health->fd_count; i++) {
        if (health->fds[i].fd >= 0 && health->fds[i].revents != 0) {
            suspect(health, health->watched[i]);
            close(health->fds[i].fd);
            health->fds[i].fd = -1;
        }
    }
    for (int i = 0; i < health->group->size; i++) {
        if (health->poll_pid[i] && kill((pid_t)health->peer[i].pid, 0) != 0 && errno == ESRCH) {
            suspect(health, i);
            health->poll_pid[i] = false;
        }
    }
}

/* Whoever ends for a reason tells it first, but an end is seen sooner than a note is read: a rank is
 * said to have died only if no note explains its end. `now`: the time to wait for one is over. */
static void check_suspect(struct health *health, bool now)
{
    if (health->suspect >= 0 &&
        (now || trace_now() - health->suspect_at >= SUSPECT_MS * MILLISECOND)) {
        lose(health, health->suspect, CAUSE_DIED);
    }
}

static void check_beats(struct health *health)
{
    struct group *group = health->group;
    int64_t limit = (int64_t)(group->options.heartbeat_s * 1e9);
    int64_t now = trace_now();
    struct health_note beat = {HEALTH_BEAT, 0, 0};

    if (limit <= 0 || health->lost_rank >= 0) {
        return;
    }
    if (now - health->last_turn > limit / 4) { /* this process was stopped: judge nobody yet */
        health->beat_heard = now;
    }
    health->last_turn = now;
    if (now - health->beat_sent >= limit / 8) {
        health->beat_sent = now;
        health->line.send(health->line.arg, (group->rank + 1) % group->size, &beat);
    }
    if (now - health->beat_heard > limit) {
        lose(health, (group->rank + group->size - 1) % group->size, CAUSE_STOPPED);
    }
}

/* A launcher ends all ranks by SIGTERM, one after the other: then each says its own line. */
static void check_terminated(struct health *health)
{
    if (health->terminated_first >= 0 && health->suspect < 0 &&
        trace_now() - health->terminated_at >= ALONE_MS * MILLISECOND) {
        lose(health, health->terminated_first, CAUSE_TERMINATED);
    }
}

/* This rank ends so long after SIGTERM ended another that it does because of that one. */
static void check_aftermath(struct health *health)
{
    if (health->terminated_first >= 0 &&
        trace_now() - health->terminated_at >= TERMINATED_MS * MILLISECOND) {
        lose(health, health->terminated_first, CAUSE_TERMINATED);
    }
}

static void (*_Atomic sigterm_ask)(void);

void health_on_sigterm(void (*ask)(void))
{
    atomic_store(&sigterm_ask, ask);
}

/* Does the process end in order, because somebody has asked for that? Once, and only while all is well. */
static bool sigterm_asks(struct health *health)
{
    void (*ask)(void) = atomic_exchange(&sigterm_ask, NULL);
    uint64_t count;

    if (ask == NULL || health->lost_rank >= 0 || health->terminated_first >= 0 ||
        getenv("OMPI_COMM_WORLD_RANK") != NULL) {
        return false;
    }
    if (read(health->fds[FD_SIGTERM].fd, &count, sizeof count) < 0) {
        return false;
    }
    ask();
    return true;
}

static void obey_sigterm(struct health *health)
{
    struct group *group = health->group;
    char doing[DOING_SIZE];

    drain_notes(health);
    if (sigterm_asks(health)) {
        return;
    }
    check_suspect(health, true); /* the launcher's answer to a death */
    check_aftermath(health);
    if (health->lost_rank < 0) {
        log_error("rank %d ends on SIGTERM (from a user, or from the launcher because another rank "
                  "failed) while it was in %s",
                  group->rank, group_doing(group, doing, sizeof doing));
        tell_all(health, group->rank, CAUSE_TERMINATED);
        send_last_words(health, LAST_WORDS_MS);
    }
    send_last_words(health, 0);
    end_process(health, 128 + SIGTERM);
}

static void check_orders(struct health *health)
{
    struct group *group = health->group;
    char doing[DOING_SIZE];
    int code = health->exit_code;

    if ((health->fds[FD_SIGTERM].revents & POLLIN) != 0) {
        obey_sigterm(health);
    }
    if (code != 0) {
        drain_notes(health);
        check_suspect(health, true); /* then that is why */
        check_aftermath(health);
        if (health->lost_rank < 0) {
            tell_all(health, group->rank, CAUSE_GAVE_UP);
        }
        send_last_words(health, 0);
        end_process(health, code);
    }
    if (health->lost_rank >= 0 &&
        trace_now() - health->lost_at > HEALTH_GRACE_S * 1000 * MILLISECOND) {
        log_error("rank %d is ended by force: %d s after that it was still in %s", group->rank,
                  HEALTH_GRACE_S, group_doing(group, doing, sizeof doing));
        end_process(health, 1);
    }
}

static int tick_of(const struct health *health)
{
    if (health->lost_rank >= 0) {
        return health->line.idle(health->line.arg) ? TICK_MS : 1;
    }
    return health->suspect >= 0 ? SUSPECT_TICK_MS : TICK_MS;
}

static void *health_main(void *arg)
{
    struct health *health = arg;
    uint64_t woken;
    sigset_t set;

    log_set_rank(health->group->rank);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    while (!health->stopping) {
        if (poll(health->fds, health->fd_count, tick_of(health)) <= 0) {
            for (nfds_t i = 0; i < health->fd_count; i++) {
                health->fds[i].revents = 0;
            }
        }
        if ((health->fds[FD_WAKE].revents & POLLIN) != 0) {
            ssize_t got = read(health->fds[FD_WAKE].fd, &woken, sizeof woken);
            (void)got;
        }
        check_ends(health);
        drain_notes(health);
        check_suspect(health, false);
        check_beats(health);
        check_orders(health);
        check_terminated(health);
    }
    return NULL;
}

/* ---- start and stop ---- */

static void watch(struct health *health, int fd, int rank)
{
    health->fds[health->fd_count] = (struct pollfd){.fd = fd, .events = POLLIN};
    health->watched[health->fd_count] = rank;
    health->fd_count++;
}

static void watch_rank(struct health *health, int rank)
{
    const struct health_peer *peer = &health->peer[rank];

    if (rank == health->group->rank) {
        return;
    }
    if (peer->visible) {
        int fd = (int)syscall(SYS_pidfd_open, (pid_t)peer->pid, 0);
        watch(health, fd, rank);
        health->poll_pid[rank] = fd < 0; /* not permitted or an old kernel */
    }
    watch(health, peer->socket[0], rank);
    watch(health, peer->socket[1], rank);
}

static void health_free(struct health *health)
{
    for (nfds_t i = 0; i < health->fd_count; i++) {
        if (health->fds[i].fd >= 0) {
            close(health->fds[i].fd);
        }
    }
    free(health->fds);
    free(health->watched);
    free(health->poll_pid);
    free(health->peer);
    free(health);
}

static status_t health_prepare(struct health *health, const struct health_peer *peers)
{
    size_t size = (size_t)health->group->size, fds = FDS_FIRST + 3 * size;

    health->peer = malloc(size * sizeof *health->peer);
    health->poll_pid = calloc(size, sizeof *health->poll_pid);
    health->fds = calloc(fds, sizeof *health->fds);
    health->watched = calloc(fds, sizeof *health->watched);
    if (health->peer == NULL || health->poll_pid == NULL || health->fds == NULL ||
        health->watched == NULL) {
        return FAIL(STATUS_NOMEM, "no memory to watch %zu ranks", size);
    }
    memcpy(health->peer, peers, size * sizeof *peers);
    for (int i = 0; i < FDS_FIRST; i++) {
        watch(health, eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), health->group->rank);
        if (health->fds[i].fd < 0) {
            return FAIL(STATUS_IO,
                        "no eventfd for the liveness thread: %s; raise the limit of open files "
                        "(ulimit -n)",
                        strerror(errno));
        }
    }
    for (int i = 0; i < (int)size; i++) {
        watch_rank(health, i);
    }
    return STATUS_OK;
}

/* Library code may keep data below the stack pointer where a handler would write: SIGTERM goes to
 * the liveness thread, not to threads that compute. */
static void take_sigterm(struct health *health)
{
    struct sigaction action = {.sa_handler = on_sigterm, .sa_flags = SA_RESTART};
    sigset_t set;

    term_fd = health->fds[FD_SIGTERM].fd;
    sigemptyset(&action.sa_mask);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaction(SIGTERM, &action, &health->old_action);
    pthread_sigmask(SIG_BLOCK, &set, &health->old_mask);
}

static void give_sigterm_back(struct health *health)
{
    sigaction(SIGTERM, &health->old_action, NULL);
    pthread_sigmask(SIG_SETMASK, &health->old_mask, NULL);
}

status_t health_start(struct group *group, const struct health_peer *peers,
                      const struct health_line *line, struct health **out)
{
    struct health *health = calloc(1, sizeof *health);
    status_t status;

    if (health == NULL) {
        return FAIL(STATUS_NOMEM, "no memory to watch %d ranks", group->size);
    }
    health->group = group;
    health->line = *line;
    health->lost_rank = health->terminated_first = health->suspect = -1;
    health->beat_heard = health->last_turn = trace_now();
    TRY_GOTO(health_prepare(health, peers), free_health);

    take_sigterm(health);
    if (pthread_create(&health->thread, NULL, health_main, health) != 0) {
        give_sigterm_back(health);
        status = FAIL(STATUS_NOMEM, "the liveness thread cannot be started");
        goto free_health;
    }
    *out = health;
    return STATUS_OK;

free_health:
    health_free(health);
    return status;
}

static void wake(struct health *health)
{
    uint64_t one = 1;
    ssize_t written = write(health->fds[FD_WAKE].fd, &one, sizeof one);
    (void)written;
}

void health_leave(struct health *health)
{
    health->leaving = true;
}

void health_stop(struct health *health)
{
    health->stopping = true;
    wake(health);
    pthread_join(health->thread, NULL);
    give_sigterm_back(health);
    health_free(health);
}

void health_give_up(struct health *health, int code)
{
    health->exit_code = code;
    wake(health);
    rest(1000 * MILLISECOND); /* the thread ends the process */
    _exit(code);
}
