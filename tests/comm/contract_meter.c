/* contract_meter.c - meter and choice over a transport, and transfers that record themselves. */
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "base/timeline.h"
#include "comm/transport.h"
#include "tests/comm/contract.h"
#include "tests/comm/rig.h"

enum { MESSAGES = 6 };

static status_t measure(struct group *group, const char *transport, struct device *device,
                        void *stream)
{
    static const size_t bytes[] = {4096, 300000};
    struct meter_options options = {
        .device = device, .stream = stream, .bytes = bytes, .sizes = 2, .slots = 3};
    struct meter *meter;
    char why[256] = "";

    TRY(meter_try(group, transport, &options, &meter, why, sizeof why));
    EXPECT(meter != NULL, "%s", why);
    for (int size = 0; size < options.sizes; size++) {
        for (int way = METER_FORTH; way <= METER_ROUND; way++) {
            double seconds = 0;
            TRY(meter_time(meter, (enum meter_way)way, size, 10, &seconds));
            EXPECT(seconds > 0, "way %d", way);
        }
        TRY(meter_verify(meter, size));
    }
    meter_destroy(meter);
    return STATUS_OK;
}

static status_t choose(struct group *group, const char *transport, struct device *device,
                       void *stream)
{
    const char *const names[] = {transport, NULL};
    const char *chosen = "";
    char line[512];

    TRY(choose_measured(group, names, device, stream, &chosen, line, sizeof line));
    EXPECT(strcmp(chosen, transport) == 0 && strstr(line, " GB/s at 32 MiB, ") != NULL, "%s", line);
    return STATUS_OK;
}

static status_t exchange(struct rig *rig)
{
    int rank = group_rank(rig->group);

    for (int64_t m = 0; m < MESSAGES; m++) {
        if (rank == 0) {
            TRY(wire_put(rig->wire, 0, (int)(m % 2), m, 0, rig_source(rig, 0, 0)));
            TRY(wire_sent(rig->wire, 0, m));
        } else if (rank == 1) {
            TRY(wire_post(rig->wire, 0, (int)(m % 2), m));
            TRY(wire_wait(rig->wire, 0, (int)(m % 2), m, NULL));
        }
    }
    return rig_settle(rig);
}

/* All or nothing, and the sender all where the verbs are a stream's: how the receiver gets its message
 * is the transport's business. */
static status_t check_spans(const struct rig *rig, const struct timeline *timeline)
{
    int rank = group_rank(rig->group);
    size_t count = timeline_count(timeline);
    bool sends = rank == 0 && rig->on_gpu && rig->streamed;
    const char *title = rank == 0 ? "to rank 1" : "from rank 0";

    EXPECT(count == MESSAGES || (count == 0 && !sends), "%zu transfers", count);
    EXPECT(count == 0 || rank < 2, "%zu transfers of rank %d", count, rank);
    for (size_t i = 0; i < count; i++) {
        const struct timeline_span *span = timeline_span(timeline, i);
        EXPECT(strcmp(span->category, "transfer") == 0 && span->end > span->begin &&
                   strcmp(timeline_title(timeline, span->track), title) == 0 &&
                   strstr(span->note, "channel 0") != NULL,
               "%s %s: %lld ns", span->name, span->note, (long long)(span->end - span->begin));
    }
    return STATUS_OK;
}

static status_t record(struct group *group, const char *transport)
{
    struct wire_channel channel = {0, 1, 100000, 2, NULL, 0};
    struct timeline *timeline;
    struct rig rig;

    TRY(rig_open(&rig, group, transport, &channel, 1, 1, 0));
    TRY(timeline_create(rig.device, 2 * MESSAGES, &timeline));
    TRY(timeline_start(timeline));
    wire_time(rig.wire, timeline);
    TRY(exchange(&rig));
    wire_time(rig.wire, NULL);
    TRY(timeline_resolve(timeline));
    TRY(check_spans(&rig, timeline));
    timeline_destroy(timeline);
    TRY(group_barrier(group));
    rig_close(&rig);
    return STATUS_OK;
}

status_t contract_meter(struct group *group, const char *transport)
{
    struct device *own = NULL, *device = rig_memory.device;

    if (device == NULL) {
        TRY(device_open(DEVICE_HOST, 0, &own));
        device = own;
    }
    TRY(measure(group, transport, device, rig_memory.stream));
    TRY(choose(group, transport, device, rig_memory.stream));
    TRY(record(group, transport));
    device_close(own);
    return STATUS_OK;
}

/* ---- the choice of a user who does not choose ---- */

status_t contract_choose(struct group *group, const char *chosen, const char *words)
{
    const char *name = "";
    char why[1024] = "", list[256], *rest = NULL;

    TRY(choose_explained(group, rig_memory.device, rig_memory.stream, &name, why, sizeof why));
    EXPECT(strstr(chosen, name) != NULL, "%s: %s", name, why);
    TRY(group_same(group, hash_bytes(name, strlen(name), 0), "the transport"));
    snprintf(list, sizeof list, "%s", words);
    for (char *word = strtok_r(list, "|", &rest); word; word = strtok_r(NULL, "|", &rest)) {
        EXPECT(strstr(why, word) != NULL, "'%s' is not in: %s", word, why);
    }
    if (group_rank(group) == 0) {
        printf("transport %s (%s)\n", name, why);
    }
    return group_barrier(group);
}
