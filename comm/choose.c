/* choose.c - which transport carries the tensors of this job, where the user does not say.
 *
 * On the host nothing is measured: ucx where it is built in, else mpi. On GPUs of one host ipc is taken
 * if it works: copy engines move the bytes and no thread of the host is in the loop, which nothing else
 * has; it is measured to be told. Otherwise it is ucx. mpi goes through host memory and is for where nothing
 * else works. nccl would be compared with ucx, and have to be faster by half, for its kernels take
 * multiprocessors from matrix products; until training has been run over it, it is for those who ask.
 */
#include <stdio.h>
#include <string.h>

#include "base/device.h"
#include "base/log.h"
#include "comm/transport.h"

enum { SMALL, LARGE, SIZES, SLOTS = 4, ROUNDS = 50, MESSAGES = 8 };
static const size_t bytes[SIZES] = {4096, (size_t)32 << 20};
static const double patience_s = 30; /* of every wait here */

static const struct preference {
    const char *name;
    double handicap;  /* its time of a message counts so many times */
    bool last_resort; /* not tried where one before it works */
} preferences[] = {
    {"ipc", 1.0, false}, {"ucx", 1.0, true},      {"nccl", 1.5, true},
    {"mpi", 1.0, true},  {"threads", 1.0, false},
};
enum { PREFERENCES = sizeof preferences / sizeof preferences[0] };

/* ---- one candidate ---- */

struct speed {
    double latency, message; /* seconds: of a small one, of a large one in a row */
    bool usable;
    char why[REASON_SIZE];
};

static status_t time_once(struct meter *meter, enum meter_way way, int size, int count,
                          double *out_each)
{
    double seconds;
    TRY(meter_time(meter, way, size, 2, &seconds)); /* connects, maps */
    TRY(meter_time(meter, way, size, count, &seconds));
    *out_each = seconds / count;
    return STATUS_OK;
}

static double larger(double a, double b)
{
    return a > b ? a : b;
}

/* The links of half of the neighbours, at once; the slowest counts. */
static status_t measure_links(struct group *group, const char *name,
                              const struct meter_options *options, struct speed *speed)
{
    struct meter *meter;
    double round = 0, message = 0;
    TRY(meter_try(group, name, options, &meter, speed->why, sizeof speed->why));
    speed->usable = meter != NULL;
    if (!meter) {
        return STATUS_OK;
    }
    status_t status = meter_verify(meter, SMALL);
    if (status == STATUS_OK) {
        status = time_once(meter, METER_ROUND, SMALL, ROUNDS, &round);
    }
    if (status == STATUS_OK) {
        status = time_once(meter, METER_FORTH, LARGE, MESSAGES, &message);
    }
    meter_destroy(meter);
    speed->latency = larger(speed->latency, round / 2);
    speed->message = larger(speed->message, message);
    return status;
}

static status_t measure(struct group *group, const char *name, struct device *device, void *stream,
                        struct speed *out)
{
    *out = (struct speed){.usable = true};
    for (int first = 0; first < 2 && first + 1 < group->size && out->usable; first++) {
        struct meter_options options = {.device = device,
                                        .stream = stream,
                                        .bytes = bytes,
                                        .sizes = SIZES,
                                        .slots = SLOTS,
                                        .first = first};
        TRY(measure_links(group, name, &options, out));
    }
    return STATUS_OK;
}

/* "ipc: 362 GB/s at 32 MiB, 8 us" */
static void tell(const char *name, const struct speed *speed, char *line, size_t size)
{
    size_t used = strlen(line);
    const char *comma = used > 0 ? "; " : "";
    if (!speed->usable) {
        snprintf(line + used, size - used, "%s%s cannot be used: %s", comma, name, speed->why);
    } else {
        snprintf(line + used, size - used, "%s%s %.*f GB/s at 32 MiB, %.0f us", comma, name,
                 speed->message < 1e-3 ? 0 : 1, (double)bytes[LARGE] / speed->message * 1e-9,
                 speed->latency * 1e6);
    }
}

/* ---- all ---- */

status_t choose_measured(struct group *group, const char *const *names, struct device *device,
                         void *stream, const char **out, char *line, size_t size)
{
    const char *best = NULL;
    double best_time = 0;
    line[0] = '\0';
    for (int p = 0; p < PREFERENCES; p++) {
        const struct preference *preference = &preferences[p];
        const char *const *name = names;
        while (*name && strcmp(*name, preference->name) != 0) {
            name++;
        }
        bool hosts = group->local_size < group->size && strcmp(preference->name, "nccl") == 0;
        bool strange = strcmp(preference->name, "threads") == 0 && !group->class->threads;
        if (!*name || strange || (preference->last_resort && best && !hosts)) {
            continue;
        }
        struct speed speed;
        TRY(measure(group, *name, device, stream, &speed));
        tell(*name, &speed, line, size);
        double each = (speed.latency + speed.message) * preference->handicap;
        if (speed.usable && (!best || each < best_time)) {
            best = *name;
            best_time = each;
        }
    }
    if (!best) {
        return FAIL(STATUS_UNSUPPORTED, "no transport connects these ranks' GPUs: %s",
                    line[0] ? line : "none is built in");
    }
    *out = best;
    return STATUS_OK;
}

enum { NAMES = 16 };

/* What is tried by itself: all that are built in but nccl. */
static void list_tried(const char *out[NAMES])
{
    int count = 0;
    for (const char *const *name = wire_transports; *name && count < NAMES - 1; name++) {
        if (strcmp(*name, "nccl") != 0) {
            out[count++] = *name;
        }
    }
    out[count] = NULL;
}

static const char *on_host(void)
{
    for (const char *const *name = wire_transports; *name; name++) {
        if (strcmp(*name, "ucx") == 0) {
            return *name;
        }
    }
    return "mpi";
}

status_t transport_choose(struct group *group, struct device *device, void *stream,
                          const char **out)
{
    const char *names[NAMES];
    char line[1024];
    double patience = group->options.deadline_s;
    if (group->class->threads) {
        *out = "threads";
        return STATUS_OK;
    }
    if (group->size == 1 || !device || device_kind(device) == DEVICE_HOST) {
        *out = on_host();
        return STATUS_OK;
    }
    list_tried(names);
    group->options.deadline_s = patience > 0 && patience < patience_s ? patience : patience_s;
    status_t status = choose_measured(group, names, device, stream, out, line, sizeof line);
    group->options.deadline_s = patience;
    if (status == STATUS_OK && group->rank == 0) {
        log_info("transport %s (%s)", *out, line);
    }
    return status;
}
