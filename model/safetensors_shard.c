/* safetensors_shard.c - maps one file and checks all that its header claims. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "model/safetensors.h"

struct span { /* of a tensor within the data, bytes */
    uint64_t begin, end;
    const char *name;
};

struct header {
    const struct shard *shard;
    const unsigned char *data;
    uint64_t data_size;
    struct span *span; /* [tensors] owned */
};

/* ---- one tensor ---- */

static status_t tensor_set_dtype(const char *path, const struct json *json, struct tensor *tensor)
{
    const char *found = json_get_string(json_get(json, "dtype"));

    for (int i = 0; found != NULL && i <= TENSOR_I64; i++) {
        if (strcmp(found, tensor_dtype_name((enum tensor_dtype)i)) == 0) {
            tensor->dtype = (enum tensor_dtype)i;
            return STATUS_OK;
        }
    }
    return FAIL(STATUS_INVALID,
                "%s: tensor %s has dtype '%.16s'; known are F32, F16, BF16, F64, I32 and I64", path,
                tensor->name, found != NULL ? found : "none");
}

static status_t tensor_set_shape(const char *path, const struct json *json, struct tensor *tensor)
{
    const struct json *shape = json_get(json, "shape");
    size_t dims = json_size(shape), most = sizeof tensor->shape / sizeof tensor->shape[0];

    if (shape == NULL || json_type(shape) != JSON_ARRAY || dims > most) {
        return FAIL(STATUS_INVALID, "%s: tensor %s needs a shape of at most %zu dimensions", path,
                    tensor->name, most);
    }
    tensor->dims = (int)dims;
    tensor->count = 1;
    for (size_t i = 0; i < dims; i++) {
        int64_t *extent = &tensor->shape[i];
        if (!json_get_int(json_at(shape, i), extent) || *extent < 0) {
            return FAIL(STATUS_INVALID, "%s: tensor %s: dimension %zu is no count", path,
                        tensor->name, i);
        }
        if (__builtin_mul_overflow(tensor->count, *extent, &tensor->count)) {
            return FAIL(STATUS_INVALID, "%s: tensor %s has more elements than can be counted", path,
                        tensor->name);
        }
    }
    return STATUS_OK;
}

static status_t tensor_set_data(const struct header *header, const struct json *json,
                                struct tensor *tensor, struct span *span)
{
    const char *path = header->shard->path;
    const struct json *offsets = json_get(json, "data_offsets");
    int64_t begin, end, bytes;
    char shape[256];

    if (json_size(offsets) != 2 || !json_get_int(json_at(offsets, 0), &begin) ||
        !json_get_int(json_at(offsets, 1), &end)) {
        return FAIL(STATUS_INVALID, "%s: tensor %s needs data_offsets [begin, end]", path,
                    tensor->name);
    }
    if (begin < 0 || end < begin || (uint64_t)end > header->data_size) {
        return FAIL(STATUS_INVALID,
                    "%s: tensor %s is said to be at bytes %lld to %lld of %llu bytes of data; the "
                    "file is cut off or damaged",
                    path, tensor->name, (long long)begin, (long long)end,
                    (unsigned long long)header->data_size);
    }
    int64_t size = (int64_t)tensor_dtype_size(tensor->dtype);
    if (__builtin_mul_overflow(tensor->count, size, &bytes) || end - begin != bytes) {
        return FAIL(STATUS_INVALID, "%s: tensor %s, %s %s, has %lld bytes of data", path,
                    tensor->name, tensor_dtype_name(tensor->dtype),
                    tensor_shape_print(tensor->shape, tensor->dims, shape, sizeof shape),
                    (long long)(end - begin));
    }
    tensor->data = header->data + begin;
    *span = (struct span){(uint64_t)begin, (uint64_t)end, tensor->name};
    return STATUS_OK;
}

static status_t tensor_read(const struct header *header, const char *name, const struct json *json,
                            struct shard *shard)
{
    struct tensor *tensor = &shard->tensor[shard->count];

    if (name[0] == '\0' || strlen(name) > TENSOR_NAME_MAX) {
        return FAIL(STATUS_INVALID, "%s: tensor %d has a name of %zu bytes; 1 to %d are read",
                    shard->path, shard->count, strlen(name), TENSOR_NAME_MAX);
    }
    tensor->name = strdup(name);
    if (tensor->name == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for the names in %s", shard->path);
    }
    shard->count++;
    TRY(tensor_set_dtype(shard->path, json, tensor));
    TRY(tensor_set_shape(shard->path, json, tensor));
    return tensor_set_data(header, json, tensor, &header->span[shard->count - 1]);
}

/* ---- all of them ---- */

