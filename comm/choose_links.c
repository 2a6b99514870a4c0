/* choose_links.c - how many bytes are under way to other hosts over a link: what it holds, which is measured.
 *
 * Ranks of different hosts are paired, and each pair sends a few messages at once with all others. The slowest pair
 * counts. A link that moves b bytes a second and takes t seconds there and back is busy with b t bytes under way;
 * twice as many are allowed, because what is told of their arrival waits behind what comes the other way.
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "comm/transport.h"

enum { SMALL, LARGE, SIZES, SLOTS = 4, ROUNDS = 20, MESSAGES = 4, PARTS = 4 };
static const size_t bytes[SIZES] = {64, (size_t)1 << 20};
static const int64_t least_part = 128 << 10, most_part = 1 << 20;

bool transport_heeds_links(const char *name)
{
    const struct wire_class *class = wire_class_find(name);
    return class != NULL && class->links;
}

static bool one_host(const struct group *group)
{
    for (int i = 0; group->leader && i < group->size; i++) {
        if (group->leader[i] != group->leader[0]) {
            return false;
        }
    }
    return true;
}

/* The most ranks of a host. */
static int most_of_host(const struct group *group)
{
    int most = 0;
    for (int host = 0; host < group->size; host++) {
        int count = 0;
        for (int i = 0; i < group->size; i++) {
            count += (group->leader ? group->leader[i] : 0) == host;
        }
        most = count > most ? count : most;
    }
    return most;
}

/* Ranks by hosts, then each of the first half before its like of the second: neighbours are of different hosts, as
 * far as there are enough. */
static void pair_hosts(const struct group *group, int *order)
{
    int size = group->size, sorted[size], count = 0, half = (size + 1) / 2;
    for (int host = 0; host < size; host++) {
        for (int i = 0; i < size; i++) {
            if ((group->leader ? group->leader[i] : 0) == host) {
                sorted[count++] = i;
            }
        }
    }
    for (int i = 0; i < size; i++) {
        order[i] = sorted[i % 2 == 0 ? i / 2 : half + i / 2];
    }
}

struct link_speed {
    double bandwidth, delay; /* bytes a second one way; seconds there and back */
};

static status_t measure(struct meter *meter, struct link_speed *out)
{
    double ignored, round, message;
    TRY(meter_time(meter, METER_FORTH, LARGE, 1, &ignored)); /* connects */
    TRY(meter_time(meter, METER_ROUND, SMALL, ROUNDS, &round));
    TRY(meter_time(meter, METER_FORTH, LARGE, MESSAGES, &message));
    *out = (struct link_speed){.bandwidth = (double)bytes[LARGE] * MESSAGES / message,
                               .delay = round / ROUNDS};
    return STATUS_OK;
}

static int64_t between(int64_t value, int64_t least, int64_t most)
{
    return value < least ? least : value > most ? most : value;
}

/* "250 MB/s, 180 us there and back" */
static void tell(const struct group *group, const struct link_speed *speed,
                 const struct wire_links *links)
{
    if (group_named(group, group->rank) == 0) {
        log_info("links between hosts: %.0f MB/s, %.0f us there and back; %.0f KiB of messages "
                 "under way from a %s at most, in parts of %.0f KiB",
                 speed->bandwidth * 1e-6, speed->delay * 1e6, (double)links->window / 1024,
                 links->shared ? "host" : "rank", (double)links->part / 1024);
    }
}

status_t wire_links_choose(struct group *group, const char *transport, struct device *device,
                           void *stream, int64_t window, struct wire_links *links)
{
    struct link_speed speed;
    struct meter *meter;
    int order[group->size];
    links->window = window;
    links->part = between(window / PARTS / 4096 * 4096, 4096, most_part);
    bool idle =
        group->size == 1 || !transport_heeds_links(transport) || (one_host(group) && !links->all);
    if (window > 0 || idle) {
        links->window = idle ? 0 : window;
        return STATUS_OK;
    }
    pair_hosts(group, order);
    const struct meter_options options = {.device = device,
                                          .stream = stream,
                                          .bytes = bytes,
                                          .sizes = SIZES,
                                          .slots = SLOTS,
                                          .order = order};
    TRY(meter_create(group, transport, &options, &meter));
    status_t status = measure(meter, &speed);
    meter_destroy(meter);
    TRY(status);
    speed.bandwidth *= links->shared ? most_of_host(group) : 1; /* they have sent at once */
    int64_t held = (int64_t)(2 * speed.bandwidth * speed.delay);
    links->part = between(held / PARTS / 4096 * 4096, least_part, most_part);
    links->window = held > PARTS * links->part ? held : PARTS * links->part;
    tell(group, &speed, links);
    return STATUS_OK;
}
