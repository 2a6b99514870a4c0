/* nvml.c - the few functions of NVIDIA's management library that are of use here. */
#include "base/nvml.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

enum { NVML_SUCCESS = 0, CLOCK_SM = 1, SENSOR_GPU = 0 };

struct nvml {
    void *library, *card;
    int (*shutdown)(void);
    int (*clock)(void *card, int type, unsigned *mhz);
    int (*power)(void *card, unsigned *milliwatts);
    int (*temperature)(void *card, int sensor, unsigned *celsius);
    int (*reasons)(void *card, unsigned long long *bits);
};

static const struct {
    uint64_t bit;
    bool bad;
    const char *name;
} reason_table[] = {
    {0x1, false, "idle"},
    {0x2, false, "clocks set"},
    {0x4, false, "power cap"},
    {0x8, true, "hardware slowdown"},
    {0x10, false, "sync boost"},
    {0x20, true, "hot"},
    {0x40, true, "too hot"},
    {0x80, true, "power brake"},
    {0x100, false, "display clock"},
};
enum { REASONS = sizeof reason_table / sizeof reason_table[0] };

static const char lacking[] = "libnvidia-ml.so.1 lacks functions";

/* A function of the library into a pointer of its type. */
static bool find(void *library, const char *name, void *out)
{
    void *function = dlsym(library, name);
    memcpy(out, &function, sizeof function);
    return function != NULL;
}

static bool find_all(struct nvml *nvml)
{
    return find(nvml->library, "nvmlDeviceGetClockInfo", &nvml->clock) &&
           find(nvml->library, "nvmlDeviceGetPowerUsage", &nvml->power) &&
           find(nvml->library, "nvmlDeviceGetTemperature", &nvml->temperature) &&
           (find(nvml->library, "nvmlDeviceGetCurrentClocksEventReasons", &nvml->reasons) ||
            find(nvml->library, "nvmlDeviceGetCurrentClocksThrottleReasons", &nvml->reasons));
}

/* NULL on success, or what is wrong; leave is to be called in either case. */
static const char *enter(struct nvml *nvml)
{
    int (*start)(void), (*shutdown)(void);
    nvml->library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!nvml->library) {
        return "there is no libnvidia-ml.so.1";
    }
    if (!find(nvml->library, "nvmlInit_v2", &start) ||
        !find(nvml->library, "nvmlShutdown", &shutdown)) {
        return lacking;
    }
    if (start() != NVML_SUCCESS) {
        return "NVML does not start";
    }
    nvml->shutdown = shutdown;
    return NULL;
}

static void leave(struct nvml *nvml)
{
    if (nvml->shutdown) {
        nvml->shutdown();
    }
    if (nvml->library) {
        dlclose(nvml->library);
    }
}

/* As enter. */
static const char *open_card(struct nvml *nvml, const char *bus)
{
    int (*by_bus)(const char *bus, void **card);
    const char *why = enter(nvml);
    if (why) {
        return why;
    }
    if (!find(nvml->library, "nvmlDeviceGetHandleByPciBusId_v2", &by_bus) || !find_all(nvml)) {
        return lacking;
    }
    return by_bus(bus, &nvml->card) == NVML_SUCCESS ? NULL : "NVML does not know the card";
}

struct nvml *nvml_open(const struct device *device)
{
    struct device_info info;
    device_info(device, &info);
    struct nvml *nvml = info.bus[0] ? calloc(1, sizeof *nvml) : NULL;
    if (!nvml) {
        return NULL;
    }
    const char *why = open_card(nvml, info.bus);
    if (why) {
        log_debug("no clocks and power of %s at %s: %s", info.name, info.bus, why);
        nvml_close(nvml);
        return NULL;
    }
    return nvml;
}

void nvml_close(struct nvml *nvml)
{
    if (nvml) {
        leave(nvml);
        free(nvml);
    }
}

bool nvml_read(struct nvml *nvml, struct nvml_state *out)
{
    unsigned mhz, milliwatts, celsius;
    unsigned long long reasons;
    if (!nvml || nvml->clock(nvml->card, CLOCK_SM, &mhz) != NVML_SUCCESS ||
        nvml->power(nvml->card, &milliwatts) != NVML_SUCCESS ||
        nvml->temperature(nvml->card, SENSOR_GPU, &celsius) != NVML_SUCCESS ||
        nvml->reasons(nvml->card, &reasons) != NVML_SUCCESS) {
        return false;
    }
    *out = (struct nvml_state){mhz, milliwatts * 1e-3, celsius, reasons};
    return true;
}

bool nvml_driver(char *buffer, size_t size)
{
    struct nvml nvml = {0};
    int (*version)(char *text, unsigned length);
    bool known = !enter(&nvml) && find(nvml.library, "nvmlSystemGetDriverVersion", &version) &&
                 version(buffer, (unsigned)size) == NVML_SUCCESS;
    leave(&nvml);
    return known;
}

const char *nvml_throttle_print(uint64_t reasons, char *buffer, size_t size)
{
    size_t used = 0;
    snprintf(buffer, size, "none");
    for (int i = 0; i < REASONS; i++) {
        if ((reasons & reason_table[i].bit) && used < size) {
            used += (size_t)snprintf(buffer + used, size - used, "%s%s", used > 0 ? ", " : "",
                                     reason_table[i].name);
        }
    }
    return buffer;
}

bool nvml_throttle_is_bad(uint64_t reasons)
{
    for (int i = 0; i < REASONS; i++) {
        if ((reasons & reason_table[i].bit) && reason_table[i].bad) {
            return true;
        }
    }
    return false;
}
