/* ucx_messages.c - messages over UCX: sends and receives of the progress thread, see ucx_internal.h. */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/trace.h"
#include "comm/ucx/ucx_internal.h"

#define TIME_MASK ((UINT64_C(1) << TIME_BITS) - 1)
#define MATCH_MASK (~TIME_MASK)

enum { NOTE_ID = 0 }; /* of active messages */

/* ---- tags ---- */

static ucp_tag_t make_tag(int channel, int64_t message, int64_t ns)
{
    uint64_t low = (uint64_t)message & ((UINT64_C(1) << MESSAGE_BITS) - 1);

    return ((uint64_t)channel << (MESSAGE_BITS + TIME_BITS)) | (low << TIME_BITS) |
           (((uint64_t)ns / 1000) & TIME_MASK);
}

/* The full time of a stamp: the latest with these low bits that is not beyond the sender's now, give
 * or take a second of error between the clocks. */
static int64_t full_time(const struct ticket *ticket, ucp_tag_t tag)
{
    int from = ticket->progress->wire->channel[ticket->channel].from;
    int64_t theirs = trace_now() + ticket->progress->ahead[from] + 1000000000;
    uint64_t now = (uint64_t)theirs / 1000;

    return (int64_t)(now - ((now - tag) & TIME_MASK)) * 1000;
}

/* ---- sends and receives ---- */

static void unlink_posted(struct ucx_wire *self, struct ticket *ticket)
{
    struct ticket **link = &self->posted;

    while (*link != NULL && *link != ticket) {
        link = &(*link)->next;
    }
    if (*link != NULL) {
        *link = ticket->next;
    }
}

/* Where a host is gone all messages to it fail, which is one thing to tell. */
static bool is_good(const struct ticket *ticket, ucs_status_t code)
{
    struct ucx_wire *self = (struct ucx_wire *)ticket->progress;
    const struct wire_channel *channel = &ticket->progress->wire->channel[ticket->channel];
    if (code != UCS_OK && code != UCS_ERR_CANCELED) {
        log_write(self->told ? LOG_DEBUG : LOG_ERROR, "a message %s rank %d could not be %s: %s",
                  ticket->sending ? "to" : "from",
                  group_named(ticket->progress->wire->group,
                              ticket->sending ? channel->to : channel->from),
                  ticket->sending ? "sent" : "received", ucs_status_string(code));
        self->told = true;
    }
    return code == UCS_OK;
}

static void send_through(struct ticket *ticket, bool good)
{
    struct ucx_wire *self = (struct ucx_wire *)ticket->progress;

    if (links_keep(self->progress.links, ticket->channel)) {
        links_part(self->progress.links, ticket, 0, good);
    } else {
        progress_finish(ticket, 0, good);
    }
}

static void on_sent(void *request, ucs_status_t code, void *arg)
{
    send_through(arg, is_good(arg, code));
    ucp_request_free(request);
}

static bool start_send(struct ucx_wire *self, struct ticket *ticket, size_t offset, size_t bytes)
{
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                        UCP_OP_ATTR_FIELD_MEMORY_TYPE,
        .cb.send = on_sent,
        .user_data = ticket,
        .memory_type = self->memory,
    };
    int to = self->progress.wire->channel[ticket->channel].to;
    ucs_status_ptr_t request =
        ucp_tag_send_nbx(self->endpoint[to], (char *)ticket->data + offset, bytes,
                         make_tag(ticket->channel, ticket->message, ticket->put), &param);

    if (!UCS_PTR_IS_PTR(request)) { /* done, or refused, at once */
        send_through(ticket, is_good(ticket, UCS_PTR_RAW_STATUS(request)));
    }
    return true;
}

/* Requests of the slot's parts, or of the ticket alone. */
static void **requests_of(struct ucx_wire *self, struct ticket *ticket, int *out_count)
{
    *out_count = 1;
    if (!links_keep(self->progress.links, ticket->channel)) {
        return &ticket->request;
    }
    *out_count = links_parts(self->progress.links, ticket->channel);
    return &self->requests[self->first_request[ticket->channel] +
                           (size_t)ticket->slot * (size_t)*out_count];
}

