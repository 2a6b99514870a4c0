/* safetensors.c - a file, or the set of files that an index names, as one list of tensors. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/json.h"
#include "model/safetensors.h"

enum { PATH_SIZE = 4096, SHARDS_MAX = 4096 };

struct tensor_file {
    char path[PATH_SIZE];
    struct shard *shard;
    int shards;
    struct tensor *tensor; /* [count] by name; names and data belong to the shards */
    int count;
};

/* ---- paths ---- */

static status_t path_join(const char *folder, size_t length, const char *name, char out[PATH_SIZE])
{
    int used = snprintf(out, PATH_SIZE, "%.*s%s", (int)length, folder, name);

    if (length >= PATH_SIZE || used < 0 || used >= PATH_SIZE) {
        return FAIL(STATUS_INVALID, "the path of %s is longer than %d bytes", name, PATH_SIZE - 1);
    }
    return STATUS_OK;
}

/* The file that `path` means: itself, or the one in the folder that it is. */
static status_t path_resolve(const char *path, char out[PATH_SIZE])
{
    static const char *const names[] = {"/model.safetensors", "/model.safetensors.index.json"};
    struct stat info;

    if (stat(path, &info) != 0) {
        return FAIL(STATUS_IO, "cannot open weights %s: %s", path, strerror(errno));
    }
    if (!S_ISDIR(info.st_mode)) {
        return path_join(path, strlen(path), "", out);
    }
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        TRY(path_join(path, strlen(path), names[i], out));
        if (access(out, F_OK) == 0) {
            return STATUS_OK;
        }
    }
    return FAIL(STATUS_INVALID,
                "%s holds neither model.safetensors nor model.safetensors.index.json (weights in "
                "another format have to be converted first)",
                path);
}

static bool has_suffix(const char *text, const char *suffix)
{
    size_t length = strlen(text), tail = strlen(suffix);
    return length >= tail && strcmp(text + length - tail, suffix) == 0;
}

/* ---- sets ---- */

/* Opens the shard of that name beside the index, unless it is open. */
static status_t shard_add(struct tensor_file *file, const char *name)
{
    char path[PATH_SIZE];
    const char *slash = strrchr(file->path, '/');
    size_t folder = slash != NULL ? (size_t)(slash - file->path) + 1 : 0;

    if (strpbrk(name, "/\\") != NULL || name[0] == '.' || name[0] == '\0') {
        return FAIL(STATUS_INVALID, "%s: '%.80s' is no name of a file beside the index", file->path,
                    name);
    }
    TRY(path_join(file->path, folder, name, path));
    for (int i = 0; i < file->shards; i++) {
        if (strcmp(file->shard[i].path, path) == 0) {
            return STATUS_OK;
        }
    }
    if (file->shards == SHARDS_MAX) {
        return FAIL(STATUS_INVALID, "%s: more than %d files", file->path, SHARDS_MAX);
    }
    TRY(shard_open(path, &file->shard[file->shards]));
    file->shards++;
    return STATUS_OK;
}

/* Both ways: what the index lists is in its file, and what the files hold is listed. */
static status_t set_check(const struct tensor_file *file, const struct json *map)
{
    size_t found = 0;

    for (int s = 0; s < file->shards; s++) {
        const struct shard *shard = &file->shard[s];
        const char *slash = strrchr(shard->path, '/');
        const char *name = slash != NULL ? slash + 1 : shard->path;
        for (int i = 0; i < shard->count; i++) {
            const char *listed = json_get_string(json_get(map, shard->tensor[i].name));
            if (listed == NULL || strcmp(listed, name) != 0) {
                return FAIL(STATUS_INVALID, "%s holds tensor %s; %s says it is in %s", shard->path,
                            shard->tensor[i].name, file->path, listed != NULL ? listed : "no file");
            }
            found++;
        }
    }
    if (found != json_size(map)) {
        return FAIL(STATUS_INVALID, "%s lists %zu tensors; its files hold %zu of them", file->path,
                    json_size(map), found);
    }
    return STATUS_OK;
}

static status_t set_read(struct tensor_file *file, const struct json *document)
{
    const struct json *map = json_get(document, "weight_map");

    if (map == NULL || json_type(map) != JSON_OBJECT || json_size(map) > TENSORS_MAX) {
        return FAIL(STATUS_INVALID, "%s: needs a weight_map of at most %d tensors", file->path,
                    TENSORS_MAX);
    }
    for (size_t i = 0; i < json_size(map); i++) {
        const char *tensor;
        const char *name = json_get_string(json_member(map, i, &tensor));
        if (name == NULL) {
            return FAIL(STATUS_INVALID, "%s: weight_map gives no file for tensor %s", file->path,
                        tensor);
        }
        TRY(shard_add(file, name));
    }
    return set_check(file, map);
}

