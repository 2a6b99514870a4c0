/* safetensors_write.c - a file whose tensors several ranks write, each its own.
 *
 * The header follows from the entries alone, so whoever has them knows every tensor's place: no
 * rank waits for another once the file has its size.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bf16.h"
#include "model/safetensors.h"

struct layout {
    char *header; /* with its eight bytes of length */
    size_t header_size, file_size;
    size_t offset, bytes;    /* of the tensor asked for, in the file */
    enum tensor_dtype dtype; /* its */
};

enum { ROUNDED_AT_ONCE = 1 << 15 }; /* values */

static size_t entry_bytes(const struct tensor_entry *entry)
{
    size_t bytes = tensor_dtype_size(entry->dtype);

    CHECK(entry->dtype == TENSOR_F32 || entry->dtype == TENSOR_BF16, "%s as %s", entry->name,
          tensor_dtype_name(entry->dtype));
    for (int i = 0; i < entry->dims; i++) {
        CHECK(entry->shape[i] >= 0, "negative extent in %s", entry->name);
        CHECK(!__builtin_mul_overflow(bytes, (size_t)entry->shape[i], &bytes), "%s is too large",
              entry->name);
    }
    return bytes;
}

/* The JSON of the header, padded with spaces so that the data begins at a multiple of eight. */
static void header_print(const struct tensor_entry *entries, int count, FILE *out)
{
    size_t at = 0;
    char shape[128];

    fprintf(out, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int i = 0; i < count; i++) {
        const struct tensor_entry *entry = &entries[i];
        size_t bytes = entry_bytes(entry);
        CHECK(strpbrk(entry->name, "\"\\") == NULL, "name %s would need escapes", entry->name);
        fprintf(out, ",\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
                entry->name, tensor_dtype_name(entry->dtype),
                tensor_shape_print(entry->shape, entry->dims, shape, sizeof shape), at, at + bytes);
        at += bytes;
    }
    fputc('}', out);
    for (long length = ftell(out); length % 8 != 0; length++) {
        fputc(' ', out);
    }
}

/* The caller frees out->header. */
static status_t layout_make(const struct tensor_entry *entries, int count, int index,
                            struct layout *out)
{
    uint64_t length = 0;
    struct layout layout = {0};
    FILE *stream = open_memstream(&layout.header, &layout.header_size);

    if (stream == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for the header of %d tensors", count);
    }
    fwrite(&length, sizeof length, 1, stream);
    header_print(entries, count, stream);
    bool failed = ferror(stream) != 0;
    if (fclose(stream) != 0 || failed) {
        free(layout.header);
        return FAIL(STATUS_NOMEM, "no memory for the header of %d tensors", count);
    }
    length = layout.header_size - sizeof length;
    memcpy(layout.header, &length, sizeof length);
    layout.file_size = layout.header_size;
    for (int i = 0; i < count; i++) {
        if (i == index) {
            layout.offset = layout.file_size;
            layout.bytes = entry_bytes(&entries[i]);
            layout.dtype = entries[i].dtype;
        }
        layout.file_size += entry_bytes(&entries[i]);
    }
    *out = layout;
    return STATUS_OK;
}

static status_t write_all(int fd, const char *path, const void *data, size_t size, size_t offset)
{
    const char *at = data;

    while (size > 0) {
        size_t chunk = size < (1u << 30) ? size : 1u << 30;
        ssize_t written = pwrite(fd, at, chunk, (off_t)offset);
        if (written < 0 && errno == EINTR) {
            continue;
        }
        if (written <= 0) {
            return FAIL(STATUS_IO, "cannot write %s: %s", path,
                        written < 0 ? strerror(errno) : "no progress");
        }
        at += written;
        size -= (size_t)written;
        offset += (size_t)written;
    }
    return STATUS_OK;
}

