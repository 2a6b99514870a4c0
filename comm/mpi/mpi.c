/* mpi.c - the "mpi" transport: point to point messages, moved by a progress thread.
 *
 * A message is two of MPI's: a header (number and time of the put) and the payload, tags 2c and
 * 2c + 1 of a communicator of the wire's own. MPI moves bytes only inside its calls and cannot be
 * slept on, so the thread tests with naps in between while something is under way, short ones after
 * something happened, and sleeps when nothing is.
 */
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/trace.h"
#include "comm/group/mpi_group.h"
#include "comm/progress/doze.h"
#include "comm/progress/progress.h"

enum {
    NAP_SHORTEST = 20000, /* ns */
    NAP_LONGEST = 200000,
    LAST_TESTS = 5000 /* for sends still under way at the end, NAP_LONGEST apart */
};

struct mpi_wire {
    struct progress progress; /* first: progress.c finds it as the wire's state */
    MPI_Comm comm;
    pthread_t thread;
    struct doze doze;
    /* The thread's own: what is under way. */
    int active, room;
    MPI_Request *request;  /* [room] */
    struct ticket **owner; /* [room] */
    int *finished;         /* [room] scratch of MPI_Testsome */
};

static void mpi_wake(struct progress *progress)
{
    doze_wake(&((struct mpi_wire *)progress)->doze);
}

/* ---- the progress thread ---- */

/* Makes room for `room` parts of messages. */
static bool widen(struct mpi_wire *self, int room)
{
    MPI_Request *request = realloc(self->request, (size_t)room * sizeof(MPI_Request));
    self->request = request != NULL ? request : self->request;
    struct ticket **owner = realloc(self->owner, (size_t)room * sizeof *owner);
    self->owner = owner != NULL ? owner : self->owner;
    int *finished = realloc(self->finished, (size_t)room * sizeof *finished);
    self->finished = finished != NULL ? finished : self->finished;
    if (request == NULL || owner == NULL || finished == NULL) {
        log_error("no memory for %d messages under way", room / 2);
        return false;
    }
    self->room = room;
    return true;
}

static bool reserve(struct mpi_wire *self)
{
    return self->active + 2 <= self->room || widen(self, 2 * self->room);
}

/* One of the two parts of a message; says what went wrong. */
static bool start_part(struct mpi_wire *self, struct ticket *ticket, void *data, size_t bytes,
                       int tag)
{
    const struct wire_channel *c = &self->progress.wire->channel[ticket->channel];
    MPI_Request *request = &self->request[self->active];
    int code;

    if (ticket->sending) {
        code = MPI_Isend(data, (int)bytes, MPI_BYTE, c->to, tag, self->comm, request);
    } else {
        code = MPI_Irecv(data, (int)bytes, MPI_BYTE, c->from, tag, self->comm, request);
    }
    if (mpi_check(code, ticket->sending ? "a send" : "a receive") != STATUS_OK) {
        return false;
    }
    self->owner[self->active] = ticket;
    self->active++;
    ticket->pending++;
    return true;
}

static void start(struct mpi_wire *self, struct ticket *ticket)
{
    ticket->pending = 0;
    if (ticket->sending) {
        ticket->header[0] = ticket->message;
        ticket->header[1] = ticket->put;
    }
    if (!reserve(self) ||
        !start_part(self, ticket, ticket->header, sizeof ticket->header, 2 * ticket->channel) ||
        !start_part(self, ticket, ticket->data, ticket->bytes, 2 * ticket->channel + 1)) {
        progress_finish(ticket, 0, false);
    }
}

static void complete(struct ticket *ticket)
{
    bool good = ticket->sending || ticket->header[0] == ticket->message;

    if (!good) {
        log_error("channel %d: message %" PRId64 " landed in slot %d, posted for message %" PRId64
                  "; posts and puts must have one order",
                  ticket->channel, ticket->header[0], ticket->slot, ticket->message);
    }
    progress_finish(ticket, ticket->header[1], good);
}

