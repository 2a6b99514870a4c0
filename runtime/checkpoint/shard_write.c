/* shard_write.c - one rank's file of a checkpoint.
 *
 *     chunks            in the order in which threads finished them
 *     shard table       sealed (private.h): which chunk is what, where, and its hash
 *     8 bytes           size of the sealed table
 *
 * A chunk is encoded by one thread. Its place in the file is taken when its size is known, so threads wait
 * for each other only while they take a number.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/trace.h"
#include "runtime/checkpoint/private.h"

struct writing {
    const struct shard_options *options;
    const char *path;
    int file;
    Muddpipe__Chunk *chunk; /* [pieces] as they will stand in the table */
    pthread_mutex_t mutex;
    size_t next;     /* piece that nobody has begun */
    uint64_t end;    /* of what has a place */
    status_t failed; /* the first failure */
    int rank;        /* of the thread that started all, for messages */
};

/* The next piece, or false. */
static bool take_piece(struct writing *self, size_t *out)
{
    pthread_mutex_lock(&self->mutex);
    if (self->options->cancel && atomic_load(self->options->cancel) && self->failed == STATUS_OK) {
        self->failed = STATUS_INTERRUPTED;
    }
    bool more = self->failed == STATUS_OK && self->next < self->options->pieces;
    *out = more ? self->next++ : 0;
    pthread_mutex_unlock(&self->mutex);
    return more;
}

static uint64_t take_place(struct writing *self, size_t size)
{
    pthread_mutex_lock(&self->mutex);
    uint64_t offset = self->end;
    self->end += size;
    pthread_mutex_unlock(&self->mutex);
    return offset;
}

/* fetched: memory of this thread, where pieces have to be fetched. */
static status_t write_piece(struct writing *self, struct encoder *encoder, float *fetched,
                            size_t index)
{
    const struct checkpoint_piece *piece = &self->options->piece[index];
    const float *values = fetched ? fetched : piece->values;
    const unsigned char *bytes;
    size_t size;
    TRY(fetched ? self->options->fetch(self->options->arg, piece, fetched) : STATUS_OK);
    TRY(encoder_run(encoder, values, piece->count, &bytes, &size));
    struct hash128 hash = hash_bytes128(bytes, size);
    Muddpipe__Chunk *chunk = &self->chunk[index];
    chunk->tensor = piece->tensor;
    chunk->kind = piece->kind;
    chunk->begin = piece->begin;
    chunk->count = piece->count;
    chunk->has_run = chunk->has_stride = piece->run < piece->count;
    chunk->run = piece->run;
    chunk->stride = piece->stride;
    chunk->offset = take_place(self, size);
    chunk->bytes = size;
    chunk->hash_low = hash.low;
    chunk->hash_high = hash.high;
    TRY(file_write(self->file, self->path, bytes, size, (int64_t)chunk->offset));
    file_start(self->file, (int64_t)chunk->offset, size);
    return STATUS_OK;
}

static void *write_pieces(void *argument)
{
    struct writing *self = argument;
    struct encoder *encoder = encoder_create(self->options->level);
    float *fetched = self->options->fetch ? malloc(CHECKPOINT_CHUNK * sizeof *fetched) : NULL;
    status_t status = STATUS_OK;
    size_t index;
    log_set_rank(self->rank);
    if (!encoder || (self->options->fetch && !fetched)) {
        status = FAIL(STATUS_NOMEM, "no memory to encode a checkpoint");
    }
    while (status == STATUS_OK && take_piece(self, &index)) {
        status = write_piece(self, encoder, fetched, index);
    }
    encoder_destroy(encoder);
    free(fetched);
    if (status != STATUS_OK) {
        pthread_mutex_lock(&self->mutex);
        self->failed = self->failed == STATUS_OK ? status : self->failed;
        pthread_mutex_unlock(&self->mutex);
    }
    return NULL;
}

