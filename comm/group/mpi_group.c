/* mpi_group.c - a group of processes that mpirun or srun started.
 *
 * No call blocks inside MPI once the group is open: collectives are the nonblocking ones, tested with
 * naps in between, so that a waiting rank leaves its core to others and notices a lost peer. Their
 * buffers are copies of ours, because MPI may still write into them after we have given up, and are kept
 * from one to the next: what is no larger than all before allocates nothing.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/trace.h"
#include "comm/comm.h"
#include "comm/group/mpi_group.h"
#include "comm/health/health.h"
#include "comm/health/peer_socket.h"
#include "comm/health/start_limit.h"

enum {
    NAP_SHORTEST = 20000, /* ns */
    NAP_LONGEST = 200000,
    BROADCAST_CHUNK = 1 << 30, /* bytes; MPI counts are int */
    TAG_NOTE = 1
};

struct note_send {
    struct note_send *next;
    MPI_Request request;
    struct health_note note;
    int rank;
};

/* ---- waiting ---- */

status_t mpi_check(int code, const char *what)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int length;

    if (code == MPI_SUCCESS) {
        return STATUS_OK;
    }
    MPI_Error_string(code, text, &length);
    return FAIL(STATUS_PEER, "MPI refused %s: %s", what, text);
}

status_t mpi_settle(struct group *group, MPI_Request *requests, int count)
{
    int64_t until = group_deadline(group);
    struct timespec nap = {0, NAP_SHORTEST};
    char doing[DOING_SIZE];
    int done;

    for (;;) {
        TRY_MPI(MPI_Testall(count, requests, &done, MPI_STATUSES_IGNORE), "to test for completion");
        if (done) {
            return STATUS_OK;
        }
        if (group->shared->failed) {
            return group_lost(group);
        }
        if (trace_now() > until) {
            return FAIL(STATUS_TIMEOUT,
                        "not all %d ranks came within %g s while rank %d was in "
                        "%s; see what the others did last, or raise health.deadline_s",
                        group->size, group->options.deadline_s, group_named(group, group->rank),
                        group_doing(group, doing, sizeof doing));
        }
        nanosleep(&nap, NULL);
        nap.tv_nsec = nap.tv_nsec * 3 / 2 < NAP_LONGEST ? nap.tv_nsec * 3 / 2 : NAP_LONGEST;
    }
}

/* ---- collectives ---- */

/* Whatever was in it may be lost; NULL when out of memory. */
static void *scratch_take(struct scratch *scratch, size_t bytes)
{
    if (scratch->room < bytes) {
        free(scratch->memory);
        scratch->memory = malloc(bytes);
        scratch->room = scratch->memory != NULL ? bytes : 0;
    }
    return scratch->memory;
}

void mpi_scratch_free(struct mpi_state *state)
{
    free(state->counts.memory);
    free(state->offsets.memory);
    free(state->mine.memory);
    free(state->all.memory);
}

/* What has not ended keeps its memory. */
static status_t settle_collective(struct group *group, MPI_Request *request)
{
    struct mpi_state *state = mpi_state_of(group);
    status_t status = mpi_settle(group, request, 1);

    if (status != STATUS_OK) {
        state->counts = state->offsets = state->mine = state->all = (struct scratch){0};
    }
    return status;
}

static status_t mpi_barrier(struct group *group)
{
    MPI_Request request;

    TRY_MPI(MPI_Ibarrier(mpi_state_of(group)->collectives, &request), "a barrier");
    return mpi_settle(group, &request, 1);
}

static status_t mpi_broadcast(struct group *group, void *data, size_t bytes, int root)
{
    size_t chunk = bytes < BROADCAST_CHUNK ? bytes : BROADCAST_CHUNK;
    unsigned char *copy = scratch_take(&mpi_state_of(group)->all, chunk + 1);
    unsigned char *place = data;

    if (copy == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for a broadcast of %zu bytes", bytes);
    }
    for (size_t done = 0; done < bytes; done += chunk) {
        MPI_Request request;
        chunk = bytes - done < BROADCAST_CHUNK ? bytes - done : BROADCAST_CHUNK;
        if (group->rank == root) {
            memcpy(copy, place + done, chunk);
        }
        TRY_MPI(MPI_Ibcast(copy, (int)chunk, MPI_BYTE, root, mpi_state_of(group)->collectives,
                           &request),
                "a broadcast");
        TRY(settle_collective(group, &request));
        memcpy(place + done, copy, chunk);
    }
    return STATUS_OK;
}

struct gather {
    int *counts, *offsets; /* [size] */
    unsigned char *mine, *all;
};

