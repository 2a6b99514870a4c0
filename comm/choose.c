/* choose.c - which transport carries the tensors of this job, where the user does not say.
 *
 * On the host nothing is measured: ucx where it is built in, else mpi. On GPUs the candidates are tried in
 * their order. ipc settles it where it works, which is among the GPUs of one host: copy engines move the
 * bytes and no thread of the host is in the loop, which nothing else has; it is measured to be told. Where
 * it does not work all others are measured, and the quickest is taken.
 */
#include <stdio.h>
#include <string.h>

#include "base/device.h"
#include "base/log.h"
#include "comm/transport.h"

enum { SMALL, LARGE, SIZES, SLOTS = 4, ROUNDS = 50, MESSAGES = 8 };
static const size_t bytes[SIZES] = {4096, (size_t)32 << 20};
static const double patience_s = 30; /* of every wait here */

/* ---- one candidate ---- */

struct speed {
    double latency, message; /* seconds: of a small one, of a large one in a row */
    bool usable;
    bool staged; /* tensors pass through host memory */
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
    speed->staged = meter_staged(meter) != NULL;
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

/* "ipc 362 GB/s at 32 MiB, 8 us" */
static void tell(const char *name, const struct speed *speed, char *line, size_t size)
{
    size_t used = strlen(line);
    const char *comma = used > 0 ? "; " : "";
    if (!speed->usable) {
        snprintf(line + used, size - used, "%s%s cannot be used: %s", comma, name, speed->why);
    } else {
        snprintf(line + used, size - used, "%s%s%s %.*f GB/s at 32 MiB, %.0f us", comma, name,
                 speed->staged ? " through host memory" : "", speed->message < 1e-3 ? 0 : 1,
                 (double)bytes[LARGE] / speed->message * 1e-9, speed->latency * 1e6);
    }
}

/* ---- all ---- */

static void add(const char *words, char *line, size_t size)
{
    size_t used = strlen(line);
    snprintf(line + used, size - used, "%s", words);
}

status_t choose_measured(struct group *group, const char *const *names, struct device *device,
                         void *stream, const char **out, char *line, size_t size)
{
    const char *best = NULL;
    double best_time = 0;
    line[0] = '\0';
    for (const char *const *name = names; *name; name++) {
        const struct wire_class *candidate = wire_class_find(*name);
        double handicap = candidate ? candidate->handicap : 1.0;
        struct speed speed;
        TRY(measure(group, *name, device, stream, &speed));
        tell(*name, &speed, line, size);
        double each = (speed.latency + speed.message) * handicap;
        if (speed.usable && (!best || each < best_time)) {
            best = *name;
            best_time = each;
        }
        if (speed.usable && candidate && candidate->settles && name[1]) {
            add("; it is taken where it works, so nothing else was measured", line, size);
            break;
        }
    }
    if (!best) {
        return FAIL(STATUS_UNSUPPORTED, "no transport connects these ranks' GPUs: %s",
                    line[0] ? line : "none is built in");
    }
    *out = best;
    return STATUS_OK;
}

enum { CANDIDATES = 16 };

static status_t choose_on_gpus(struct group *group, struct device *device, void *stream,
                               const char **out, char *why, size_t size)
{
    const char *names[CANDIDATES + 1];
    double patience = group->options.deadline_s;
    int count = 0;
    for (int i = 0; wire_class_at(i) != NULL && count < CANDIDATES; i++) {
        if (wire_class_at(i)->absent == NULL && wire_class_at(i)->handicap > 0) {
            names[count++] = wire_class_at(i)->name;
        }
    }
    names[count] = NULL;
    group->options.deadline_s = patience > 0 && patience < patience_s ? patience : patience_s;
    status_t status = choose_measured(group, names, device, stream, out, why, size);
    group->options.deadline_s = patience;
    return status;
}

/* The first that carries tensors of the host; *out_lacking: those before it that this build lacks. */
static const char *first_on_host(char *lacking, size_t size)
{
    size_t used = 0;
    lacking[0] = '\0';
    for (int i = 0; wire_class_at(i) != NULL; i++) {
        const struct wire_class *class = wire_class_at(i);
        if (class->hosts && class->absent == NULL) {
            return class->name;
        }
        if (class->hosts) {
            used += (size_t)snprintf(lacking + used, size - used, ", and %s is not in this build",
                                     class->name);
        }
    }
    return NULL;
}

status_t choose_explained(struct group *group, struct device *device, void *stream,
                          const char **out, char *why, size_t size)
{
    char lacking[128];
    if (group->class->threads) {
        *out = "threads";
        snprintf(why, size, "the ranks are threads of one process: nothing to measure");
        return STATUS_OK;
    }
    if (group->size == 1 || !device || device_kind(device) == DEVICE_HOST) {
        *out = first_on_host(lacking, sizeof lacking);
        snprintf(why, size, "tensors are on the host%s: nothing to measure", lacking);
        return *out ? STATUS_OK
                    : FAIL(STATUS_UNSUPPORTED,
                           "this build has no transport for tensors on the host");
    }
    return choose_on_gpus(group, device, stream, out, why, size);
}

status_t transport_choose(struct group *group, struct device *device, void *stream,
                          const char **out)
{
    char why[1024];
    TRY(choose_explained(group, device, stream, out, why, sizeof why));
    if (group->size > 1 && group->rank == 0) {
        log_info("transport %s (%s)", *out, why);
    }
    return STATUS_OK;
}
