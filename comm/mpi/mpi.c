/* mpi.c - the "mpi" transport: point to point messages, moved by a progress thread.
 *
 * A message is two of MPI's: a header (number and time of the put) and the payload, tags 2c and
 * 2c + 1 of a communicator of the wire's own. MPI moves bytes only inside its calls and cannot be
 * slept on, so the thread tests with naps in between while something is under way, short ones after
 * something happened, and sleeps when nothing is. A message in parts (links.h) has as many payloads, of one
 * tag, which MPI keeps in their order. Notes have a tag of their own, and one receive a peer, posted again.
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
#include "comm/progress/links.h"

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
    size_t *payload;       /* [room] bytes that count as landed */
    int *finished;         /* [room] scratch of MPI_Testsome */
    struct hearing *hear;  /* [ranks] */
};

/* The notes of a rank and to it, as tickets that belong to no channel. */
struct hearing {
    struct ticket in, out;
    struct link_note note;
};
enum { NO_CHANNEL = -1 };

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
    size_t *payload = realloc(self->payload, (size_t)room * sizeof *payload);
    self->payload = payload != NULL ? payload : self->payload;
    int *finished = realloc(self->finished, (size_t)room * sizeof *finished);
    self->finished = finished != NULL ? finished : self->finished;
    if (request == NULL || owner == NULL || payload == NULL || finished == NULL) {
        log_error("no memory for %d messages under way", room / 2);
        return false;
    }
    self->room = room;
    return true;
}

/* What MPI moves at once: a header, a payload or a part of one, a note. */
struct piece {
    int peer, tag;
    void *data;
    size_t bytes;
    size_t payload; /* of them, what counts as landed */
};

/* Says what went wrong. */
static bool start_piece(struct mpi_wire *self, struct ticket *ticket, const struct piece *piece)
{
    int code, bytes = (int)piece->bytes;

    if (self->active == self->room && !widen(self, 2 * self->room)) {
        return false;
    }
    MPI_Request *request = &self->request[self->active];
    if (ticket->sending) {
        code =
            MPI_Isend(piece->data, bytes, MPI_BYTE, piece->peer, piece->tag, self->comm, request);
    } else {
        code =
            MPI_Irecv(piece->data, bytes, MPI_BYTE, piece->peer, piece->tag, self->comm, request);
    }
    if (mpi_check(code, ticket->sending ? "a send" : "a receive") != STATUS_OK) {
        return false;
    }
    self->owner[self->active] = ticket;
    self->payload[self->active] = piece->payload;
    self->active++;
    return true;
}

static int peer_of(const struct ticket *ticket)
{
    const struct wire_channel *c = &ticket->progress->wire->channel[ticket->channel];
    return ticket->sending ? c->to : c->from;
}

static bool start_header(struct ticket *ticket)
{
    struct piece piece = {.peer = peer_of(ticket),
                          .tag = 2 * ticket->channel,
                          .data = ticket->header,
                          .bytes = sizeof ticket->header};

    if (ticket->sending) {
        ticket->header[0] = ticket->message;
        ticket->header[1] = ticket->put;
    }
    ticket->pending++;
    return start_piece((struct mpi_wire *)ticket->progress, ticket, &piece);
}

static bool start_payload(struct ticket *ticket, size_t offset, size_t bytes)
{
    struct piece piece = {.peer = peer_of(ticket),
                          .tag = 2 * ticket->channel + 1,
                          .data = (char *)ticket->data + offset,
                          .bytes = bytes,
                          .payload = bytes};

    return start_piece((struct mpi_wire *)ticket->progress, ticket, &piece);
}

static void start(struct mpi_wire *self, struct ticket *ticket)
{
    if (links_keep(self->progress.links, ticket->channel)) {
        links_start(self->progress.links, ticket);
        return;
    }
    ticket->pending = 1; /* the payload */
    if (!start_header(ticket) || !start_payload(ticket, 0, ticket->bytes)) {
        progress_finish(ticket, 0, false);
    }
}

static void complete(struct ticket *ticket, bool whole)
{
    bool good = whole && (ticket->sending || ticket->header[0] == ticket->message);

    if (whole && !good) {
        log_error("channel %d: message %" PRId64 " landed in slot %d, posted for message %" PRId64
                  "; posts and puts must have one order",
                  ticket->channel, ticket->header[0], ticket->slot, ticket->message);
    }
    progress_finish(ticket, ticket->header[1], good);
}

static bool listen_to(struct mpi_wire *self, int rank)
{
    struct piece piece = {.peer = rank,
                          .tag = 2 * self->progress.wire->count,
                          .data = &self->hear[rank].note,
                          .bytes = sizeof self->hear[rank].note};

    return start_piece(self, &self->hear[rank].in, &piece);
}

