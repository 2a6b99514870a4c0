/* save.c - saves beside the steps (save.h). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "runtime/save_internal.h"

#define TELL_NS INT64_C(30000000000) /* between lines about a wait at the end */
enum { LOOK_NS = 200000 };           /* between looks at a device */

bool saver_wanted(const struct run_config *config)
{
    return config->checkpoint.every > 0 || config->checkpoint.every_s > 0 ||
           strcmp(config->checkpoint.resume, "none") != 0;
}

/* ---- creation ---- */

static status_t tensors_create(struct saver *saver, const struct model *model)
{
    saver->tensors = model->params;
    saver->tensor = calloc((size_t)model->params + 1, sizeof *saver->tensor);
    if (!saver->tensor) {
        return FAIL(STATUS_NOMEM, "no memory for the names of %d tensors", model->params);
    }
    for (int p = 0; p < model->params; p++) {
        const struct param *param = &model->param[p];
        saver->tensor[p] =
            (struct checkpoint_tensor){param->name, param->shape, param->dims, param->trained};
    }
    return STATUS_OK;
}

/* Where the values of a piece, which are at `source` in the part, are when they are written. On the host a copy has
 * what this rank answers for, one after the other; on a device it is one of all that the part has. */
static const float *piece_values(const struct saver *saver, int kind, const float *source,
                                 size_t at)
{
    const struct trainer *trainer = saver->trainer;
    size_t count;
    if (saver->in_pieces) {
        return source;
    }
    if (!trainer->place.device) {
        return saver->values[kind] + at;
    }
    return saver->values[kind] +
           (source - part_all_values(trainer->workers.train->part, saver_kinds[kind], &count));
}

/* The pieces of what this rank answers for of a parameter: with `fill`, else only counted. */
static void param_lay(struct saver *saver, int kind, int param, bool fill)
{
    const struct part *part = saver->trainer->workers.train->part;
    struct piece piece;
    for (int64_t at = 0; part_piece(part, saver_kinds[kind], param, CHECKPOINT_CHUNK, &at, &piece);
         saver->pieces++) {
        if (fill) {
            const float *source = part_slice(part, &piece.here);
            saver->source[saver->pieces] = source;
            saver->piece[saver->pieces] = (struct checkpoint_piece){
                .values = piece_values(saver, kind, source, saver->count[kind]),
                .tensor = (uint32_t)param,
                .kind = (uint32_t)kind,
                .begin = (uint64_t)piece.begin,
                .count = (uint64_t)piece.here.count,
                .run = (uint64_t)piece.run,
                .stride = (uint64_t)piece.stride};
        }
        saver->count[kind] += (size_t)piece.here.count;
    }
}

static void pieces_lay(struct saver *saver, bool fill)
{
    const struct trainer *trainer = saver->trainer;
    const struct part *part = trainer->workers.train->part;
    saver->pieces = 0;
    memset(saver->count, 0, sizeof saver->count);
    for (int p = 0; p < trainer->model->params; p++) {
        for (int k = 0; k < CHECKPOINT_KINDS && part_owns(part, p); k++) {
            param_lay(saver, k, p, fill);
        }
    }
    for (int k = 0; k < CHECKPOINT_KINDS && trainer->place.device; k++) {
        (void)part_all_values(part, saver_kinds[k], &saver->count[k]);
    }
}

static size_t copy_bytes(const struct saver *saver)
{
    size_t count = 0;
    for (int k = 0; k < CHECKPOINT_KINDS; k++) {
        count += saver->count[k];
    }
    return count * sizeof(float);
}

/* Bytes of host memory that could be had now; 0 = nobody knows. */
static size_t memory_available(void)
{
    FILE *file = fopen("/proc/meminfo", "r");
    char line[128];
    size_t kib = 0;
    while (file && kib == 0 && fgets(line, sizeof line, file)) {
        (void)!sscanf(line, "MemAvailable: %zu kB", &kib);
    }
    if (file) {
        fclose(file);
    }
    return kib * 1024;
}

/* Is there no room for a copy of all, with those of the other ranks of this host and as much again left? */
static bool must_be_pieces(const struct saver *saver)
{
    const struct trainer *trainer = saver->trainer;
    int choice = trainer->config.checkpoint.copy;
    size_t available = memory_available();
    size_t all = copy_bytes(saver) * (size_t)group_local_size(trainer->group);
    return choice == COPY_PIECES || (choice == COPY_AUTO && available > 0 && 2 * all > available);
}

