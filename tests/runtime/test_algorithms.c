/* test_algorithms.c - how ranks come to one table of algorithms: what each lacks, who measures, the file;
 * over a table that is a list of lines. */
#include "tests/test.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINES = 64, LINE_BYTES = 128 };

/* One rank's. */
static _Thread_local struct {
    const char *card;
    const char *needs[4]; /* products that its part runs */
    char line[LINES][LINE_BYTES];
    size_t lines;
    int measured, rehearsed;
    bool refuses, has_no_room; /* to measure */
} fake;

#define kernels_cuda_algorithms_missing fake_missing
#define kernels_cuda_algorithms_measure fake_measure
#define kernels_cuda_algorithms_save fake_save
#define kernels_cuda_algorithms_load fake_load
#define worker_rehearse fake_rehearse
#include "runtime/algorithms.c"

static bool knows(const char *product)
{
    for (size_t i = 0; i < fake.lines; i++) {
        if (strncmp(fake.line[i], product, strlen(product)) == 0) {
            return true;
        }
    }
    return false;
}

static bool is_here(const char *line)
{
    return strncmp(line, fake.card, strlen(fake.card)) == 0;
}

char *fake_missing(void)
{
    char *text = calloc(1, LINES * LINE_BYTES), line[LINE_BYTES];
    assert_non_null(text);
    for (int i = 0; i < 4 && fake.needs[i]; i++) {
        snprintf(line, sizeof line, "%s%s", fake.card, fake.needs[i]);
        if (!knows(line)) {
            strcat(strcat(text, line), "\n");
        }
    }
    return text;
}

static void learn(const char *line, size_t length)
{
    assert_true(fake.lines < LINES && length < LINE_BYTES);
    if (is_here(line)) {
        memcpy(fake.line[fake.lines], line, length);
        fake.line[fake.lines++][length] = '\0';
    }
}

status_t fake_measure(const char *missing)
{
    char line[LINE_BYTES];
    if (fake.refuses) {
        return FAIL(STATUS_NOMEM, "no room");
    }
    for (; *missing && !fake.has_no_room; missing += strcspn(missing, "\n") + 1) {
        int length = (int)strcspn(missing, "\n");
        snprintf(line, sizeof line, "%.*s algorithm=%d", length, missing, length);
        if (is_here(line) && !knows(line)) {
            snprintf(line, sizeof line, "%.*s algorithm=%d us=%d.00 first=9.00", length, missing,
                     length, ++fake.measured);
            learn(line, strlen(line));
        }
    }
    return STATUS_OK;
}

static int line_compare(const void *a, const void *b)
{
    return strcmp(a, b);
}

char *fake_save(void)
{
    char *text = calloc(1, LINES * LINE_BYTES + 1);
    assert_non_null(text);
    qsort(fake.line, fake.lines, LINE_BYTES, line_compare);
    for (size_t i = 0; i < fake.lines; i++) {
        strcat(strcat(text, fake.line[i]), "\n");
    }
    return text;
}

status_t fake_load(const char *name, const char *text)
{
    for (; *text; text += strcspn(text, "\n") + 1) {
        size_t length = strcspn(text, "\n");
        if (strncmp(text, "card=", 5) != 0 && *text != '#') {
            return FAIL(STATUS_INVALID, "%s: this is no algorithm: %.*s", name, (int)length, text);
        }
        const char *end = strstr(text, " us=");
        char product[LINE_BYTES] = "";
        memcpy(product, text, end && end < text + length ? (size_t)(end - text) : 0);
        if (product[0] && !knows(product)) {
            learn(text, length);
        }
        if (text[length] == '\0') {
            break;
        }
    }
    return STATUS_OK;
}

status_t fake_rehearse(struct worker *worker)
{
    assert_non_null(worker);
    fake.rehearsed++;
    return STATUS_OK;
}

/* ---- three ranks ---- */

#define HERE "card=Here library=1 "
#define THERE "card=Here library=10 " /* begins alike */
#define A "product=1"
#define B "product=2"
#define C "product=3"
static const char here[] = HERE, there[] = THERE;
#define OTHER THERE "product=1 algorithm=5 us=1.00 first=1.00\n"

static const char *const needs[3][3] = {{A, B, NULL}, {B, C, NULL}, {B, NULL, NULL}};