static void forget_request(struct ucx_wire *self, struct ticket *ticket, const void *request)
{
    int count;
    void **requests = requests_of(self, ticket, &count);

    for (int i = 0; i < count; i++) {
        requests[i] = requests[i] == request ? NULL : requests[i];
    }
}

static void all_landed(struct ticket *ticket, int64_t put, bool good)
{
    unlink_posted((struct ucx_wire *)ticket->progress, ticket);
    progress_finish(ticket, put, good);
}

static void on_landed(void *request, ucs_status_t code, const ucp_tag_recv_info_t *info, void *arg)
{
    struct ticket *ticket = arg;
    struct ucx_wire *self = (struct ucx_wire *)ticket->progress;
    bool good = is_good(ticket, code);

    ticket->header[0]++;
    forget_request(self, ticket, request);
    if (good) {
        ticket->header[1] = full_time(ticket, info->sender_tag);
    }
    if (links_keep(self->progress.links, ticket->channel)) {
        links_part(self->progress.links, ticket, good ? info->length : 0, good);
    } else {
        all_landed(ticket, good ? ticket->header[1] : 0, good);
    }
    ucp_request_free(request);
}

/* The callback tells the sender's tag; an immediate completion would not (UCX 1.13 leaves it out). It may run before
 * the call returns. */
static bool start_receive(struct ucx_wire *self, struct ticket *ticket, size_t offset, size_t bytes)
{
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                        UCP_OP_ATTR_FIELD_MEMORY_TYPE | UCP_OP_ATTR_FLAG_NO_IMM_CMPL,
        .cb.recv = on_landed,
        .user_data = ticket,
        .memory_type = self->memory,
    };
    int count;
    void **requests = requests_of(self, ticket, &count);
    int64_t landed = ticket->header[0];
    ucs_status_ptr_t request =
        ucp_tag_recv_nbx(self->worker, (char *)ticket->data + offset, bytes,
                         make_tag(ticket->channel, ticket->message, 0), MATCH_MASK, &param);

    if (!UCS_PTR_IS_PTR(request)) {
        return is_good(ticket, UCS_PTR_RAW_STATUS(request));
    }
    if (ticket->header[0] == landed) { /* to cancel */
        for (int i = 0; i < count; i++) {
            if (requests[i] == NULL) {
                requests[i] = request;
                break;
            }
        }
    }
    return true;
}

static void post_ticket(struct ucx_wire *self, struct ticket *ticket)
{
    ticket->header[0] = ticket->header[1] = 0; /* receives through; time of the put */
    ticket->request = NULL;
    ticket->next = self->posted;
    self->posted = ticket;
}

/* ---- links ---- */

static bool ucx_part(struct ticket *ticket, size_t offset, size_t bytes)
{
    struct ucx_wire *self = (struct ucx_wire *)ticket->progress;
    return ticket->sending ? start_send(self, ticket, offset, bytes)
                           : start_receive(self, ticket, offset, bytes);
}

static bool ucx_begin(struct ticket *ticket)
{
    if (!ticket->sending) {
        post_ticket((struct ucx_wire *)ticket->progress, ticket);
    }
    return true;
}

static void ucx_complete(struct ticket *ticket, bool good)
{
    if (ticket->sending) {
        progress_finish(ticket, 0, good);
    } else {
        all_landed(ticket, good ? ticket->header[1] : 0, good);
    }
}

/* ---- notes ---- */

static void note_left(struct ucx_telling *telling, ucs_status_t code)
{
    links_told(telling->self->progress.links, telling->to, code == UCS_OK);
}

static void on_note_left(void *request, ucs_status_t code, void *arg)
{
    note_left(arg, code);
    ucp_request_free(request);
}