static void lay_copy(struct saver *saver, struct arena *arena)
{
    if (saver->in_pieces) {
        saver->staging = arena_alloc(arena, CHECKPOINT_CHUNK * sizeof(float));
        return;
    }
    for (int k = 0; k < CHECKPOINT_KINDS; k++) {
        saver->values[k] = arena_alloc(arena, saver->count[k] * sizeof(float));
    }
}

static status_t create_streams(struct saver *saver, struct device *device)
{
    TRY(device_stream_create(device, false, &saver->stream));
    TRY(device_event_create(device, false, &saver->stepped));
    TRY(device_event_create(device, true, &saver->copy_begin));
    TRY(device_event_create(device, true, &saver->copied));
    TRY(device_event_create(device, true, &saver->wait_begin));
    return device_event_create(device, true, &saver->wait_end);
}

static status_t copies_create(struct saver *saver)
{
    const struct trainer *trainer = saver->trainer;
    struct arena measure;
    pieces_lay(saver, false);
    saver->in_pieces = must_be_pieces(saver);
    if (saver->in_pieces && trainer->config.checkpoint.copy == COPY_AUTO) {
        log_warn("no room in this host's memory for a copy of %.1f GiB: what is saved is copied in "
                 "pieces, and "
                 "the update after it waits until all have been encoded (checkpoint.copy)",
                 (double)copy_bytes(saver) / 0x1p30);
    }
    arena_init_measure(&measure);
    lay_copy(saver, &measure);
    saver->bytes = measure.used;
    saver->piece = calloc(saver->pieces + 1, sizeof *saver->piece);
    saver->source = calloc(saver->pieces + 1, sizeof *saver->source);
    if (!saver->piece || !saver->source) {
        return FAIL(STATUS_NOMEM, "no memory for the chunks of a checkpoint");
    }
    TRY(trainer->place.device ? create_streams(saver, trainer->place.device) : STATUS_OK);
    return trainer->place.device ? saver_make_copy(saver) : STATUS_OK;
}

status_t saver_make_copy(struct saver *saver)
{
    const struct trainer *trainer = saver->trainer;
    TRY(arena_create_on(&saver->copy, trainer->place.device, MEMORY_PINNED, trainer->place.stream,
                        saver->bytes, "the copy of a checkpoint"));
    lay_copy(saver, &saver->copy);
    pieces_lay(saver, true);
    return STATUS_OK;
}

static status_t saver_init(struct saver *saver, const struct saver_options *options)
{
    const struct run_config *config = &saver->trainer->config;
    int computing = saver->trainer->place.threads;
    snprintf(saver->run, sizeof saver->run, "%s", options->run);
    saver->config = strdup(options->config);
    saver->model = strdup(options->model);
    saver->train_data = options->train_data;
    saver->saved = options->step;
    saver->level = (int)config->checkpoint.level;
    saver->keep = (int)config->checkpoint.keep;
    saver->threads = config->checkpoint.threads > 0 ? (int)config->checkpoint.threads
                     : computing >= 8               ? computing / 4
                                                    : 1;
    saver->last_begun = trace_now();
    atomic_store(&saver->due_at,
                 config->checkpoint.every_s > 0
                     ? saver->last_begun + (int64_t)(config->checkpoint.every_s * 1e9)
                     : INT64_MAX);
    if (!saver->config || !saver->model) {
        return FAIL(STATUS_NOMEM, "no memory for the configuration in checkpoints");
    }
    TRY(tensors_create(saver, saver->trainer->model));
    return copies_create(saver);
}

status_t saver_create(struct trainer *trainer, const struct saver_options *options)
{
    struct saver *saver = calloc(1, sizeof *saver);
    if (!saver) {
        return FAIL(STATUS_NOMEM, "no memory for checkpoints");
    }
    saver->trainer = trainer;
    trainer->saver = saver;
    pthread_mutex_init(&saver->mutex, NULL);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC); /* that of the day may jump */
    pthread_cond_init(&saver->changed, &clock);
    pthread_condattr_destroy(&clock);
    pthread_mutex_init(&saver->fetching, NULL);
    TRY(saver_init(saver, options));
    saver->started = pthread_create(&saver->thread, NULL, saver_run, saver) == 0;
    return saver->started ? STATUS_OK : FAIL(STATUS_NOMEM, "no thread for checkpoints");
}