struct task {
    const char *file, *folder;
    const char *card; /* of rank 2 */
    enum dtype dtype;
    bool refuses, has_no_room;
    status_t expected[3];
    int measured, lines; /* by rank 0; of the tables of ranks 0 and 1 */
    int lines_there;     /* of the table of rank 2 */
    int warned;          /* 1 + which rank the warnings are about; 0 = none */
    const char *says;    /* every rank's error; NULL = not looked at */
};

/* What rank 0 said of products without an algorithm. */
static void warnings_check(const struct task *task, FILE *log)
{
    char text[4096] = "", wanted[64];
    rewind(log);
    assert_true(fread(text, 1, sizeof text - 1, log) < sizeof text - 1);
    const char *warning = strstr(text, "no measured algorithm");
    assert_true((warning != NULL) == (task->warned != 0));
    snprintf(wanted, sizeof wanted, "rank %d: ", task->warned - 1);
    assert_true(!warning || strstr(text, wanted));
    assert_true((strstr(text, "not that of rank 0") != NULL) == (task->card == there && warning));
}

static status_t run_rank(struct group *group, void *argument)
{
    const struct task *task = argument;
    char error[1024] = "";
    struct trainer trainer = {.group = group};
    struct kernels kernels = {.dtype = task->dtype};
    int rank = group_rank(group);
    FILE *log = tmpfile();
    assert_non_null(log);
    memset(&fake, 0, sizeof fake);
    memcpy(fake.needs, needs[rank], sizeof needs[rank]);
    fake.card = rank == 2 ? task->card : here;
    fake.refuses = task->refuses;
    fake.has_no_room = task->has_no_room;
    snprintf(trainer.config.kernels.algorithms, sizeof trainer.config.kernels.algorithms, "%s",
             task->file);
    trainer.place.kernels = &kernels;
    trainer.place.device = (struct device *)&kernels; /* one that nobody looks at */
    trainer.workers.train = (struct worker *)&kernels;
    log_set_file(log);
    log_capture(error, sizeof error);
    status_t status = algorithms_prepare(&trainer);
    log_capture(NULL, 0);
    log_set_file(NULL);
    assert_true(!task->says || strstr(error, task->says));
    assert_int_equal(status, task->expected[rank]);
    if (status == STATUS_OK) {
        assert_int_equal(fake.lines, rank == 2 ? task->lines_there : task->lines);
        assert_int_equal(fake.measured, rank == 0 ? task->measured : 0);
        assert_int_equal(fake.rehearsed, task->file[0] && task->dtype == DTYPE_BF16);
        assert_int_equal(algorithms_hash(&trainer) != 0, fake.lines > 0);
        status = trainer_keep_algorithms(&trainer, task->folder);
        if (rank == 0) {
            warnings_check(task, log);
        }
    } else {
        status = STATUS_OK;
    }
    fclose(log);
    free(trainer.algorithms);
    return status;
}

static void check(const struct task *task)
{
    struct group_options patient = {.deadline_s = 30, .heartbeat_s = 30};
    assert_ok(group_run_threads(3, &patient, NULL, run_rank, (void *)(uintptr_t)task));
}

static char *contents(const char *folder, const char *name)
{
    char path[128], *text = calloc(1, 8192);
    assert_non_null(text);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "r");
    if (!file) {
        free(text);
        return NULL;
    }
    assert_true(fread(text, 1, 8191, file) < 8191);
    fclose(file);
    return text;
}

static void write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

/* Folders and files of one test. */
struct place_case {
    char folder[32], file[64];
};

static void place_make(struct place_case *place)
{
    strcpy(place->folder, "algorithms-XXXXXX");
    assert_non_null(mkdtemp(place->folder));
    snprintf(place->file, sizeof place->file, "%s/table", place->folder);
}

static void place_remove(struct place_case *place)
{
    unlink(place->file);
    snprintf(place->file, sizeof place->file, "%s/algorithms.txt", place->folder);
    unlink(place->file);
    assert_int_equal(rmdir(place->folder), 0); /* nothing else was left */
}

static struct task task_of(const struct place_case *place, const char *algorithms)
{
    return (struct task){
        .file = algorithms, .folder = place->folder, .card = here, .dtype = DTYPE_BF16};
}

static void test_measure(void **state)
{
    (void)state;
    struct place_case place;
    place_make(&place);
    struct task task = task_of(&place, "measure");
    task.measured = task.lines = task.lines_there = 3; /* what any rank runs, each once */
    check(&task);
    char *kept = contents(place.folder, "algorithms.txt");
    assert_true(kept && strstr(kept, HERE A) && strstr(kept, HERE B) && strstr(kept, HERE C));
    assert_true(kept[0] == '#' && lines_of(kept) == 4);
    assert_null(contents(place.folder, "table"));
    free(kept);
    place_remove(&place);
}

