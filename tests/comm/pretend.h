/* pretend.h - what a GPU of threads (pretend.c) offers beside base/device.h. */
#ifndef TESTS_COMM_PRETEND_H
#define TESTS_COMM_PRETEND_H

/* A library takes so much of the GPUs' memory for itself, or gives it back (negative). */
void pretend_take(long long bytes);
/* A kernel: `run(arguments)` in the stream's order, by the stream's thread, which then frees them. */
void pretend_launch(void *stream, void (*run)(void *arguments), void *arguments);

#endif
