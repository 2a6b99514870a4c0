/* log.c - lines of text to stderr, to the rank's file, or to a test's buffer. */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINE_SIZE = 8192, PREFIX_SIZE = 32, KEPT_SIZE = 256 << 10 };

static _Atomic int stderr_level = LOG_INFO;

static _Thread_local int thread_rank = -1;
static _Thread_local FILE *thread_file;
static _Thread_local char *kept; /* [KEPT_SIZE] */
static _Thread_local size_t kept_length;
static _Thread_local char *capture;
static _Thread_local size_t capture_size;

static const char *const level_names[] = {
    [LOG_ERROR] = "error", [LOG_WARN] = "warning", [LOG_INFO] = "info",
    [LOG_DEBUG] = "debug", [LOG_TRACE] = "trace",
};

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&stderr_level, (int)level, memory_order_relaxed);
}

void log_set_rank(int rank)
{
    thread_rank = rank;
}

int log_rank(void)
{
    return thread_rank;
}

void log_set_file(FILE *file)
{
    if (file != NULL && kept_length > 0) {
        fwrite(kept, 1, kept_length, file);
        fflush(file);
    }
    free(kept);
    kept = NULL;
    kept_length = 0;
    thread_file = file;
}

void log_keep(void)
{
    if (kept == NULL && thread_file == NULL) {
        kept = malloc(KEPT_SIZE);
    }
}

void log_capture(char *buffer, size_t size)
{
    capture = size > 0 ? buffer : NULL;
    capture_size = size;
    if (capture != NULL) {
        capture[0] = '\0';
    }
}

static void capture_append(const char *line, size_t length)
{
    size_t used = strlen(capture);
    size_t room = capture_size - used - 1;
    size_t taken = length < room ? length : room;

    memcpy(capture + used, line, taken);
    capture[used + taken] = '\0';
}

/* One write for the whole line; what a full pipe leaves over is tried again. */
static void stderr_write(const char *line, size_t length)
{
    while (length > 0) {
        ssize_t written = write(STDERR_FILENO, line, length);
        if (written < 0) {
            if (errno == EINTR) {
                continue;
            }
            return;
        }
        line += written;
        length -= (size_t)written;
    }
}

/* Info lines are what a user came for and carry no level; all others say theirs. */
static size_t line_begin(char *line, enum log_level level, const char *file, int position)
{
    int length = 0;

    if (thread_rank >= 0) {
        length += snprintf(line, PREFIX_SIZE, "[rank %d] ", thread_rank);
    }
    if (level != LOG_INFO) {
        length += snprintf(line + length, PREFIX_SIZE, "%s: ", level_names[level]);
    }
    if (file != NULL) {
        length += snprintf(line + length, LINE_SIZE / 4, "%s:%d: ", file, position);
    }
    return (size_t)length;
}

static size_t line_end(char *line, size_t length, const char *fmt, va_list args)
{
    int body = vsnprintf(line + length, LINE_SIZE - 1 - length, fmt, args);

    if (body > 0) {
        length += (size_t)body;
    }
    if (length > LINE_SIZE - 2) { /* cut short by vsnprintf */
        length = LINE_SIZE - 2;
    }
    while (length > 0 && line[length - 1] == '\n') {
        length--;
    }
    line[length] = '\n';
    return length + 1;
}

static void file_write(const char *line, size_t length)
{
    if (thread_file != NULL) {
        fwrite(line, 1, length, thread_file);
        fflush(thread_file);
    } else if (length <= KEPT_SIZE - kept_length) {
        memcpy(kept + kept_length, line, length);
        kept_length += length;
    }
}

static void write_line(enum log_level level, const char *file, int position, const char *fmt,
                       va_list args)
{
    char line[LINE_SIZE];
    int threshold = atomic_load_explicit(&stderr_level, memory_order_relaxed);
    int saved_errno = errno;
    va_list again;

    if ((thread_file != NULL || kept != NULL) && level <= LOG_DEBUG) {
        va_copy(again, args);
        size_t length = line_end(line, line_begin(line, level, file, position), fmt, again);
        va_end(again);
        file_write(line, length);
    }
    if (capture != NULL && level == LOG_ERROR) {
        size_t length = line_end(line, 0, fmt, args);
        capture_append(line, length);
    } else if ((int)level <= threshold) {
        const char *shown = threshold >= LOG_DEBUG ? file : NULL;
        size_t length = line_end(line, line_begin(line, level, shown, position), fmt, args);
        stderr_write(line, length);
    }
    errno = saved_errno;
}

void log_write(enum log_level level, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    write_line(level, NULL, 0, fmt, args);
    va_end(args);
}

void log_write_from(enum log_level level, const char *file, int line, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    write_line(level, file, line, fmt, args);
    va_end(args);
}
