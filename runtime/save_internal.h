/* save_internal.h - private to runtime/: what save.c and its thread (save_thread.c) share. */
#ifndef RUNTIME_SAVE_INTERNAL_H
#define RUNTIME_SAVE_INTERNAL_H

#include <pthread.h>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/save.h"
#include "runtime/trainer.h"

/* Kinds of values of a checkpoint, in its order. */
extern const enum store_kind saver_kinds[CHECKPOINT_KINDS];

struct saver {
    struct trainer *trainer;
    char run[PATH_MAX];
    char *config, *model;
    uint64_t train_data;
    struct checkpoint_tensor *tensor; /* [params of the model] */
    int tensors, level, threads, keep;

    bool in_pieces;    /* no copy of all, checkpoint.copy */
    struct arena copy; /* of the values of all kinds, or of one piece; on a device pinned */
    size_t bytes;      /* of it */
    bool made;         /* it is there, or could not be had (unusable) */
    status_t unusable;
    float *values[CHECKPOINT_KINDS]; /* of the copy; not in pieces */
    float *staging;                  /* [CHECKPOINT_CHUNK] in pieces, on a device */
    pthread_mutex_t fetching;
    _Atomic size_t fetched; /* pieces */
    struct checkpoint_piece *piece;
    const float **source;                   /* [pieces] where their values are in the part */
    size_t pieces, count[CHECKPOINT_KINDS]; /* elements of a kind, as the copy has them */
    void *stream;                           /* of a device: copies */
    struct device_event *stepped, *copy_begin, *copied, *wait_begin, *wait_end;

    pthread_t thread;
    bool started;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool writing, committing;       /* what the thread is to do, or does */
    atomic_bool quit;               /* at once: what is being written is no longer wanted */
    bool copying;                   /* the copy is not complete */
    bool copy_begun;                /* of a host's: somebody makes it */
    int64_t step, sequences;        /* of the shard being written */
    int64_t whole, whole_sequences; /* of the checkpoint being made of shards */
    status_t written, committed;    /* of the newest */
    char folder[PATH_MAX];          /* what has been saved, until main tells it */
    double whole_s;                 /* that took to make it whole */
    double copy_ms, wait_ms;        /* of the newest copy; of the update for it */
    struct shard_result result;     /* of the newest shard */
    struct shard_result of_folder;  /* of the one in `folder` */

    bool waited;         /* an update has, for the newest copy */
    bool busy;           /* from saver_begin until all ranks have said how it ended */
    int64_t saved;       /* newest step that is safe; 0 = none */
    int64_t passed_over; /* due while busy */
    int64_t last_begun;  /* ns, for the clock */
    _Atomic int64_t reached;
    _Atomic int64_t due_at; /* ns; INT64_MAX = never */
};

/* The thread; argument: the saver. */
void *saver_run(void *argument);

/* Memory for the copy. On the host by the thread, beside the first steps: to touch so much takes seconds; on a device
 * before it starts, since the driver may wait for streams. */
MUST_USE status_t saver_make_copy(struct saver *saver);
/* Until the copy on the host is there. Makes it itself if nobody has begun to: the thread may be busy with making
 * the checkpoint before whole. Not in pieces, not of a device. */
void saver_copy(struct saver *saver);

#endif
