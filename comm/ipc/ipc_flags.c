/* ipc_flags.c - words in memory that processes of one host and their GPUs share. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "comm/ipc/ipc.h"

enum { LINE = 64 }; /* bytes; words of different streams in one line would slow each other */

static size_t ipc_flags_bytes(size_t lines)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);

    return (lines * LINE + page - 1) / page * page;
}

/* Maps `fd`, which stays the caller's, and lets streams use it. */
static status_t ipc_flags_map(struct device *device, int fd, size_t bytes, struct ipc_flags *out)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (memory == MAP_FAILED) {
        return FAIL(STATUS_NOMEM, "%zu bytes of shared memory cannot be mapped: %s", bytes,
                    strerror(errno));
    }
    status_t status = device_register(device, memory, bytes);
    if (status != STATUS_OK) {
        munmap(memory, bytes);
        return status;
    }
    *out = (struct ipc_flags){device, memory, bytes, -1};
    return STATUS_OK;
}

status_t ipc_flags_create(struct device *device, size_t lines, struct ipc_flags *out)
{
    size_t bytes = ipc_flags_bytes(lines);
    int fd = memfd_create("muddpipe-flags", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0) {
        status_t status = FAIL(STATUS_IO,
                               "no shared memory for the flags of a wire: %s (limits "
                               "of open files or of memory)",
                               strerror(errno));
        if (fd >= 0) {
            close(fd);
        }
        return status;
    }
    status_t status = ipc_flags_map(device, fd, bytes, out);
    if (status != STATUS_OK) {
        close(fd);
        return status;
    }
    out->fd = fd;
    return STATUS_OK;
}

void ipc_flags_card(const struct ipc_flags *flags, struct ipc_flags_card *out)
{
    out->pid = getpid();
    out->fd = flags->fd;
}

status_t ipc_flags_open(struct device *device, const struct ipc_flags_card *card, int rank,
                        size_t lines, struct ipc_flags *out)
{
    char path[64];

    snprintf(path, sizeof path, "/proc/%" PRId64 "/fd/%" PRId64, card->pid, card->fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return FAIL(STATUS_UNSUPPORTED,
                    "the flags of rank %d cannot be opened (%s: %s): transport ipc wants the ranks "
                    "of a host to be one user's, in one container; ucx does without",
                    rank, path, strerror(errno));
    }
    status_t status = ipc_flags_map(device, fd, ipc_flags_bytes(lines), out);
    close(fd);
    return status;
}

void ipc_flags_seal(struct ipc_flags *flags)
{
    if (flags->memory != NULL && flags->fd >= 0) {
        close(flags->fd);
        flags->fd = -1;
    }
}

void ipc_flags_close(struct ipc_flags *flags)
{
    if (flags->memory != NULL) {
        ipc_flags_seal(flags);
        device_unregister(flags->device, flags->memory);
        munmap(flags->memory, flags->bytes);
        flags->memory = NULL;
    }
}

uint32_t *ipc_flags_word(const struct ipc_flags *flags, size_t line)
{
    return (uint32_t *)(void *)(flags->memory + line * LINE);
}
