/* device.h - where a rank computes: memory, copies, streams and events of the host or of a GPU.
 *
 * One API, two implementations. On the host a stream is a fiction: every call is done when it returns
 * and streams are NULL. On a GPU, calls that take a stream only enqueue and return at once; nothing
 * waits but device_stream_sync, device_event_sync and (the driver's habit) allocation and freeing.
 *
 * A device is used by the thread that opened it, or by one that called device_bind. Streams are what
 * `kernel_ctx.stream` wants.
 *
 * What a GPU did wrong shows at some later call; that call's status and message carry it.
 */
#ifndef BASE_DEVICE_H
#define BASE_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum device_kind { DEVICE_HOST, DEVICE_CUDA };

enum memory_kind {
    MEMORY_HOST,   /* plain host memory; copies from and to it may wait for the GPU */
    MEMORY_PINNED, /* host memory that the GPU reads and writes under the same address */
    MEMORY_DEVICE, /* the GPU's own; on the host the same as MEMORY_HOST */
    MEMORY_KINDS
};

struct device_info {
    char name[128];
    char bus[24];           /* PCI: "0000:1B:00.0"; "" on the host */
    int capability;         /* 90 for sm_90; 0 on the host */
    int multiprocessors;    /* 0 on the host */
    size_t bytes;           /* memory; 0 on the host */
    int driver, runtime;    /* 13000 for CUDA 13.0; 0 on the host */
    unsigned char card[16]; /* the same bytes in every process that uses this GPU, in no other */
};

struct device;
struct device_event;

/* Call early in main, before threads and libraries (an MPI that knows CUDA) are there: sets what
 * CUDA reads from the environment when its first context is made (CUDA_DEVICE_MAX_CONNECTIONS). */
void device_prepare(void);

bool device_built(enum device_kind kind); /* whether this program can use any such */
/* Devices of a kind that this process sees: DEVICE_HOST 1; DEVICE_CUDA 0 where the build, the driver
 * or the machine has none, or one is too old. `why` (may be NULL) then gets the reason, up to `size`
 * bytes. */
int device_count(enum device_kind kind, char *why, size_t size);

/* Opens a device and binds the calling thread to it. */
MUST_USE status_t device_open(enum device_kind kind, int index, struct device **out);
void device_close(struct device *device);
MUST_USE status_t device_bind(struct device *device);
void device_info(const struct device *device, struct device_info *out);
enum device_kind device_kind(const struct device *device);

/* ---- memory ---- */

/* Bytes at least 256-byte aligned, contents undefined; `what` names them in the message on failure. */
MUST_USE status_t device_alloc(struct device *device, enum memory_kind kind, size_t bytes,
                               const char *what, void **out);
void device_free(struct device *device, enum memory_kind kind, void *memory);
/* Bytes of device memory that are free now and that there are; zeros on the host. */
MUST_USE status_t device_memory(struct device *device, size_t *free_bytes, size_t *total_bytes);

/* Copies between any two kinds of memory, in stream order. */
MUST_USE status_t device_copy(struct device *device, void *dst, const void *src, size_t bytes,
                              void *stream);
/* Sets each byte, in stream order. */
MUST_USE status_t device_fill(struct device *device, void *dst, int value, size_t bytes,
                              void *stream);

/* ---- streams and events ---- */

/* `urgent` streams are scheduled first (communication beside computation). Streams do not
 * synchronise with the default one. */
MUST_USE status_t device_stream_create(struct device *device, bool urgent, void **out);
void device_stream_destroy(struct device *device, void *stream);
MUST_USE status_t device_stream_sync(struct device *device, void *stream);

/* An event marks a place in a stream; `timed` ones can be subtracted from each other. */
MUST_USE status_t device_event_create(struct device *device, bool timed, struct device_event **out);
void device_event_destroy(struct device *device, struct device_event *event);
MUST_USE status_t device_event_record(struct device *device, struct device_event *event,
                                      void *stream);
/* What follows in `stream` runs after the event. */
MUST_USE status_t device_event_wait(struct device *device, struct device_event *event,
                                    void *stream);
MUST_USE status_t device_event_done(struct device *device, struct device_event *event, bool *out);
/* Spins: for benchmarks and tests. */
MUST_USE status_t device_event_sync(struct device *device, struct device_event *event);
MUST_USE status_t device_event_elapsed(struct device *device, struct device_event *begin,
                                       struct device_event *end, double *out_ms);

/* ---- words: flags between streams, threads and processes of a host ---- */

/* A word is 32 aligned bits of host memory, MEMORY_PINNED or registered, that counts up (and may wrap). A
 * stream writes it after everything before in the stream, copies to other GPUs included, is done; what
 * follows a wait in a stream runs once the word has reached `value`: (int32_t)(*word - value) >= 0. A
 * wait cannot be cancelled: to release it, write the word from any thread (a plain atomic store). Of
 * the host, only the write. */
MUST_USE status_t device_word_write(struct device *device, uint32_t *word, uint32_t value,
                                    void *stream);
MUST_USE status_t device_word_wait(struct device *device, uint32_t *word, uint32_t value,
                                   void *stream);
/* Several words, in their order. */
struct device_word {
    uint32_t *word, value;
};
MUST_USE status_t device_words_write(struct device *device, const struct device_word *words,
                                     int count, void *stream);
MUST_USE status_t device_words_wait(struct device *device, const struct device_word *words,
                                    int count, void *stream);
/* Lets streams use page-aligned memory that this process has mapped (shared memory), under its own
 * address, until device_unregister. */
MUST_USE status_t device_register(struct device *device, void *memory, size_t bytes);
void device_unregister(struct device *device, void *memory);

/* ---- memory of another process on this host ---- */

struct device_handle { /* plain bytes, to be sent to the other process */
    unsigned char memory[64];
    uint64_t offset; /* of the address in its allocation */
};
/* A handle of memory of MEMORY_DEVICE, at any address inside an allocation. */
MUST_USE status_t device_export(struct device *device, const void *memory,
                                struct device_handle *out);
/* Where it is for this process's streams; it may lie on another GPU of the host, to which copies then
 * go by copy engine. An allocation is mapped once, however many of its addresses are imported, and
 * unmapped with the last of its imports. */
MUST_USE status_t device_import(struct device *device, const struct device_handle *handle,
                                void **out);
/* Ends one import of an address in that allocation. */
void device_unimport(struct device *device, const struct device_handle *handle, void *imported);

#endif
