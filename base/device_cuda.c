/* device_cuda.c - a GPU as a device, by the CUDA runtime. */
#include <cuda_runtime.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/device_internal.h"
#include "base/log.h"

enum { CAPABILITY_LEAST = 80 }; /* what the kernels are compiled for */
enum { CONNECTIONS_LEAST = 8 };

static status_t cuda_status(cudaError_t error, const char *doing)
{
    if (error == cudaSuccess) {
        return STATUS_OK;
    }
    return FAIL(error == cudaErrorMemoryAllocation ? STATUS_NOMEM : STATUS_INTERNAL,
                "GPU: %s: %s (%s)", doing, cudaGetErrorString(error), cudaGetErrorName(error));
}

#define TRY_CUDA(call, doing) TRY(cuda_status((call), (doing)))

static cudaEvent_t cuda_event(struct device_event *event)
{
    return (cudaEvent_t)(void *)event;
}

static char refused[32]; /* what CUDA_DEVICE_MAX_CONNECTIONS was, where it would not do */

/* Streams beyond these share hardware queues, where one that waits for a word holds up the others. */
static void connections_set(void)
{
    const char *set = getenv("CUDA_DEVICE_MAX_CONNECTIONS");
    if (set && atoi(set) < CONNECTIONS_LEAST) {
        snprintf(refused, sizeof refused, "%s", set);
    }
    if (!set || refused[0]) {
        (void)setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 1);
    }
}

/* By device_prepare, else (a test program) by the first who asks for devices. */
void device_cuda_prepare(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    (void)pthread_once(&once, connections_set);
}

static void connections_tell(void)
{
    if (refused[0]) {
        log_warn(
            "CUDA_DEVICE_MAX_CONNECTIONS=%s would let streams wait for each other without end: "
            "taken as 32",
            refused);
    }
}

/* The runtime calls a driver that is missing one that is too old. */
static void say_unusable(cudaError_t error, char *why, size_t size)
{
    int driver = 0, runtime = 0;
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    if (error != cudaErrorInsufficientDriver) {
        snprintf(why, size, "%s", cudaGetErrorString(error));
    } else if (driver == 0) {
        snprintf(why, size, "there is no NVIDIA driver on this host");
    } else {
        snprintf(why, size,
                 "the NVIDIA driver here is for CUDA %d.%d, older than the CUDA %d.%d that this "
                 "program was built with; update the driver, or build with an older toolkit",
                 driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    }
}

static bool too_old(int index, int *out_capability)
{
    int major = 0, minor = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index) != cudaSuccess) {
        return false; /* opening it will say what is wrong */
    }
    *out_capability = major * 10 + minor;
    return *out_capability < CAPABILITY_LEAST;
}

/* Ranks are dealt over all that are visible: one old card refuses them all. */
int device_cuda_count(char *why, size_t size)
{
    static pthread_once_t told = PTHREAD_ONCE_INIT;
    char unheard[256];
    int count = 0, capability;
    device_cuda_prepare();
    (void)pthread_once(&told, connections_tell);
    if (!why) {
        why = unheard;
        size = sizeof unheard;
    }
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) {
        (void)cudaGetLastError(); /* so that nobody later takes it for theirs */
        say_unusable(error, why, size);
        return 0;
    }
    if (count == 0) {
        snprintf(why, size, "no GPU is visible");
    }
    for (int i = 0; i < count; i++) {
        if (too_old(i, &capability)) {
            snprintf(why, size, "GPU %d of %d is sm_%d, and sm_%d or newer is needed%s", i, count,
                     capability, CAPABILITY_LEAST,
                     count > 1 ? " (CUDA_VISIBLE_DEVICES can leave it out)" : "");
            return 0;
        }
    }
    return count;
}

static status_t cuda_bind(struct device *device)
{
    TRY_CUDA(cudaSetDevice(device->index), "choosing the device");
    return STATUS_OK;
}

