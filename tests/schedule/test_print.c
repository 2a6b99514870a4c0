/* The text of a small plan, letter by letter: two stages, cut between attention and FFN. */
#include "tests/test.h"

#include <stdio.h>
#include <string.h>

#include "tests/schedule/graphs.h"

/* clang-format off */
static const char ops_of_rank_0[] =
    "    0  post  m0   dH_1     slot 0 from stage 1\n"
    "    1  post  m0   dX_0     slot 0 from stage 1\n"
    "    2  F     m0   embed    frame 0\n"
    "    3  put   m0   X_0      frame 0 to slot 0 of stage 1\n"
    "    4  F     m0   attn 1   frame 0\n"
    "    5  put   m0   H_1      frame 0 to slot 0 of stage 1\n"
    "    6  F     m1   embed    frame 1\n"
    "    7  put   m1   X_0      frame 1 to slot 0 of stage 1\n"
    "    8  F     m1   attn 1   frame 1\n"
    "    9  put   m1   H_1      frame 1 to slot 0 of stage 1\n"
    "   10  wait  m0   dH_1     slot 0 from stage 1\n"
    "   11  grad  m0   dH_1     slot 0 = received\n"
    "   12  B     m0   attn 1   frame 0\n"
    "   13  wait  m0   dX_0     slot 0 from stage 1\n"
    "   14  grad  m0   dX_0     slot 0 = received + aggregate of attn 1 + generator of attn 1"
    "\n"
    "   15  B     m0   embed    frame 0\n"
    "   16  W     m0   attn 1   frame 0\n"
    "   17  post  m1   dH_1     slot 0 from stage 1\n"
    "   18  W     m0   embed    frame 0\n"
    "   19  post  m1   dX_0     slot 0 from stage 1\n"
    "   20  sent  m0   X_0      frame 0 to stage 1\n"
    "   21  sent  m0   H_1      frame 0 to stage 1\n"
    "   22  wait  m1   dH_1     slot 0 from stage 1\n"
    "   23  grad  m1   dH_1     slot 0 = received\n"
    "   24  B     m1   attn 1   frame 1\n"
    "   25  wait  m1   dX_0     slot 0 from stage 1\n"
    "   26  grad  m1   dX_0     slot 0 = received + aggregate of attn 1 + generator of attn 1"
    "\n"
    "   27  B     m1   embed    frame 1\n"
    "   28  W     m1   attn 1   frame 1\n"
    "   29  W     m1   embed    frame 1\n"
    "   30  sent  m1   X_0      frame 1 to stage 1\n"
    "   31  sent  m1   H_1      frame 1 to stage 1\n"
    "   32  norm\n"
    "   33  step\n";

static const char ops_of_rank_1[] =
    "    0  post  m0   H_1      slot 0 from stage 0\n"
    "    1  post  m0   X_0      slot 0 from stage 0\n"
    "    2  wait  m0   H_1      slot 0 from stage 0\n"
    "    3  F     m0   ffn 1    frame 0\n"
    "    4  wait  m0   X_0      slot 0 from stage 0\n"
    "    5  F     m0   head     frame 0\n"
    "    6  B     m0   head     frame 0\n"
    "    7  post  m1   X_0      slot 0 from stage 0\n"
    "    8  grad  m0   dX_1     slot 0 = aggregate of head + generator of head\n"
    "    9  B     m0   ffn 1    frame 0, gradient slot 0\n"
    "   10  post  m1   H_1      slot 0 from stage 0\n"
    "   11  put   m0   dH_1     slot 0 to slot 0 of stage 0\n"
    "   12  grad  m0   dX_0     slot 0 = aggregate of head\n"
    "   13  put   m0   dX_0     slot 0 to slot 0 of stage 0\n"
    "   14  W     m0   head     frame 0\n"
    "   15  W     m0   ffn 1    frame 0\n"
    "   16  wait  m1   H_1      slot 0 from stage 0\n"
    "   17  F     m1   ffn 1    frame 0\n"
    "   18  wait  m1   X_0      slot 0 from stage 0\n"
    "   19  F     m1   head     frame 0\n"
    "   20  B     m1   head     frame 0\n"
    "   21  grad  m1   dX_1     slot 0 = aggregate of head + generator of head\n"
    "   22  B     m1   ffn 1    frame 0, gradient slot 1\n"
    "   23  put   m1   dH_1     slot 1 to slot 0 of stage 0\n"
    "   24  grad  m1   dX_0     slot 1 = aggregate of head\n"
    "   25  put   m1   dX_0     slot 1 to slot 0 of stage 0\n"
    "   26  W     m1   head     frame 0\n"
    "   27  W     m1   ffn 1    frame 0\n"
    "   28  sent  m0   dH_1     slot 0 to stage 0\n"
    "   29  sent  m0   dX_0     slot 0 to stage 0\n"
    "   30  sent  m1   dH_1     slot 1 to stage 0\n"
    "   31  sent  m1   dX_0     slot 1 to stage 0\n"
    "   32  norm\n"
    "   33  step\n";