static int descending(const void *a, const void *b)
{
    return *(const int *)b - *(const int *)a;
}

/* Completes what it can; false if nothing was. */
static bool test(struct mpi_wire *self)
{
    int count = 0;

    if (self->active == 0) {
        return false;
    }
    int code =
        MPI_Testsome(self->active, self->request, &count, self->finished, MPI_STATUSES_IGNORE);
    if (mpi_check(code, "to move messages") != STATUS_OK) {
        for (int i = 0; i < self->active; i++) {
            progress_finish(self->owner[i], 0, false);
        }
        self->active = 0;
        return false;
    }
    if (count <= 0) { /* or MPI_UNDEFINED */
        return false;
    }
    /* From the back, so that filling the holes from the end moves nothing that is still to come. */
    qsort(self->finished, (size_t)count, sizeof *self->finished, descending);
    for (int i = 0; i < count; i++) {
        int at = self->finished[i];
        struct ticket *ticket = self->owner[at];
        self->active--;
        self->request[at] = self->request[self->active];
        self->owner[at] = self->owner[self->active];
        ticket->pending--;
        if (ticket->pending == 0) {
            complete(ticket);
        }
    }
    return true;
}

static void *progress_main(void *arg)
{
    struct mpi_wire *self = arg;
    int64_t nap = NAP_SHORTEST;

    progress_enter(&self->progress);
    for (;;) {
        bool stop;
        struct ticket *queue = progress_take(&self->progress, &stop);
        bool busy = queue != NULL;
        for (struct ticket *next; queue != NULL; queue = next) {
            next = queue->next;
            start(self, queue);
        }
        busy = test(self) || busy;
        if (stop) {
            return NULL;
        }
        if (busy) {
            progress_moved(&self->progress);
            nap = NAP_SHORTEST;
            continue;
        }
        if (progress_watches(&self->progress)) {
            progress_nap(&self->progress);
            continue;
        }
        doze_sleep(&self->doze, self->active > 0 ? nap : 0);
        nap = nap * 3 / 2 < NAP_LONGEST ? nap * 3 / 2 : NAP_LONGEST;
    }
}

/* ---- creation and destruction ---- */

static status_t check_sizes(struct mpi_wire *self)
{
    const struct wire *wire = self->progress.wire;
    int *limit, found;

    for (int i = 0; i < wire->count; i++) {
        if (wire->channel[i].bytes > INT_MAX) {
            return FAIL(STATUS_UNSUPPORTED,
                        "channel %d has messages of %zu bytes and MPI moves at "
                        "most %d at once; use ucx or a smaller microbatch",
                        i, wire->channel[i].bytes, INT_MAX);
        }
    }
    MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &limit, &found);
    if (found && wire->count > *limit / 2) {
        return FAIL(STATUS_UNSUPPORTED, "%d channels, and this MPI has tags for %d; use ucx",
                    wire->count, *limit / 2);
    }
    return STATUS_OK;
}

/* Two parts of every message that may be under way. */
static status_t make_room(struct mpi_wire *self)
{
    const struct wire *wire = self->progress.wire;
    int messages = 1, rank = wire->group->rank;

    for (int i = 0; i < wire->count; i++) {
        const struct wire_channel *c = &wire->channel[i];
        messages += c->from == rank ? wire_room(wire, i) : c->to == rank ? c->slots : 0;
    }
    return widen(self, 2 * messages) ? STATUS_OK : STATUS_NOMEM;
}