static status_t set_open(struct tensor_file *file)
{
    struct json *document = NULL;
    struct stat info;

    if (stat(file->path, &info) != 0 || info.st_size > HEADER_MAX) {
        return FAIL(STATUS_INVALID, "%s: larger than an index may be", file->path);
    }
    TRY(json_load(file->path, &document));
    file->shard = calloc(SHARDS_MAX, sizeof *file->shard);
    status_t status = file->shard != NULL ? set_read(file, document)
                                          : FAIL(STATUS_NOMEM, "no memory to open %s", file->path);
    json_free(document);
    return status;
}

/* ---- list ---- */

static int tensor_compare(const void *a, const void *b)
{
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

static status_t tensors_list(struct tensor_file *file)
{
    size_t total = 0;

    for (int s = 0; s < file->shards; s++) {
        total += (size_t)file->shard[s].count;
    }
    file->tensor = calloc(total > 0 ? total : 1, sizeof *file->tensor);
    if (file->tensor == NULL) {
        return FAIL(STATUS_NOMEM, "no memory for the tensors of %s", file->path);
    }
    for (int s = 0; s < file->shards; s++) {
        for (int i = 0; i < file->shard[s].count; i++) {
            file->tensor[file->count++] = file->shard[s].tensor[i];
        }
    }
    qsort(file->tensor, total, sizeof *file->tensor, tensor_compare);
    return STATUS_OK;
}

static status_t file_open(const char *path, struct tensor_file *file)
{
    TRY(path_resolve(path, file->path));
    if (has_suffix(file->path, ".json")) {
        TRY(set_open(file));
    } else {
        file->shard = calloc(1, sizeof *file->shard);
        if (file->shard == NULL) {
            return FAIL(STATUS_NOMEM, "no memory to open %s", file->path);
        }
        TRY(shard_open(file->path, file->shard));
        file->shards = 1;
    }
    return tensors_list(file);
}

status_t tensor_file_open(const char *path, struct tensor_file **out)
{
    struct tensor_file *file = calloc(1, sizeof *file);

    if (file == NULL) {
        return FAIL(STATUS_NOMEM, "no memory to open %s", path);
    }
    status_t status = file_open(path, file);
    if (status != STATUS_OK) {
        tensor_file_close(file);
        return status;
    }
    *out = file;
    return STATUS_OK;
}

void tensor_file_close(struct tensor_file *file)
{
    if (file == NULL) {
        return;
    }
    for (int s = 0; s < file->shards; s++) {
        shard_close(&file->shard[s]);
    }
    free(file->shard);
    free(file->tensor);
    free(file);
}

int tensor_file_count(const struct tensor_file *file)
{
    return file->count;
}

void tensor_file_at(const struct tensor_file *file, int i, struct tensor *out)
{
    CHECK(i >= 0 && i < file->count, "tensor %d of %d", i, file->count);
    *out = file->tensor[i];
}

bool tensor_file_find(const struct tensor_file *file, const char *name, struct tensor *out)
{
    struct tensor wanted = {.name = name};
    const struct tensor *found =
        bsearch(&wanted, file->tensor, (size_t)file->count, sizeof *file->tensor, tensor_compare);

    if (found != NULL) {
        *out = *found;
    }
    return found != NULL;
}

const char *tensor_file_path(const struct tensor_file *file)
{
    return file->path;
}

/* Small ones whole. */
static uint64_t tensor_fingerprint(const struct tensor *tensor, uint64_t hash)
{
    enum { PLACES = 4, RUN = 4096 }; /* bytes of a place */
    const char *data = tensor->data;
    size_t bytes = (size_t)tensor->count * tensor_dtype_size(tensor->dtype);

    hash = hash_bytes(tensor->name, strlen(tensor->name), hash);
    hash = hash_bytes(tensor->shape, (size_t)tensor->dims * sizeof tensor->shape[0],
                      hash + (uint64_t)tensor->dtype);
    if (bytes <= (size_t)PLACES * RUN) {
        return hash_bytes(data, bytes, hash);
    }
    for (size_t i = 0; i < PLACES; i++) {
        hash = hash_bytes(data + (bytes - RUN) / (PLACES - 1) * i, RUN, hash);
    }
    return hash;
}

uint64_t tensor_file_fingerprint(const struct tensor_file *file)
{
    uint64_t hash = (uint64_t)file->count;

    for (int i = 0; i < file->count; i++) {
        hash = tensor_fingerprint(&file->tensor[i], hash);
    }
    return hash;
}