void saver_destroy(struct trainer *trainer)
{
    struct saver *saver = trainer->saver;
    struct device *device = trainer->place.device;
    if (!saver) {
        return;
    }
    pthread_mutex_lock(&saver->mutex);
    saver->quit = true;
    pthread_cond_broadcast(&saver->changed);
    pthread_mutex_unlock(&saver->mutex);
    if (saver->started) {
        pthread_join(saver->thread, NULL);
    }
    if (saver->stream) {
        device_event_destroy(device, saver->stepped);
        device_event_destroy(device, saver->copy_begin);
        device_event_destroy(device, saver->copied);
        device_event_destroy(device, saver->wait_begin);
        device_event_destroy(device, saver->wait_end);
        device_stream_destroy(device, saver->stream);
    }
    if (saver->copy.base) {
        arena_destroy(&saver->copy);
    }
    pthread_cond_destroy(&saver->changed);
    pthread_mutex_destroy(&saver->mutex);
    pthread_mutex_destroy(&saver->fetching);
    free(saver->piece);
    free(saver->source);
    free(saver->tensor);
    free(saver->config);
    free(saver->model);
    free(saver);
    trainer->saver = NULL;
}

int64_t saver_bytes(const struct trainer *trainer)
{
    return trainer->saver ? (int64_t)trainer->saver->bytes : 0;
}

/* ---- beside the steps ---- */

/* The copies wait for the step that was enqueued last. */
static status_t copy_device(struct saver *saver)
{
    const struct trainer *trainer = saver->trainer;
    struct device *device = trainer->place.device;
    TRY(device_event_record(device, saver->stepped, trainer->place.stream));
    TRY(device_event_wait(device, saver->stepped, saver->stream));
    TRY(device_event_record(device, saver->copy_begin, saver->stream));
    for (int k = 0; k < CHECKPOINT_KINDS && !saver->in_pieces; k++) {
        size_t count;
        const float *values = part_all_values(trainer->workers.train->part, saver_kinds[k], &count);
        TRY(device_copy(device, saver->values[k], values, count * sizeof *values, saver->stream));
    }
    return device_event_record(device, saver->copied, saver->stream);
}

static status_t saver_begin(struct saver *saver, int64_t step, int64_t sequences)
{
    double every_s = saver->trainer->config.checkpoint.every_s;
    TRY(saver->trainer->place.device ? copy_device(saver) : STATUS_OK);
    pthread_mutex_lock(&saver->mutex);
    saver->step = step;
    saver->sequences = sequences;
    saver->copying = saver->writing = true;
    saver->copy_begun = false;
    pthread_cond_broadcast(&saver->changed);
    pthread_mutex_unlock(&saver->mutex);
    saver->busy = true;
    saver->waited = false;
    saver->wait_ms = 0;
    saver->last_begun = trace_now();
    if (every_s > 0) {
        atomic_store(&saver->due_at, saver->last_begun + (int64_t)(every_s * 1e9));
    }
    return STATUS_OK;
}

/* On a device the update waits in the stream, which may come to it after the disk has everything. */
static bool wait_is_over(const struct saver *saver)
{
    struct device *device = saver->trainer->place.device;
    bool done = true;
    return !device || !saver->waited || saver->in_pieces ||
           (device_event_done(device, saver->wait_end, &done) == STATUS_OK && done);
}

/* Until it is, or a rank is lost, or it takes too long. */
static void wait_out(const struct saver *saver)
{
    struct group *group = saver->trainer->group;
    int64_t until = group_deadline(group);
    while (!wait_is_over(saver) && !group_is_lost(group) && trace_now() < until) {
        nanosleep(&(struct timespec){0, LOOK_NS}, NULL);
    }
}

