/* from_text.c - a schedule that somebody wrote down: as plan_print_schedule prints it, or edited.
 *
 *     # a comment
 *     microbatches 2
 *     ranks 0 1 1 0            of the stages
 *     partition 3,3,2,2        units of the stages; or auto, layers
 *     sum_order serial         or per_rank, auto
 *     rank 0: F0.0 F3.0 B3.0 K3.0 W3.0 ...
 *     rank 1: F1.0 F2.0 ...
 *
 * A phase is its kind (F, B, K, W), the stage, and after a dot the microbatch. `auto` leaves partition and
 * sum_order to the configuration.
 */
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "schedule/plan_internal.h"

enum {
    LONGEST = 1 << 22,
    MOST_STAGES = 4096,
    MOST_MICROBATCHES = 65536
}; /* bytes of a file; numbers */

bool schedule_is_file(const char *schedule)
{
    return strpbrk(schedule, "/.") != NULL;
}

struct reading {
    struct schedule_text *text;
    const char *path;
    int line;
};

#define REFUSE(reading, ...) (text_refuse((reading), __VA_ARGS__), STATUS_INVALID)

__attribute__((format(printf, 2, 3))) static void text_refuse(const struct reading *reading,
                                                              const char *format, ...)
{
    char what[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    (void)FAIL(STATUS_INVALID, "%s:%d: %s (muddpipe plan --print-schedule writes such a file)",
               reading->path, reading->line, what);
}

/* A number from `least` to `most` at *at, which moves behind it; -1 if there is none. */
static int read_number(const char **at, int most)
{
    char *end;
    if (!isdigit((unsigned char)**at)) {
        return -1;
    }
    errno = 0;
    long value = strtol(*at, &end, 10);
    if (errno != 0 || value > most) {
        return -1;
    }
    *at = end;
    return (int)value;
}

static const char *skip_blanks(const char *at)
{
    while (*at == ' ' || *at == '\t' || *at == '\r') {
        at++;
    }
    return at;
}

/* The rest of the line if it begins with this word, else NULL. */
static const char *after_word(const char *line, const char *word)
{
    size_t length = strlen(word);
    bool is = strncmp(line, word, length) == 0 && (line[length] == ' ' || line[length] == '\t');
    return is ? skip_blanks(line + length) : NULL;
}

static status_t read_microbatches(struct reading *reading, const char *at)
{
    int M = read_number(&at, MOST_MICROBATCHES);
    if (M < 1 || *skip_blanks(at) != '\0') {
        return REFUSE(reading, "expected a number of microbatches, 1 to %d", MOST_MICROBATCHES);
    }
    reading->text->microbatches = M;
    return STATUS_OK;
}

static status_t read_ranks(struct reading *reading, const char *at)
{
    struct schedule_text *text = reading->text;
    if (text->rank_of) {
        return REFUSE(reading, "the ranks of the stages are there twice");
    }
    text->rank_of = malloc(MOST_STAGES * sizeof *text->rank_of);
    if (!text->rank_of) {
        return FAIL(STATUS_NOMEM, "no memory for a schedule");
    }
    for (at = skip_blanks(at); *at != '\0'; at = skip_blanks(at)) {
        int rank = text->stages < MOST_STAGES ? read_number(&at, MOST_STAGES - 1) : -1;
        if (rank < 0 || (*at != '\0' && !isspace((unsigned char)*at))) {
            return REFUSE(reading, "expected the rank of every stage, as in \"ranks 0 1 1 0\"");
        }
        text->rank_of[text->stages++] = rank;
        text->ranks = rank + 1 > text->ranks ? rank + 1 : text->ranks;
    }
    for (int rank = 0; rank < text->ranks; rank++) {
        bool has = false;
        for (int stage = 0; stage < text->stages; stage++) {
            has = has || text->rank_of[stage] == rank;
        }
        if (!has) {
            return REFUSE(reading, "rank %d has no stage", rank);
        }
    }
    text->rank = calloc((size_t)text->ranks + 1, sizeof *text->rank);
    text->line = calloc((size_t)text->ranks + 1, sizeof *text->line);
    return text->rank && text->line ? STATUS_OK : FAIL(STATUS_NOMEM, "no memory for a schedule");
}

static status_t read_partition(struct reading *reading, const char *at)
{
    size_t length = strcspn(at, " \t\r");
    if (length == 0 || length >= sizeof reading->text->partition ||
        *skip_blanks(at + length) != '\0') {
        return REFUSE(reading, "expected auto, layers, or the units of each stage: 5,4,4,5");
    }
    memcpy(reading->text->partition, at, length);
    reading->text->partition[length] = '\0';
    return STATUS_OK;
}

static status_t read_sum_order(struct reading *reading, const char *at)
{
    struct schedule_text *text = reading->text;
    size_t length = strcspn(at, " \t\r");
    bool serial = length == 6 && strncmp(at, "serial", 6) == 0;
    bool per_rank = length == 8 && strncmp(at, "per_rank", 8) == 0;
    bool any = length == 4 && strncmp(at, "auto", 4) == 0;
    if ((!serial && !per_rank && !any) || *skip_blanks(at + length) != '\0') {
        return REFUSE(reading, "expected sum_order serial, per_rank or auto");
    }
    text->has_sum_order = !any;
    text->sum_order = per_rank ? SUM_PER_RANK : SUM_SERIAL;
    return STATUS_OK;
}

/* "F0.2" */
static status_t read_phase(struct reading *reading, const char **at, struct phase_list *list)
{
    static const char letters[] = "FBKW";
    const char *begin = *at, *kind = strchr(letters, **at);
    int length = (int)strcspn(begin, " \t\r");
    *at += kind && **at;
    int stage = kind ? read_number(at, MOST_STAGES) : -1;
    bool dot = stage >= 0 && **at == '.';
    *at += dot;
    int microbatch = dot ? read_number(at, MOST_MICROBATCHES) : -1;
    if (microbatch < 0 || (**at != '\0' && !isspace((unsigned char)**at))) {
        return REFUSE(reading,
                      "\"%.*s\" is no phase; expected F, B, K or W, the stage, a dot and the "
                      "microbatch: F0.2",
                      length < 40 ? length : 40, begin);
    }
    if (list->count == list->capacity) {
        int capacity = list->capacity > 0 ? 2 * list->capacity : 64;
        struct phase *larger = realloc(list->phase, (size_t)capacity * sizeof *larger);
        if (!larger) {
            return FAIL(STATUS_NOMEM, "no memory for a schedule");
        }
        list->phase = larger;
        list->capacity = capacity;
    }
    phase_add(list, (enum phase_kind)(kind - letters), stage, microbatch);
    return STATUS_OK;
}

static status_t read_rank(struct reading *reading, const char *at)
{
    struct schedule_text *text = reading->text;
    if (!text->rank) {
        return REFUSE(reading, "the ranks of the stages come first, as in \"ranks 0 1 1 0\"");
    }
    int rank = read_number(&at, MOST_STAGES);
    at = skip_blanks(at);
    if (rank < 0 || rank >= text->ranks || *at != ':') {
        return REFUSE(reading, "expected \"rank N:\", N from 0 to %d, and its phases",
                      text->ranks - 1);
    }
    if (text->line[rank] > 0) {
        return REFUSE(reading, "rank %d is there twice, in line %d too", rank, text->line[rank]);
    }
    text->line[rank] = reading->line;
    for (at = skip_blanks(at + 1); *at != '\0'; at = skip_blanks(at)) {
        TRY(read_phase(reading, &at, &text->rank[rank]));
    }
    return STATUS_OK;
}

static status_t read_line(struct reading *reading, char *line)
{
    static const struct {
        const char *word;
        status_t (*read)(struct reading *reading, const char *at);
    } words[] = {{"microbatches", read_microbatches},
                 {"ranks", read_ranks},
                 {"partition", read_partition},
                 {"sum_order", read_sum_order},
                 {"rank", read_rank}};
    line[strcspn(line, "#\n")] = '\0';
    const char *at = skip_blanks(line);
    if (*at == '\0') {
        return STATUS_OK;
    }
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        const char *rest = after_word(at, words[i].word);
        if (rest) {
            return words[i].read(reading, rest);
        }
    }
    return REFUSE(reading, "expected microbatches, ranks, partition, sum_order or rank");
}