static const char timeline[] =
    "time-line: schedule 1f1b, 2 microbatches, from cost alone (the wire is free)\n"
    "  rank  0 |F0F1...........B0=W0..............B1=W1.|  34.8% busy\n"
    "  rank  1 |..F0----B0=====W0~~~~F1----B1=====W1~~~~|  94.7% busy\n"
    "  F- forward, B= backward of inputs, W~ of weights, . idle; number: microbatch\n"
    "  bubble 35.3% of all ranks' time\n";

static const char partition[] =
    "partition: 2 stages, 2 microbatches, schedule 1f1b; cost of a microbatch\n"
    "  stage  rank  units                  count  frames       forward      backward       we"
    "ights  of mean\n"
    "      0     0  embed .. attn 1            2       2       11 FLOP       14 FLOP       11"
    " FLOP    53.7%\n"
    "      1     1  ffn 1 .. head              2       1       32 FLOP       36 FLOP       30"
    " FLOP   146.3%\n"
    "  in all 134 FLOP; the largest stage costs 1.463 times the mean\n";

static const char traffic[] =
    "traffic: bytes of a step, forward and backward, 2 microbatches\n"
    "  from  to                          plain                         dense                 "
    "         both\n"
    "     0   1      2.0 KiB              2000     2.0 KiB              2000     3.9 KiB     "
    "         4000\n"
    "     1   0      2.0 KiB              2000     2.0 KiB              2000     3.9 KiB     "
    "         4000\n"
    "  all links     3.9 KiB              4000     3.9 KiB              4000     7.8 KiB     "
    "         8000\n"
    "  plain: the newest key to the next stage, and its gradient; dense: every other s"
    "hipment\n";

static const char memory[] =
    "memory: bytes of every rank\n"
    "  rank  parameters   gradients   optimizer      frames    arrivals  grad slots    backwa"
    "rd         all           exactly   workspace    together     staging\n"
    "     0     8.0 KiB     8.0 KiB    16.0 KiB    32.0 KiB         0 B     2.0 KiB     1.0 K"
    "iB    67.0 KiB             68560         0 B    67.0 KiB     3.9 KiB\n"
    "     1     8.0 KiB     8.0 KiB    16.0 KiB    16.0 KiB     2.0 KiB     4.9 KiB     1.0 K"
    "iB    55.8 KiB             57176     2.0 KiB    57.8 KiB     3.9 KiB\n"
    "  frames: activations of the microbatches in flight; arrivals: slots for keys of other s"
    "tages\n"
    "  workspace: scratch of the operations, logits among it, as far as is known; together: `a"
    "ll` and workspace\n"
    "  staging: in neither; host memory pinned where tensors of GPUs pass through it (transp"
    "ort mpi, ucx without CUDA)\n";
/* The backward of a stage that makes the mean of layers 1 and 2 from a key of its own and one of the
 * stage before, where keys are normed and added to. */
static const char ops_of_kinds[] =
    "   15  wait  m0   dX_2     slot 0 from stage 2\n"
    "   16  wait  m0   dR_2     slot 0 from stage 2\n"
    "   17  wait  m0   dS_0     slot 0 from stage 2\n"
    "   18  grad  m0   dS_0     slot 0 = received\n"
    "   19  grad  m0   dX_2     slot 0 = received + summary S_0\n"
    "   20  grad  m0   dR_2     slot 0 = received + norm X_2\n"
    "   21  B     m0   ffn 2    frame 0, gradient slot 0\n"
    "   22  B     m0   attn 2   frame 0\n"
    "   23  grad  m0   dX_1     slot 0 = summary S_0 + aggregate of attn 2\n"
    "   24  put   m0   dX_1     slot 0 to slot 0 of stage 0\n"
    "   25  grad  m0   dR_1     slot 0 = generator of attn 2 + direct use of attn 2\n"
    "   26  put   m0   dR_1     slot 0 to slot 0 of stage 0\n"
    "   27  wait  m0   dX_0     slot 0 from stage 2\n"
    "   28  grad  m0   dX_0     slot 0 = received + aggregate of attn 2\n"
    "   29  put   m0   dX_0     slot 0 to slot 0 of stage 0\n";
/* clang-format on */

struct sheet {
    struct graph *graph;
    struct plan *plan;
    FILE *out;
    char *text;
    size_t size;
};

