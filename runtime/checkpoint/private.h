/* private.h - private to runtime/checkpoint/: what writing and reading share. */
#ifndef RUNTIME_CHECKPOINT_PRIVATE_H
#define RUNTIME_CHECKPOINT_PRIVATE_H

#include "base/hash.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/manifest.pb-c.h"

/* ---- sealed.c: a message with its length and hash ----
 *
 *     8 bytes   "MUDDPIPE"
 *     4         format, little-endian: 2 if a chunk of it has several runs, else 1
 *     4         kind: 1 manifest, 2 shard table
 *     8         length of the message
 *     16        XXH3-128 of the message, low half first
 *     length    the message
 */
enum sealed_kind { SEALED_MANIFEST = 1, SEALED_SHARD = 2 };
enum { SEALED_HEAD = 40 };

/* malloc'ed head and message; NULL = no memory. */
unsigned char *sealed_pack(enum sealed_kind kind, int format, const ProtobufCMessage *message,
                           size_t *out_size);
/* The message of a sealed one of `size` bytes, or a refusal that names `path`. */
MUST_USE status_t sealed_check(const char *path, enum sealed_kind kind, const unsigned char *data,
                               size_t size, const unsigned char **out_message, size_t *out_length);

/* ---- encode.c: chunks as bytes ---- */

struct encoder;
/* level 0: no compression. NULL = no memory. */
struct encoder *encoder_create(int level);
void encoder_destroy(struct encoder *encoder);
/* The chunk's bytes, in memory of the encoder until the next call. */
MUST_USE status_t encoder_run(struct encoder *encoder, const float *values, size_t count,
                              const unsigned char **out, size_t *out_size);
/* Back to values; `where` for messages. scratch: count * 4 bytes. */
MUST_USE status_t decode(const char *where, bool compressed, const unsigned char *data, size_t size,
                         unsigned char *scratch, float *out, size_t count);
const char *encoding_name(int level);

/* ---- files.c ---- */

/* All of it, whatever the system returns in parts. */
MUST_USE status_t file_write(int file, const char *path, const void *data, size_t size,
                             int64_t offset);
MUST_USE status_t file_read(int file, const char *path, void *data, size_t size, int64_t offset);
/* The whole file; malloc'ed. */
MUST_USE status_t file_load(const char *path, unsigned char **out, size_t *out_size);
/* New contents, on the disk when it returns. */
MUST_USE status_t file_save(const char *path, const void *data, size_t size);
/* Brings a folder's entries to the disk. */
MUST_USE status_t folder_sync(const char *path);
/* Has the system begin to write these bytes to the disk, so that fsync has less to wait for. */
void file_start(int file, int64_t offset, size_t bytes);
/* Lets the system forget what it has in memory of the file, so that the next read is of the disk. */
void file_forget(int file);

/* ---- chunk.c ---- */

/* No chunk is stored in more bytes: what zstd says of incompressible ones, and some. */
enum { ENCODED_MOST = CHECKPOINT_CHUNK * 4 + (CHECKPOINT_CHUNK * 4 >> 6) + 4096 };
/* A chunk's stored bytes, compared with its hash. data [ENCODED_MOST] */
MUST_USE status_t chunk_read(int file, const char *path, const Muddpipe__Chunk *chunk,
                             unsigned char *data);

/* Of a chunk as its table has it: elements of a run, and from one to the next. */
uint64_t chunk_run(const Muddpipe__Chunk *chunk);
uint64_t chunk_stride(const Muddpipe__Chunk *chunk);
/* CHECKPOINT_FORMAT, or what these chunks need. */
int chunks_format(Muddpipe__Chunk *const *chunk, size_t chunks);

/* ---- coverage.c ---- */

/* Is every element of every tensor and kind in exactly one chunk? */
MUST_USE status_t coverage_check(const char *path, const Muddpipe__Manifest *manifest);

#endif