static status_t gather_prepare(struct gather *gather, const struct group *group, const void *data,
                               const size_t *counts, size_t *out_total)
{
    struct mpi_state *state = mpi_state_of(group);
    size_t size = (size_t)group->size, total = 0;

    gather->counts = scratch_take(&state->counts, size * sizeof *gather->counts);
    gather->offsets = scratch_take(&state->offsets, size * sizeof *gather->offsets);
    gather->mine = scratch_take(&state->mine, counts[group->rank] + 1);
    for (size_t i = 0; i < size && gather->counts != NULL && gather->offsets != NULL; i++) {
        if (counts[i] > INT_MAX - total) {
            return FAIL(STATUS_UNSUPPORTED,
                        "an exchange of more than %d bytes in all among %zu "
                        "ranks; exchange it in parts",
                        INT_MAX, size);
        }
        gather->counts[i] = (int)counts[i];
        gather->offsets[i] = (int)total;
        total += counts[i];
    }
    gather->all = scratch_take(&state->all, total + 1);
    if (gather->counts == NULL || gather->offsets == NULL || gather->mine == NULL ||
        gather->all == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for an exchange among %zu ranks", size);
    }
    if (counts[group->rank] > 0) {
        memcpy(gather->mine, data, counts[group->rank]);
    }
    *out_total = total;
    return STATUS_OK;
}

static status_t mpi_allgatherv(struct group *group, const void *data, const size_t *counts,
                               void *out)
{
    struct gather gather = {0};
    MPI_Request request;
    size_t total = 0;

    TRY(gather_prepare(&gather, group, data, counts, &total));
    TRY_MPI(MPI_Iallgatherv(gather.mine, gather.counts[group->rank], MPI_BYTE, gather.all,
                            gather.counts, gather.offsets, MPI_BYTE,
                            mpi_state_of(group)->collectives, &request),
            "an exchange");
    TRY(settle_collective(group, &request));
    if (total > 0) {
        memcpy(out, gather.all, total);
    }
    return STATUS_OK;
}

static status_t mpi_clocks(struct group *group, int64_t *out_ahead)
{
    return mpi_measure_clocks(group, mpi_state_of(group)->clocks, mpi_state_of(group)->leader,
                              out_ahead);
}

/* ---- the line of the liveness thread ---- */

static void receive_next(struct mpi_state *state)
{
    if (MPI_Irecv(&state->note_in, (int)sizeof state->note_in, MPI_BYTE, MPI_ANY_SOURCE, TAG_NOTE,
                  state->notes, &state->note_request) != MPI_SUCCESS) {
        state->note_request = MPI_REQUEST_NULL;
    }
}

static bool line_receive(void *arg, int *out_rank, struct health_note *out)
{
    struct mpi_state *state = arg;
    MPI_Status status;
    int done = 0;

    if (state->note_request == MPI_REQUEST_NULL ||
        MPI_Test(&state->note_request, &done, &status) != MPI_SUCCESS || !done) {
        return false;
    }
    *out_rank = status.MPI_SOURCE;
    *out = state->note_in;
    receive_next(state);
    return true;
}

