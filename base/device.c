/* device.c - the door of device.h: finds the implementation and forwards. */
#include <stdio.h>
#include <stdlib.h>

#include "base/device_internal.h"

#define NO_CUDA "this program was built without CUDA"

void device_prepare(void)
{
#ifdef KERNELS_HAVE_CUDA
    device_cuda_prepare();
#endif
}

bool device_built(enum device_kind kind)
{
#ifdef KERNELS_HAVE_CUDA
    return kind == DEVICE_HOST || kind == DEVICE_CUDA;
#else
    return kind == DEVICE_HOST;
#endif
}

int device_count(enum device_kind kind, char *why, size_t size)
{
    if (kind == DEVICE_HOST) {
        return 1;
    }
#ifdef KERNELS_HAVE_CUDA
    return device_cuda_count(why, size);
#else
    if (why) {
        snprintf(why, size, NO_CUDA);
    }
    return 0;
#endif
}

static status_t device_init(struct device *device)
{
    if (device->kind == DEVICE_HOST) {
        device->ops = &device_host_ops;
        snprintf(device->info.name, sizeof device->info.name, "host");
        return STATUS_OK;
    }
#ifdef KERNELS_HAVE_CUDA
    return device_cuda_open(device);
#else
    return FAIL(STATUS_UNSUPPORTED, NO_CUDA ": configure with -DMUDDPIPE_CUDA=ON where nvcc is");
#endif
}

status_t device_open(enum device_kind kind, int index, struct device **out)
{
    struct device *device = calloc(1, sizeof *device);
    if (!device) {
        return FAIL(STATUS_NOMEM, "no memory for a device");
    }
    device->kind = kind;
    device->index = index;
    status_t status = device_init(device);
    if (status != STATUS_OK) {
        free(device);
        return status;
    }
    *out = device;
    return STATUS_OK;
}

void device_close(struct device *device)
{
    free(device);
}

status_t device_bind(struct device *device)
{
    return device->ops->bind(device);
}

void device_info(const struct device *device, struct device_info *out)
{
    *out = device->info;
}

enum device_kind device_kind(const struct device *device)
{
    return device->kind;
}

status_t device_alloc(struct device *device, enum memory_kind kind, size_t bytes, const char *what,
                      void **out)
{
    return device->ops->alloc(device, kind, bytes, what, out);
}

void device_free(struct device *device, enum memory_kind kind, void *memory)
{
    if (memory) {
        device->ops->free(device, kind, memory);
    }
}

status_t device_memory(struct device *device, size_t *free_bytes, size_t *total_bytes)
{
    return device->ops->memory(device, free_bytes, total_bytes);
}

status_t device_copy(struct device *device, void *dst, const void *src, size_t bytes, void *stream)
{
    return bytes > 0 ? device->ops->copy(device, dst, src, bytes, stream) : STATUS_OK;
}

status_t device_fill(struct device *device, void *dst, int value, size_t bytes, void *stream)
{
    return bytes > 0 ? device->ops->fill(device, dst, value, bytes, stream) : STATUS_OK;
}

status_t device_stream_create(struct device *device, bool urgent, void **out)
{
    return device->ops->stream_create(device, urgent, out);
}

void device_stream_destroy(struct device *device, void *stream)
{
    if (stream) {
        device->ops->stream_destroy(device, stream);
    }
}

status_t device_stream_sync(struct device *device, void *stream)
{
    return device->ops->stream_sync(device, stream);
}

status_t device_event_create(struct device *device, bool timed, struct device_event **out)
{
    return device->ops->event_create(device, timed, out);
}

void device_event_destroy(struct device *device, struct device_event *event)
{
    if (event) {
        device->ops->event_destroy(device, event);
    }
}

status_t device_event_record(struct device *device, struct device_event *event, void *stream)
{
    return device->ops->event_record(device, event, stream);
}

status_t device_event_wait(struct device *device, struct device_event *event, void *stream)
{
    return device->ops->event_wait(device, event, stream);
}

status_t device_event_done(struct device *device, struct device_event *event, bool *out)
{
    return device->ops->event_done(device, event, out);
}

status_t device_event_sync(struct device *device, struct device_event *event)
{
    return device->ops->event_sync(device, event);
}

status_t device_event_elapsed(struct device *device, struct device_event *begin,
                              struct device_event *end, double *out_ms)
{
    return device->ops->event_elapsed(device, begin, end, out_ms);
}

status_t device_word_write(struct device *device, uint32_t *word, uint32_t value, void *stream)
{
    return device->ops->words_write(device, &(struct device_word){word, value}, 1, stream);
}

status_t device_word_wait(struct device *device, uint32_t *word, uint32_t value, void *stream)
{
    return device->ops->words_wait(device, &(struct device_word){word, value}, 1, stream);
}

status_t device_words_write(struct device *device, const struct device_word *words, int count,
                            void *stream)
{
    return device->ops->words_write(device, words, count, stream);
}

status_t device_words_wait(struct device *device, const struct device_word *words, int count,
                           void *stream)
{
    return device->ops->words_wait(device, words, count, stream);
}

status_t device_register(struct device *device, void *memory, size_t bytes)
{
    return device->ops->enroll(device, memory, bytes);
}

void device_unregister(struct device *device, void *memory)
{
    if (memory) {
        device->ops->dismiss(device, memory);
    }
}

status_t device_export(struct device *device, const void *memory, struct device_handle *out)
{
    return device->ops->share(device, memory, out);
}

status_t device_import(struct device *device, const struct device_handle *handle, void **out)
{
    return device->ops->import(device, handle, out);
}

void device_unimport(struct device *device, const struct device_handle *handle, void *imported)
{
    if (imported) {
        device->ops->unimport(device, handle, imported);
    }
}
