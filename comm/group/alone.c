/* alone.c - a group of one: every collective is a copy. */
#include <stdlib.h>
#include <string.h>

#include "comm/comm.h"
#include "comm/transport.h"

static void alone_close(struct group *group)
{
    group_fini(group);
    free(group);
}

static void alone_abandon(struct group *group, int code)
{
    (void)code;
    alone_close(group);
}

static status_t alone_barrier(struct group *group)
{
    (void)group;
    return STATUS_OK;
}

static status_t alone_broadcast(struct group *group, void *data, size_t bytes, int root)
{
    (void)group, (void)data, (void)bytes, (void)root;
    return STATUS_OK;
}

static status_t alone_allgatherv(struct group *group, const void *data, const size_t *counts,
                                 void *out)
{
    (void)group;
    if (counts[0] > 0) {
        memmove(out, data, counts[0]);
    }
    return STATUS_OK;
}

static status_t alone_clocks(struct group *group, int64_t *out_ahead)
{
    (void)group;
    out_ahead[0] = 0;
    return STATUS_OK;
}

static status_t alone_split(struct group *group, const int *members, int size, struct group **out)
{
    struct group *made = malloc(sizeof *made);
    status_t status = STATUS_NOMEM;

    if (made != NULL) {
        status = group_init_split(made, group, members, size);
    }
    if (status != STATUS_OK) {
        free(made);
        return FAIL(STATUS_NOMEM, "no memory for a group of one rank");
    }
    *out = made;
    return STATUS_OK;
}

static const struct group_class alone_class = {
    .split = alone_split,
    .close = alone_close,
    .abandon = alone_abandon,
    .barrier = alone_barrier,
    .broadcast = alone_broadcast,
    .allgatherv = alone_allgatherv,
    .clocks = alone_clocks,
};

status_t group_open_alone(const struct group_options *options, struct group **out)
{
    struct group *group = malloc(sizeof *group);

    if (group == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for a group of one rank");
    }
    group_init(group, &alone_class, 0, 1, options, NULL);
    *out = group;
    return STATUS_OK;
}
