/* status.c - names of errors, and where they are said. */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"

enum { MESSAGE_SIZE = 4096 };

static const char *const names[] = {
    [STATUS_OK] = "ok",
    [STATUS_INVALID] = "invalid input",
    [STATUS_IO] = "input/output error",
    [STATUS_NOMEM] = "out of memory",
    [STATUS_UNSUPPORTED] = "unsupported",
    [STATUS_PEER] = "peer failed",
    [STATUS_TIMEOUT] = "timed out",
    [STATUS_NUMERIC] = "not finite",
    [STATUS_MISMATCH] = "mismatch",
    [STATUS_INTERRUPTED] = "interrupted",
    [STATUS_INTERNAL] = "internal error",
};

const char *status_name(status_t status)
{
    unsigned index = (unsigned)status;
    if (index >= sizeof names / sizeof names[0]) {
        return "unknown status";
    }
    return names[index];
}

status_t status_fail(const char *file, int line, status_t status, const char *fmt, ...)
{
    char message[MESSAGE_SIZE];
    va_list args;

    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    log_write_from(LOG_ERROR, file, line, "%s", message);
    return status;
}

void status_check_failed(const char *file, int line, const char *cond, const char *fmt, ...)
{
    char message[MESSAGE_SIZE];
    va_list args;

    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    log_error("%s:%d: a bug in MuddPipe: (%s) does not hold: %s", file, line, cond, message);
    abort();
}
