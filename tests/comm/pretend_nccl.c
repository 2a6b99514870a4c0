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

#include "base/bf16.h"
#include "base/device.h"
#include "comm/nccl/nccl_internal.h"
#include "tests/comm/pretend.h"

enum { RELEASE = 22803, NAP = 200000 /* ns */, RANKS_MOST = 16 };
#define BUFFER ((size_t)64 << 20)

struct turns {           /* of a rank in collectives */
    uint32_t come, gone; /* calls whose values are in the buffer, and that have been read */
    unsigned char apart[120];
};

struct meeting {
    atomic_int members;
    uint32_t ready, full; /* receives begun, sends copied */
    struct turns turns[RANKS_MOST];
    unsigned char buffer[BUFFER];
};

struct ncclComm {
    struct meeting *meeting;
    struct device *device;
    uint32_t messages, calls;
    int rank, ranks;
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

    if (getenv("PRETEND_REFUSAL") != NULL || self == NULL || fd < 0 || ranks > RANKS_MOST ||
        (ranks == 2 && config->maxCTAs == 0) ||
        device_open(DEVICE_CUDA, 0, &self->device) != STATUS_OK) {
        free(self);
        shm_unlink(id.internal);
        return ncclInvalidArgument;
    }
    self->rank = rank;
    self->ranks = ranks;
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

/* ---- collectives: all copy what they have into their part of the buffer, then each takes what it gets ---- */

enum take { TAKE_SUM, TAKE_PARTS, TAKE_ROOT, TAKE_NOTHING };

struct taking {
    const struct meeting *meeting;
    enum take take;
    ncclDataType_t type; /* of a sum */
    int ranks, root;
    size_t begin, bytes; /* of every rank's values: what is taken */
    void *out;
};

static size_t room_of(int ranks)
{
    return BUFFER / (size_t)ranks / 256 * 256;
}

static size_t size_of(ncclDataType_t type)
{
    return type == ncclBfloat16 ? sizeof(uint16_t) : sizeof(float);
}

/* What a rank gives, as a float. */
static float addend(const struct taking *taking, int rank, size_t i)
{
    const unsigned char *from =
        taking->meeting->buffer + (size_t)rank * room_of(taking->ranks) + taking->begin;
    uint16_t half;
    float value;

    if (taking->type == ncclBfloat16) {
        memcpy(&half, from + i * sizeof half, sizeof half);
        return bf16_to_float(half);
    }
    memcpy(&value, from + i * sizeof value, sizeof value);
    return value;
}

/* As NCCL's, sums are in an order of its own: the last rank first; and of bfloat16 each is rounded. */
static void take_sum(const struct taking *taking)
{
    for (size_t i = 0; i < taking->bytes / size_of(taking->type); i++) {
        float sum = 0;
        for (int r = taking->ranks; r-- > 0;) {
            sum += addend(taking, r, i);
            sum = taking->type == ncclBfloat16 ? bf16_to_float(bf16_from_float(sum)) : sum;
        }
        if (taking->type == ncclBfloat16) {
            ((uint16_t *)taking->out)[i] = bf16_from_float(sum);
        } else {
            ((float *)taking->out)[i] = sum;
        }
    }
}

static void take(void *arguments)
{
    const struct taking *taking = arguments;
    size_t room = room_of(taking->ranks);
    unsigned char *out = taking->out;

    if (taking->take == TAKE_SUM) {
        take_sum(taking);
    } else if (taking->take == TAKE_ROOT) {
        memcpy(out, taking->meeting->buffer + (size_t)taking->root * room, taking->bytes);
    }
    for (int r = 0; taking->take == TAKE_PARTS && r < taking->ranks; r++) {
        memcpy(out + (size_t)r * taking->bytes, taking->meeting->buffer + (size_t)r * room,
               taking->bytes);
    }
}

static status_t wait_all(const struct ncclComm *comm, bool gone, uint32_t turn, cudaStream_t stream)
{
    for (int r = 0; r < comm->ranks; r++) {
        struct turns *turns = &comm->meeting->turns[r];
        TRY(device_word_wait(comm->device, gone ? &turns->gone : &turns->come, turn, stream));
    }
    return STATUS_OK;
}

/* `source` NULL: this rank gives nothing. */
static status_t meet(struct ncclComm *comm, const void *source, size_t bytes,
                     const struct taking *taking, cudaStream_t stream)
{
    uint32_t turn = ++comm->calls;
    struct turns *own = &comm->meeting->turns[comm->rank];
    struct taking *mine = malloc(sizeof *mine);

    if (mine == NULL || bytes > room_of(comm->ranks)) {
        free(mine);
        return STATUS_NOMEM;
    }
    *mine = *taking;
    mine->meeting = comm->meeting;
    mine->ranks = comm->ranks;
    TRY(wait_all(comm, true, turn - 1, stream));
    if (source != NULL) {
        TRY(device_copy(comm->device,
                        comm->meeting->buffer + (size_t)comm->rank * room_of(comm->ranks), source,
                        bytes, stream));
    }
    TRY(device_word_write(comm->device, &own->come, turn, stream));
    TRY(wait_all(comm, false, turn, stream));
    pretend_launch(stream, take, mine);
    return device_word_write(comm->device, &own->gone, turn, stream);
}

static ncclResult_t sum(struct ncclComm *comm, const void *in, size_t count, struct taking taking,
                        ncclDataType_t type, ncclRedOp_t operation, cudaStream_t stream)
{
    if ((type != ncclFloat && type != ncclBfloat16) || operation != ncclSum) {
        return ncclInvalidArgument;
    }
    taking.type = type;
    return result_of(meet(comm, in, count * size_of(type), &taking, stream) == STATUS_OK);
}

ncclResult_t ncclReduceScatter(const void *in, void *out, size_t count, ncclDataType_t type,
                               ncclRedOp_t operation, ncclComm_t comm, cudaStream_t stream)
{
    size_t bytes = count * size_of(type);

    return sum(
        comm, in, count * (size_t)comm->ranks,
        (struct taking){
            .take = TAKE_SUM, .begin = (size_t)comm->rank * bytes, .bytes = bytes, .out = out},
        type, operation, stream);
}

ncclResult_t ncclAllReduce(const void *in, void *out, size_t count, ncclDataType_t type,
                           ncclRedOp_t operation, ncclComm_t comm, cudaStream_t stream)
{
    return sum(comm, in, count,
               (struct taking){.take = TAKE_SUM, .bytes = count * size_of(type), .out = out}, type,
               operation, stream);
}

ncclResult_t ncclReduce(const void *in, void *out, size_t count, ncclDataType_t type,
                        ncclRedOp_t operation, int root, ncclComm_t comm, cudaStream_t stream)
{
    return sum(comm, in, count,
               (struct taking){.take = comm->rank == root ? TAKE_SUM : TAKE_NOTHING,
                               .bytes = count * size_of(type),
                               .out = out},
               type, operation, stream);
}

ncclResult_t ncclAllGather(const void *in, void *out, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream)
{
    const struct taking taking = {.take = TAKE_PARTS, .bytes = count, .out = out};

    return result_of(type == ncclInt8 && meet(comm, in, count, &taking, stream) == STATUS_OK);
}

ncclResult_t ncclBroadcast(const void *in, void *out, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream)
{
    const struct taking taking = {.take = TAKE_ROOT, .root = root, .bytes = count, .out = out};

    return result_of(type == ncclInt8 && meet(comm, comm->rank == root ? in : NULL, count, &taking,
                                              stream) == STATUS_OK);
}

ncclResult_t ncclGroupStart(void)
{
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    return ncclSuccess;
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
