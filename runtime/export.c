/* export.c - the whole model as an official folder, written by all ranks side by side.
 *
 * Rank 0 makes config.json and a model.safetensors of the final size under temporary names; every rank
 * writes its own tensors in place; after all have said so rank 0 renames, config.json last. So a folder
 * holds a whole model or none.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/trainer.h"

enum { FILES = 2 };
static const char *const final_name[FILES] = {"model.safetensors", "config.json"};
static const char *const temporary_name[FILES] = {".model.safetensors.part", ".config.json.part"};

static status_t join(char *out, size_t size, const char *folder, const char *name)
{
    int length = snprintf(out, size, "%s/%s", folder, name);
    if (length < 0 || (size_t)length >= size) {
        return FAIL(STATUS_INVALID, "the path %s/%s is too long", folder, name);
    }
    return STATUS_OK;
}

static status_t export_begin(struct trainer *trainer, const char *folder, const char *temporary,
                             const struct tensor_entry *entries)
{
    char config[PATH_MAX];
    if (mkdir(folder, 0777) != 0 && errno != EEXIST) {
        return FAIL(STATUS_IO, "cannot make the folder %s: %s", folder, strerror(errno));
    }
    TRY(join(config, sizeof config, folder, temporary_name[1]));
    TRY(model_config_save(&trainer->model->config, config));
    return tensor_writer_create(temporary, entries, trainer->model->params);
}

static status_t export_own(struct trainer *trainer, const char *temporary,
                           const struct tensor_entry *entries)
{
    const struct part *part = trainer_part(trainer);
    status_t status = STATUS_OK;
    for (int p = 0; p < trainer->model->params && status == STATUS_OK; p++) {
        if (!part_owns(part, p)) {
            continue;
        }
        int64_t most = part_share(part, STORE_WEIGHTS, p).count, at = 0;
        float *values = malloc((size_t)(most + 1) * sizeof *values);
        struct piece piece;
        status = values ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory to export %s", entries[p].name);
        while (status == STATUS_OK && part_piece(part, STORE_WEIGHTS, p, most, &at, &piece)) {
            const struct tensor_runs runs = {p, (size_t)piece.begin, (size_t)piece.here.count,
                                             (size_t)piece.run, (size_t)piece.stride};
            status = part_read(part, &piece.here, values);
            if (status == STATUS_OK) {
                status = tensor_writer_write_runs(temporary, entries, trainer->model->params, &runs,
                                                  values);
            }
        }
        free(values);
    }
    return status;
}

static status_t export_end(const char *folder)
{
    char from[PATH_MAX], to[PATH_MAX];
    for (int i = 0; i < FILES; i++) {
        TRY(join(from, sizeof from, folder, temporary_name[i]));
        TRY(join(to, sizeof to, folder, final_name[i]));
        if (rename(from, to) != 0) {
            return FAIL(STATUS_IO, "cannot rename %s to %s: %s", from, to, strerror(errno));
        }
    }
    return STATUS_OK;
}

/* What a failed export made. */
static void export_undo(const char *folder)
{
    char path[PATH_MAX];
    for (int i = 0; i < FILES; i++) {
        if (join(path, sizeof path, folder, temporary_name[i]) == STATUS_OK) {
            unlink(path);
        }
    }
    rmdir(folder); /* if it is empty */
}

status_t trainer_export(struct trainer *trainer, const char *folder)
{
    char temporary[PATH_MAX];
    struct tensor_entry *entries = NULL;
    bool root = group_rank(trainer->group) == 0;
    TRY(trainer_settle(trainer, NULL));
    atomic_store_explicit(&trainer->workers.walking, NULL, memory_order_release);
    TRY(join(temporary, sizeof temporary, folder, temporary_name[0]));
    status_t status = model_entries(trainer->model, &entries);
    if (status == STATUS_OK && root) {
        status = export_begin(trainer, folder, temporary, entries);
    }
    status = group_agree(trainer->group, status);
    if (status == STATUS_OK) {
        status = group_agree(trainer->group, export_own(trainer, temporary, entries));
    }
    if (status == STATUS_OK && root) {
        status = export_end(folder);
    }
    if (status != STATUS_OK && root) {
        export_undo(folder);
    }
    free(entries);
    return group_agree(trainer->group, status);
}