/* This thread is one of them. Fewer threads than wanted are no failure. */
static void run_threads(struct writing *self)
{
    enum { MOST = 64 };
    pthread_t thread[MOST];
    int wanted = self->options->threads < MOST ? self->options->threads : MOST, started = 0;
    for (int i = 1; i < wanted; i++) {
        started += pthread_create(&thread[started], NULL, write_pieces, self) == 0;
    }
    write_pieces(self);
    for (int i = 0; i < started; i++) {
        pthread_join(thread[i], NULL);
    }
}

static status_t write_table(struct writing *self, const char *name)
{
    Muddpipe__Shard shard = MUDDPIPE__SHARD__INIT;
    size_t pieces = self->options->pieces, size;
    Muddpipe__Chunk **list = calloc(pieces + 1, sizeof *list);
    char file[64];
    if (!list) {
        return FAIL(STATUS_NOMEM, "no memory for the table of %s", self->path);
    }
    for (size_t i = 0; i < pieces; i++) {
        list[i] = &self->chunk[i];
    }
    snprintf(file, sizeof file, "%s", name);
    shard.file = file;
    shard.bytes = self->end;
    shard.n_chunk = pieces;
    shard.chunk = list;
    unsigned char *data =
        sealed_pack(SEALED_SHARD, chunks_format(list, pieces), &shard.base, &size);
    unsigned char tail[8];
    free(list);
    if (!data) {
        return FAIL(STATUS_NOMEM, "no memory for the table of %s", self->path);
    }
    for (size_t i = 0; i < sizeof tail; i++) {
        tail[i] = (unsigned char)(size >> (8 * i));
    }
    status_t status = file_write(self->file, self->path, data, size, (int64_t)self->end);
    free(data);
    TRY(status);
    TRY(file_write(self->file, self->path, tail, sizeof tail, (int64_t)(self->end + size)));
    return fsync(self->file) == 0
               ? STATUS_OK
               : FAIL(STATUS_IO, "cannot bring %s to the disk: %s", self->path, strerror(errno));
}

/* What the disk gives back must be what was written. */
static status_t read_again(const struct writing *self)
{
    unsigned char *data = malloc(ENCODED_MOST);
    status_t status =
        data ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory to read %s again", self->path);
    file_forget(self->file);
    for (size_t i = 0; i < self->options->pieces && status == STATUS_OK; i++) {
        status = chunk_read(self->file, self->path, &self->chunk[i], data);
    }
    free(data);
    return status;
}

static status_t write_all(struct writing *self, const char *name, struct shard_result *out)
{
    int64_t begun = trace_now();
    for (size_t i = 0; i < self->options->pieces; i++) {
        muddpipe__chunk__init(&self->chunk[i]);
        out->raw += (int64_t)(self->options->piece[i].count * sizeof(float));
    }
    run_threads(self);
    TRY(self->failed);
    TRY(write_table(self, name));
    int64_t written = trace_now();
    TRY(read_again(self));
    out->stored = (int64_t)self->end;
    out->write_s = (double)(written - begun) * 1e-9;
    out->verify_s = (double)(trace_now() - written) * 1e-9;
    return STATUS_OK;
}

status_t shard_write(const struct shard_options *options, struct shard_result *out)
{
    char path[PATH_MAX + 64], name[64];
    struct shard_result result = {0};
    struct writing self = {.options = options, .path = path, .rank = log_rank()};
    snprintf(name, sizeof name, "rank-%d.shard", options->rank);
    snprintf(path, sizeof path, "%s/%s", options->folder, name);
    self.chunk = calloc(options->pieces + 1, sizeof *self.chunk);
    if (!self.chunk) {
        return FAIL(STATUS_NOMEM, "no memory for the table of %s", path);
    }
    self.file = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (self.file < 0) {
        free(self.chunk);
        return FAIL(STATUS_IO, "cannot make %s: %s", path, strerror(errno));
    }
    pthread_mutex_init(&self.mutex, NULL);
    status_t status = write_all(&self, name, &result);
    pthread_mutex_destroy(&self.mutex);
    if (close(self.file) != 0 && status == STATUS_OK) {
        status = FAIL(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
    }
    free(self.chunk);
    if (status == STATUS_OK) {
        *out = result;
    }
    return status;
}
