/* flip_kernels.c - a host whose processor, memory or network gives one wrong bit: the program with its operations and
 * its puts wrapped (--wrap).
 *
 *     FLIP=RANK:result:N      the N-th run of linear_forward on that rank writes a wrong bit
 *     FLIP=RANK:memory:N      of the N-th pair of products from one input (gate and up of a feed-forward) the first
 *                             one's result changes after the second has been computed
 *     FLIP=RANK:message:N     the N-th message that the rank puts leaves with a wrong bit
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm/comm.h"
#include "kernels/kernels.h"

status_t __real_kernels_cpu(const struct kernels **out);
status_t __wrap_kernels_cpu(const struct kernels **out);
status_t __real_wire_put(struct wire *wire, int channel, int slot, int64_t message,
                         const void *source);
status_t __wrap_wire_put(struct wire *wire, int channel, int slot, int64_t message,
                         const void *source);

static const struct kernels *real;
static struct kernels table;

/* Is this the time? One process, one thread. */
static bool now(const char *what)
{
    static int counts[3];
    static const char *const names[] = {"result", "memory", "message"};
    const char *order = getenv("FLIP"), *rank = getenv("OMPI_COMM_WORLD_RANK");
    char wanted[16];
    int on, at;
    if (!order || sscanf(order, "%d:%15[a-z]:%d", &on, wanted, &at) != 3 ||
        on != (rank ? atoi(rank) : 0) || strcmp(wanted, what) != 0) {
        return false;
    }
    int i = 0;
    while (strcmp(names[i], what) != 0) {
        i++;
    }
    return ++counts[i] == at;
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

status_t __wrap_wire_put(struct wire *wire, int channel, int slot, int64_t message,
                         const void *source)
{
    if (now("message")) {
        flip((void *)(uintptr_t)source);
    }
    return __real_wire_put(wire, channel, slot, message, source);
}
