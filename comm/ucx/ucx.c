/* ucx.c - the "ucx" transport: tag messages into receives posted ahead, moved by a progress thread.
 *
 * The thread owns context, worker and endpoints. It sleeps on the worker's file descriptor, which
 * tells of arrivals, and on an eventfd, by which the main thread tells of new tickets.
 *
 * Endpoints do without UCX's own error handling, which would shut out shared memory: whether a peer
 * lives is the business of health.c.
 */
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <ucs/debug/debug.h>

#include "base/device.h"
#include "base/log.h"
#include "base/trace.h"
#include "comm/ucx/ucx_internal.h"

enum {
    NAP = 50000,         /* ns; only while connecting and closing */
    CLOSE_MS = 500,      /* for the others to say goodbye */
    HELD_POLL_MS = 1,    /* for other ranks of the host, which do not tell */
    SAFETY_POLL_MS = 100 /* in case an event is missed */
};
enum { HELLO, GOODBYE }; /* words of a greeting */

/* Of ucs/config/global_opts.h, which in some versions is GNU C. */
ucs_status_t ucs_global_opts_set_value(const char *name, const char *value);

static status_t ucx_check(ucs_status_t code, const char *what)
{
    if (code == UCS_OK) {
        return STATUS_OK;
    }
    return FAIL(STATUS_UNSUPPORTED,
                "UCX refused %s: %s (UCX_TLS and UCX_NET_DEVICES choose transports)", what,
                ucs_status_string(code));
}

/* All bits count: the rank in place of the message, the word in place of the time. */
static ucp_tag_t greeting_tag(int rank, int word)
{
    return ((uint64_t)CONNECT_CHANNEL << (MESSAGE_BITS + TIME_BITS)) | ((uint64_t)rank << 8) |
           (uint64_t)word;
}

static void ucx_wake(struct progress *progress)
{
    struct ucx_wire *self = (struct ucx_wire *)progress;
    uint64_t one = 1;
    ssize_t written = write(self->wake_fd, &one, sizeof one);
    (void)written;
}

/* ---- the progress thread ---- */

static bool start_queued(struct ucx_wire *self)
{
    bool stop;

    for (struct ticket *ticket = progress_take(&self->progress, &stop), *next; ticket != NULL;
         ticket = next) {
        next = ticket->next;
        ucx_start(self, ticket);
    }
    return stop;
}

static void *progress_main(void *arg)
{
    struct ucx_wire *self = arg;
    struct pollfd fds[] = {{.fd = self->worker_fd, .events = POLLIN},
                           {.fd = self->wake_fd, .events = POLLIN}};
    uint64_t woken;

    progress_enter(&self->progress);
    for (;;) {
        bool stop = start_queued(self);
        if (stop) {
            if (self->progress.links !=
                NULL) { /* what has landed makes room in windows of others */
                links_turn(self->progress.links);
            }
            return NULL;
        }
        bool moved = ucp_worker_progress(self->worker) != 0;
        moved = (self->progress.links != NULL && links_turn(self->progress.links)) || moved;
        if (moved) {
            progress_moved(&self->progress);
            continue;
        }
        if (progress_watches(
                &self->progress)) { /* unarmed: that would put callbacks into CUDA's streams */
            progress_nap(&self->progress);
            continue;
        }
        if (ucp_worker_arm(self->worker) == UCS_ERR_BUSY) {
            continue;
        }
        poll(fds, 2, links_held(self->progress.links) ? HELD_POLL_MS : SAFETY_POLL_MS);
        ssize_t got = read(self->wake_fd, &woken, sizeof woken);
        (void)got;
    }
}

/* ---- creation ---- */

/* Waits, while the progress thread does not run yet or any more; at most until `until`. */
static bool ucx_settle(struct ucx_wire *self, ucs_status_ptr_t request, int64_t until)
{
    if (!UCS_PTR_IS_PTR(request)) {
        return !UCS_PTR_IS_ERR(request);
    }
    while (ucp_request_check_status(request) == UCS_INPROGRESS) {
        if (ucp_worker_progress(self->worker) == 0) {
            nanosleep(&(struct timespec){0, NAP}, NULL);
        }
        if (self->progress.wire->group->shared->failed || trace_now() > until) {
            return false; /* the request is lost with the worker */
        }
    }
    bool good = ucp_request_check_status(request) == UCS_OK;
    ucp_request_free(request);
    return good;
}

/* UCX may catch SIGSEGV and the like from the moment it is loaded (UCX_HANDLE_ERRORS,
 * UCX_ERROR_SIGNALS). Crashes are not its business unless the user says so. */
static void release_signals(void)
{
    static const int signals[] = {SIGILL, SIGSEGV, SIGBUS, SIGFPE};

    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) {
        struct sigaction now;
        Dl_info owner;
        if (getenv("UCX_ERROR_SIGNALS") == NULL && sigaction(signals[i], NULL, &now) == 0 &&
            dladdr((void *)(uintptr_t)now.sa_sigaction, &owner) != 0 && owner.dli_fname != NULL &&
            strstr(owner.dli_fname, "libucs") != NULL) {
            ucs_debug_disable_signal(signals[i]);
        }
    }
}