static bool line_idle(void *arg)
{
    struct mpi_state *state = arg;
    struct note_send **link = &state->sends;

    while (*link != NULL) {
        struct note_send *send = *link;
        int done = 0;
        if (MPI_Test(&send->request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS || done) {
            *link = send->next;
            send->next = state->spare;
            state->spare = send;
        } else {
            link = &send->next;
        }
    }
    return state->sends == NULL;
}

static struct note_send *take_note(struct mpi_state *state)
{
    struct note_send *send = state->spare;

    if (send == NULL) {
        return malloc(sizeof *send);
    }
    state->spare = send->next;
    return send;
}

static void line_send(void *arg, int rank, const struct health_note *note)
{
    struct mpi_state *state = arg;

    line_idle(state);
    for (struct note_send *send = state->sends; send != NULL; send = send->next) {
        if (send->rank == rank && note->word == HEALTH_BEAT) {
            return; /* it has not taken the last one yet */
        }
    }
    struct note_send *send = take_note(state);
    if (send == NULL) {
        return;
    }
    *send = (struct note_send){state->sends, MPI_REQUEST_NULL, *note, rank};
    state->sends = send;
    if (MPI_Isend(&send->note, (int)sizeof send->note, MPI_BYTE, rank, TAG_NOTE, state->notes,
                  &send->request) != MPI_SUCCESS) {
        send->request = MPI_REQUEST_NULL;
    }
}

/* ---- leaving ---- */

static void mpi_abandon(struct group *group, int code)
{
    fflush(NULL);
    if (mpi_state_of(group)->health != NULL) {
        health_give_up(mpi_state_of(group)->health, code);
    }
    _exit(code);
}

static void release_notes(struct mpi_state *state)
{
    for (int i = 0; i < 1000 && !line_idle(state); i++) {
        nanosleep(&(struct timespec){0, NAP_LONGEST}, NULL);
    }
    if (state->note_request != MPI_REQUEST_NULL) {
        MPI_Cancel(&state->note_request);
        MPI_Wait(&state->note_request, MPI_STATUS_IGNORE);
    }
    for (struct note_send *next; state->spare != NULL; state->spare = next) {
        next = state->spare->next;
        free(state->spare);
    }
}

/* Two barriers: after the first all mean to leave and take no end for a death any more; only after
 * the second, which proves that all know, does any rank end. */
static void mpi_close(struct group *group)
{
    struct mpi_state *state = mpi_state_of(group);

    if (state->split) {
        mpi_close_split(group);
        return;
    }
    if (state->health != NULL) {
        if (mpi_barrier(group) != STATUS_OK) {
            mpi_abandon(group, 1);
        }
        health_leave(state->health);
        if (mpi_barrier(group) != STATUS_OK) {
            mpi_abandon(group, 1);
        }
        health_stop(state->health);
        release_notes(state);
    }
    MPI_Comm_free(&state->collectives);
    MPI_Comm_free(&state->notes);
    MPI_Comm_free(&state->clocks);
    MPI_Finalize();
    mpi_scratch_free(state);
    free(state->identity);
    free(state->leader);
    free(state);
    group_fini(group);
    free(group);
}

static const struct group_class mpi_class = {
    .close = mpi_close,
    .abandon = mpi_abandon,
    .barrier = mpi_barrier,
    .broadcast = mpi_broadcast,
    .allgatherv = mpi_allgatherv,
    .clocks = mpi_clocks,
    .split = mpi_split,
};

/* ---- opening ---- */

bool group_launched(void)
{
    static const char *const signs[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK",
                                        "PMI_SIZE"};
    const char *tasks = getenv("SLURM_STEP_NUM_TASKS");

    for (size_t i = 0; i < sizeof signs / sizeof signs[0]; i++) {
        if (getenv(signs[i]) != NULL) {
            return true;
        }
    }
    return tasks != NULL && atoi(tasks) > 1;
}

static void read_line(const char *path, char *buffer, size_t size)
{
    FILE *file = fopen(path, "r");

    buffer[0] = '\0';
    if (file != NULL) {
        if (fgets(buffer, (int)size, file) == NULL) {
            buffer[0] = '\0';
        }
        fclose(file);
    }
    buffer[strcspn(buffer, "\n")] = '\0';
}

static struct identity identify(void)
{
    struct identity mine;

    memset(&mine, 0, sizeof mine);
    gethostname(mine.host, sizeof mine.host - 1);
    read_line("/proc/sys/kernel/random/boot_id", mine.boot, sizeof mine.boot);
    ssize_t length =
        readlink("/proc/self/ns/pid", mine.pid_namespace, sizeof mine.pid_namespace - 1);
    (void)length;
    mine.pid = getpid();
    return mine;
}

/* srun without PMI starts every rank as a world of its own. */
static status_t check_world(int size)
{
    const char *tasks = getenv("SLURM_STEP_NUM_TASKS");

    if (size == 1 && tasks != NULL && atoi(tasks) > 1 && getenv("OMPI_COMM_WORLD_SIZE") == NULL) {
        return FAIL(STATUS_INVALID,
                    "srun started %s tasks but MPI sees one rank: use srun "
                    "--mpi=pmix, or mpirun inside salloc",
                    tasks);
    }
    return STATUS_OK;
}

static status_t init_mpi(struct mpi_state *state, struct start_limit *limit)
{
    int initialized, provided;

    MPI_Initialized(&initialized);
    if (!initialized) {
        TRY_MPI(MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &provided), "to start");
    } else {
        MPI_Query_thread(&provided);
    }
    if (provided != MPI_THREAD_MULTIPLE) {
        return FAIL(STATUS_UNSUPPORTED,
                    "this MPI does not give MPI_THREAD_MULTIPLE, which liveness "
                    "and progress threads need; build or load one that does");
    }
    start_limit_move(limit, "MPI_Comm_dup");
    MPI_Comm *comms[] = {&state->collectives, &state->notes, &state->clocks};
    for (int i = 0; i < 3; i++) {
        TRY_MPI(MPI_Comm_dup(MPI_COMM_WORLD, comms[i]), "to copy a communicator");
        MPI_Comm_set_errhandler(*comms[i], MPI_ERRORS_RETURN);
    }
    return STATUS_OK;
}

static bool same_host(const struct identity *a, const struct identity *b)
{
    return strcmp(a->host, b->host) == 0 && strcmp(a->boot, b->boot) == 0;
}

void mpi_stand_on_host(struct group *group)
{
    const int *leader = mpi_state_of(group)->leader;

    group->leader = leader;
    group->local_rank = group->local_size = 0;
    for (int i = 0; i < group->size; i++) {
        if (leader[i] == leader[group->rank]) {
            group->local_rank += i < group->rank;
            group->local_size++;
        }
    }
}

