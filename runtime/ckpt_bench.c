/* ckpt_bench.c - how fast a shard is written, beside what the disk and one core can do. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/rng.h"
#include "base/trace.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/runtime.h"

struct bench {
    const struct checkpoint_bench *options;
    struct checkpoint_piece *piece;
    size_t pieces;
    float *values[CHECKPOINT_KINDS]; /* [CHECKPOINT_CHUNK], which all pieces of a kind have */
};

/* As a run has them: weights around 0.02, moments of gradients that are far smaller. */
static status_t values_make(struct bench *bench)
{
    for (int k = 0; k < CHECKPOINT_KINDS; k++) {
        bench->values[k] = malloc(CHECKPOINT_CHUNK * sizeof *bench->values[k]);
        if (!bench->values[k]) {
            return FAIL(STATUS_NOMEM, "no memory for values to write");
        }
        for (uint64_t i = 0; i < CHECKPOINT_CHUNK; i++) {
            double normal = rng_normal(1, (uint64_t)k, i);
            bench->values[k][i] = (float)(k == 0   ? 0.02 * normal
                                          : k == 1 ? 1e-4 * normal
                                                   : 1e-8 * normal * normal);
        }
    }
    return STATUS_OK;
}

static status_t bench_make(struct bench *bench)
{
    size_t chunk = CHECKPOINT_CHUNK * sizeof(float);
    bench->pieces = (size_t)bench->options->bytes / chunk + 1;
    bench->piece = calloc(bench->pieces, sizeof *bench->piece);
    if (!bench->piece) {
        return FAIL(STATUS_NOMEM, "no memory for the chunks to write");
    }
    TRY(values_make(bench));
    for (size_t i = 0; i < bench->pieces; i++) {
        uint32_t kind = (uint32_t)(i % CHECKPOINT_KINDS);
        bench->piece[i] = (struct checkpoint_piece){.values = bench->values[kind],
                                                    .tensor = (uint32_t)(i / CHECKPOINT_KINDS),
                                                    .kind = kind,
                                                    .count = CHECKPOINT_CHUNK,
                                                    .run = CHECKPOINT_CHUNK,
                                                    .stride = CHECKPOINT_CHUNK};
    }
    return STATUS_OK;
}

static void bench_free(struct bench *bench)
{
    for (int k = 0; k < CHECKPOINT_KINDS; k++) {
        free(bench->values[k]);
    }
    free(bench->piece);
}

static status_t write_once(const struct bench *bench, const char *folder, int threads,
                           struct shard_result *out)
{
    char scratch[PATH_MAX];
    int length = snprintf(scratch, sizeof scratch, "%s/.muddpipe-bench-%d", folder, (int)getpid());
    if (length < 0 || (size_t)length >= sizeof scratch) {
        return FAIL(STATUS_INVALID, "the path is too long: %.200s", folder);
    }
    if (mkdir(scratch, 0777) != 0) {
        return FAIL(STATUS_IO, "cannot make the folder %s: %s", scratch, strerror(errno));
    }
    struct shard_options options = {.folder = scratch,
                                    .piece = bench->piece,
                                    .pieces = bench->pieces,
                                    .level = bench->options->level,
                                    .threads = threads};
    status_t status = shard_write(&options, out);
    checkpoint_remove(scratch);
    return status;
}

/* Seconds for so many bytes that cannot be compressed, written and brought to the disk. */
static status_t write_raw(const struct bench *bench, int64_t bytes, double *out)
{
    char path[PATH_MAX];
    int length = snprintf(path, sizeof path, "%s/.muddpipe-bench-%d.raw", bench->options->folder,
                          (int)getpid());
    if (length < 0 || (size_t)length >= sizeof path) {
        return FAIL(STATUS_INVALID, "the path is too long: %.200s", bench->options->folder);
    }
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    int64_t begun = trace_now();
    bool good = file >= 0;
    while (good && bytes > 0) {
        size_t some = bytes < CHECKPOINT_CHUNK * 4 ? (size_t)bytes : CHECKPOINT_CHUNK * 4;
        ssize_t written = write(file, bench->values[bytes / 4 % CHECKPOINT_KINDS], some);
        good = written > 0 || (written < 0 && errno == EINTR);
        bytes -= written > 0 ? written : 0;
    }
    good = good && fsync(file) == 0;
    *out = (double)(trace_now() - begun) * 1e-9;
    status_t status =
        good ? STATUS_OK : FAIL(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
    if (file >= 0) {
        close(file);
        unlink(path);
    }
    return status;
}

static status_t run_round(const struct bench *bench, struct checkpoint_rates *out)
{
    struct shard_result shard, alone;
    double seconds;
    TRY(write_once(bench, bench->options->folder, bench->options->threads, &shard));
    TRY(write_raw(bench, shard.stored, &seconds));
    TRY(write_once(bench, bench->options->memory, 1, &alone));
    out->raw = shard.raw;
    out->stored = shard.stored;
    out->written = (double)shard.raw / shard.write_s;
    out->verified = (double)shard.raw / shard.verify_s;
    out->disk = (double)shard.stored / seconds;
    out->core = (double)alone.raw / alone.write_s;
    return STATUS_OK;
}

status_t checkpoint_bench(const struct checkpoint_bench *options, struct checkpoint_rates *out)
{
    struct bench bench = {.options = options};
    status_t status = bench_make(&bench);
    for (int i = 0; i < options->rounds && status == STATUS_OK; i++) {
        status = run_round(&bench, &out[i]);
    }
    bench_free(&bench);
    return status;
}