static status_t open_worker(struct ucx_wire *self)
{
    ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES,
                           .features = UCP_FEATURE_TAG | UCP_FEATURE_AM | UCP_FEATURE_WAKEUP};
    ucp_worker_params_t worker = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
                                  .thread_mode = UCS_THREAD_MODE_SERIALIZED};
    ucp_config_t *config;

    release_signals();
    /* Buffers on a GPU were there before ucp_init, and what UCX has not seen allocated, its cache of
     * memory types takes for the host's: it would crash copying it. (The environment was read when
     * the library was loaded.) */
    if (getenv("UCX_MEMTYPE_CACHE") == NULL) {
        TRY(ucx_check(ucs_global_opts_set_value("MEMTYPE_CACHE", "n"), "to ask for memory types"));
    }
    TRY(ucx_check(ucp_config_read(NULL, NULL, &config), "its settings"));
    ucs_status_t code = ucp_init(&params, config, &self->context);
    ucp_config_release(config);
    TRY(ucx_check(code, "to start"));
    TRY(ucx_check(ucp_worker_create(self->context, &worker, &self->worker), "a worker"));
    TRY(ucx_check(ucp_worker_get_efd(self->worker, &self->worker_fd), "a file descriptor"));
    self->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (self->wake_fd < 0) {
        return FAIL(STATUS_IO,
                    "no eventfd for a wire: %s; raise the limit of open files (ulimit "
                    "-n)",
                    strerror(errno));
    }
    return STATUS_OK;
}

static bool is_set(const char *name, const char *value)
{
    const char *text = getenv(name);
    return text != NULL && strcmp(text, value) == 0;
}

/* On a GPU: whose memory UCX is to move. MUDDPIPE_UCX_STAGED=1 has all pass through the host's, 0 trusts
 * UCX with the GPU's whatever it says. There the host waits at every message, unless
 * MUDDPIPE_UCX_STREAMS=1: README.md says why. */
static status_t use_gpu(struct ucx_wire *self)
{
    ucp_context_attr_t attributes = {.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES};
    struct wire *wire = self->progress.wire;
    const char *staged = NULL;

    self->memory = UCS_MEMORY_TYPE_UNKNOWN;
    if (!wire_on_gpu(wire)) {
        return STATUS_OK;
    }
    TRY(ucx_check(ucp_context_query(self->context, &attributes), "to tell its memory types"));
    bool cuda = (attributes.memory_types & UCS_BIT(UCS_MEMORY_TYPE_CUDA)) != 0;
    if (is_set("MUDDPIPE_UCX_STAGED", "1")) {
        staged = "MUDDPIPE_UCX_STAGED=1";
    } else if (!cuda && !is_set("MUDDPIPE_UCX_STAGED", "0")) {
        staged = "UCX without CUDA";
    }
    if (staged != NULL) {
        self->memory = UCS_MEMORY_TYPE_HOST;
    } else if (cuda) {
        self->memory = UCS_MEMORY_TYPE_CUDA;
    }
    wire->streamed = staged != NULL || is_set("MUDDPIPE_UCX_STREAMS", "1");
    return wire->streamed ? progress_use_streams(&self->progress, staged) : STATUS_OK;
}

static status_t open_endpoints(struct ucx_wire *self, const unsigned char *addresses,
                               const size_t *lengths, const bool *talks)
{
    for (int i = 0; i < self->progress.wire->group->size; addresses += lengths[i], i++) {
        ucp_ep_params_t params = {.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS,
                                  .address = (const ucp_address_t *)addresses};
        if (talks[i]) {
            TRY(ucx_check(ucp_ep_create(self->worker, &params, &self->endpoint[i]), "an endpoint"));
        }
    }
    return STATUS_OK;
}

/* All ranks' worker addresses, one after the other; frees nothing on failure but its own. */
static status_t gather_addresses(struct ucx_wire *self, size_t *lengths, unsigned char **out)
{
    struct group *group = self->progress.wire->group;
    ucp_address_t *mine;
    size_t length, total = 0;
    status_t status;

    TRY(ucx_check(ucp_worker_get_address(self->worker, &mine, &length), "an address"));
    TRY_GOTO(group_allgather(group, &length, sizeof length, lengths), release);
    for (int i = 0; i < group->size; i++) {
        total += lengths[i];
    }
    unsigned char *all = malloc(total);
    if (all == NULL) {
        status = FAIL(STATUS_NOMEM, "no memory for the addresses of %d ranks", group->size);
        goto release;
    }
    status = group_allgatherv(group, mine, lengths, all);
    if (status != STATUS_OK) {
        free(all);
        goto release;
    }
    *out = all;

release:
    ucp_worker_release_address(self->worker, mine);
    return status;
}

/* A small message each way with everybody this rank talks with: UCX connects at the first one, and
 * after the last one nobody's departure surprises another. False if it was not done by `until`. */