static status_t cuda_alloc(struct device *device, enum memory_kind kind, size_t bytes,
                           const char *what, void **out)
{
    if (kind == MEMORY_HOST) {
        return device_host_ops.alloc(device, kind, bytes, what, out);
    }
    void *memory = NULL;
    size_t least = bytes > 0 ? bytes : 1;
    cudaError_t error = kind == MEMORY_PINNED ? cudaHostAlloc(&memory, least, cudaHostAllocPortable)
                                              : cudaMalloc(&memory, least);
    if (error == cudaErrorMemoryAllocation) {
        size_t free_bytes = 0, total = 0;
        (void)cudaGetLastError();
        (void)cudaMemGetInfo(&free_bytes, &total);
        return FAIL(STATUS_NOMEM,
                    "%s: cannot allocate %.1f MiB of %s memory (GPU %d: %.1f of %.1f MiB free%s)",
                    what, (double)bytes / 0x1p20, kind == MEMORY_PINNED ? "pinned host" : "GPU",
                    device->index, (double)free_bytes / 0x1p20, (double)total / 0x1p20,
                    kind == MEMORY_PINNED
                        ? "; what is pinned is bounded by the host's and the job's memory"
                        : "");
    }
    TRY_CUDA(error, what);
    *out = memory;
    return STATUS_OK;
}

static void cuda_free(struct device *device, enum memory_kind kind, void *memory)
{
    switch (kind) {
    case MEMORY_PINNED:
        (void)cudaFreeHost(memory);
        break;
    case MEMORY_DEVICE:
        (void)cudaFree(memory);
        break;
    default:
        device_host_ops.free(device, kind, memory);
        break;
    }
}

static status_t cuda_memory(struct device *device, size_t *free_bytes, size_t *total_bytes)
{
    (void)device;
    TRY_CUDA(cudaMemGetInfo(free_bytes, total_bytes), "asking for the free memory");
    return STATUS_OK;
}

static status_t cuda_copy(struct device *device, void *dst, const void *src, size_t bytes,
                          void *stream)
{
    (void)device;
    TRY_CUDA(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, stream), "copying");
    return STATUS_OK;
}

static status_t cuda_fill(struct device *device, void *dst, int value, size_t bytes, void *stream)
{
    (void)device;
    TRY_CUDA(cudaMemsetAsync(dst, value, bytes, stream), "filling memory");
    return STATUS_OK;
}

static status_t cuda_stream_create(struct device *device, bool urgent, void **out)
{
    (void)device;
    int least = 0, greatest = 0;
    cudaStream_t stream = NULL;
    TRY_CUDA(cudaDeviceGetStreamPriorityRange(&least, &greatest), "asking for priorities");
    TRY_CUDA(
        cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, urgent ? greatest : least),
        "creating a stream");
    *out = stream;
    return STATUS_OK;
}

static void cuda_stream_destroy(struct device *device, void *stream)
{
    (void)device;
    (void)cudaStreamDestroy(stream);
}

static status_t cuda_stream_sync(struct device *device, void *stream)
{
    (void)device;
    TRY_CUDA(cudaStreamSynchronize(stream), "waiting for a stream");
    return STATUS_OK;
}

static status_t cuda_event_create(struct device *device, bool timed, struct device_event **out)
{
    (void)device;
    cudaEvent_t event = NULL;
    /* Not cudaEventBlockingSync: some 56 of those fill a queue that takes 1020 others (H200, CUDA 13.0),
     * and then the host is held up. */
    unsigned flags = timed ? cudaEventDefault : cudaEventDisableTiming;
    TRY_CUDA(cudaEventCreateWithFlags(&event, flags), "creating an event");
    *out = (struct device_event *)(void *)event;
    return STATUS_OK;
}

static void cuda_event_destroy(struct device *device, struct device_event *event)
{
    (void)device;
    (void)cudaEventDestroy(cuda_event(event));
}

static status_t cuda_event_record(struct device *device, struct device_event *event, void *stream)
{
    (void)device;
    TRY_CUDA(cudaEventRecord(cuda_event(event), stream), "recording an event");
    return STATUS_OK;
}