static int span_compare(const void *a, const void *b)
{
    const struct span *x = a, *y = b;

    if (x->begin != y->begin) {
        return x->begin < y->begin ? -1 : 1;
    }
    return (x->end > y->end) - (x->end < y->end);
}

/* Gaps could hide things, overlaps alias them: the tensors must tile the data. */
static status_t spans_check(const struct header *header, int count)
{
    uint64_t at = 0;
    const char *path = header->shard->path;

    qsort(header->span, (size_t)count, sizeof *header->span, span_compare);
    for (int i = 0; i < count; i++) {
        if (header->span[i].begin != at) {
            return FAIL(STATUS_INVALID, "%s: tensor %s begins at byte %llu of the data, %s %llu",
                        path, header->span[i].name, (unsigned long long)header->span[i].begin,
                        header->span[i].begin < at ? "inside another that ends at" : "a gap after",
                        (unsigned long long)at);
        }
        at = header->span[i].end;
    }
    if (at != header->data_size) {
        return FAIL(STATUS_INVALID, "%s: %llu bytes after the last tensor", path,
                    (unsigned long long)(header->data_size - at));
    }
    return STATUS_OK;
}

static status_t header_read(const struct json *document, struct header *header, struct shard *shard)
{
    size_t members = json_size(document);

    if (members > TENSORS_MAX) {
        return FAIL(STATUS_INVALID, "%s: more than %d tensors", shard->path, TENSORS_MAX);
    }
    shard->tensor = calloc(members + 1, sizeof *shard->tensor);
    header->span = calloc(members + 1, sizeof *header->span);
    if (shard->tensor == NULL || header->span == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for the tensors of %s", shard->path);
    }
    for (size_t i = 0; i < members; i++) {
        const char *name;
        const struct json *json = json_member(document, i, &name);
        if (strcmp(name, "__metadata__") != 0) {
            TRY(tensor_read(header, name, json, shard));
        }
    }
    return spans_check(header, shard->count);
}

static status_t shard_parse(struct shard *shard)
{
    struct header header = {.shard = shard};
    struct json *document = NULL;
    uint64_t length;
    status_t status;

    if (shard->size < sizeof length) {
        return FAIL(STATUS_INVALID, "%s: %zu bytes are too few for a safetensors file", shard->path,
                    shard->size);
    }
    memcpy(&length, shard->map, sizeof length);
    if (length > HEADER_MAX || length > shard->size - sizeof length) {
        return FAIL(STATUS_INVALID,
                    "%s: the header is said to be %llu bytes long in a file of %zu; it is no "
                    "safetensors file, or cut off",
                    shard->path, (unsigned long long)length, shard->size);
    }
    const char *text = (const char *)shard->map + sizeof length;
    header.data = (const unsigned char *)text + length;
    header.data_size = shard->size - sizeof length - length;
    if (length == 0 || text[0] != '{') {
        return FAIL(STATUS_INVALID, "%s: the header does not begin with {", shard->path);
    }
    TRY(json_parse(text, (size_t)length, shard->path, &document));
    status = header_read(document, &header, shard);
    free(header.span);
    json_free(document);
    return status;
}

/* ---- file ---- */

static status_t shard_map(int fd, struct shard *shard)
{
    struct stat info;

    if (fstat(fd, &info) != 0) {
        return FAIL(STATUS_IO, "cannot look at %s: %s", shard->path, strerror(errno));
    }
    if (!S_ISREG(info.st_mode) || info.st_size == 0) {
        return FAIL(STATUS_INVALID, "%s: %s", shard->path,
                    S_ISREG(info.st_mode) ? "the file is empty" : "not a regular file");
    }
    void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) {
        return FAIL(STATUS_IO, "cannot map %s: %s", shard->path, strerror(errno));
    }
    shard->map = map;
    shard->size = (size_t)info.st_size;
    return STATUS_OK;
}

status_t shard_open(const char *path, struct shard *out)
{
    struct shard shard = {.path = strdup(path)};
    status_t status;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not stop us */

    if (fd < 0) {
        free(shard.path);
        return FAIL(STATUS_IO, "cannot open %s: %s", path, strerror(errno));
    }
    status = shard.path != NULL ? shard_map(fd, &shard)
                                : FAIL(STATUS_NOMEM, "no memory to open %s", path);
    close(fd);
    if (status == STATUS_OK) {
        status = shard_parse(&shard);
    }
    if (status != STATUS_OK) {
        shard_close(&shard);
        return status;
    }
    *out = shard;
    return STATUS_OK;
}

void shard_close(struct shard *shard)
{
    for (int i = 0; i < shard->count; i++) {
        free((char *)(uintptr_t)shard->tensor[i].name);
    }
    free(shard->tensor);
    if (shard->map != NULL) {
        munmap(shard->map, shard->size);
    }
    free(shard->path);
    memset(shard, 0, sizeof *shard);
}