static bool greet_peers(struct ucx_wire *self, int word, int64_t until)
{
    struct group *group = self->progress.wire->group;
    ucp_request_param_t param = {0};
    static int32_t mine, theirs; /* outlive a failure */

    for (int i = 0; i < group->size; i++) {
        if (self->endpoint[i] != NULL &&
            !ucx_settle(self,
                        ucp_tag_send_nbx(self->endpoint[i], &mine, sizeof mine,
                                         greeting_tag(group->rank, word), &param),
                        until)) {
            return false;
        }
    }
    for (int i = 0; i < group->size; i++) {
        if (self->endpoint[i] != NULL &&
            !ucx_settle(self,
                        ucp_tag_recv_nbx(self->worker, &theirs, sizeof theirs,
                                         greeting_tag(i, word), UINT64_MAX, &param),
                        until)) {
            return false;
        }
    }
    return true;
}

static status_t say_unconnected(struct group *group)
{
    if (group->shared->failed) {
        return group_lost(group);
    }
    return FAIL(STATUS_TIMEOUT,
                "UCX could not connect rank %d with its peers within %g s; "
                "UCX_NET_DEVICES and UCX_TLS choose the network, transport mpi does without UCX",
                group_named(group, group->rank), group->options.deadline_s);
}

static status_t connect_peers(struct ucx_wire *self)
{
    size_t size = (size_t)self->progress.wire->group->size;
    size_t *lengths = calloc(size, sizeof *lengths);
    bool *talks = calloc(size, sizeof *talks);
    unsigned char *addresses = NULL;
    status_t status;

    self->endpoint = calloc(size, sizeof(ucp_ep_h));
    if (lengths == NULL || talks == NULL || self->endpoint == NULL) {
        status = FAIL(STATUS_NOMEM, "no memory to connect %zu ranks", size);
        goto free_lists;
    }
    progress_peers(self->progress.wire, talks);
    TRY_GOTO(gather_addresses(self, lengths, &addresses), free_lists);
    TRY_GOTO(open_endpoints(self, addresses, lengths, talks), free_lists);
    if (!greet_peers(self, HELLO, group_deadline(self->progress.wire->group))) {
        status = say_unconnected(self->progress.wire->group);
    }

free_lists:
    free(addresses);
    free(talks);
    free(lengths);
    return status;
}

/* ---- destruction ---- */

/* With a lost peer the endpoints cannot be flushed, and the process is about to end: what UCX holds
 * is left to the operating system. */
static void ucx_free(struct ucx_wire *self)
{
    bool was_running = self->running;

    if (was_running) {
        progress_stop(&self->progress);
        pthread_join(self->thread, NULL);
    }
    if (self->worker != NULL && !self->progress.wire->group->shared->failed) {
        ucx_withdraw(self);
        if (was_running) { /* a rank that fails alone finds no partner for this and goes on */
            greet_peers(self, GOODBYE, trace_now() + CLOSE_MS * INT64_C(1000000));
        }
        ucp_worker_destroy(self->worker);
        ucp_cleanup(self->context);
    }
    if (self->wake_fd >= 0) {
        close(self->wake_fd);
    }
    free(self->endpoint);
    ucx_close_links(self);
    progress_fini(&self->progress);
    free(self);
}

static status_t ucx_create(struct wire *wire)
{
    struct ucx_wire *self = calloc(1, sizeof *self);
    status_t status;

    if (self == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for a wire over UCX");
    }
    self->wake_fd = -1;
    wire->state = self;
    TRY_GOTO(progress_init(&self->progress, wire, ucx_wake), free_self);
    if (wire->count >= CONNECT_CHANNEL) {
        status = FAIL(STATUS_UNSUPPORTED, "%d channels, and a wire over UCX has at most %d",
                      wire->count, CONNECT_CHANNEL);
        goto free_self;
    }
    status = open_worker(self);
    if (status == STATUS_OK) {
        status = use_gpu(self);
    }
    if (status == STATUS_OK) {
        status = ucx_open_links(self);
    }
    TRY_GOTO(group_agree(wire->group, status), free_self); /* the rest takes all */
    TRY_GOTO(connect_peers(self), free_self);
    if (pthread_create(&self->thread, NULL, progress_main, self) != 0) {
        status = FAIL(STATUS_NOMEM, "the progress thread of the wire cannot be started");
        goto free_self;
    }
    self->running = true;
    return STATUS_OK;

free_self:
    ucx_free(self);
    return status;
}

static void ucx_destroy(struct wire *wire)
{
    ucx_free(wire->state);
}

static void ucx_version(char *out, size_t size)
{
    unsigned major, minor, patch;
    ucp_get_version(&major, &minor, &patch);
    snprintf(out, size, "UCX %u.%u.%u", major, minor, patch);
}

const struct wire_class ucx_wire_class = {
    .name = "ucx",
    .version = ucx_version,
    .hosts = true,
    .handicap = 1.0,
    .links = true,
    .streams = true,
    .create = ucx_create,
    .destroy = ucx_destroy,
    .post = progress_post,
    .put = progress_put,
    .wait = progress_wait,
    .sent = progress_sent,
    .release = progress_release,
};
