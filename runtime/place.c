/* place.c - where this rank computes: device, operations, threads; and what ranks tell each other of it. */
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/nvml.h"
#include "runtime/trainer.h"

/* ---- threads ---- */

/* Of this process; launchers bind ranks to a few. */
static int cores_seen(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

/* Threads of one rank, or of all ranks of this host where none is bound to cores of its own, that have to take turns
 * although they wait for each other. One rank alone may wish for twice as many. */
static void warn_threads(int threads, const struct group *group)
{
    int cores = cores_seen();
    bool bound = cores < sysconf(_SC_NPROCESSORS_ONLN);
    int ranks = bound ? 1 : group_local_size(group);
    bool alone = group_local_size(group) == 1 && !bound;
    if (group_local_rank(group) != 0 || threads < 2 || threads * ranks <= (alone ? 2 : 1) * cores) {
        return;
    }
    if (ranks > 1) {
        log_warn(
            "the %d ranks of this host start %d threads each, but it has %d core%s: their "
            "threads will wait for each other (leave parallel.threads and OMP_NUM_THREADS out, "
            "and the ranks share the cores)",
            ranks, threads, cores, cores == 1 ? "" : "s");
    } else {
        log_warn(
            "this rank starts %d threads, but it sees %d core%s: its threads will wait for each "
            "other (leave parallel.threads and OMP_NUM_THREADS out, and ranks share the cores "
            "that they see)",
            threads, cores, cores == 1 ? "" : "s");
    }
}

int place_threads(const struct run_config *config, int ranks)
{
    const char *environment = getenv("OMP_NUM_THREADS");
    if (config->parallel.threads > 0) {
        return (int)config->parallel.threads;
    }
    if (environment && atoi(environment) > 0) {
        return atoi(environment);
    }
    int cores = cores_seen();
    return cores > ranks ? cores / ranks : 1;
}

/* ---- device ---- */

/* Ranks without a GPU, and the first of them. Collective. */
static status_t count_without(struct group *group, int devices, int *out_count, int *out_first)
{
    int all[group_size(group)];
    TRY(group_allgather(group, &devices, sizeof devices, all));
    *out_count = 0;
    for (int rank = group_size(group) - 1; rank >= 0; rank--) {
        *out_count += all[rank] == 0;
        *out_first = all[rank] == 0 ? rank : *out_first;
    }
    return STATUS_OK;
}

/* Why this job does not compute on GPUs, to `why`; "" if it does. All ranks decide alike. */
static status_t device_refused(const struct trainer *trainer, int devices, char *why, size_t size)
{
    int without = 0, first = 0;
    TRY(count_without(trainer->group, devices, &without, &first));
    if (without > 0 && devices > 0) {
        snprintf(why, size, "%d of %d ranks see no GPU, the first of them rank %d", without,
                 group_size(trainer->group), first);
    } else if (without == 0 && group_is_threads(trainer->group)) {
        snprintf(why, size,
                 "with parallel.transport=threads the ranks are threads of one process, "
                 "and a GPU wants processes: start them with mpirun or srun");
    } else if (without == 0) {
        why[0] = '\0';
    }
    return STATUS_OK;
}

/* A program without CUDA beside a GPU: adds so to why it is not used. Elsewhere nobody misses one. */
static bool card_idle(char *why, size_t size)
{
    static const char *const file[] = {"/dev/nvidia0", "/dev/nvidiactl"};
    for (size_t i = 0; !device_built(DEVICE_CUDA) && i < sizeof file / sizeof file[0]; i++) {
        size_t length = strlen(why);
        if (access(file[i], F_OK) == 0) {
            snprintf(why + length, size - length,
                     ", and this host has an NVIDIA GPU (%s): configure with -DMUDDPIPE_CUDA=ON "
                     "where nvcc is",
                     file[i]);
            return true;
        }
    }
    return false;
}

static status_t open_device(struct trainer *trainer, int devices)
{
    size_t total;
    TRY(device_open(DEVICE_CUDA, group_local_rank(trainer->group) % devices,
                    &trainer->place.device));
    TRY(device_stream_create(trainer->place.device, false, &trainer->place.stream));
    return device_memory(trainer->place.device, &trainer->place.room, &total);
}

/* why: of a rank that computes on the host though nobody asked for that. */
static status_t choose_device(struct trainer *trainer, char *why, size_t size)
{
    int choice = trainer->config.device;
    bool bf16 = trainer->config.precision == PRECISION_BF16;
    int devices = choice == DEVICE_CHOICE_CPU ? 0 : device_count(DEVICE_CUDA, why, size);
    if (choice != DEVICE_CHOICE_CPU) {
        TRY(device_refused(trainer, devices, why, size));
    }
    bool host = choice == DEVICE_CHOICE_CPU || why[0];
    bool tell = device_built(DEVICE_CUDA);
    if (choice != DEVICE_CHOICE_CPU && host) {
        tell |= card_idle(why, size);
    }
    if (choice == DEVICE_CHOICE_CUDA && host) {
        return FAIL(STATUS_UNSUPPORTED, "device=cuda: %s (device=cpu computes on the host)", why);
    }
    if (host && bf16) {
        return FAIL(STATUS_UNSUPPORTED,
                    "precision=bf16 with device=%s: the host computes in float32 only%s%s; use "
                    "precision=float32, or device=cuda where there is a GPU",
                    choice == DEVICE_CHOICE_CPU ? "cpu" : "auto", why[0] ? ", and " : "", why);
    }
    if (host) {
        why[tell ? strlen(why) : 0] = '\0';
        return kernels_cpu(&trainer->place.kernels);
    }
    TRY(open_device(trainer, devices));
    kernels_cuda_options(
        &(struct kernels_cuda_options){.deterministic = trainer->config.deterministic});
    return kernels_cuda(bf16 ? DTYPE_BF16 : DTYPE_F32, &trainer->place.kernels);
}

/* ---- what ranks tell each other ---- */

struct place_report {
    unsigned char card[sizeof((struct device_info *)0)->card];
    char where[192]; /* the card, for people */
    char name[128];  /* of the operations */
    char line[640];
};

static void card_fill(const struct trainer *trainer, struct place_report *out)
{
    struct device_info info;
    char host[64] = "", version[64], driver[96] = "";
    device_info(trainer->place.device, &info);
    gethostname(host, sizeof host - 1);
    if (nvml_driver(version, sizeof version)) {
        snprintf(driver, sizeof driver, ", driver %s", version);
    } else if (info.driver > 0) {
        snprintf(driver, sizeof driver, ", a driver for CUDA %d.%d", info.driver / 1000,
                 info.driver % 1000 / 10);
    }
    memcpy(out->card, info.card, sizeof out->card);
    snprintf(out->where, sizeof out->where, "%s, %s of %s", info.name, info.bus, host);
    snprintf(out->line, sizeof out->line, "computing on %s%s: %s%s%s", info.name, driver,
             trainer->place.kernels->name, trainer->place.kernels->lacks ? "; " : "",
             trainer->place.kernels->lacks ? trainer->place.kernels->lacks : "");
}

static void place_fill(const struct trainer *trainer, const char *why, struct place_report *out)
{
    memset(out, 0, sizeof *out);
    snprintf(out->name, sizeof out->name, "%s", trainer->place.kernels->name);
    if (trainer->place.device) {
        card_fill(trainer, out);
    } else {
        snprintf(out->line, sizeof out->line, "computing on the host: %s, %d thread%s%s%s",
                 out->name, trainer->place.threads, trainer->place.threads == 1 ? "" : "s",
                 why[0] ? "; not on a GPU: " : "", why);
    }
}

static bool same_card(const struct place_report *one, const struct place_report *other)
{
    return memcmp(one->card, other->card, sizeof one->card) == 0;
}

/* Places as their ranks see them, which may be a GPU each and all of them number 0. */
static void tell_sharing(const struct place_report *place, int ranks)
{
    int cards = 0, first = -1, second = -1;
    for (int r = 0; r < ranks; r++) {
        int before = 0;
        while (before < r && !same_card(&place[before], &place[r])) {
            before++;
        }
        cards += before == r;
        if (before < r && first < 0) {
            first = before;
            second = r;
        }
    }
    if (first >= 0) {
        log_warn("%d ranks share %d GPU%s and take turns (ranks %d and %d are both on %s): right "
                 "for checks, slow for training; start no more ranks on a host than it has GPUs, "
                 "and let each see all of them (Slurm: --gpus-per-node)",
                 ranks, cards, cards == 1 ? "" : "s", first, second, place[first].where);
    }
}

/* Ranks that compute by other libraries (cuDNN on some hosts only): what such a run computes depends on
 * which rank has what. */
static void tell_unlike(const struct place_report *place, int ranks)
{
    int unlike = 0;
    while (unlike < ranks && strcmp(place[unlike].name, place[0].name) == 0) {
        unlike++;
    }
    if (unlike < ranks) {
        log_warn("rank 0 computes by %s and rank %d by %s: the same run on other hosts gives other "
                 "bits",
                 place[0].name, unlike, place[unlike].name);
    }
}

/* Each rank's line, on stderr where no rank before it says the same. */
static void tell_all(struct trainer *trainer, const struct place_report *place)
{
    int ranks = group_size(trainer->group), own = group_rank(trainer->group), before = 0;
    while (before < own && strcmp(place[before].line, place[own].line) != 0) {
        before++;
    }
    log_write(before == own ? LOG_INFO : LOG_DEBUG, "%s", place[own].line);
    for (int r = 0; trainer->place.device && r < ranks; r++) {
        trainer->place.shares_device |= r != own && same_card(&place[r], &place[own]);
    }
    if (own == 0) {
        tell_unlike(place, ranks);
    }
    if (own == 0 && trainer->place.device) {
        tell_sharing(place, ranks);
    }
}

status_t place_choose(struct trainer *trainer)
{
    struct group *group = trainer->group;
    char why[320] = "";
    struct place_report own, *place = calloc((size_t)group_size(group), sizeof *place);
    trainer->place.threads = place_threads(&trainer->config, group_local_size(group));
    warn_threads(trainer->place.threads, group);
    status_t status = place ? choose_device(trainer, why, sizeof why)
                            : FAIL(STATUS_NOMEM, "no memory for %d names", group_size(group));
    status = group_agree(group, status);
    if (status == STATUS_OK) {
        place_fill(trainer, why, &own);
        status = group_allgather(group, &own, sizeof own, place);
    }
    if (status == STATUS_OK) {
        tell_all(trainer, place);
    }
    free(place);
    return status;
}
