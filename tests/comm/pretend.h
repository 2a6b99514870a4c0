/* pretend.h - what a GPU of threads (pretend.c) offers beside base/device.h. */
#ifndef TESTS_COMM_PRETEND_H
#define TESTS_COMM_PRETEND_H

/* A library takes so much of the GPUs' memory for itself, or gives it back (negative). */
void pretend_take(long long bytes);
/* A kernel: `run(arguments)` in the stream's order, by the stream's thread, which then frees them. */
void pretend_launch(void *stream, void (*run)(void *arguments), void *arguments);

/* A step: the host enqueues and does not wait, nothing takes or gives back memory, streams, events or
 * mappings, on whichever thread. Who does ends the program, with a trace of who it was. */
enum pretend_rules {
    PRETEND_NO_STEP,
    PRETEND_STEP,
    PRETEND_DRY_STEP /* over a transport that lets the stream run dry: device_stream_sync is allowed */
};
/* From now on; returns those until now. */
int pretend_rules(int next);
/* Who calls and for what, for the message: within pretend_*.c. */
void pretend_wants_memory(const char *call, const char *what);
/* What is enqueued to `stream` from now on stands until pretend_release: a host that waits for any of it
 * before, by whatever means, ends the program after a while. Wants PRETEND_HOLD in the environment. */
void pretend_hold(void *stream);
void pretend_release(void);

#endif