/* "waited 0.3 ms" */
static const char *print_wait(const struct saver *saver, char *buffer, size_t size)
{
    struct device *device = saver->trainer->place.device;
    double ms = saver->wait_ms;
    bool of_stream = device && saver->waited && !saver->in_pieces;
    if (of_stream &&
        (!wait_is_over(saver) ||
         device_event_elapsed(device, saver->wait_begin, saver->wait_end, &ms) != STATUS_OK)) {
        return "is still waiting";
    }
    snprintf(buffer, size, "waited %.1f ms", ms);
    return buffer;
}

/* What the thread has made whole since. Unless `now`, when all of it is known. */
static void tell_saved(struct saver *saver, bool now)
{
    const struct shard_result *own = &saver->of_folder;
    char wait[48];
    pthread_mutex_lock(&saver->mutex);
    if (saver->folder[0] && (now || wait_is_over(saver))) {
        log_info("saved %s (of rank 0 %.1f MiB as %.1f: copied in %.1f ms, for which the update "
                 "%s; written in %.2f s, read again in %.2f s; made whole in %.2f s)",
                 saver->folder, (double)own->raw / 0x1p20, (double)own->stored / 0x1p20,
                 saver->copy_ms, print_wait(saver, wait, sizeof wait), own->write_s, own->verify_s,
                 saver->whole_s);
        saver->folder[0] = '\0';
    }
    pthread_mutex_unlock(&saver->mutex);
}

status_t saver_after(struct trainer *trainer, int64_t step, int64_t sequences)
{
    struct saver *saver = trainer->saver;
    int64_t every = trainer->config.checkpoint.every;
    if (saver) {
        tell_saved(saver, false);
    }
    bool due = saver && ((every > 0 && step % every == 0) || trainer->known.save_due);
    if (!due || saver->saved == step) {
        return STATUS_OK;
    }
    if (saver->busy) {
        if (every > 0 && step % every == 0) {
            saver->passed_over++;
            log_info("no checkpoint of step %lld: that of step %lld is still being written (%lld "
                     "passed over "
                     "so far; checkpoint.every is too small for this disk)",
                     (long long)step, (long long)saver->step, (long long)saver->passed_over);
        }
        return STATUS_OK;
    }
    trainer->known.save_due = false;
    tell_saved(saver, true);
    return saver_begin(saver, step, sequences);
}

/* Or less. With the mutex. */
static void wait_a_second(struct saver *saver)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec++;
    pthread_cond_timedwait(&saver->changed, &saver->mutex, &until);
}

/* Until all pieces have been fetched, which they are as the disk takes them. */
static status_t pieces_wait(struct saver *saver)
{
    struct group *group = saver->trainer->group;
    int64_t until = group_deadline(group);
    status_t status = STATUS_OK;
    pthread_mutex_lock(&saver->mutex);
    while (saver->copying && status == STATUS_OK) {
        wait_a_second(saver);
        status = group_check(group);
        if (status == STATUS_OK && saver->copying && trace_now() > until) {
            status = FAIL(
                STATUS_TIMEOUT,
                "the update has waited %g s (health.deadline_s) for the checkpoint of step %lld "
                "to be copied in pieces: the disk below %s does not take them "
                "(checkpoint.copy=whole waits for no disk)",
                saver->trainer->config.health.deadline_s, (long long)saver->step, saver->run);
        }
    }
    pthread_mutex_unlock(&saver->mutex);
    return status;
}

status_t saver_before_update(struct trainer *trainer)
{
    struct saver *saver = trainer->saver;
    if (!saver || !saver->busy) {
        return STATUS_OK;
    }
    if (saver->waited) {
        return STATUS_OK; /* an update before this one has */
    }
    saver->waited = true;
    if (trainer->place.device && !saver->in_pieces) {
        struct device *device = trainer->place.device;
        void *stream = trainer->place.stream;
        TRY(device_event_record(device, saver->wait_begin, stream));
        TRY(device_event_wait(device, saver->copied, stream));
        return device_event_record(device, saver->wait_end, stream);
    }
    int64_t begun = trace_now();
    status_t status = STATUS_OK;
    if (saver->in_pieces) {
        status = pieces_wait(saver);
    } else {
        saver_copy(saver);
    }
    saver->wait_ms = (double)(trace_now() - begun) * 1e-6;
    return status;
}