/* close reports what a network file system found out late. */
static status_t close_checked(int fd, const char *path, status_t status)
{
    if (close(fd) != 0 && status == STATUS_OK) {
        return FAIL(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
    }
    return status;
}

static status_t file_create(const char *path, const struct layout *layout)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

    if (fd < 0) {
        return FAIL(STATUS_IO, "cannot create %s: %s", path, strerror(errno));
    }
    status_t status = STATUS_OK;
    if (ftruncate(fd, (off_t)layout->file_size) != 0) {
        status = FAIL(STATUS_IO, "cannot give %s its %zu bytes: %s", path, layout->file_size,
                      strerror(errno));
    } else {
        status = write_all(fd, path, layout->header, layout->header_size, 0);
    }
    return close_checked(fd, path, status);
}

static status_t write_rounded(int fd, const char *path, const struct layout *layout,
                              const float *data)
{
    uint16_t rounded[ROUNDED_AT_ONCE];
    size_t count = layout->bytes / sizeof *rounded, most = ROUNDED_AT_ONCE;
    for (size_t at = 0; at < count; at += most) {
        size_t some = count - at < most ? count - at : most;
        for (size_t i = 0; i < some; i++) {
            rounded[i] = bf16_from_float(data[at + i]);
        }
        TRY(write_all(fd, path, rounded, some * sizeof *rounded,
                      layout->offset + at * sizeof *rounded));
    }
    return STATUS_OK;
}

/* The runs, one after the other; layout->offset is the tensor's. */
static status_t write_runs(int fd, const char *path, const struct layout *layout,
                           const struct tensor_runs *runs, const float *data)
{
    size_t each = tensor_dtype_size(layout->dtype);
    struct layout run = *layout;
    run.bytes = runs->run * each;
    for (size_t at = 0; at < runs->count; at += runs->run) {
        run.offset = layout->offset + (runs->begin + at / runs->run * runs->stride) * each;
        TRY(layout->dtype == TENSOR_BF16 ? write_rounded(fd, path, &run, data + at)
                                         : write_all(fd, path, data + at, run.bytes, run.offset));
    }
    return STATUS_OK;
}

static status_t file_fill(const char *path, const struct layout *layout,
                          const struct tensor_runs *runs, const float *data)
{
    struct stat info;
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    if (fd < 0) {
        return FAIL(STATUS_IO, "cannot open %s: %s", path, strerror(errno));
    }
    status_t status = STATUS_OK;
    if (fstat(fd, &info) != 0 || (size_t)info.st_size != layout->file_size) {
        status = FAIL(STATUS_IO, "%s was not created for these tensors: %zu bytes were expected",
                      path, layout->file_size);
    } else {
        status = write_runs(fd, path, layout, runs, data);
    }
    return close_checked(fd, path, status);
}

status_t tensor_writer_create(const char *path, const struct tensor_entry *entries, int count)
{
    struct layout layout;

    TRY(layout_make(entries, count, -1, &layout));
    status_t status = file_create(path, &layout);
    free(layout.header);
    return status;
}

status_t tensor_writer_write(const char *path, const struct tensor_entry *entries, int count,
                             int index, const float *data)
{
    CHECK(index >= 0 && index < count, "tensor %d of %d", index, count);
    size_t all = entry_bytes(&entries[index]) / tensor_dtype_size(entries[index].dtype);
    const struct tensor_runs runs = {index, 0, all, all, all};
    return tensor_writer_write_runs(path, entries, count, &runs, data);
}

status_t tensor_writer_write_runs(const char *path, const struct tensor_entry *entries, int count,
                                  const struct tensor_runs *runs, const float *data)
{
    struct layout layout;

    TRY(layout_make(entries, count, runs->index, &layout));
    size_t each = tensor_dtype_size(layout.dtype), last = 0;
    if (runs->count > 0) {
        CHECK(runs->run > 0 && runs->count % runs->run == 0, "%zu values in runs of %zu",
              runs->count, runs->run);
        last = runs->begin + (runs->count / runs->run - 1) * runs->stride + runs->run;
    }
    CHECK(last * each <= layout.bytes, "values %zu to %zu of %s", runs->begin, last,
          entries[runs->index].name);
    status_t status = file_fill(path, &layout, runs, data);
    free(layout.header);
    return status;
}
