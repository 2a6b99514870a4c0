/* pretend_memory.c - of a GPU of threads (pretend.c): the device, its memory, and who else maps it. */
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/device.h"
#include "base/hash.h"
#include "tests/comm/pretend.h"

enum {
    GPUS = 64,
    ALIGN = 256,
    SHARES = 1 << 12 /* allocations and imports */
};
#define MEMORY ((size_t)8 << 30) /* of a GPU */

struct device {
    enum device_kind kind;
    int index;
    size_t used; /* MEMORY_DEVICE */
};

static struct share {
    unsigned char *base;
    size_t bytes;
    int fd;                /* own memory; -1 = another process's */
    unsigned char key[64]; /* of its handle */
    int uses;
} share[SHARES];

/* ---- the device and its memory ---- */

void device_prepare(void)
{
}

bool device_built(enum device_kind kind)
{
    return kind == DEVICE_HOST || kind == DEVICE_CUDA;
}

int device_count(enum device_kind kind, char *why, size_t size)
{
    const char *gpus = getenv("PRETEND_GPUS");

    (void)kind, (void)why, (void)size;
    return gpus ? atoi(gpus) : GPUS;
}

status_t device_open(enum device_kind kind, int index, struct device **out)
{
    *out = calloc(1, sizeof **out);
    CHECK(*out, "no memory for a device");
    (*out)->kind = kind;
    (*out)->index = index;
    return STATUS_OK;
}

void device_close(struct device *device)
{
    free(device);
}

status_t device_bind(struct device *device)
{
    (void)device;
    return STATUS_OK;
}

enum device_kind device_kind(const struct device *device)
{
    return device->kind;
}

void device_info(const struct device *device, struct device_info *out)
{
    const char *first = getenv("PRETEND_FIRST");
    int place = device->index + (first ? atoi(first) : 0);
    char host[64] = "";
    uint64_t card;

    *out = (struct device_info){.name = "a GPU of threads", .bytes = MEMORY};
    snprintf(out->bus, sizeof out->bus, "%04d:00:00.0", place);
    gethostname(host, sizeof host - 1);
    card = hash_bytes(host, strlen(host), (uint64_t)place);
    memcpy(out->card, &card, sizeof card);
}

static atomic_llong taken; /* by libraries */

void pretend_take(long long bytes)
{
    atomic_fetch_add(&taken, bytes);
}

status_t device_memory(struct device *device, size_t *free_bytes, size_t *total_bytes)
{
    static int calls;
    const char *dumb = getenv("PRETEND_DUMB");
    size_t used = device->used + (size_t)atomic_load(&taken);

    if (dumb != NULL && ++calls >= atoi(dumb)) {
        return FAIL(STATUS_IO, "the GPU does not tell its free memory, as the test asks");
    }
    *free_bytes = used < MEMORY ? MEMORY - used : 0;
    *total_bytes = MEMORY;
    return STATUS_OK;
}

static struct share *share_vacant(void)
{
    for (int i = 0; i < SHARES; i++) {
        if (!share[i].base) {
            return &share[i];
        }
    }
    CHECK(false, "more than %d allocations", SHARES);
}

status_t device_alloc(struct device *device, enum memory_kind kind, size_t bytes, const char *what,
                      void **out)
{
    const char *refused = getenv("PRETEND_NO_MEMORY");
    struct share *mine;

    pretend_wants_memory("device_alloc", what);
    if (refused != NULL && strcmp(refused, what) == 0) {
        return FAIL(STATUS_NOMEM, "%s: cannot allocate %zu bytes, as the test asks", what, bytes);
    }
    if (kind != MEMORY_DEVICE) {
        *out = aligned_alloc(ALIGN, (bytes + ALIGN - 1) / ALIGN * ALIGN);
        CHECK(*out, "no memory for %s", what);
        return STATUS_OK;
    }
    mine = share_vacant();
    mine->fd = memfd_create("pretend", MFD_CLOEXEC);
    CHECK(mine->fd >= 0 && ftruncate(mine->fd, (off_t)bytes) == 0, "no memory for %s", what);
    mine->base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, mine->fd, 0);
    CHECK(mine->base != MAP_FAILED, "no memory for %s", what);
    mine->bytes = bytes;
    device->used += bytes;
    *out = mine->base;
    return STATUS_OK;
}

static struct share *share_around(const void *memory)
{
    for (int i = 0; i < SHARES; i++) {
        const unsigned char *place = memory;
        if (share[i].base && place >= share[i].base && place < share[i].base + share[i].bytes) {
            return &share[i];
        }
    }
    CHECK(false, "%p is not memory of this device", memory);
}

void device_free(struct device *device, enum memory_kind kind, void *memory)
{
    if (memory) {
        pretend_wants_memory("device_free", "");
    }
    if (kind != MEMORY_DEVICE) {
        free(memory);
    } else if (memory) {
        struct share *mine = share_around(memory);
        device->used -= mine->bytes;
        munmap(mine->base, mine->bytes);
        close(mine->fd);
        mine->base = NULL;
    }
}

status_t device_register(struct device *device, void *memory, size_t bytes)
{
    (void)device, (void)memory, (void)bytes;
    pretend_wants_memory("device_register", "");
    return STATUS_OK;
}

void device_unregister(struct device *device, void *memory)
{
    (void)device;
    if (memory) {
        pretend_wants_memory("device_unregister", "");
    }
}

status_t device_export(struct device *device, const void *memory, struct device_handle *out)
{
    const struct share *mine = share_around(memory);

    (void)device;
    memset(out, 0, sizeof *out);
    snprintf((char *)out->memory, sizeof out->memory, "%zu /proc/%d/fd/%d", mine->bytes,
             (int)getpid(), mine->fd);
    out->offset = (uint64_t)((const unsigned char *)memory - mine->base);
    return STATUS_OK;
}

static struct share *share_of(const struct device_handle *handle)
{
    for (int i = 0; i < SHARES; i++) {
        if (share[i].base && memcmp(share[i].key, handle->memory, sizeof share[i].key) == 0) {
            return &share[i];
        }
    }
    return NULL;
}

status_t device_import(struct device *device, const struct device_handle *handle, void **out)
{
    struct share *theirs = share_of(handle);
    char path[64];

    (void)device;
    pretend_wants_memory("device_import", "");
    if (!theirs) {
        theirs = share_vacant();
        CHECK(sscanf((const char *)handle->memory, "%zu %63s", &theirs->bytes, path) == 2,
              "not a handle");
        int fd = open(path, O_RDWR | O_CLOEXEC);
        CHECK(fd >= 0, "%s does not open", path);
        theirs->base = mmap(NULL, theirs->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        close(fd);
        memcpy(theirs->key, handle->memory, sizeof theirs->key);
    }
    theirs->uses++;
    *out = theirs->base + handle->offset;
    return STATUS_OK;
}

void device_unimport(struct device *device, const struct device_handle *handle, void *imported)
{
    struct share *theirs = imported ? share_of(handle) : NULL;

    (void)device;
    if (theirs) {
        pretend_wants_memory("device_unimport", "");
    }
    if (theirs && --theirs->uses == 0) {
        munmap(theirs->base, theirs->bytes);
        theirs->base = NULL;
    }
}
