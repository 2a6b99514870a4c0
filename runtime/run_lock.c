/* run_lock.c - who works in a run folder. */
#include "runtime/run_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/trace.h"

enum { HOST = 64 };

/* Who holds the lock, as the holder wrote it. */
static void holder_read(int file, char *out, size_t size)
{
    ssize_t got = pread(file, out, size - 1, 0);
    out[got > 0 ? got : 0] = '\0';
    out[strcspn(out, "\n")] = '\0';
    if (out[0] == '\0') {
        snprintf(out, size, "a job that has not said who it is");
    }
}

static void holder_write(int file)
{
    char host[HOST] = "", line[256];
    gethostname(host, sizeof host - 1);
    int length = snprintf(line, sizeof line, "process %ld on host %s\n", (long)getpid(), host);
    if (ftruncate(file, 0) != 0 || pwrite(file, line, (size_t)length, 0) != length) {
        log_debug("the lock of the run folder has no name in it: %s", strerror(errno));
    }
}

status_t run_lock_take(const char *folder, int *out)
{
    char path[PATH_MAX + 32], holder[256];
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    snprintf(path, sizeof path, "%s/lock", folder);
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0) {
        return FAIL(STATUS_IO, "cannot make %s: %s", path, strerror(errno));
    }
    if (fcntl(file, F_OFD_SETLK, &whole) != 0) {
        if (errno == EAGAIN || errno == EACCES) {
            holder_read(file, holder, sizeof holder);
            close(file);
            return FAIL(STATUS_INVALID,
                        "another job runs in %s: %s (wait for its end, or name another folder with "
                        "logging.run=)",
                        folder, holder);
        }
        log_warn("%s cannot be locked (%s): see to it that no other job runs in this folder", path,
                 strerror(errno));
    }
    holder_write(file);
    *out = file;
    return STATUS_OK;
}

/* ---- one folder for all ---- */

static void token_path(const char *folder, uint64_t token, int rank, char *out, size_t size)
{
    snprintf(out, size, "%s/.seen-%016llx-%d", folder, (unsigned long long)token, rank);
}

static status_t token_leave(const char *folder, uint64_t token, int rank, const char *host)
{
    char path[PATH_MAX + 64];
    token_path(folder, token, rank, path, sizeof path);
    int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file < 0) {
        return FAIL(
            STATUS_IO,
            "rank %d on host %s cannot write into the run folder %s: %s (it must be the same "
            "folder on every host)",
            rank, host, folder, strerror(errno));
    }
    close(file);
    return STATUS_OK;
}

/* Rank 0: removes the tokens it finds; the first rank whose is missing, or -1. */
static int tokens_collect(const char *folder, uint64_t token, int ranks)
{
    char path[PATH_MAX + 64];
    int missing = -1;
    for (int rank = ranks - 1; rank >= 0; rank--) {
        token_path(folder, token, rank, path, sizeof path);
        if (unlink(path) != 0) {
            missing = rank;
        }
    }
    return missing;
}

status_t run_lock_check_shared(struct group *group, const char *folder)
{
    int rank = group_rank(group), ranks = group_size(group);
    uint64_t token = (uint64_t)trace_now() ^ (uint64_t)getpid() << 40;
    char host[HOST] = "", *hosts = calloc((size_t)ranks, HOST), path[PATH_MAX + 64];
    status_t status = hosts ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for %d names", ranks);
    gethostname(host, sizeof host - 1);
    status = group_agree(group, status);
    if (status == STATUS_OK) {
        status = group_allgather(group, host, HOST, hosts);
    }
    if (status == STATUS_OK) {
        status = group_broadcast(group, &token, sizeof token, 0);
    }
    if (status == STATUS_OK) {
        status = group_agree(group, token_leave(folder, token, rank, host));
    }
    if (status == STATUS_OK) {
        int missing = rank == 0 ? tokens_collect(folder, token, ranks) : -1;
        status = group_agree(
            group, missing < 0
                       ? STATUS_OK
                       : FAIL(STATUS_INVALID,
                              "the run folder %s of rank %d on host %s is not that of rank 0 on "
                              "host %s: name one on a file system that all hosts share "
                              "(logging.run=)",
                              folder, missing, hosts + (size_t)missing * HOST, hosts));
        token_path(folder, token, rank, path, sizeof path);
        unlink(path); /* where it is another folder */
    }
    free(hosts);
    return status;
}
