/* pretend_nccl.c - the calls of NCCL that comm/ makes, between processes of a host, in the streams of
 * pretend.c, which see it loaded as libnccl.so.2.
 *
 * A send and its receive meet in shared memory: the receive says that it is there, the send copies what
 * it has into a buffer and says so, the receive copies it out. As with NCCL, neither comes to an end
 * before the other has begun, the n-th meets the n-th, and nothing ends one whose peer is lost. With
 * PRETEND_REFUSAL in the environment nobody can connect; a communicator takes PRETEND_NCCL_MIB of the GPU.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/device.h"
#include "comm/nccl/nccl_internal.h"
#include "tests/comm/pretend.h"

enum { RELEASE = 22803, NAP = 200000 /* ns */ };
#define BUFFER ((size_t)64 << 20)

struct meeting {
    atomic_int members;
    uint32_t ready, full; /* receives begun, sends copied */
    unsigned char buffer[BUFFER];
};

struct ncclComm {
    struct meeting *meeting;
    struct device *device;
    uint32_t messages;
    int rank;
};

ncclResult_t ncclGetVersion(int *version)
{
    *version = RELEASE;
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result)
{
    return result == ncclSuccess ? "no error" : "an error";
}

const char *ncclGetLastError(ncclComm_t comm)
{
    (void)comm;
    return "";
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error)
{
    (void)comm;
    *error = ncclSuccess;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    static int names;
    int fd;

    do { /* one that was killed may have left the name that we would have */
        snprintf(id->internal, sizeof id->internal, "/mudd-nccl-%d-%d", (int)getpid(), names++);
        fd = shm_open(id->internal, O_CREAT | O_EXCL | O_RDWR, 0600);
    } while (fd < 0 && errno == EEXIST);
    if (fd < 0 || ftruncate(fd, sizeof(struct meeting)) != 0) {
        return ncclSystemError;
    }
    close(fd);
    return ncclSuccess;
}

static long long buffers(void)
{
    const char *mib = getenv("PRETEND_NCCL_MIB");
    return mib != NULL ? atoll(mib) << 20 : 0;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    struct ncclComm *self = calloc(1, sizeof *self);
    int fd = shm_open(id.internal, O_RDWR, 0600);

    if (getenv("PRETEND_REFUSAL") != NULL || self == NULL || fd < 0 || ranks != 2 ||
        config->maxCTAs < 1 || device_open(DEVICE_CUDA, 0, &self->device) != STATUS_OK) {
        free(self);
        shm_unlink(id.internal);
        return ncclInvalidArgument;
    }
    self->rank = rank;
    self->meeting = mmap(NULL, sizeof *self->meeting, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    atomic_fetch_add(&self->meeting->members, 1);
    while (atomic_load(&self->meeting->members) < ranks) {
        nanosleep(&(struct timespec){0, NAP}, NULL);
    }
    shm_unlink(id.internal); /* by whom it is found */
    pretend_take(buffers());
    *comm = self;
    return ncclSuccess;
}

static ncclResult_t result_of(bool good)
{
    return good ? ncclSuccess : ncclInternalError;
}

ncclResult_t ncclSend(const void *source, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream)
{
    struct meeting *meeting = comm->meeting;
    uint32_t turn = ++comm->messages;

    if (type != ncclInt8 || peer != 1 || comm->rank != 0 || count > BUFFER) {
        return ncclInvalidArgument;
    }
    return result_of(device_word_wait(comm->device, &meeting->ready, turn, stream) == STATUS_OK &&
                     device_copy(comm->device, meeting->buffer, source, count, stream) ==
                         STATUS_OK &&
                     device_word_write(comm->device, &meeting->full, turn, stream) == STATUS_OK);
}

ncclResult_t ncclRecv(void *slot, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    struct meeting *meeting = comm->meeting;
    uint32_t turn = ++comm->messages;

    if (type != ncclInt8 || peer != 0 || comm->rank != 1 || count > BUFFER) {
        return ncclInvalidArgument;
    }
    return result_of(device_word_write(comm->device, &meeting->ready, turn, stream) == STATUS_OK &&
                     device_word_wait(comm->device, &meeting->full, turn, stream) == STATUS_OK &&
                     device_copy(comm->device, slot, meeting->buffer, count, stream) == STATUS_OK);
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    (void)comm;
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    pretend_take(-buffers());
    munmap(comm->meeting, sizeof *comm->meeting);
    device_close(comm->device);
    free(comm);
    return ncclSuccess;
}
