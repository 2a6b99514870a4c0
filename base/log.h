/* log.h - messages for people. Metrics are not messages (runtime/metrics.c writes those).
 *
 * Levels by volume: error and warn always, info once per run or step, debug per object, trace per
 * operation. Every line carries "[rank N]" once the rank is known (log_set_rank, per thread: with
 * the threads transport each rank is a thread). Lines go to stderr and, when set, to the rank's log
 * file, which always takes everything down to debug. A line is written with one write(2), so lines
 * of several ranks never mix.
 */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG, LOG_TRACE };

void log_set_level(enum log_level level); /* process-wide threshold of stderr; default info */
void log_set_rank(int rank);              /* calling thread; -1 = no prefix (the default) */
int log_rank(void);                       /* rank of the calling thread or -1 */
void log_set_file(FILE *file);            /* calling thread; borrowed, NULL to stop */
/* From now on what the calling thread would write to its file is kept until log_set_file names one, which
 * gets it first (or NULL, which forgets it). Beyond some hundred kilobytes later lines are not kept. */
void log_keep(void);

/* Redirects error lines of the calling thread into `buffer` (NUL-terminated, later lines appended
 * while they fit) instead of stderr, so that a test can look at them. NULL ends it. */
void log_capture(char *buffer, size_t size);

void log_write(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The same with a place in our source, shown in the log file and, from level debug on, on stderr. */
void log_write_from(enum log_level level, const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_write(LOG_WARN, __VA_ARGS__)
#define log_info(...) log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_DEBUG, __VA_ARGS__)
#define log_trace(...) log_write(LOG_TRACE, __VA_ARGS__)

#endif