static bool mpi_tell(struct progress *progress, int to, const struct link_note *note)
{
    struct mpi_wire *self = (struct mpi_wire *)progress;
    struct piece piece = {.peer = to,
                          .tag = 2 * progress->wire->count,
                          .data = (void *)(uintptr_t)note,
                          .bytes = sizeof *note};

    return start_piece(self, &self->hear[to].out, &piece);
}

/* A note came or left. */
static void note_through(struct mpi_wire *self, struct ticket *ticket)
{
    int rank = ticket->slot;

    if (ticket->sending) {
        links_told(self->progress.links, rank, true);
        return;
    }
    links_heard(self->progress.links, &self->hear[rank].note);
    if (!listen_to(self, rank)) {
        log_error("notes of rank %d are not received any more", rank);
    }
}

static void piece_through(struct mpi_wire *self, struct ticket *ticket, size_t payload)
{
    if (ticket->channel == NO_CHANNEL) {
        note_through(self, ticket);
    } else if (links_keep(self->progress.links, ticket->channel)) {
        links_part(self->progress.links, ticket, payload, true);
    } else if (--ticket->pending == 0) {
        complete(ticket, true);
    }
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
            if (self->owner[i]->channel != NO_CHANNEL) {
                progress_finish(self->owner[i], 0, false);
            }
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
        size_t payload = self->payload[at];
        self->active--;
        self->request[at] = self->request[self->active];
        self->owner[at] = self->owner[self->active];
        self->payload[at] = self->payload[self->active];
        piece_through(self, ticket, payload);
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
        busy = (self->progress.links != NULL && links_turn(self->progress.links)) || busy;
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
    if (found && wire->count > (*limit - 1) / 2) {
        return FAIL(STATUS_UNSUPPORTED, "%d channels, and this MPI has tags for %d; use ucx",
                    wire->count, (*limit - 1) / 2);
    }
    return STATUS_OK;
}

/* Header and payloads of every message that may be under way, and two notes a rank. */
static status_t make_room(struct mpi_wire *self)
{
    const struct wire *wire = self->progress.wire;
    int pieces = 1 + 2 * wire->group->size, rank = wire->group->rank;

    for (int i = 0; i < wire->count; i++) {
        const struct wire_channel *c = &wire->channel[i];
        int messages = c->from == rank ? wire_room(wire, i) : c->to == rank ? c->slots : 0;
        pieces +=
            messages *
            (1 + (links_keep(self->progress.links, i) ? links_parts(self->progress.links, i) : 1));
    }
    return widen(self, pieces) ? STATUS_OK : STATUS_NOMEM;
}

static const struct links_class mpi_links = {
    .part = start_payload, .begin = start_header, .complete = complete, .tell = mpi_tell};

static status_t open_links(struct mpi_wire *self)
{
    int size = self->progress.wire->group->size;

    TRY(links_create(&self->progress, &mpi_links, &self->progress.links));
    self->hear = calloc((size_t)size, sizeof *self->hear);
    if (self->hear == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for the notes of %d ranks", size);
    }
    for (int i = 0; i < size; i++) {
        struct ticket ticket = {.channel = NO_CHANNEL, .slot = i, .progress = &self->progress};
        self->hear[i].in = self->hear[i].out = ticket;
        self->hear[i].out.sending = true;
    }
    return STATUS_OK;
}

static status_t listen_to_all(struct mpi_wire *self)
{
    for (int i = 0; i < self->progress.wire->group->size; i++) {
        if (links_hear(self->progress.links, i) && !listen_to(self, i)) {
            return STATUS_UNSUPPORTED;
        }
    }
    return STATUS_OK;
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
    free(self->payload);
    free(self->finished);
    free(self->hear);
    links_destroy(self->progress.links);
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
    status = open_links(self);
    if (status == STATUS_OK) {
        status = make_room(self);
    }
    if (status == STATUS_OK && wire_on_gpu(wire)) {
        status = progress_use_streams(&self->progress, "transport mpi");
    }
    TRY_GOTO(group_agree(wire->group, status), free_self); /* the rest takes all */
    TRY_GOTO(mpi_check(MPI_Comm_idup(mpi_state_of(wire->group)->collectives, &self->comm, &request),
                       "a communicator"),
             free_self);
    TRY(mpi_settle(wire->group, &request, 1)); /* MPI still writes into `self` then */
    MPI_Comm_set_errhandler(self->comm, MPI_ERRORS_RETURN);
    TRY_GOTO(connect_peers(self), free_self);
    TRY_GOTO(listen_to_all(self), free_self);
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
    .links = true,
    .streams = true,
    .create = mpi_wire_create,
    .destroy = mpi_wire_destroy,
    .post = progress_post,
    .put = progress_put,
    .wait = progress_wait,
    .sent = progress_sent,
    .release = progress_release,
};
