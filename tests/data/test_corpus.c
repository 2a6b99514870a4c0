/* test_corpus.c - orders over windows and documents, where documents start, and several shards. */
#include "tests/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "data/corpus.h"
#include "data/dataset.h"
#include "data/tokens.h"

enum { MOST = 12000, EOD = 1 };

static char message[4096];
static char name[4][64];
static uint16_t text[MOST]; /* token i of a text is distinct where that matters */

static int setup(void **state)
{
    (void)state;
    log_set_level(LOG_WARN);
    for (int i = 0; i < 4; i++) {
        snprintf(name[i], sizeof name[i], "test_corpus.%d.%d.bin", (int)getpid(), i);
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        unlink(name[i]);
    }
    return 0;
}

static void save_tokens(int file, const uint16_t *tokens, int count)
{
    int32_t header[256] = {TOKENS_U16_MAGIC, TOKENS_U16_VERSION, count};
    FILE *stream = fopen(name[file], "wb");

    assert_non_null(stream);
    fwrite(header, sizeof header, 1, stream);
    fwrite(tokens, sizeof tokens[0], (size_t)count, stream);
    fclose(stream);
}

static void save(int file, int from, int to)
{
    save_tokens(file, text + from, to - from);
}

static struct corpus *open_files(int files, struct corpus_options options)
{
    const char *paths[3] = {name[0], name[1], name[2]};
    struct corpus *corpus = NULL;

    assert_ok(corpus_open(paths, files, &options, &corpus));
    return corpus;
}

static void make_numbers(int count)
{
    for (int i = 0; i < count; i++) {
        text[i] = (uint16_t)i;
    }
}

/* Tokens 10, 11, 12, ... with an end of document behind stretches of 0 to `longest` tokens. */
static void make_documents(int count, int longest)
{
    uint32_t draw = 5;
    int left = 3;

    for (int i = 0; i < count; i++) {
        text[i] = (uint16_t)(left == 0 ? EOD : 10 + i);
        draw = draw * 1664525u + 1013904223u;
        left = left == 0 ? (int)((draw >> 8) % (uint32_t)(longest + 1)) : left - 1;
    }
}

/* Every window exactly once an epoch; epochs, seeds and sources differ; two readers agree. */
static void test_windows(void **state)
{
    static const int counts[] = {11, 21, 31, 651, 10241, 10231};
    enum { T = 10 };

    (void)state;
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        struct corpus_options options = {.T = T, .seed = 42, .eod = -1};
        make_numbers(counts[c]);
        save(0, 0, counts[c]);
        struct corpus *corpus = open_files(1, options), *other = open_files(1, options);
        options.seed = 43;
        struct corpus *seeded = open_files(1, options);
        int64_t windows = corpus_windows(corpus), same = 0, alike = 0;
        unsigned char *seen = test_calloc((size_t)windows, 1);
        int32_t row[T + 1], again[T + 1], last[T + 1];
        assert_int_equal(windows, (counts[c] - 1) / T);
        for (int64_t s = 0; s < 2 * windows; s++) {
            assert_ok(corpus_sequence(corpus, s, row, NULL));
            assert_int_equal(row[0] % T, 0);
            for (int t = 0; t <= T; t++) {
                assert_int_equal(row[t], row[0] + t);
            }
            assert_int_equal(seen[row[0] / T]++, s / windows);
            assert_ok(corpus_sequence(other, s, again, NULL));
            assert_memory_equal(row, again, sizeof row);
            assert_ok(corpus_sequence(other, (s + windows) % (2 * windows), last, NULL));
            assert_ok(corpus_sequence(seeded, s, again, NULL));
            same += row[0] == last[0];
            alike += row[0] == again[0];
        }
        if (windows > 50) {
            assert_true(same < windows / 4 && alike < windows / 4);
        }
        test_free(seen);
        corpus_close(corpus);
        corpus_close(other);
        corpus_close(seeded);
    }
}

/* The windows of the first epochs, put together by where they stand, are whole epochs: each has every
 * token of it once; any order of asking gives the same. */