/* Of a save that failed on some rank. */
static void drop(const struct saver *saver)
{
    char temporary[PATH_MAX];
    if (group_rank(saver->trainer->group) != 0) {
        return;
    }
    log_warn("no checkpoint of step %lld: writing it failed; that of step %lld stays",
             (long long)saver->step, (long long)saver->saved);
    if (checkpoint_path(saver->run, saver->step, true, temporary) == STATUS_OK) {
        checkpoint_remove(temporary);
    }
}

static void commit(struct saver *saver)
{
    pthread_mutex_lock(&saver->mutex);
    saver->whole = saver->step;
    saver->whole_sequences = saver->sequences;
    saver->committing = true;
    pthread_cond_broadcast(&saver->changed);
    pthread_mutex_unlock(&saver->mutex);
}

void saver_note(struct trainer *trainer, const struct step_result *result)
{
    struct saver *saver = trainer->saver;
    if (!saver || !saver->busy || result->saved != saver->step) {
        return;
    }
    saver->busy = false;
    if (result->save_failed) {
        drop(saver);
        return;
    }
    saver->saved = saver->step;
    if (group_rank(trainer->group) == 0) {
        commit(saver);
    }
}

int64_t saver_reached(const struct trainer *trainer)
{
    return trainer->saver ? atomic_load(&trainer->saver->reached) : 0;
}

bool saver_clock_due(const struct trainer *trainer)
{
    return trainer->saver && group_rank(trainer->group) == 0 &&
           trace_now() >= atomic_load(&trainer->saver->due_at);
}

/* ---- the end ---- */

/* Until the thread has nothing to do; its last results. How long a disk may take nobody knows, so it is told
 * now and then, and a lost rank ends the wait. */
static status_t saver_wait(struct saver *saver)
{
    struct group *group = saver->trainer->group;
    int64_t begun = trace_now(), told = begun;
    status_t status = STATUS_OK;
    pthread_mutex_lock(&saver->mutex);
    while ((saver->writing || saver->committing) && status == STATUS_OK) {
        wait_a_second(saver);
        status = group_check(group);
        if (trace_now() - told > TELL_NS) {
            told = trace_now();
            log_warn("for %.0f s waiting for the checkpoint of step %lld to be written below %s",
                     (double)(told - begun) * 1e-9, (long long)saver->step, saver->run);
        }
    }
    if (status == STATUS_OK) {
        status = saver->written != STATUS_OK ? saver->written : saver->committed;
    }
    pthread_mutex_unlock(&saver->mutex);
    return status;
}

/* Did it go well on every rank? Fails only where ranks are lost. Collective. */
static status_t all_well(struct group *group, status_t own, bool *out)
{
    status_t all[group_size(group)];
    *out = true;
    TRY(group_allgather(group, &own, sizeof own, all));
    for (int rank = 0; rank < group_size(group); rank++) {
        *out = *out && all[rank] == STATUS_OK;
    }
    return STATUS_OK;
}

/* Until the save under way, if any, has ended on all ranks. *out_good: nothing has failed. */
static status_t saver_settle(struct saver *saver, bool *out_good)
{
    struct group *group = saver->trainer->group;
    bool root = group_rank(group) == 0, good;
    TRY(all_well(group, saver_wait(saver), &good));
    wait_out(saver);
    tell_saved(saver, true);
    if (saver->busy && good && root) {
        commit(saver);
    } else if (saver->busy && !good) {
        drop(saver);
    }
    TRY(all_well(group, saver_wait(saver), out_good));
    tell_saved(saver, true);
    saver->saved = saver->busy && *out_good ? saver->step : saver->saved;
    saver->busy = false;
    return STATUS_OK;
}

status_t saver_finish(struct trainer *trainer, int64_t step, int64_t sequences)
{
    struct saver *saver = trainer->saver;
    bool good;
    if (!saver) {
        return STATUS_OK;
    }
    TRY(saver_settle(saver, &good));
    if (step == 0 || (good && saver->saved == step)) {
        return STATUS_OK;
    }
    saver->written = saver->committed = STATUS_OK; /* the failure of an earlier one has been told */
    TRY(group_agree(trainer->group, saver_begin(saver, step, sequences)));
    TRY(saver_settle(saver, &good));
    if (good) {
        return STATUS_OK;
    }
    if (group_rank(trainer->group) == 0) {
        log_warn("the last step, %lld, is not saved", (long long)step);
    }
    return STATUS_IO;
}