static status_t read_file(struct reading *reading, FILE *file)
{
    char *line = NULL;
    size_t size = 0, bytes = 0;
    ssize_t length;
    status_t status = STATUS_OK;
    while (status == STATUS_OK && (length = getline(&line, &size, file)) >= 0) {
        reading->line++;
        bytes += (size_t)length;
        if (bytes > LONGEST) {
            status = REFUSE(reading, "more than %d bytes", LONGEST);
        } else if (strlen(line) != (size_t)length) {
            status = REFUSE(reading, "a byte that no text has");
        } else {
            status = read_line(reading, line);
        }
    }
    if (status == STATUS_OK && ferror(file)) {
        status = FAIL(STATUS_IO, "cannot read the schedule %s: %s", reading->path, strerror(errno));
    }
    free(line);
    return status;
}

static status_t text_check(const struct reading *reading)
{
    const struct schedule_text *text = reading->text;
    if (text->microbatches == 0 || text->stages == 0) {
        return REFUSE(reading, "the schedule does not say %s",
                      text->stages == 0 ? "on which ranks its stages are (ranks 0 1 ..)"
                                        : "for how many microbatches it is (microbatches N)");
    }
    for (int rank = 0; rank < text->ranks; rank++) {
        if (text->line[rank] == 0) {
            return REFUSE(reading, "rank %d has no line of phases", rank);
        }
    }
    return STATUS_OK;
}

