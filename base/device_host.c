/* device_host.c - the host as a device: everything is done when a call returns. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/device_internal.h"
#include "base/trace.h"

struct device_event { /* the host's */
    int64_t ns;
};

static status_t host_bind(struct device *device)
{
    (void)device;
    return STATUS_OK;
}

static status_t host_alloc(struct device *device, enum memory_kind kind, size_t bytes,
                           const char *what, void **out)
{
    (void)device, (void)kind;
    size_t rounded = (bytes / ARENA_ALIGN + 1) * ARENA_ALIGN;
    void *memory = rounded > bytes ? aligned_alloc(ARENA_ALIGN, rounded) : NULL;
    if (!memory) {
        return FAIL(STATUS_NOMEM, "%s: cannot allocate %.1f MiB of host memory", what,
                    (double)bytes / 0x1p20);
    }
    *out = memory;
    return STATUS_OK;
}

static void host_free(struct device *device, enum memory_kind kind, void *memory)
{
    (void)device, (void)kind;
    free(memory);
}

static status_t host_memory(struct device *device, size_t *free_bytes, size_t *total_bytes)
{
    (void)device;
    *free_bytes = *total_bytes = 0;
    return STATUS_OK;
}

static status_t host_copy(struct device *device, void *dst, const void *src, size_t bytes,
                          void *stream)
{
    (void)device, (void)stream;
    memmove(dst, src, bytes);
    return STATUS_OK;
}

static status_t host_fill(struct device *device, void *dst, int value, size_t bytes, void *stream)
{
    (void)device, (void)stream;
    memset(dst, value, bytes);
    return STATUS_OK;
}

static status_t host_stream_create(struct device *device, bool urgent, void **out)
{
    (void)device, (void)urgent;
    *out = NULL;
    return STATUS_OK;
}

static void host_stream_destroy(struct device *device, void *stream)
{
    (void)device, (void)stream;
}

static status_t host_stream_sync(struct device *device, void *stream)
{
    (void)device, (void)stream;
    return STATUS_OK;
}

static status_t host_event_create(struct device *device, bool timed, struct device_event **out)
{
    (void)device, (void)timed;
    struct device_event *event = calloc(1, sizeof *event);
    if (!event) {
        return FAIL(STATUS_NOMEM, "no memory for an event");
    }
    *out = event;
    return STATUS_OK;
}

static void host_event_destroy(struct device *device, struct device_event *event)
{
    (void)device;
    free(event);
}

static status_t host_event_record(struct device *device, struct device_event *event, void *stream)
{
    (void)device, (void)stream;
    event->ns = trace_now();
    return STATUS_OK;
}

static status_t host_event_wait(struct device *device, struct device_event *event, void *stream)
{
    (void)device, (void)event, (void)stream;
    return STATUS_OK;
}

static status_t host_event_done(struct device *device, struct device_event *event, bool *out)
{
    (void)device, (void)event;
    *out = true;
    return STATUS_OK;
}

static status_t host_event_sync(struct device *device, struct device_event *event)
{
    (void)device, (void)event;
    return STATUS_OK;
}

static status_t host_event_elapsed(struct device *device, struct device_event *begin,
                                   struct device_event *end, double *out_ms)
{
    (void)device;
    *out_ms = (double)(end->ns - begin->ns) / 1e6;
    return STATUS_OK;
}

static status_t host_words_write(struct device *device, const struct device_word *words, int count,
                                 void *stream)
{
    (void)device, (void)stream;
    for (int i = 0; i < count; i++) {
        __atomic_store_n(words[i].word, words[i].value, __ATOMIC_RELEASE);
    }
    return STATUS_OK;
}

/* Without streams a wait could only stop the thread that would write the word. */
static status_t host_words_wait(struct device *device, const struct device_word *words, int count,
                                void *stream)
{
    (void)device, (void)stream;
    for (int i = 0; i < count; i++) {
        CHECK((int32_t)(__atomic_load_n(words[i].word, __ATOMIC_ACQUIRE) - words[i].value) >= 0,
              "the host has no streams that could wait for a word");
    }
    return STATUS_OK;
}

static status_t host_enroll(struct device *device, void *memory, size_t bytes)
{
    (void)device, (void)memory, (void)bytes;
    return STATUS_OK;
}

static void host_dismiss(struct device *device, void *memory)
{
    (void)device, (void)memory;
}

static status_t host_share(struct device *device, const void *memory, struct device_handle *out)
{
    (void)device, (void)memory, (void)out;
    return FAIL(STATUS_UNSUPPORTED, "memory of the host is not shared between processes");
}

static status_t host_import(struct device *device, const struct device_handle *handle, void **out)
{
    (void)device, (void)handle, (void)out;
    return FAIL(STATUS_UNSUPPORTED, "memory of the host is not shared between processes");
}

static void host_unimport(struct device *device, const struct device_handle *handle, void *imported)
{
    (void)device, (void)handle, (void)imported;
}

const struct device_ops device_host_ops = {
    .bind = host_bind,
    .alloc = host_alloc,
    .free = host_free,
    .memory = host_memory,
    .copy = host_copy,
    .fill = host_fill,
    .stream_create = host_stream_create,
    .stream_destroy = host_stream_destroy,
    .stream_sync = host_stream_sync,
    .event_create = host_event_create,
    .event_destroy = host_event_destroy,
    .event_record = host_event_record,
    .event_wait = host_event_wait,
    .event_done = host_event_done,
    .event_sync = host_event_sync,
    .event_elapsed = host_event_elapsed,
    .words_write = host_words_write,
    .words_wait = host_words_wait,
    .enroll = host_enroll,
    .dismiss = host_dismiss,
    .share = host_share,
    .import = host_import,
    .unimport = host_unimport,
};