static int sheet_open(void **state)
{
    struct sheet *sheet = calloc(1, sizeof *sheet);
    struct plan_options options = {
        .ranks = 2, .microbatches = 2, .schedule = "1f1b", .partition = "2,2", .prefetch = 0};
    sheet->graph = graph_test_create(1, 1);
    sheet->out = open_memstream(&sheet->text, &sheet->size);
    *state = sheet;
    return sheet->out == NULL || plan_create(sheet->graph, &options, &sheet->plan) != STATUS_OK;
}

static int sheet_close(void **state)
{
    struct sheet *sheet = *state;
    fclose(sheet->out);
    free(sheet->text);
    plan_destroy(sheet->plan);
    graph_test_destroy(sheet->graph);
    free(sheet);
    return 0;
}

static void assert_sheet(const struct sheet *sheet, const char *expected)
{
    assert_int_equal(fflush(sheet->out), 0);
    assert_string_equal(sheet->text, expected);
}

static void test_ops_of_rank_0(void **state)
{
    const struct sheet *sheet = *state;
    plan_print_ops(sheet->plan, 0, sheet->out);
    assert_sheet(sheet, ops_of_rank_0);
}

static void test_ops_of_rank_1(void **state)
{
    const struct sheet *sheet = *state;
    plan_print_ops(sheet->plan, 1, sheet->out);
    assert_sheet(sheet, ops_of_rank_1);
}

static void test_timeline(void **state)
{
    const struct sheet *sheet = *state;
    plan_print_timeline(sheet->plan, 40, sheet->out);
    assert_sheet(sheet, timeline);
}

static void test_partition(void **state)
{
    const struct sheet *sheet = *state;
    plan_print_partition(sheet->plan, sheet->out);
    assert_sheet(sheet, partition);
}

static void test_traffic(void **state)
{
    const struct sheet *sheet = *state;
    plan_print_traffic(sheet->plan, sheet->out);
    assert_sheet(sheet, traffic);
}

static void test_memory(void **state)
{
    const struct sheet *sheet = *state;
    const int64_t workspace[] = {0, 2048};
    plan_print_memory(sheet->plan, workspace, "as far as is known", sheet->out);
    assert_sheet(sheet, memory);
}

static void test_ops_of_kinds(void **state)
{
    const struct sheet *sheet = *state;
    const struct graph_test test = {.layers = 3, .dilation = 1, .block = 2, .raw = RAW_ADDED};
    struct plan_options options = {
        .ranks = 3, .microbatches = 1, .schedule = "1f1b", .partition = "3,2,3", .prefetch = 0};
    struct graph *graph = graph_test_make(&test);
    struct plan *plan = NULL;
    assert_ok(plan_create(graph, &options, &plan));
    plan_print_ops(plan, 1, sheet->out);
    assert_int_equal(fflush(sheet->out), 0);
    assert_non_null(strstr(sheet->text, ops_of_kinds));
    plan_destroy(plan);
    graph_test_destroy(graph);
}

/* Any width is drawn: every line of a rank has as many cells as asked for. */
static void test_widths(void **state)
{
    const struct sheet *sheet = *state;
    for (int columns = 10; columns <= 300; columns += 29) {
        rewind(sheet->out);
        plan_print_timeline(sheet->plan, columns, sheet->out);
        assert_int_equal(fflush(sheet->out), 0);
        const char *from = strchr(sheet->text, '|');
        assert_non_null(from);
        assert_int_equal(strchr(from + 1, '|') - from - 1, columns);
    }
}

static void test_sentences(void **state)
{
    const struct sheet *sheet = *state;
    static const struct {
        int rank, op;
        const char *text;
    } cases[] = {
        {0, 0, "post slot 0 for dH_1 of microbatch 0 from stage 1"},
        {0, 2, "F of embed, microbatch 0"},
        {0, 3, "put X_0 of microbatch 0 to stage 1"},
        {0, 10, "wait for dH_1 of microbatch 0 from stage 1"},
        {0, 11, "form dH_1 of microbatch 0"},
        {0, 20, "wait until X_0 of microbatch 0 is sent to stage 1"},
        {0, 32, "norm"},
        {1, 15, "W of ffn 1, microbatch 0"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[128];
        const struct op *op = &sheet->plan->rank[cases[i].rank].op[cases[i].op];
        assert_string_equal(op_print(sheet->plan, op, text, sizeof text), cases[i].text);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, sheet_open, sheet_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_ops_of_rank_0), TEST(test_ops_of_rank_1), TEST(test_ops_of_kinds),
        TEST(test_timeline),      TEST(test_partition),     TEST(test_traffic),
        TEST(test_memory),        TEST(test_widths),        TEST(test_sentences),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