status_t schedule_text_read(const char *path, struct schedule_text **out)
{
    struct schedule_text *text = calloc(1, sizeof *text);
    struct reading reading = {.text = text, .path = path};
    FILE *file = fopen(path, "re");
    status_t status = STATUS_OK;
    if (!text) {
        status = FAIL(STATUS_NOMEM, "no memory for a schedule");
    } else if (!file) {
        status = FAIL(STATUS_INVALID, "cannot open the schedule %s (parallel.schedule): %s", path,
                      strerror(errno));
    }
    if (status == STATUS_OK) {
        text->path = path;
        memcpy(text->partition, "auto", sizeof "auto");
        status = read_file(&reading, file);
    }
    status = status == STATUS_OK ? text_check(&reading) : status;
    if (file) {
        fclose(file);
    }
    if (status != STATUS_OK) {
        schedule_text_free(text);
        return status;
    }
    *out = text;
    return STATUS_OK;
}

void schedule_text_free(struct schedule_text *text)
{
    if (!text) {
        return;
    }
    for (int rank = 0; text->rank && rank < text->ranks; rank++) {
        free(text->rank[rank].phase);
    }
    free(text->rank);
    free(text->line);
    free(text->rank_of);
    free(text);
}

/* ---- as builders ---- */

static int text_rank_of(const struct layout *layout, int stage)
{
    return layout->text->rank_of[stage];
}

static void text_build(const struct layout *layout, int rank, struct phase_list *out)
{
    const struct phase_list *list = &layout->text->rank[rank];
    for (int i = 0; i < list->count && out->count < out->capacity; i++) { /* more are there twice */
        phase_add(out, list->phase[i].kind, list->phase[i].stage, list->phase[i].microbatch);
    }
}

const struct builder text_builder = {.name = "file",
                                     .training = true,
                                     .delays_weights = true,
                                     .rank_of = text_rank_of,
                                     .build = text_build};

static int replay_rank_of(const struct layout *layout, int stage)
{
    (void)layout;
    (void)stage;
    return 0;
}

static void replay_build(const struct layout *layout, int rank, struct phase_list *out)
{
    (void)rank;
    for (int m = 0; m < layout->microbatches; m++) {
        for (int stage = 0; stage < layout->stages; stage++) {
            phase_add(out, PHASE_F, stage, m);
        }
        for (int stage = layout->stages; stage-- > 0;) {
            phase_add_backward(out, stage, m);
        }
    }
}

const struct builder replay_builder = {.name = "replay",
                                       .training = true,
                                       .delays_weights = true,
                                       .rank_of = replay_rank_of,
                                       .build = replay_build};
