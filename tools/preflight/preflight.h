/* preflight.h - private to tools/: what the files of `muddpipe preflight` share. */
#ifndef TOOLS_PREFLIGHT_PREFLIGHT_H
#define TOOLS_PREFLIGHT_PREFLIGHT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/device.h"
#include "comm/comm.h"

enum { NAME = 96, ADAPTERS = 16 };

/* An InfiniBand or RoCE port that is up. */
struct adapter {
    char name[32];  /* "mlx5_0" */
    char path[256]; /* of its PCI device in /sys/devices, resolved */
    double gbit;    /* per second */
    int numa;       /* -1 = not known */
};

/* How far a GPU is from an adapter. */
enum distance { DISTANCE_SWITCH, DISTANCE_HOST_BRIDGE, DISTANCE_NUMA, DISTANCE_FAR, DISTANCES };
const char *distance_name(enum distance distance);

/* fabric.c: `root` is "/sys". Ports that are up, at most ADAPTERS; returns how many. */
int fabric_read(const char *root, struct adapter *out);
/* The nearest adapter of a GPU with this PCI address ("0000:1B:00.0"); -1 = none. */
int fabric_nearest(const char *root, const char *bus, const struct adapter *adapter, int count,
                   enum distance *out);

/* What one rank finds out about itself. Sent as it lies in memory. */
struct facts {
    char host[NAME], system[NAME];        /* system: kernel's release */
    char processor[NAME], computes[NAME]; /* computes: GPU or operations of the host */
    char bus[24];
    char program[NAME], libraries[3 * NAME], driver[NAME];
    char nccl_hangs[NAME]; /* of a release known to hang, which and what is better; "" */
    int64_t memory_free, memory, shm_free, shm; /* bytes; -1 = not known */
    int64_t locked;                             /* bytes that may be locked; -1 = any number */
    int adapters;
    double adapter_gbit; /* of the fastest */
    char nearest[NAME];  /* "mlx5_0, same PCIe switch"; "" = no GPU or no adapter */
    int local_rank;
    /* measured */
    double gemm;               /* FLOP/s */
    double clock, clock_error; /* seconds ahead of rank 0's clock */
};

/* facts.c: all but what is measured. device: the host's or a GPU. */
void facts_collect(struct group *group, const struct device *device, const char *operations,
                   struct facts *out);
/* Why this release of NCCL (22803: 2.28.3) is known to hang; NULL if it is not. */
const char *nccl_known(int release);

/* Where this rank measures. */
struct bench_place {
    struct group *group;
    struct device *device; /* the host's or a GPU */
    void *stream;
    const char *transport;
};

/* products.c: FLOP/s of this rank's matrix products, all ranks at once. Collective. */
MUST_USE status_t products_measure(const struct bench_place *place, int threads, double *out);
/* clocks.c: seconds by which this host's clock is ahead of rank 0's, and the error of that. Collective. */
MUST_USE status_t clocks_measure(struct group *group, double *out_ahead, double *out_error);

/* pairs.c: bytes/s between each pair of ranks: rates [ranks][ranks], 0 = not measured; the same on all. Every rank
 * talks to one other at a time, all pairs of a round at once. Ends after `seconds`; *out_left: pairs not measured.
 * Collective. */
MUST_USE status_t pairs_measure(const struct bench_place *place, double seconds, double *rates,
                                int *out_left);

/* judge.c, on rank 0: prints what is wrong, a line each with the host's name; returns how much is. Warnings are no
 * faults. */
struct judged {
    const struct facts *facts; /* [ranks] */
    const double *rates;       /* [ranks][ranks] */
    int ranks;
    bool gpus;
    const char *transport;
};
int judge(const struct judged *what, FILE *out);

#endif
