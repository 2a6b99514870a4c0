/* save_thread.c - the thread that copies (on the host), writes, and makes whole what it was asked to. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "runtime/save_internal.h"

enum { LOOK_NS = 200000 }; /* between looks at a device's copy */

const enum store_kind saver_kinds[CHECKPOINT_KINDS] = {STORE_WEIGHTS, STORE_FIRST_MOMENT,
                                                       STORE_SECOND_MOMENT};

/* Until what was enqueued to copy is there, or a rank is lost. */
static status_t copied_wait(struct saver *saver)
{
    for (bool done = false; !done;) {
        TRY(device_event_done(saver->trainer->place.device, saver->copied, &done));
        TRY(group_check(saver->trainer->group));
        if (!done) {
            nanosleep(&(struct timespec){0, LOOK_NS}, NULL);
        }
    }
    return STATUS_OK;
}

static status_t copy_wait_device(struct saver *saver)
{
    TRY(copied_wait(saver));
    return device_event_elapsed(saver->trainer->place.device, saver->copy_begin, saver->copied,
                                &saver->copy_ms);
}

/* From the weights as they are, which do not change meanwhile (saver_before_update). */
static void copy_host(struct saver *saver)
{
    int64_t begun = trace_now();
    for (size_t i = 0; i < saver->pieces; i++) {
        float *copy = (float *)(uintptr_t)saver->piece[i].values; /* in saver->values */
        memcpy(copy, saver->source[i], saver->piece[i].count * sizeof *copy);
    }
    saver->copy_ms = (double)(trace_now() - begun) * 1e-6;
}

static void copy_done(struct saver *saver)
{
    pthread_mutex_lock(&saver->mutex);
    saver->copying = false;
    pthread_cond_broadcast(&saver->changed);
    pthread_mutex_unlock(&saver->mutex);
}

void saver_copy(struct saver *saver)
{
    pthread_mutex_lock(&saver->mutex);
    while (!saver->made) {
        pthread_cond_wait(&saver->changed, &saver->mutex);
    }
    bool first = !saver->copy_begun && saver->unusable == STATUS_OK;
    saver->copy_begun = true;
    while (!first && saver->copying) {
        pthread_cond_wait(&saver->changed, &saver->mutex);
    }
    pthread_mutex_unlock(&saver->mutex);
    if (first) {
        copy_host(saver);
        copy_done(saver);
    }
}

/* By way of pinned memory, one piece at a time. */
static status_t fetch_device(struct saver *saver, const struct checkpoint_piece *piece, float *out)
{
    struct device *device = saver->trainer->place.device;
    size_t bytes = piece->count * sizeof *out;
    TRY(device_bind(device));
    TRY(device_copy(device, saver->staging, piece->values, bytes, saver->stream));
    TRY(device_event_record(device, saver->copied, saver->stream));
    TRY(copied_wait(saver));
    memcpy(out, saver->staging, bytes);
    return STATUS_OK;
}

/* The weights may change when the last piece has been fetched. */
static status_t fetch_piece(void *argument, const struct checkpoint_piece *piece, float *out)
{
    struct saver *saver = argument;
    status_t status = STATUS_OK;
    if (saver->trainer->place.device) {
        pthread_mutex_lock(&saver->fetching);
        status = fetch_device(saver, piece, out);
        pthread_mutex_unlock(&saver->fetching);
    } else {
        memcpy(out, piece->values, piece->count * sizeof *out);
    }
    if (status == STATUS_OK && atomic_fetch_add(&saver->fetched, 1) + 1 == saver->pieces) {
        copy_done(saver);
    }
    return status;
}

static status_t write_shard(struct saver *saver)
{
    char folder[PATH_MAX];
    struct shard_options options = {.folder = folder,
                                    .rank = group_rank(saver->trainer->group),
                                    .piece = saver->piece,
                                    .pieces = saver->pieces,
                                    .level = saver->level,
                                    .threads = saver->threads,
                                    .fetch = saver->in_pieces ? fetch_piece : NULL,
                                    .arg = saver,
                                    .cancel = &saver->quit};
    TRY(checkpoint_begin(saver->run, saver->step));
    TRY(checkpoint_path(saver->run, saver->step, true, folder));
    return shard_write(&options, &saver->result);
}

