/* files.c - reading and writing whole, and what it takes for a file to be on the disk. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/checkpoint/private.h"

status_t file_write(int file, const char *path, const void *data, size_t size, int64_t offset)
{
    const unsigned char *bytes = data;
    for (size_t done = 0; done < size;) {
        ssize_t written = pwrite(file, bytes + done, size - done, (off_t)(offset + (int64_t)done));
        if (written < 0 && errno != EINTR) {
            return FAIL(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
        }
        done += written > 0 ? (size_t)written : 0;
    }
    return STATUS_OK;
}

status_t file_read(int file, const char *path, void *data, size_t size, int64_t offset)
{
    unsigned char *bytes = data;
    for (size_t done = 0; done < size;) {
        ssize_t got = pread(file, bytes + done, size - done, (off_t)(offset + (int64_t)done));
        if (got == 0) {
            return FAIL(STATUS_INVALID, "%s ends after %lld bytes: it was cut short", path,
                        (long long)(offset + (int64_t)done));
        }
        if (got < 0 && errno != EINTR) {
            return FAIL(STATUS_IO, "cannot read %s: %s", path, strerror(errno));
        }
        done += got > 0 ? (size_t)got : 0;
    }
    return STATUS_OK;
}

static status_t open_sized(const char *path, int *out, size_t *out_size)
{
    struct stat info;
    *out = open(path, O_RDONLY | O_CLOEXEC);
    if (*out < 0 || fstat(*out, &info) != 0) {
        status_t status = FAIL(STATUS_IO, "cannot read %s: %s", path, strerror(errno));
        if (*out >= 0) {
            close(*out);
        }
        return status;
    }
    *out_size = (size_t)info.st_size;
    return STATUS_OK;
}

status_t file_load(const char *path, unsigned char **out, size_t *out_size)
{
    int file;
    size_t size = 0;
    TRY(open_sized(path, &file, &size));
    unsigned char *data = malloc(size + 1);
    status_t status = data ? file_read(file, path, data, size, 0)
                           : FAIL(STATUS_NOMEM, "no memory for the %zu bytes of %s", size, path);
    close(file);
    if (status != STATUS_OK) {
        free(data);
        return status;
    }
    data[size] = '\0';
    *out = data;
    *out_size = size;
    return STATUS_OK;
}

status_t file_save(const char *path, const void *data, size_t size)
{
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file < 0) {
        return FAIL(STATUS_IO, "cannot make %s: %s", path, strerror(errno));
    }
    status_t status = file_write(file, path, data, size, 0);
    if (status == STATUS_OK && fsync(file) != 0) {
        status = FAIL(STATUS_IO, "cannot bring %s to the disk: %s", path, strerror(errno));
    }
    if (close(file) != 0 && status == STATUS_OK) {
        status = FAIL(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
    }
    return status;
}

status_t folder_sync(const char *path)
{
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) {
        return FAIL(STATUS_IO, "cannot open the folder %s: %s", path, strerror(errno));
    }
    /* Some network file systems have nothing to do there and say so. */
    bool failed = fsync(folder) != 0 && errno != EINVAL && errno != ENOTSUP;
    status_t status = failed ? FAIL(STATUS_IO, "cannot bring the folder %s to the disk: %s", path,
                                    strerror(errno))
                             : STATUS_OK;
    close(folder);
    return status;
}

/* A hint: where the file system knows none such, all is written by fsync. */
void file_start(int file, int64_t offset, size_t bytes)
{
    (void)sync_file_range(file, offset, (off_t)bytes, SYNC_FILE_RANGE_WRITE);
}

void file_forget(int file)
{
    posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
}