static void check_epochs(int T, int longest, int count)
{
    enum { EPOCHS = 3 };
    struct corpus_options options = {
        .T = T, .seed = 9, .eod = EOD, .documents = true, .starts = true};

    make_documents(count, longest);
    save(0, 0, count);
    struct corpus *corpus = open_files(1, options), *jumping = open_files(1, options);
    int64_t documents = corpus_documents(corpus), sequences = (EPOCHS * (int64_t)count + T - 1) / T;
    int32_t *row = test_calloc((size_t)T + 1, sizeof *row);
    int32_t *again = test_calloc((size_t)T + 1, sizeof *again);
    int32_t *first = test_calloc((size_t)T, sizeof *first);
    int64_t *times = test_calloc((size_t)count, sizeof *times); /* each token read as an input */
    int64_t marks = 0;

    for (int64_t s = 0; s < sequences; s++) {
        assert_ok(corpus_sequence(corpus, s, row, first));
        for (int t = 0; t < T; t++) {
            marks += row[t] == EOD;
            if (row[t] != EOD) {
                times[row[t] - 10]++;
            }
            /* the text goes on within a document, and `first` changes behind its end only */
            assert_int_equal(first[t], t == 0 ? 0 : row[t - 1] == EOD ? t : first[t]);
            if (t > 0 && row[t - 1] != EOD && row[t - 1] - 10 != count - 1) {
                assert_int_equal(first[t], first[t - 1]);
                assert_true(row[t] == row[t - 1] + 1 || row[t] == EOD);
            }
        }
        int64_t other = (s * 7919 + 13) % sequences; /* any order reads the same */
        assert_ok(corpus_sequence(jumping, other, again, NULL));
        assert_ok(corpus_sequence(jumping, s, again, NULL));
        assert_memory_equal(row, again, ((size_t)T + 1) * sizeof *row);
    }
    int64_t extra = sequences * T - EPOCHS * (int64_t)count, surplus = 0;
    for (int i = 0; i < count; i++) {
        if (text[i] != EOD) {
            assert_in_range(times[i], EPOCHS, EPOCHS + 1);
            surplus += times[i] - EPOCHS;
        }
    }
    int64_t ends = 0;
    for (int i = 0; i < count; i++) {
        ends += text[i] == EOD;
    }
    assert_in_range(documents, ends, ends + 1);
    assert_int_equal(surplus + marks - EPOCHS * ends, extra);
    test_free(row);
    test_free(again);
    test_free(first);
    test_free(times);
    corpus_close(corpus);
    corpus_close(jumping);
}

static void test_documents(void **state)
{
    (void)state;
    check_epochs(16, 40, 5000);
    check_epochs(64, 5, 1000);
    check_epochs(7, 0, 300);
    check_epochs(100, 3000, 9000);
    check_epochs(30, 10, 31);
}

/* A window as long as an epoch shows its order: every document once, whole, and moved about. */
static void test_order(void **state)
{
    enum { LENGTH = 6, DOCUMENTS = 100, COUNT = LENGTH * DOCUMENTS };
    struct corpus_options options = {.T = COUNT - 1, .seed = 3, .eod = EOD, .documents = true};
    static int32_t row[COUNT];
    bool seen[DOCUMENTS] = {false};
    int moved = 0;

    (void)state;
    for (int i = 0; i < COUNT; i++) {
        text[i] = (uint16_t)(i % LENGTH == LENGTH - 1 ? EOD : 10 + i);
    }
    save(0, 0, COUNT);
    struct corpus *corpus = open_files(1, options);
    assert_int_equal(corpus_documents(corpus), DOCUMENTS);
    assert_ok(corpus_sequence(corpus, 0, row, NULL));
    if (row[0] ==
        EOD) { /* the other of the two windows that begin in the epoch: at its last token */
        assert_ok(corpus_sequence(corpus, 1, row, NULL));
    }
    for (int d = 0; d < DOCUMENTS; d++) {
        const int32_t *document = row + (ptrdiff_t)LENGTH * d;
        int which = (document[0] - 10) / LENGTH;
        assert_in_range(which, 0, DOCUMENTS - 1);
        assert_false(seen[which]);
        seen[which] = true;
        moved += which != d;
        for (int i = 0; i < LENGTH; i++) {
            assert_int_equal(document[i], text[which * LENGTH + i]);
        }
    }
    assert_true(moved > DOCUMENTS / 2);
    corpus_close(corpus);
}

/* Two files are one text: the same windows, documents and starts as a single file of all. */
static void test_shards(void **state)
{
    enum { T = 32, COUNT = 4000 };
    int32_t row[T + 1], first[T], other_row[T + 1], other_first[T];

    (void)state;
    make_documents(COUNT, 50);
    for (int documents = 0; documents < 2; documents++) {
        struct corpus_options options = {
            .T = T, .seed = 5, .eod = EOD, .documents = documents == 1, .starts = true};
        const char *path = name[3];
        struct corpus *whole = NULL;
        save(3, 0, COUNT);
        assert_ok(corpus_open(&path, 1, &options, &whole));
        save(0, 0, 1001);
        save(1, 1001, 1001);
        save(2, 1001, COUNT);
        struct corpus *parts = open_files(3, options);
        assert_int_equal(corpus_count(parts), COUNT);
        assert_int_equal(corpus_documents(parts), corpus_documents(whole));
        for (int64_t s = 0; s < 400; s++) {
            assert_ok(corpus_sequence(whole, s, row, first));
            assert_ok(corpus_sequence(parts, s, other_row, other_first));
            assert_memory_equal(row, other_row, sizeof row);
            assert_memory_equal(first, other_first, sizeof first);
        }
        corpus_close(whole);
        corpus_close(parts);
    }
}