/* An empty message each way with everybody this rank talks with: MPI connects at the first one. */
static status_t connect_peers(struct mpi_wire *self)
{
    struct group *group = self->progress.wire->group;
    size_t size = (size_t)group->size;
    bool *talks = calloc(size, sizeof *talks);
    MPI_Request *request = calloc(2 * size, sizeof(MPI_Request));
    status_t status = STATUS_OK;
    int count = 0;

    if (talks == NULL || request == NULL) {
        status = FAIL(STATUS_NOMEM, "no memory to connect %zu ranks", size);
        goto free_lists;
    }
    progress_peers(self->progress.wire, talks);
    for (int i = 0; i < group->size; i++) {
        if (talks[i]) {
            TRY_GOTO(mpi_check(MPI_Irecv(NULL, 0, MPI_BYTE, i, 0, self->comm, &request[count++]),
                               "to connect"),
                     free_lists);
            TRY_GOTO(mpi_check(MPI_Isend(NULL, 0, MPI_BYTE, i, 0, self->comm, &request[count++]),
                               "to connect"),
                     free_lists);
        }
    }
    TRY_GOTO(mpi_settle(group, request, count), free_lists);

free_lists:
    free(talks);
    free(request);
    return status;
}

static void mpi_wire_free(struct mpi_wire *self)
{
    progress_fini(&self->progress);
    doze_fini(&self->doze);
    free(self->request);
    free(self->owner);
    free(self->finished);
    free(self);
}

static status_t mpi_wire_create(struct wire *wire)
{
    struct mpi_wire *self = calloc(1, sizeof *self);
    MPI_Request request;
    status_t status;

    if (self == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for a wire over MPI");
    }
    wire->state = self;
    doze_init(&self->doze);
    TRY_GOTO(progress_init(&self->progress, wire, mpi_wake), free_self);
    TRY_GOTO(check_sizes(self), free_self);
    TRY_GOTO(make_room(self), free_self);
    status = wire_on_gpu(wire) ? progress_use_streams(&self->progress, "transport mpi") : STATUS_OK;
    TRY_GOTO(group_agree(wire->group, status), free_self); /* the rest takes all */
    TRY_GOTO(mpi_check(MPI_Comm_idup(mpi_state_of(wire->group)->collectives, &self->comm, &request),
                       "a communicator"),
             free_self);
    TRY(mpi_settle(wire->group, &request, 1)); /* MPI still writes into `self` then */
    MPI_Comm_set_errhandler(self->comm, MPI_ERRORS_RETURN);
    TRY_GOTO(connect_peers(self), free_self);
    if (pthread_create(&self->thread, NULL, progress_main, self) != 0) {
        status = FAIL(STATUS_NOMEM, "the progress thread of the wire cannot be started");
        goto free_self;
    }
    return STATUS_OK;

free_self:
    mpi_wire_free(self);
    return status;
}

/* Withdraws the posts that nothing met and gives sends a second to leave. */
static void withdraw(struct mpi_wire *self)
{
    int done = 0;

    for (int i = 0; i < self->active; i++) {
        if (!self->owner[i]->sending) {
            MPI_Cancel(&self->request[i]);
        }
    }
    for (int i = 0; i < LAST_TESTS && !done; i++) {
        if (MPI_Testall(self->active, self->request, &done, MPI_STATUSES_IGNORE) != MPI_SUCCESS) {
            return;
        }
        if (!done) {
            nanosleep(&(struct timespec){0, NAP_LONGEST}, NULL);
        }
    }
}

static void mpi_wire_destroy(struct wire *wire)
{
    struct mpi_wire *self = wire->state;

    progress_stop(&self->progress);
    pthread_join(self->thread, NULL);
    withdraw(self);
    if (!wire->group->shared->failed) {
        MPI_Comm_free(&self->comm);
    }
    mpi_wire_free(self);
}

/* The first words of what the library says of itself: "Open MPI v4.1.4". */
static void mpi_version(char *out, size_t size)
{
    char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int length = 0;
    MPI_Get_library_version(text, &length);
    snprintf(out, size, "%.*s", (int)strcspn(text, ",\n"), text);
}

const struct wire_class mpi_wire_class = {
    .name = "mpi",
    .version = mpi_version,
    .hosts = true,
    .handicap = 1.0,
    .streams = true,
    .create = mpi_wire_create,
    .destroy = mpi_wire_destroy,
    .post = progress_post,
    .put = progress_put,
    .wait = progress_wait,
    .sent = progress_sent,
    .release = progress_release,
};
