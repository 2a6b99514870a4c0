/* nvml.h - what a GPU says about itself: clock, power, temperature, and why it is not faster.
 *
 * By NVIDIA's management library where it is installed (libnvidia-ml.so.1, opened at run time: no header,
 * nothing to link). Reading takes up to a few milliseconds of the host and nothing of the GPU.
 */
#ifndef BASE_NVML_H
#define BASE_NVML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/device.h"

struct nvml;

struct nvml_state {
    double sm_mhz, watts, celsius;
    uint64_t throttle; /* bits, see nvml_throttle_print */
};

/* NULL where there is no library or it does not know the device; the log file says why. */
struct nvml *nvml_open(const struct device *device);
void nvml_close(struct nvml *nvml);
bool nvml_read(struct nvml *nvml, struct nvml_state *out);
/* The driver's version, "580.82.07"; false where there is no library. */
bool nvml_driver(char *buffer, size_t size);
/* "power cap, hot", or "none": reasons to run below the highest clock. */
const char *nvml_throttle_print(uint64_t reasons, char *buffer, size_t size);
/* The reasons that nobody asked for: too hot, or the power supply brakes. */
bool nvml_throttle_is_bad(uint64_t reasons);

#endif