/* `first` of each token, by looking back from it. */
static void test_starts(void **state)
{
    enum { T = 24, COUNT = 3000 };
    struct corpus_options options = {.T = T, .eod = EOD, .starts = true};
    int32_t row[T + 1], first[T];

    (void)state;
    make_documents(COUNT, 12);
    save(0, 0, COUNT);
    struct corpus *corpus = open_files(1, options);
    for (int64_t w = 0; w < corpus_windows(corpus); w++) {
        assert_ok(corpus_window(corpus, w, row, first));
        for (int t = 0; t < T; t++) {
            int begun = t;
            while (begun > 0 && row[begun - 1] != EOD) {
                begun--;
            }
            assert_int_equal(first[t], begun);
        }
    }
    corpus_close(corpus);
}

static status_t open_captured(const char *list, struct dataset_options options)
{
    struct dataset *dataset = NULL;

    message[0] = '\0';
    log_capture(message, sizeof message);
    options.key = "data.train";
    status_t status = dataset_open(list, &options, &dataset);
    log_capture(NULL, 0);
    dataset_close(dataset);
    return status;
}

static void assert_says(const char *words)
{
    if (strstr(message, words) == NULL) {
        fail_msg("'%s' is missing in: %s", words, message);
    }
}

static void test_refused(void **state)
{
    struct dataset_options options = {.vocab = 0, .T = 99, .eod = -1};

    (void)state;
    make_numbers(100);
    save(0, 0, 100);
    assert_ok(open_captured(name[0], options));
    options.T = 100;
    assert_status(open_captured(name[0], options), STATUS_INVALID);
    assert_says("its 100 tokens are too few");
    options = (struct dataset_options){.T = 10, .eod = -1, .documents = true};
    assert_status(open_captured(name[0], options), STATUS_INVALID);
    assert_says("data.eod=ID");
    options = (struct dataset_options){.T = 10, .eod = -1, .starts = true};
    assert_status(open_captured(name[0], options), STATUS_INVALID);
    assert_says("data.mask_documents needs");
    options = (struct dataset_options){.T = 10, .eod = -1, .vocab = 50};
    assert_status(open_captured(name[0], options), STATUS_INVALID);
    assert_says("token 50 at position 50");
}

/* What opening the file writes into the log. */
static bool warns(struct dataset_options options, const char *words)
{
    char *lines = NULL;
    size_t size = 0;
    FILE *log = open_memstream(&lines, &size);

    assert_non_null(log);
    log_set_file(log);
    log_set_level(LOG_ERROR);
    assert_ok(open_captured(name[0], options));
    log_set_level(LOG_WARN);
    log_set_file(NULL);
    fclose(log);
    bool found = strstr(lines, words) != NULL;
    free(lines);
    return found;
}

/* Masks look for ends, too; that of the last token is one. */
static void test_endless(void **state)
{
    enum { COUNT = 70000 }; /* more than is read at once */
    static const int ends[] = {-1, 0, COUNT - 2, COUNT - 1};
    static uint16_t many[COUNT];
    struct dataset_options options = {.T = 10, .eod = 7};

    (void)state;
    for (size_t e = 0; e < sizeof ends / sizeof ends[0]; e++) {
        for (int i = 0; i < COUNT; i++) {
            many[i] = i == ends[e] ? 7 : 5;
        }
        save_tokens(0, many, COUNT);
        for (int wanted = 0; wanted < 4; wanted++) {
            options.starts = (wanted & 1) != 0;
            options.documents = (wanted & 2) != 0;
            bool warned = warns(options, "no token 7 ends a document here");
            assert_int_equal(warned, ends[e] < 0 && wanted > 0);
        }
    }
}

/* Sources keep their proportions, each with an order of its own; held-out windows end with the first
 * source. */
static void test_mixed(void **state)
{
    enum { T = 10 };
    struct dataset_options options = {.key = "data.train", .T = T, .eod = -1, .seed = 1};
    struct dataset *dataset = NULL;
    char list[256];
    int32_t inputs[T], targets[T];
    int from_first = 0;

    (void)state;
    make_numbers(3001);
    save(0, 0, 1001);
    save(1, 1000, 3001);
    snprintf(list, sizeof list, "%s:3,%s:1", name[0], name[1]);
    assert_ok(dataset_open(list, &options, &dataset));
    for (int64_t s = 0; s < 400; s++) {
        assert_ok(dataset_sequence(dataset, s, inputs, targets, NULL));
        for (int t = 0; t < T; t++) {
            assert_int_equal(targets[t], inputs[t] + 1);
        }
        from_first += inputs[0] < 1000;
        assert_true(abs(4 * from_first - 3 * (int)(s + 1)) < 4);
    }
    assert_in_range(dataset_windows(dataset), 131, 134); /* 100 windows of the first are 3/4 */
    for (int64_t w = 0; w < dataset_windows(dataset); w++) {
        assert_ok(dataset_window(dataset, w, inputs, targets, NULL));
    }
    dataset_close(dataset);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_windows), cmocka_unit_test(test_documents),
        cmocka_unit_test(test_order),   cmocka_unit_test(test_shards),
        cmocka_unit_test(test_starts),  cmocka_unit_test(test_refused),
        cmocka_unit_test(test_endless), cmocka_unit_test(test_mixed),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
