/* profile.c - steps whose every operation is recorded. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "runtime/trainer.h"

enum { SPANS_A_STEP = 1 << 16, SPANS_MOST = 1 << 18 };

status_t trainer_profile(struct trainer *trainer, const char *folder)
{
    struct profile *profile = &trainer->profile;
    int64_t first = trainer->before + trainer->config.profile.first_step;
    int64_t steps = trainer->config.profile.steps;
    status_t status = STATUS_OK;
    if (steps == 0) {
        return STATUS_OK;
    }
    profile->first = first;
    profile->last = first + steps - 1;
    int length = snprintf(profile->folder, sizeof profile->folder, "%s/trace", folder);
    CHECK(length > 0 && (size_t)length < sizeof profile->folder, "run folder's path too long");
    if (group_rank(trainer->group) == 0 && mkdir(profile->folder, 0777) != 0) {
        status = FAIL(STATUS_IO, "cannot make the folder %s: %s", profile->folder, strerror(errno));
    }
    int64_t spans = steps * SPANS_A_STEP;
    if (status == STATUS_OK) {
        status =
            timeline_create(trainer->place.device, spans < SPANS_MOST ? (size_t)spans : SPANS_MOST,
                            &profile->timeline);
    }
    return group_agree(trainer->group, status);
}

static void record_into(struct worker *worker, struct timeline *timeline)
{
    part_time(worker->part, timeline);
    worker->timeline = timeline;
    if (worker->wire) {
        wire_time(worker->wire, timeline);
    }
}

void profile_pause(struct trainer *trainer)
{
    if (trainer->profile.recording) {
        record_into(trainer->workers.train, NULL);
    }
}

void profile_go_on(struct trainer *trainer)
{
    if (trainer->profile.recording) {
        record_into(trainer->workers.train, trainer->profile.timeline);
    }
}

void profile_destroy(struct trainer *trainer)
{
    if (trainer->workers.train) {
        record_into(trainer->workers.train, NULL);
    }
    timeline_destroy(trainer->profile.timeline);
    trainer->profile.timeline = NULL;
    trainer->profile.recording = false;
}

status_t profile_before(struct trainer *trainer, int64_t step)
{
    struct profile *profile = &trainer->profile;
    struct worker *worker = trainer->workers.train;
    if (step != profile->first) {
        return STATUS_OK;
    }
    TRY(worker_settle(worker));
    log_debug("recording from step %lld on", (long long)step);
    profile->recording = true;
    timeline_track(profile->timeline, trainer->place.stream, "compute", true);
    record_into(worker, profile->timeline);
    return timeline_start(profile->timeline);
}

static void name_process(const struct trainer *trainer, char *name, size_t size)
{
    struct device_info info = {.name = "host"};
    if (trainer->place.device) {
        device_info(trainer->place.device, &info);
    }
    snprintf(name, size, "rank %d (%s)", group_rank(trainer->group), info.name);
}

static status_t print(const struct profile *profile, int steps)
{
    printf("time of a step by operation, rank 0, mean of steps %lld to %lld:\n",
           (long long)profile->first, (long long)profile->first + steps - 1);
    TRY(timeline_print(profile->timeline, steps, stdout));
    printf("trace: %s/rank-*.json (https://ui.perfetto.dev opens it)\n", profile->folder);
    fflush(stdout);
    return STATUS_OK;
}

/* A trace that cannot be written is a pity, not the end of the run. */
static status_t finish(struct trainer *trainer, int64_t step)
{
    struct profile *profile = &trainer->profile;
    char name[160], path[PATH_MAX + 32];
    int rank = group_rank(trainer->group), steps = (int)(step - profile->first + 1);
    log_debug("steps %lld to %lld are enqueued", (long long)profile->first, (long long)step);
    TRY(worker_settle(trainer->workers.train));
    log_debug("they are done: %zu spans", timeline_count(profile->timeline));
    status_t status = timeline_resolve(profile->timeline);
    if (status == STATUS_OK && rank == 0) {
        status = print(profile, steps);
    }
    if (status == STATUS_OK) {
        name_process(trainer, name, sizeof name);
        snprintf(path, sizeof path, "%s/rank-%d.json", profile->folder, rank);
        status = timeline_write(profile->timeline, path, rank, name, steps);
    }
    if (status != STATUS_OK) {
        log_warn("this run goes on without a trace of its steps");
    }
    profile_destroy(trainer);
    return STATUS_OK;
}

status_t profile_after(struct trainer *trainer, int64_t step)
{
    struct profile *profile = &trainer->profile;
    return profile->recording && step == profile->last ? finish(trainer, step) : STATUS_OK;
}

status_t trainer_profile_end(struct trainer *trainer)
{
    struct profile *profile = &trainer->profile;
    int64_t step = atomic_load(&trainer->step);
    if (profile->recording) {
        return finish(trainer, step);
    }
    if (profile->first > step && group_rank(trainer->group) == 0) {
        log_warn("profile.first_step is %lld, but the run ended after step %lld: nothing was "
                 "recorded",
                 (long long)profile->first, (long long)step);
    }
    return STATUS_OK;
}
