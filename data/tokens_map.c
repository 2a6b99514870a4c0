/* tokens_map.c - files in memory. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data/tokens_internal.h"

static status_t mapping_map(const char *path, int fd, bool empty, struct mapping *out)
{
    struct stat info;

    if (fstat(fd, &info) != 0) {
        return FAIL(STATUS_IO, "cannot look at %s: %s", path, strerror(errno));
    }
    if (!S_ISREG(info.st_mode)) {
        return FAIL(STATUS_INVALID, "%s: not a regular file", path);
    }
    if (info.st_size == 0) {
        return empty ? STATUS_OK : FAIL(STATUS_INVALID, "%s: the file is empty", path);
    }
    void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) {
        return FAIL(STATUS_IO, "cannot map %s: %s", path, strerror(errno));
    }
    out->at = map;
    out->size = (size_t)info.st_size;
    return STATUS_OK;
}

bool file_begin(const char *path, void *out, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not stop us */
    struct stat info;
    bool got = fd >= 0 && fstat(fd, &info) == 0 && S_ISREG(info.st_mode) &&
               pread(fd, out, size, 0) == (ssize_t)size;

    if (fd >= 0) {
        close(fd);
    }
    return got;
}

status_t mapping_open(const char *path, bool empty, struct mapping *out)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not stop us */

    if (fd < 0) {
        return FAIL(STATUS_IO, "cannot open token file %s: %s", path, strerror(errno));
    }
    status_t status = mapping_map(path, fd, empty, out);
    close(fd);
    return status;
}

void mapping_close(struct mapping *mapping)
{
    if (mapping->at != NULL) {
        munmap(mapping->at, mapping->size);
    }
}
