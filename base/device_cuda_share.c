/* device_cuda_share.c - words that streams write and wait for, and memory of other processes.
 *
 * Stream-ordered words are calls of the driver, which is loaded already wherever there is a GPU; the
 * program itself is not linked with it and starts without one.
 */
#include <cuda.h>
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

#include "base/device_internal.h"

enum { IMPORTS = 256 }; /* allocations of other processes, each mapped once */

typedef CUresult (*word_fn)(CUstream stream, CUdeviceptr word, cuuint32_t value, unsigned flags);
typedef CUresult (*range_fn)(CUdeviceptr *base, size_t *size, CUdeviceptr address);
typedef CUresult (*name_fn)(CUresult error, const char **out);

static struct {
    word_fn write, wait;
    range_fn range;
    name_fn name;
} driver;

static pthread_once_t driver_once = PTHREAD_ONCE_INIT;

static struct import {
    unsigned char handle[64];
    void *base;
    int device, uses;
} imports[IMPORTS];
static pthread_mutex_t imports_mutex = PTHREAD_MUTEX_INITIALIZER;

static void driver_load(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    if (library) {
        driver.write = (word_fn)dlsym(library, "cuStreamWriteValue32_v2");
        driver.wait = (word_fn)dlsym(library, "cuStreamWaitValue32_v2");
        driver.range = (range_fn)dlsym(library, "cuMemGetAddressRange_v2");
        driver.name = (name_fn)dlsym(library, "cuGetErrorName");
    }
}

static status_t driver_ready(void)
{
    pthread_once(&driver_once, driver_load);
    if (driver.write && driver.wait && driver.range && driver.name) {
        return STATUS_OK;
    }
    return FAIL(STATUS_UNSUPPORTED,
                "the GPU driver has no stream-ordered waits; a driver for CUDA 12 or newer has");
}

static status_t driver_status(CUresult result, const char *doing)
{
    const char *name = "?";
    if (result == CUDA_SUCCESS) {
        return STATUS_OK;
    }
    (void)driver.name(result, &name);
    return FAIL(STATUS_INTERNAL, "GPU: %s: %s", doing, name);
}

static status_t runtime_status(cudaError_t error, const char *doing)
{
    if (error == cudaSuccess) {
        return STATUS_OK;
    }
    (void)cudaGetLastError();
    return FAIL(STATUS_UNSUPPORTED, "GPU: %s: %s (%s)", doing, cudaGetErrorString(error),
                cudaGetErrorName(error));
}

/* An operation for each. (A write without its fence, CU_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER, is refused
 * by this version of the calls.) */
static status_t words_do(bool write, const struct device_word *words, int count, void *stream)
{
    TRY(driver_ready());
    for (int i = 0; i < count; i++) {
        CUdeviceptr address = (CUdeviceptr)(uintptr_t)words[i].word;
        unsigned flags = write ? CU_STREAM_WRITE_VALUE_DEFAULT : CU_STREAM_WAIT_VALUE_GEQ;
        CUresult result =
            (write ? driver.write : driver.wait)(stream, address, words[i].value, flags);
        TRY(driver_status(result,
                          write ? "writing a word in a stream" : "waiting for a word in a stream"));
    }
    return STATUS_OK;
}

status_t cuda_words_write(struct device *device, const struct device_word *words, int count,
                          void *stream)
{
    (void)device;
    return words_do(true, words, count, stream);
}

status_t cuda_words_wait(struct device *device, const struct device_word *words, int count,
                         void *stream)
{
    (void)device;
    return words_do(false, words, count, stream);
}

status_t cuda_enroll(struct device *device, void *memory, size_t bytes)
{
    void *there = NULL;
    (void)device;
    TRY(runtime_status(
        cudaHostRegister(memory, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped),
        "registering shared memory"));
    TRY(runtime_status(cudaHostGetDevicePointer(&there, memory, 0), "mapping shared memory"));
    if (there != memory) {
        (void)cudaHostUnregister(memory);
        return FAIL(STATUS_UNSUPPORTED,
                    "the GPU sees registered host memory under another address than the host");
    }
    return STATUS_OK;
}

void cuda_dismiss(struct device *device, void *memory)
{
    (void)device;
    (void)cudaHostUnregister(memory);
}

status_t cuda_share(struct device *device, const void *memory, struct device_handle *out)
{
    CUdeviceptr base = 0, address = (CUdeviceptr)(uintptr_t)memory;
    cudaIpcMemHandle_t handle;
    size_t size = 0;
    (void)device;
    _Static_assert(sizeof handle == sizeof out->memory, "a handle of the runtime");
    TRY(driver_ready());
    TRY(driver_status(driver.range(&base, &size, address), "finding an allocation"));
    TRY(runtime_status(cudaIpcGetMemHandle(&handle, (void *)(uintptr_t)base),
                       "sharing memory with another process"));
    memcpy(out->memory, &handle, sizeof handle);
    out->offset = address - base;
    return STATUS_OK;
}

/* The allocation's entry on this device, or a free one; NULL when the table is full. */
static struct import *import_find(const struct device *device, const struct device_handle *handle)
{
    struct import *vacant = NULL;
    for (int i = 0; i < IMPORTS; i++) {
        if (!imports[i].base) {
            vacant = vacant ? vacant : &imports[i];
        } else if (imports[i].device == device->index &&
                   memcmp(imports[i].handle, handle->memory, sizeof handle->memory) == 0) {
            return &imports[i];
        }
    }
    return vacant;
}

static status_t import_open(struct device *device, const struct device_handle *handle,
                            struct import *import)
{
    cudaIpcMemHandle_t foreign;
    void *base = NULL;
    memcpy(&foreign, handle->memory, sizeof foreign);
    TRY(runtime_status(cudaIpcOpenMemHandle(&base, foreign, cudaIpcMemLazyEnablePeerAccess),
                       "mapping another process's memory (no peer access between the GPUs, or "
                       "containers that do not share IPC?)"));
    memcpy(import->handle, handle->memory, sizeof import->handle);
    import->device = device->index;
    import->base = base;
    import->uses = 0;
    return STATUS_OK;
}

status_t cuda_import(struct device *device, const struct device_handle *handle, void **out)
{
    status_t status = STATUS_OK;
    pthread_mutex_lock(&imports_mutex);
    struct import *import = import_find(device, handle);
    if (!import) {
        status = FAIL(STATUS_UNSUPPORTED, "more than %d allocations of other processes", IMPORTS);
    } else if (!import->base) {
        status = import_open(device, handle, import);
    }
    if (status == STATUS_OK) {
        import->uses++;
        *out = (char *)import->base + handle->offset;
    }
    pthread_mutex_unlock(&imports_mutex);
    return status;
}

void cuda_unimport(struct device *device, const struct device_handle *handle, void *imported)
{
    (void)imported;
    pthread_mutex_lock(&imports_mutex);
    struct import *import = import_find(device, handle);
    if (import && import->base && --import->uses == 0) {
        (void)cudaIpcCloseMemHandle(import->base);
        import->base = NULL;
    }
    pthread_mutex_unlock(&imports_mutex);
}