/* Who leads each rank's host: its lowest rank. */
static void find_hosts(struct group *group)
{
    struct mpi_state *state = mpi_state_of(group);
    const struct identity *all = state->identity;

    for (int i = 0; i < group->size; i++) {
        int leader = 0;
        while (!same_host(&all[leader], &all[i])) {
            leader++;
        }
        state->leader[i] = leader;
    }
    mpi_stand_on_host(group);
}

/* Sockets to the neighbours of the ring that are on other hosts; -1 where there is none. */
static status_t tie_neighbours(struct group *group, struct peer_socket *sockets, int *out_before,
                               int *out_after)
{
    const struct mpi_state *state = mpi_state_of(group);
    int before = (group->rank + group->size - 1) % group->size;
    int after = (group->rank + 1) % group->size;
    int here = state->leader[group->rank];

    *out_before = *out_after = -1;
    if (state->leader[after] != here) {
        peer_socket_reach(sockets, &state->identity[after].offer);
    }
    TRY(mpi_barrier(group));
    if (state->leader[before] != here) {
        *out_before = peer_socket_accept(sockets);
    }
    TRY(mpi_barrier(group));
    if (state->leader[after] != here) {
        *out_after = peer_socket_confirm(sockets);
        if (*out_after < 0) {
            log_debug("no socket to rank %d on %s: its death will be found by its silence", after,
                      state->identity[after].host);
        }
    }
    return STATUS_OK;
}

static status_t start_health(struct group *group, struct peer_socket *sockets)
{
    struct mpi_state *state = mpi_state_of(group);
    const struct identity *own = &state->identity[group->rank];
    struct health_line line = {state, line_send, line_receive, line_idle};
    struct health_peer *peers = calloc((size_t)group->size, sizeof *peers);
    int before, after;
    status_t status;

    if (peers == NULL) {
        return FAIL(STATUS_NOMEM, "no memory to watch %d ranks", group->size);
    }
    TRY_GOTO(tie_neighbours(group, sockets, &before, &after), free_peers);
    for (int i = 0; i < group->size; i++) {
        const struct identity *peer = &state->identity[i];
        peers[i].pid = peer->pid;
        peers[i].visible =
            same_host(peer, own) && strcmp(peer->pid_namespace, own->pid_namespace) == 0;
        peers[i].socket[0] = peers[i].socket[1] = -1;
    }
    peers[(group->rank + group->size - 1) % group->size].socket[0] = before;
    peers[(group->rank + 1) % group->size].socket[1] = after;
    state->spare =
        calloc(1, sizeof *state->spare); /* of the heartbeat; what else is said ends the run */
    receive_next(state);
    status = health_start(group, peers, &line, &state->health);

free_peers:
    free(peers);
    return status;
}

status_t group_open_mpi(const struct group_options *options, struct group **out)
{
    struct group *group = calloc(1, sizeof *group);
    struct mpi_state *state = calloc(1, sizeof *state);
    struct identity mine = identify();
    struct peer_socket sockets;
    struct start_limit *limit = NULL;
    double start_s = start_limit_seconds(options->heartbeat_s);
    int rank, size;
    status_t status;

    peer_socket_open(&sockets);
    mine.offer = sockets.offer;

    if (group == NULL || state == NULL) {
        status = FAIL(STATUS_NOMEM, "no memory for a group of processes");
        goto free_group;
    }
    state->note_request = MPI_REQUEST_NULL;
    TRY_GOTO(start_limit_begin(start_s, "MPI_Init_thread", &limit), free_group);
    TRY_GOTO(init_mpi(state, limit), free_group);
    start_limit_move(limit, "the first exchange");
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    TRY_GOTO(check_world(size), free_group);
    group_init(group, &mpi_class, rank, size, options, NULL);
    group->state = state;
    state->identity = calloc((size_t)size, sizeof *state->identity);
    state->leader = calloc((size_t)size, sizeof *state->leader);
    if (state->identity == NULL || state->leader == NULL) {
        status = FAIL(STATUS_NOMEM, "no memory for a group of %d processes", size);
        goto free_group;
    }
    TRY_GOTO(group_allgather(group, &mine, sizeof mine, state->identity), free_group);
    find_hosts(group);
    if (size > 1) {
        TRY_GOTO(start_health(group, &sockets), free_group);
    }
    start_limit_end(limit);
    peer_socket_close(&sockets);
    *out = group;
    return STATUS_OK;

free_group: /* MPI is left as it is: the process ends */
    start_limit_end(limit);
    if (state != NULL) {
        mpi_scratch_free(state);
        free(state->identity);
        free(state->leader);
    }
    free(state);
    free(group);
    peer_socket_close(&sockets);
    return status;
}
