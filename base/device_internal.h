/* device_internal.h - what an implementation of device.h fills in; private to base/device*.c. */
#ifndef BASE_DEVICE_INTERNAL_H
#define BASE_DEVICE_INTERNAL_H

#include "base/device.h"

struct device {
    const struct device_ops *ops;
    enum device_kind kind;
    int index;
    struct device_info info;
};

struct device_ops {
    status_t (*bind)(struct device *device);
    status_t (*alloc)(struct device *device, enum memory_kind kind, size_t bytes, const char *what,
                      void **out);
    void (*free)(struct device *device, enum memory_kind kind, void *memory);
    status_t (*memory)(struct device *device, size_t *free_bytes, size_t *total_bytes);
    status_t (*copy)(struct device *device, void *dst, const void *src, size_t bytes, void *stream);
    status_t (*fill)(struct device *device, void *dst, int value, size_t bytes, void *stream);
    status_t (*stream_create)(struct device *device, bool urgent, void **out);
    void (*stream_destroy)(struct device *device, void *stream);
    status_t (*stream_sync)(struct device *device, void *stream);
    status_t (*event_create)(struct device *device, bool timed, struct device_event **out);
    void (*event_destroy)(struct device *device, struct device_event *event);
    status_t (*event_record)(struct device *device, struct device_event *event, void *stream);
    status_t (*event_wait)(struct device *device, struct device_event *event, void *stream);
    status_t (*event_done)(struct device *device, struct device_event *event, bool *out);
    status_t (*event_sync)(struct device *device, struct device_event *event);
    status_t (*event_elapsed)(struct device *device, struct device_event *begin,
                              struct device_event *end, double *out_ms);
    status_t (*words_write)(struct device *device, const struct device_word *words, int count,
                            void *stream);
    status_t (*words_wait)(struct device *device, const struct device_word *words, int count,
                           void *stream);
    status_t (*enroll)(struct device *device, void *memory, size_t bytes);
    void (*dismiss)(struct device *device, void *memory);
    status_t (*share)(struct device *device, const void *memory, struct device_handle *out);
    status_t (*import)(struct device *device, const struct device_handle *handle, void **out);
    void (*unimport)(struct device *device, const struct device_handle *handle, void *imported);
};

extern const struct device_ops device_host_ops;

#ifdef KERNELS_HAVE_CUDA
void device_cuda_prepare(void);
int device_cuda_count(char *why, size_t size);
status_t device_cuda_open(struct device *device); /* kind and index are set */

/* device_cuda_share.c */
status_t cuda_words_write(struct device *device, const struct device_word *words, int count,
                          void *stream);
status_t cuda_words_wait(struct device *device, const struct device_word *words, int count,
                         void *stream);
status_t cuda_enroll(struct device *device, void *memory, size_t bytes);
void cuda_dismiss(struct device *device, void *memory);
status_t cuda_share(struct device *device, const void *memory, struct device_handle *out);
status_t cuda_import(struct device *device, const struct device_handle *handle, void **out);
void cuda_unimport(struct device *device, const struct device_handle *handle, void *imported);
#endif

#endif
