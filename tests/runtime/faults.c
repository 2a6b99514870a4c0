/* faults.c - a host whose processor, memory or network gives one wrong bit, or that is gone in the middle of a step:
 * the program with its operations, messages and exchange wrapped (--wrap).
 *
 *     FLIP=RANK:result:N      the N-th run of linear_forward on that rank writes a wrong bit
 *     FLIP=RANK:memory:N      of the N-th pair of products from one input (gate and up of a feed-forward) the first
 *                             one's result changes after the second has been computed
 *     FLIP=RANK:message:N     the N-th message that the rank puts leaves with a wrong bit
 *     FLIP=RANK:gather:N      the N-th list that the rank gathers from others arrives with a wrong bit
 *     GONE=RANK:PHASE:N:kill  the rank ends (or with `stop` stops) in the N-th forward, backward, send, receive or
 *                             exchange
 */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm/comm.h"
#include "model/model.h"

status_t __real_kernels_cpu(const struct kernels **out);
status_t __wrap_kernels_cpu(const struct kernels **out);
status_t __real_wire_put(struct wire *wire, int channel, int slot, int64_t message, int64_t order,
                         const void *source);
status_t __wrap_wire_put(struct wire *wire, int channel, int slot, int64_t message, int64_t order,
                         const void *source);

void __real_part_forward(struct part *part, int unit, int frame);
void __wrap_part_forward(struct part *part, int unit, int frame);
void __real_part_backward(struct part *part, int unit, int frame, int slot);
void __wrap_part_backward(struct part *part, int unit, int frame, int slot);
status_t __real_wire_wait(struct wire *wire, int channel, int slot, int64_t message,
                          struct wire_stamp *out_stamp);
status_t __wrap_wire_wait(struct wire *wire, int channel, int slot, int64_t message,
                          struct wire_stamp *out_stamp);
status_t __real_group_allgatherv(struct group *group, const void *data, const size_t *counts,
                                 void *out);
status_t __wrap_group_allgatherv(struct group *group, const void *data, const size_t *counts,
                                 void *out);

status_t __real_collective_start(struct collective *collective, const struct collective_call *call,
                                 int64_t *out_number);
status_t __wrap_collective_start(struct collective *collective, const struct collective_call *call,
                                 int64_t *out_number);
status_t __real_collective_wait(struct collective *collective, int64_t number);
status_t __wrap_collective_wait(struct collective *collective, int64_t number);

static const struct kernels *real;
static struct kernels table;

/* Which of its kind is this, on the rank that RANK:what:N of the environment names? True for the N-th. One process,
 * one thread. */
static bool is_time(const char *variable, const char *what, char *out_how)
{
    static const char *const names[] = {"gather",   "result", "memory",  "message", "forward",
                                        "backward", "send",   "receive", "exchange"};
    static int counts[sizeof names / sizeof names[0]];
    const char *order = getenv(variable), *rank = getenv("OMPI_COMM_WORLD_RANK");
    char wanted[16];
    int on, at, i = 0;
    out_how[0] = '\0';
    if (!order || sscanf(order, "%d:%15[a-z]:%d:%7s", &on, wanted, &at, out_how) < 3 ||
        on != (rank ? atoi(rank) : 0) || strcmp(wanted, what) != 0) {
        return false;
    }
    while (strcmp(names[i], what) != 0) {
        i++;
    }
    return ++counts[i] == at;
}

static bool now(const char *what)
{
    char how[8];
    return is_time("FLIP", what, how);
}

static void perhaps_gone(const char *phase)
{
    char how[8];
    if (is_time("GONE", phase, how)) {
        fprintf(stderr, "gone in %s\n", phase);
        raise(strcmp(how, "stop") == 0 ? SIGSTOP : SIGKILL);
    }
}

static void flip(void *value)
{
    unsigned char *byte = value;
    *byte ^= 1;
    fprintf(stderr, "a bit has flipped\n");
}

static void linear_forward(const struct kernel_ctx *ctx, void *y, const void *x, const void *weight,
                           const void *bias, size_t N, size_t I, size_t O)
{
    static void *last_y, *waiting;
    static const void *last_x;
    static size_t last_O;
    real->linear_forward(ctx, y, x, weight, bias, N, I, O);
    if (now("result")) {
        flip(y);
    }
    if (x == last_x && O == last_O && y != last_y && waiting != last_y) {
        waiting = last_y;
        if (now("memory")) {
            flip(last_y);
        }
    }
    last_y = y;
    last_x = x;
    last_O = O;
}

status_t __wrap_kernels_cpu(const struct kernels **out)
{
    TRY(__real_kernels_cpu(&real));
    table = *real;
    table.linear_forward = linear_forward;
    *out = &table;
    return STATUS_OK;
}

status_t __wrap_wire_put(struct wire *wire, int channel, int slot, int64_t message, int64_t order,
                         const void *source)
{
    if (now("message")) {
        flip((void *)(uintptr_t)source);
    }
    perhaps_gone("send");
    return __real_wire_put(wire, channel, slot, message, order, source);
}

status_t __wrap_wire_wait(struct wire *wire, int channel, int slot, int64_t message,
                          struct wire_stamp *out_stamp)
{
    perhaps_gone("receive");
    return __real_wire_wait(wire, channel, slot, message, out_stamp);
}

void __wrap_part_forward(struct part *part, int unit, int frame)
{
    perhaps_gone("forward");
    __real_part_forward(part, unit, frame);
}

void __wrap_part_backward(struct part *part, int unit, int frame, int slot)
{
    perhaps_gone("backward");
    __real_part_backward(part, unit, frame, slot);
}

status_t __wrap_group_allgatherv(struct group *group, const void *data, const size_t *counts,
                                 void *out)
{
    perhaps_gone("exchange");
    return __real_group_allgatherv(group, data, counts, out);
}

/* The first value of a list of all is the first rank's. */
static void *gathered[1024];

status_t __wrap_collective_start(struct collective *collective, const struct collective_call *call,
                                 int64_t *out_number)
{
    TRY(__real_collective_start(collective, call, out_number));
    gathered[*out_number % 1024] = call->kind == COLLECTIVE_ALL_GATHER ? call->out : NULL;
    return STATUS_OK;
}

status_t __wrap_collective_wait(struct collective *collective, int64_t number)
{
    TRY(__real_collective_wait(collective, number));
    if (gathered[number % 1024] && now("gather")) {
        flip(gathered[number % 1024]);
    }
    return STATUS_OK;
}
