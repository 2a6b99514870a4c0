/* status.h - the one error type of the project.
 *
 * Law: the first function that decides which error it is logs it (FAIL); callers only forward
 * (TRY, TRY_GOTO). Outputs are written only on success. A message says what is wrong, where, and
 * what to do about it. CHECK is for our own bugs, never for user input, and stays on in release.
 */
#ifndef BASE_STATUS_H
#define BASE_STATUS_H

typedef enum status {
    STATUS_OK = 0,
    STATUS_INVALID,     /* the user's input is wrong (config, file contents, layout) */
    STATUS_IO,          /* the operating system refused a file operation */
    STATUS_NOMEM,       /* memory could not be had */
    STATUS_UNSUPPORTED, /* valid, but not something this build or machine can do */
    STATUS_PEER,        /* another rank died, stopped or reported an error */
    STATUS_TIMEOUT,     /* an operation outlived its deadline */
    STATUS_NUMERIC,     /* a loss or gradient is not finite */
    STATUS_MISMATCH,    /* a comparison failed (muddpipe check) */
    STATUS_INTERRUPTED, /* a signal asked the run to end */
    STATUS_INTERNAL     /* our bug */
} status_t;

#define MUST_USE __attribute__((warn_unused_result))

/* Short lower-case name of a status, for messages; never NULL. */
const char *status_name(status_t status);

/* Logs the message at error level and returns `status`; the body of FAIL. The place in our source
 * goes to the log file, and to stderr at level debug only: users need the message, not our lines. */
status_t status_fail(const char *file, int line, status_t status, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Logs the failed condition and the message, then aborts; the body of CHECK. */
void status_check_failed(const char *file, int line, const char *cond, const char *fmt, ...)
    __attribute__((format(printf, 4, 5), noreturn));

#define FAIL(status, ...) status_fail(__FILE__, __LINE__, (status), __VA_ARGS__)

#define TRY(call)                                                                                  \
    do {                                                                                           \
        status_t try_status_ = (call);                                                             \
        if (try_status_ != STATUS_OK) {                                                            \
            return try_status_;                                                                    \
        }                                                                                          \
    } while (0)

/* Needs `status_t status` in scope; labels undo in reverse order and are named for what they undo. */
#define TRY_GOTO(call, label)                                                                      \
    do {                                                                                           \
        status = (call);                                                                           \
        if (status != STATUS_OK) {                                                                 \
            goto label;                                                                            \
        }                                                                                          \
    } while (0)

#define CHECK(cond, ...)                                                                           \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            status_check_failed(__FILE__, __LINE__, #cond, __VA_ARGS__);                           \
        }                                                                                          \
    } while (0)

#endif