static bool ucx_tell(struct progress *progress, int to, const struct link_note *note)
{
    struct ucx_wire *self = (struct ucx_wire *)progress;
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                        UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_MEMORY_TYPE,
        .flags = UCP_AM_SEND_FLAG_EAGER,
        .cb.send = on_note_left,
        .user_data = &self->telling[to],
        .memory_type = UCS_MEMORY_TYPE_HOST,
    };
    ucs_status_ptr_t request =
        ucp_am_send_nbx(self->endpoint[to], NOTE_ID, NULL, 0, note, sizeof *note, &param);

    if (!UCS_PTR_IS_PTR(request)) {
        note_left(&self->telling[to], UCS_PTR_RAW_STATUS(request));
    }
    return true;
}

static ucs_status_t on_note(void *arg, const void *header, size_t header_length, void *data,
                            size_t length, const ucp_am_recv_param_t *param)
{
    struct ucx_wire *self = arg;
    struct link_note note;

    (void)header;
    (void)header_length;
    (void)param;
    if (length == sizeof note) {
        memcpy(&note, data, sizeof note); /* `data` may lie anywhere */
        links_heard(self->progress.links, &note);
    }
    return UCS_OK;
}

/* ---- creation and destruction ---- */

static const struct links_class ucx_links = {
    .part = ucx_part, .begin = ucx_begin, .complete = ucx_complete, .tell = ucx_tell};

/* Requests of all receives in parts. */
static status_t make_requests(struct ucx_wire *self)
{
    const struct wire *wire = self->progress.wire;
    size_t count = 0;

    self->first_request = calloc((size_t)wire->count, sizeof *self->first_request);
    self->telling = calloc((size_t)wire->group->size, sizeof *self->telling);
    for (int i = 0; self->first_request && i < wire->count; i++) {
        const struct wire_channel *c = &wire->channel[i];
        self->first_request[i] = count;
        if (links_keep(self->progress.links, i) && c->to == wire->group->rank) {
            count += (size_t)c->slots * (size_t)links_parts(self->progress.links, i);
        }
    }
    self->requests = calloc(count + 1, sizeof *self->requests);
    if (self->first_request == NULL || self->telling == NULL || self->requests == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for %zu receives over UCX", count);
    }
    for (int i = 0; i < wire->group->size; i++) {
        self->telling[i] = (struct ucx_telling){self, i};
    }
    return STATUS_OK;
}

status_t ucx_open_links(struct ucx_wire *self)
{
    ucp_am_handler_param_t handler = {.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID |
                                                    UCP_AM_HANDLER_PARAM_FIELD_CB |
                                                    UCP_AM_HANDLER_PARAM_FIELD_ARG,
                                      .id = NOTE_ID,
                                      .cb = on_note,
                                      .arg = self};

    TRY(links_create(&self->progress, &ucx_links, &self->progress.links));
    if (self->progress.links == NULL) {
        return STATUS_OK;
    }
    TRY(make_requests(self));
    ucs_status_t code = ucp_worker_set_am_recv_handler(self->worker, &handler);
    if (code != UCS_OK) {
        return FAIL(STATUS_UNSUPPORTED, "UCX refused active messages: %s", ucs_status_string(code));
    }
    return STATUS_OK;
}

void ucx_close_links(struct ucx_wire *self)
{
    links_destroy(self->progress.links);
    free(self->requests);
    free(self->first_request);
    free(self->telling);
}

void ucx_start(struct ucx_wire *self, struct ticket *ticket)
{
    if (links_keep(self->progress.links, ticket->channel)) {
        links_start(self->progress.links, ticket);
    } else if (ticket->sending) {
        start_send(self, ticket, 0, ticket->bytes);
    } else {
        post_ticket(self, ticket);
        if (!start_receive(self, ticket, 0, ticket->bytes)) {
            all_landed(ticket, 0, false);
        }
    }
}

void ucx_withdraw(struct ucx_wire *self)
{
    for (struct ticket *ticket = self->posted, *next; ticket != NULL; ticket = next) {
        int count;
        void **requests = requests_of(self, ticket, &count);
        next = ticket->next;
        for (int i = 0; i < count; i++) {
            if (requests[i] != NULL) {
                ucp_request_cancel(self->worker, requests[i]);
            }
        }
    }
    while (ucp_worker_progress(self->worker) != 0) {
    }
}