static void test_file(void **state)
{
    (void)state;
    struct place_case place;
    place_make(&place);
    write_text(place.file, "# mine\n" OTHER HERE A " algorithm=7 us=3.00 first=4.00\n");
    struct task task = task_of(&place, place.file);
    task.measured = 2;
    task.lines = task.lines_there = 3;
    check(&task);
    char *table = contents(place.folder, "table"), *kept = contents(place.folder, "algorithms.txt");
    assert_true(table && strncmp(table, "# mine\n" OTHER, strlen("# mine\n" OTHER)) == 0);
    assert_non_null(strstr(table, HERE A " algorithm=7 us=3.00 first=4.00\n"));
    assert_true(strstr(table, HERE B) && strstr(table, HERE C) && lines_of(table) == 5);
    assert_string_equal(kept, table);

    task.measured = 0; /* all there now: the file stays as it is */
    check(&task);
    char *again = contents(place.folder, "table");
    assert_string_equal(table, again);
    free(table), free(kept), free(again);
    place_remove(&place);
}

/* Rank 0 measures for its own kind of card; what it finds is not for another. */
static void test_other_card(void **state)
{
    (void)state;
    struct place_case place;
    place_make(&place);
    struct task task = task_of(&place, "measure");
    task.card = there;
    task.measured = task.lines = 3;
    task.warned = 1 + 2;
    check(&task);
    write_text(place.file, THERE "product=2 algorithm=5 us=1.00 first=1.00\n");
    task.file = place.file; /* which has what it wants: nothing to say */
    task.lines_there = 1;
    task.warned = 0;
    check(&task);
    char *kept = contents(place.folder, "algorithms.txt");
    assert_true(kept && strstr(kept, THERE B) && lines_of(kept) == 4);
    free(kept);
    place_remove(&place);
}

/* Training goes on by the library's own choices. */
static void test_no_room(void **state)
{
    (void)state;
    struct place_case place;
    place_make(&place);
    struct task task = task_of(&place, place.file);
    task.has_no_room = true;
    task.warned = 1;
    check(&task);
    assert_null(contents(place.folder, "table"));
    place_remove(&place);
}

static void test_unasked(void **state)
{
    (void)state;
    struct place_case place;
    place_make(&place);
    struct task task = task_of(&place, "");
    check(&task);
    task.file = place.file;
    task.dtype = DTYPE_F32; /* takes the library's own choice */
    check(&task);
    assert_null(contents(place.folder, "table"));
    assert_null(contents(place.folder, "algorithms.txt"));
    place_remove(&place);
}

static void test_refused(void **state)
{
    (void)state;
    struct place_case place;
    char missing[64];
    place_make(&place);
    snprintf(missing, sizeof missing, "%s/no/table", place.folder);
    struct task task = task_of(&place, missing); /* the folder for it is not there */
    task.expected[0] = STATUS_IO;
    task.expected[1] = task.expected[2] = STATUS_PEER;
    check(&task);
    task.file = place.folder; /* no file at all */
    check(&task);
    task = task_of(&place, "measure");
    task.refuses = true;
    task.expected[0] = STATUS_NOMEM;
    task.expected[1] = task.expected[2] = STATUS_PEER;
    check(&task);
    write_text(place.file, "junk\n");
    task = task_of(&place, place.file);
    task.expected[0] = task.expected[1] = task.expected[2] = STATUS_INVALID;
    task.says = "kernels.algorithms: ";
    check(&task);
    char *table = contents(place.folder, "table");
    assert_string_equal(table, "junk\n");
    free(table);
    place_remove(&place);
}

static void test_hash(void **state)
{
    (void)state;
    assert_true(table_hash("a us=1.00\nb us=2\n") == table_hash("a us=7\nb us=9.00\n"));
    assert_true(table_hash("a us=1\nb us=2\n") != table_hash("a us=1\nc us=2\n"));
    assert_true(table_hash("a us=1\n") != table_hash("a us=1\nb us=1\n"));
    assert_true(table_hash("a us=1\nb us=2\n") == table_hash("b us=1\na us=2\n"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_measure),    cmocka_unit_test(test_file),
        cmocka_unit_test(test_other_card), cmocka_unit_test(test_no_room),
        cmocka_unit_test(test_unasked),    cmocka_unit_test(test_refused),
        cmocka_unit_test(test_hash)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
