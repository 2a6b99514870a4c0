/* facts.c - what a rank finds out about its host without measuring. */
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/nvml.h"
#include "runtime/runtime.h"
#include "tools/preflight/preflight.h"

/* Releases that others report to hang pipeline-parallel jobs: NVIDIA's resiliency extension advises against 2.28.3 to
 * 2.28.8; 2.30.7 hangs grouped sends and receives, 2.31.2 does not. */
const char *nccl_known(int release)
{
    if (release >= 22803 && release <= 22808) {
        return "2.28.3 to 2.28.8 are reported to hang; 2.28.9 is not";
    }
    return release == 23007 ? "2.30.7 is reported to hang between pipeline stages; 2.31.2 is not"
                            : NULL;
}

/* The value of "key : value" in a file of such lines; "" if there is none. */
static void value_of(const char *path, const char *key, char *out, size_t size)
{
    char line[512];
    FILE *file = fopen(path, "r");
    out[0] = '\0';
    while (file && !out[0] && fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (colon && strncmp(line, key, strlen(key)) == 0) {
            colon += 1 + strspn(colon + 1, " \t");
            colon[strcspn(colon, "\n")] = '\0';
            snprintf(out, size, "%.*s", (int)size - 1, colon);
        }
    }
    if (file) {
        fclose(file);
    }
}

static int64_t memory_of(const char *key)
{
    char value[64];
    value_of("/proc/meminfo", key, value, sizeof value);
    return value[0] ? atoll(value) * 1024 : -1;
}

static void collect_memory(struct facts *out)
{
    struct statvfs shm;
    struct rlimit locked;
    out->memory = memory_of("MemTotal");
    out->memory_free = memory_of("MemAvailable");
    bool known = statvfs("/dev/shm", &shm) == 0;
    out->shm = known ? (int64_t)shm.f_blocks * (int64_t)shm.f_frsize : -1;
    out->shm_free = known ? (int64_t)shm.f_bavail * (int64_t)shm.f_frsize : -1;
    bool limited = getrlimit(RLIMIT_MEMLOCK, &locked) == 0 && locked.rlim_cur != RLIM_INFINITY;
    out->locked = limited ? (int64_t)locked.rlim_cur : -1;
}

/* Those that this job may use. */
static void collect_libraries(bool gpu, struct facts *out)
{
    char version[NAME];
    out->libraries[0] = '\0';
    for (int i = 0; transport_at(i); i++) {
        size_t length = strlen(out->libraries);
        int major, minor, patch;
        version[0] = '\0';
        if (gpu || !transport_needs_gpus(transport_at(i))) {
            transport_version(transport_at(i), version, sizeof version);
        }
        if (version[0]) {
            snprintf(out->libraries + length, sizeof out->libraries - length, "%s%s",
                     length > 0 ? ", " : "", version);
        }
        if (sscanf(version, "NCCL %d.%d.%d", &major, &minor, &patch) == 3) {
            const char *known = nccl_known(major * 10000 + minor * 100 + patch);
            snprintf(out->nccl_hangs, sizeof out->nccl_hangs, "%s", known ? known : "");
        }
    }
}

static void collect_fabric(struct facts *out)
{
    struct adapter adapter[ADAPTERS];
    enum distance distance = DISTANCE_FAR;
    out->adapters = fabric_read("/sys", adapter);
    for (int a = 0; a < out->adapters; a++) {
        out->adapter_gbit =
            adapter[a].gbit > out->adapter_gbit ? adapter[a].gbit : out->adapter_gbit;
    }
    int nearest =
        out->bus[0] ? fabric_nearest("/sys", out->bus, adapter, out->adapters, &distance) : -1;
    if (nearest >= 0) {
        snprintf(out->nearest, sizeof out->nearest, "%s, %s", adapter[nearest].name,
                 distance_name(distance));
    }
}

void facts_collect(struct group *group, const struct device *device, const char *operations,
                   struct facts *out)
{
    struct utsname system;
    struct device_info info;
    memset(out, 0, sizeof *out);
    out->local_rank = group_local_rank(group);
    const char *node = getenv("SLURMD_NODENAME"); /* as Slurm's own options name it */
    gethostname(out->host, sizeof out->host - 1);
    if (node && node[0]) {
        snprintf(out->host, sizeof out->host, "%.*s", NAME - 1, node);
    }
    if (uname(&system) == 0) {
        snprintf(out->system, sizeof out->system, "%.*s", NAME - 1, system.release);
    }
    value_of("/proc/cpuinfo", "model name", out->processor, sizeof out->processor);
    snprintf(out->program, sizeof out->program, "%s, %016llx", MUDDPIPE_VERSION,
             (unsigned long long)program_id());
    snprintf(out->computes, sizeof out->computes, "%.*s", NAME - 1, operations);
    if (device_kind(device) == DEVICE_CUDA) {
        char version[64];
        device_info(device, &info);
        snprintf(out->computes, sizeof out->computes, "%.*s", NAME - 1, info.name);
        snprintf(out->bus, sizeof out->bus, "%s", info.bus);
        snprintf(out->driver, sizeof out->driver, "driver %s, CUDA %d.%d",
                 nvml_driver(version, sizeof version) ? version : "?", info.runtime / 1000,
                 info.runtime % 1000 / 10);
    }
    collect_memory(out);
    collect_libraries(device_kind(device) == DEVICE_CUDA, out);
    collect_fabric(out);
}
