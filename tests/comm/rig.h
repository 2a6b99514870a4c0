/* rig.h - a wire with its buffers, in rig_memory: memory of the host or of a GPU.
 *
 * Contents are written, read and compared as kernels would do it: rig_fill and rig_take are operations
 * of the wire's stream, and on a GPU nothing is looked at before rig_check.
 */
#ifndef TESTS_COMM_RIG_H
#define TESTS_COMM_RIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/device.h"
#include "base/status.h"
#include "comm/comm.h"

#define EXPECT(cond, ...)                                                                          \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            return FAIL(STATUS_MISMATCH, "(" #cond ") does not hold: " __VA_ARGS__);               \
        }                                                                                          \
    } while (0)

enum { SLOTS_MOST = 8 };

/* Where the wires of this program have their slots and sources; zeroed: memory of the host. */
struct rig_memory {
    struct device *device;
    void *stream;
};
extern struct rig_memory rig_memory;
/* Of the wires of this program; zeroed: none. */
extern struct wire_links rig_links;

struct rig_taken {
    int channel;
    int64_t message;
    const unsigned char *seen;
};

struct rig {
    struct group *group;
    struct wire *wire;
    struct device *device; /* its own one of the host where rig_memory has none */
    void *stream;
    bool owns_device;
    bool on_gpu, streamed; /* the verbs return at once */
    int count;
    struct wire_channel *channel; /* [count] */
    void **slot;                  /* [count * SLOTS_MOST] in `slots` */
    unsigned char *slots, *sources, *scratch;
    void **source;        /* [count] of the channels that leave here, `ahead` messages each */
    unsigned char *stage; /* pinned; what is on its way to a source or from a slot */
    size_t stage_used, stage_size;
    struct rig_taken *taken; /* [takes] in the stage, not yet compared */
    int takes, takes_most;
    int dawdles;
    struct device_event *mark;
};

/* Channels must have from, to, bytes and slots set. Sources hold `ahead` messages of each channel;
 * `messages` are filled and taken in all, a channel and end. */
status_t rig_open(struct rig *rig, struct group *group, const char *transport,
                  const struct wire_channel *channels, int count, int ahead, int messages);
void rig_close(struct rig *rig);

/* The source of the k-th of `ahead` messages. */
void *rig_source(const struct rig *rig, int channel, int k);
/* Writes what message `message` of the channel says to `place`; erases it. */
status_t rig_fill(struct rig *rig, void *place, int channel, int64_t message);
status_t rig_erase(struct rig *rig, void *place, size_t bytes);
/* Reads a slot, which should hold that message. */
status_t rig_take(struct rig *rig, int channel, int slot, int64_t message);
/* Makes the stream late now and then, so that whoever does not wait for it reads or writes too soon. */
status_t rig_dawdle(struct rig *rig);
/* Waits for the stream, 20 s at most. */
status_t rig_settle(struct rig *rig);
/* ... and compares all that was taken. */
status_t rig_check(struct rig *rig);

#endif