static status_t do_write(struct saver *saver)
{
    status_t status = STATUS_OK;
    if (saver->in_pieces) {
        atomic_store(&saver->fetched, 0);
    } else if (saver->trainer->place.device) {
        status = copy_wait_device(saver);
        copy_done(saver);
    } else {
        saver_copy(saver);
    }
    if (status == STATUS_OK) {
        status = write_shard(saver);
    }
    if (status != STATUS_OK && status != STATUS_INTERRUPTED) {
        log_warn(
            "the checkpoint of step %lld failed on this rank: the run goes on, and what was saved "
            "before stays",
            (long long)saver->step);
    }
    return status;
}

/* For main to tell: this thread has no log file. */
static void note_saved(struct saver *saver, const char *folder, double seconds)
{
    pthread_mutex_lock(&saver->mutex);
    snprintf(saver->folder, sizeof saver->folder, "%s", folder);
    saver->whole_s = seconds;
    saver->of_folder = saver->result;
    pthread_mutex_unlock(&saver->mutex);
}

static status_t make_whole(struct saver *saver, const char *temporary, const char *final)
{
    struct checkpoint_info info = {.step = saver->whole,
                                   .sequences = saver->whole_sequences,
                                   .train_data = saver->train_data,
                                   .program = MUDDPIPE_VERSION,
                                   .config = saver->config,
                                   .model = saver->model,
                                   .tensor = saver->tensor,
                                   .tensors = saver->tensors,
                                   .shards = group_size(saver->trainer->group),
                                   .level = saver->level};
    int64_t begun = trace_now();
    TRY(checkpoint_commit(temporary, final, &info));
    note_saved(saver, final, (double)(trace_now() - begun) * 1e-9);
    return STATUS_OK;
}

static status_t do_commit(struct saver *saver)
{
    char temporary[PATH_MAX], final[PATH_MAX];
    TRY(checkpoint_path(saver->run, saver->whole, true, temporary));
    TRY(checkpoint_path(saver->run, saver->whole, false, final));
    status_t status = make_whole(saver, temporary, final);
    if (status == STATUS_OK) {
        checkpoint_prune(saver->run, saver->keep);
    } else {
        log_warn("no checkpoint of step %lld: the run goes on, and what was saved before stays",
                 (long long)saver->whole);
        checkpoint_remove(temporary);
    }
    return status;
}

void *saver_run(void *argument)
{
    struct saver *saver = argument;
    struct device *device = saver->trainer->place.device;
    log_set_rank(group_rank(saver->trainer->group));
    status_t ready = device ? device_bind(device) : saver_make_copy(saver);
    pthread_mutex_lock(&saver->mutex);
    saver->made = true;
    saver->unusable = ready;
    pthread_cond_broadcast(&saver->changed);
    while (!saver->quit) {
        bool commit = saver->committing, write = saver->writing && !commit;
        if (!commit && !write) {
            pthread_cond_wait(&saver->changed, &saver->mutex);
            continue;
        }
        pthread_mutex_unlock(&saver->mutex);
        status_t status = ready;
        if (status == STATUS_OK) {
            status = commit ? do_commit(saver) : do_write(saver);
        }
        if (write) {
            atomic_store(&saver->reached, status == STATUS_OK ? saver->step : -saver->step);
        }
        pthread_mutex_lock(&saver->mutex);
        *(commit ? &saver->committed : &saver->written) = status;
        *(commit ? &saver->committing : &saver->writing) = false;
        saver->copying =
            saver->copying && commit; /* the copy for the next may have been asked for */
        pthread_cond_broadcast(&saver->changed);
    }
    pthread_mutex_unlock(&saver->mutex);
    return NULL;
}