static status_t cuda_event_wait(struct device *device, struct device_event *event, void *stream)
{
    (void)device;
    TRY_CUDA(cudaStreamWaitEvent(stream, cuda_event(event), 0), "making a stream wait");
    return STATUS_OK;
}

static status_t cuda_event_done(struct device *device, struct device_event *event, bool *out)
{
    (void)device;
    cudaError_t error = cudaEventQuery(cuda_event(event));
    if (error != cudaErrorNotReady) {
        TRY_CUDA(error, "asking for an event");
    }
    *out = error == cudaSuccess;
    return STATUS_OK;
}

static status_t cuda_event_sync(struct device *device, struct device_event *event)
{
    (void)device;
    TRY_CUDA(cudaEventSynchronize(cuda_event(event)), "waiting for an event");
    return STATUS_OK;
}

static status_t cuda_event_elapsed(struct device *device, struct device_event *begin,
                                   struct device_event *end, double *out_ms)
{
    (void)device;
    float ms = 0;
    TRY_CUDA(cudaEventElapsedTime(&ms, cuda_event(begin), cuda_event(end)), "timing events");
    *out_ms = (double)ms;
    return STATUS_OK;
}

static const struct device_ops cuda_ops = {
    .bind = cuda_bind,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .memory = cuda_memory,
    .copy = cuda_copy,
    .fill = cuda_fill,
    .stream_create = cuda_stream_create,
    .stream_destroy = cuda_stream_destroy,
    .stream_sync = cuda_stream_sync,
    .event_create = cuda_event_create,
    .event_destroy = cuda_event_destroy,
    .event_record = cuda_event_record,
    .event_wait = cuda_event_wait,
    .event_done = cuda_event_done,
    .event_sync = cuda_event_sync,
    .event_elapsed = cuda_event_elapsed,
    .words_write = cuda_words_write,
    .words_wait = cuda_words_wait,
    .enroll = cuda_enroll,
    .dismiss = cuda_dismiss,
    .share = cuda_share,
    .import = cuda_import,
    .unimport = cuda_unimport,
};

static status_t info_read(struct device *device)
{
    struct cudaDeviceProp properties;
    struct device_info *info = &device->info;
    TRY_CUDA(cudaGetDeviceProperties(&properties, device->index), "reading its properties");
    TRY_CUDA(cudaDriverGetVersion(&info->driver), "asking for the driver's version");
    TRY_CUDA(cudaRuntimeGetVersion(&info->runtime), "asking for the runtime's version");
    snprintf(info->name, sizeof info->name, "%.120s", properties.name);
    TRY_CUDA(cudaDeviceGetPCIBusId(info->bus, sizeof info->bus, device->index),
             "asking for its place on the bus");
    info->capability = properties.major * 10 + properties.minor;
    info->multiprocessors = properties.multiProcessorCount;
    info->bytes = properties.totalGlobalMem;
    _Static_assert(sizeof info->card == sizeof properties.uuid, "a UUID");
    memcpy(info->card, &properties.uuid, sizeof info->card);
    return STATUS_OK;
}

status_t device_cuda_open(struct device *device)
{
    char why[256] = "";
    int count = device_cuda_count(why, sizeof why);
    if (count == 0) {
        return FAIL(STATUS_UNSUPPORTED, "no GPU: %s; device: cpu runs without one", why);
    }
    if (device->index < 0 || device->index >= count) {
        return FAIL(STATUS_UNSUPPORTED,
                    "GPU %d does not exist: this process sees %d; start fewer ranks a machine, or "
                    "make more visible (CUDA_VISIBLE_DEVICES)",
                    device->index, count);
    }
    TRY(info_read(device));
    if (device->info.capability < CAPABILITY_LEAST) {
        return FAIL(STATUS_UNSUPPORTED, "GPU %d, %s, is sm_%d: sm_%d or newer is needed",
                    device->index, device->info.name, device->info.capability, CAPABILITY_LEAST);
    }
    device->ops = &cuda_ops;
    return cuda_bind(device);
}
