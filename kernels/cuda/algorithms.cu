// algorithms.cu - the table of measured algorithms: its text, and how a missing one is measured.
//
// A line is a product on a card with a version of the library, the algorithm in the library's own 64
// bytes (words in hex, zeros at the end left out), which it promises to take back, and two times: the
// algorithm's and that of the library's first choice.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/product.cuh"

extern "C" {
#include "base/log.h"
}

enum {
    CANDIDATES = 16,
    ROUNDS = 9,
    ROUNDS_FIRST = 3, // then the slow ones are given up
    PLACE = 320,
    LINE = 1024,
    WORDS = sizeof(cublasLtMatmulAlgo_t) / sizeof(uint64_t),
    PATTERN = 1 << 20 // elements
};
static const float GIVEN_UP = 1.25f; // times the best
static const float WORTH = 0.99f;    // times the library's first choice

// ---- text ----

static void key_print(FILE *out, const char *place, const struct product_key *k)
{
    fprintf(out,
            "%s product=%" PRIu64 "x%" PRIu64 "x%" PRIu64 " parts=%" PRIu64
            " stored=%c%c in=%s out=%s add=%d aligned=%d%d%d",
            place, k->M, k->N, k->K, k->parts, k->a_transposed ? 't' : 'n',
            k->b_transposed ? 't' : 'n', dtype_name((enum dtype)k->in),
            dtype_name((enum dtype)k->out), k->accumulate, k->a_aligned, k->b_aligned,
            k->c_aligned);
}

static bool dtype_parse(const char *text, uint8_t *out)
{
    *out = strcmp(text, dtype_name(DTYPE_BF16)) == 0 ? DTYPE_BF16 : DTYPE_F32;
    return strcmp(text, dtype_name((enum dtype) * out)) == 0;
}

// Card and library go to place [PLACE]. The rest of the line, or NULL.
static const char *key_parse(const char *line, char *place, struct product_key *out)
{
    char card[256], in[8], to[8], stored[3];
    size_t library;
    unsigned add, aligned;
    int end = 0;
    memset(out, 0, sizeof *out);
    if (sscanf(line,
               "card=%255s library=%zu product=%" SCNu64 "x%" SCNu64 "x%" SCNu64 " parts=%" SCNu64
               " stored=%2[nt] in=%7s out=%7s add=%1u aligned=%3u%n",
               card, &library, &out->M, &out->N, &out->K, &out->parts, stored, in, to, &add,
               &aligned, &end) != 11 ||
        strlen(stored) != 2 || !dtype_parse(in, &out->in) || !dtype_parse(to, &out->out)) {
        return NULL;
    }
    snprintf(place, PLACE, "card=%s library=%zu", card, library);
    out->a_transposed = stored[0] == 't', out->b_transposed = stored[1] == 't';
    out->accumulate = add != 0;
    out->a_aligned = aligned / 100 % 10 != 0, out->b_aligned = aligned / 10 % 10 != 0;
    out->c_aligned = aligned % 10 != 0;
    return line + end;
}

static void entry_print(FILE *out, const char *place, const struct product_algorithm *entry)
{
    uint64_t word[WORDS];
    size_t words = WORDS;
    memcpy(word, &entry->algorithm, sizeof word);
    key_print(out, place, &entry->key);
    while (words > 1 && word[words - 1] == 0) {
        words--;
    }
    for (size_t i = 0; i < words; i++) {
        fprintf(out, "%s%" PRIx64, i ? "-" : " algorithm=", word[i]);
    }
    fprintf(out, " us=%.2f first=%.2f\n", (double)entry->us, (double)entry->first_us);
}

// The words after "algorithm=". What follows them, or NULL.
static const char *algorithm_parse(const char *text, cublasLtMatmulAlgo_t *out)
{
    static const char name[] = " algorithm=";
    uint64_t word[WORDS] = {};
    if (strncmp(text, name, sizeof name - 1) != 0) {
        return NULL;
    }
    text += sizeof name - 1;
    for (size_t i = 0; i < WORDS; i++) {
        char *next;
        word[i] = strtoull(text, &next, 16);
        if (next == text) {
            return NULL;
        }
        if (*next != '-') {
            memcpy(out, word, sizeof word);
            return next;
        }
        text = next + 1;
    }
    return NULL;
}

static bool entry_parse(const char *line, char *place, struct product_algorithm *out)
{
    const char *rest = key_parse(line, place, &out->key);
    rest = rest ? algorithm_parse(rest, &out->algorithm) : NULL;
    return rest && sscanf(rest, " us=%f first=%f", &out->us, &out->first_us) == 2;
}

// The next line of *text without its end, blanks and comments left out; false at the end. *number
// counts lines.
static bool line_next(const char **text, char *line, int *number)
{
    while (**text) {
        size_t length = strcspn(*text, "\n");
        size_t kept = length < LINE - 1 ? length : LINE - 1;
        memcpy(line, *text, kept);
        line[kept] = '\0';
        *text += length + ((*text)[length] == '\n');
        ++*number;
        if (line[strspn(line, " \t\r")] && line[0] != '#') {
            return true;
        }
    }
    return false;
}

// An entry of this card, unless its bits would change from run to run.
static status_t entry_take(const struct product_algorithm *entry, const char *name, int number)
{
    bool fixed;
    TRY(cuda_algorithm_order(&entry->algorithm, &fixed));
    if (fixed) {
        product_learn(entry);
    } else {
        log_warn("%s, line %d: this algorithm adds in an order that changes from run to run; it is "
                 "not taken, and its product is measured again",
                 name, number);
    }
    return STATUS_OK;
}

extern "C" status_t kernels_cuda_algorithms_load(const char *name, const char *text)
{
    char line[LINE], here[PLACE], place[PLACE];
    struct product_algorithm entry;
    int number = 0;
    product_place(here, sizeof here);
    while (line_next(&text, line, &number)) {
        if (!entry_parse(line, place, &entry)) {
            return FAIL(STATUS_INVALID,
                        "%s, line %d: this is no algorithm of a product: \"%.60s\" (delete the "
                        "line, and it is measured again)",
                        name, number, line);
        }
        if (strcmp(place, here) == 0) {
            TRY(entry_take(&entry, name, number));
        }
    }
    return STATUS_OK;
}

// A stream into a malloc'ed string.
struct text_builder {
    char *text;
    size_t size;
    FILE *file;
};

static void text_begin(struct text_builder *builder)
{
    builder->text = NULL;
    builder->size = 0;
    builder->file = open_memstream(&builder->text, &builder->size);
    CHECK(builder->file, "no memory for a table of algorithms");
}

static char *text_end(struct text_builder *builder)
{
    CHECK(fclose(builder->file) == 0, "no memory for a table of algorithms");
    return builder->text;
}

extern "C" char *kernels_cuda_algorithms_save(void)
{
    struct text_builder builder;
    struct product_algorithm *entry;
    char here[PLACE];
    size_t count = product_known(&entry);
    product_place(here, sizeof here);
    text_begin(&builder);
    for (size_t i = 0; i < count; i++) {
        entry_print(builder.file, here, &entry[i]);
    }
    free(entry);
    return text_end(&builder);
}

extern "C" char *kernels_cuda_algorithms_missing(void)
{
    struct text_builder builder;
    struct product_key *key;
    char here[PLACE];
    size_t count = product_missing(&key);
    product_place(here, sizeof here);
    text_begin(&builder);
    for (size_t i = 0; i < count; i++) {
        key_print(builder.file, here, &key[i]);
        fputc('\n', builder.file);
    }
    free(key);
    return text_end(&builder);
}

// ---- measuring ----

struct bench {
    cudaStream_t stream;
    cudaEvent_t begin, end;
    char *memory; // of the largest product: A, B, C; then workspace, then what clears the caches
    size_t bytes, clear_bytes;
};

static size_t rounded(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

static void operand_bytes(const struct product_key *k, size_t bytes[3])
{
    size_t parts = k->parts ? k->parts : 1;
    size_t in = dtype_size((enum dtype)k->in), out = dtype_size((enum dtype)k->out);
    bytes[0] = rounded(parts * k->M * k->K * in);
    bytes[1] = rounded(parts * k->K * k->N * in);
    bytes[2] = rounded(parts * k->M * k->N * out);
}

static void cuda_check(cudaError_t error, const char *doing)
{
    CHECK(error == cudaSuccess, "GPU: measuring products: %s: %s", doing,
          cudaGetErrorString(error));
}

// Random numbers: zeros would flatter.
static void memory_fill(struct bench *b, size_t bytes)
{
    uint16_t *pattern = (uint16_t *)malloc(PATTERN * sizeof *pattern);
    CHECK(pattern, "no memory for %d numbers", (int)PATTERN);
    uint64_t state = 1;
    for (size_t i = 0; i < PATTERN; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        float x = (float)((double)(int64_t)(state >> 11) * 0x1p-52 - 1.0);
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        pattern[i] = (uint16_t)(bits >> 16);
    }
    for (size_t at = 0; at < bytes; at += PATTERN * sizeof *pattern) {
        size_t piece =
            bytes - at < PATTERN * sizeof *pattern ? bytes - at : PATTERN * sizeof *pattern;
        cuda_check(
            cudaMemcpyAsync(b->memory + at, pattern, piece, cudaMemcpyHostToDevice, b->stream),
            "filling operands");
    }
    cuda_check(cudaStreamSynchronize(b->stream), "filling operands");
    free(pattern);
}

// False if there is no room.
static bool bench_open(struct bench *b, size_t operands)
{
    int device, cache;
    cuda_check(cudaGetDevice(&device), "its device");
    cuda_check(cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, device), "its cache");
    b->clear_bytes = rounded(2 * (size_t)cache + 1);
    b->bytes = operands + CUDA_MATMUL_BYTES + b->clear_bytes;
    cudaError_t error = cudaMalloc(&b->memory, b->bytes);
    if (error != cudaSuccess) {
        cudaGetLastError();
        log_warn("products are not measured: %.0f MiB more are needed for that, and the GPU has no "
                 "room (%s); the library's own choices are taken",
                 (double)b->bytes / 0x1p20, cudaGetErrorString(error));
        return false;
    }
    cuda_check(cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking), "a stream");
    cuda_check(cudaEventCreate(&b->begin), "an event");
    cuda_check(cudaEventCreate(&b->end), "an event");
    memory_fill(b, operands);
    return true;
}

static void bench_close(struct bench *b)
{
    cudaEventDestroy(b->begin);
    cudaEventDestroy(b->end);
    cudaStreamDestroy(b->stream);
    cudaFree(b->memory);
}

// Microseconds of one run with cold caches; negative if the algorithm does not run.
static float bench_once(struct bench *b, const struct product_key *key,
                        const cublasLtMatmulAlgo_t *algorithm)
{
    size_t bytes[3];
    float ms = 0;
    operand_bytes(key, bytes);
    char *A = b->memory, *B = A + bytes[0], *C = B + bytes[1];
    char *clear = b->memory + b->bytes - b->clear_bytes, *workspace = clear - CUDA_MATMUL_BYTES;
    cuda_check(cudaMemsetAsync(clear, 1, b->clear_bytes, b->stream), "clearing caches");
    cuda_check(cudaEventRecord(b->begin, b->stream), "the begin");
    bool runs = product_try(key, algorithm, A, B, C, workspace, b->stream);
    cuda_check(cudaEventRecord(b->end, b->stream), "the end");
    cuda_check(cudaEventSynchronize(b->end), "a product");
    cuda_check(cudaEventElapsedTime(&ms, b->begin, b->end), "a time");
    return runs ? ms * 1e3f : -1.0f;
}

static int float_compare(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static float median(const float *samples, int count)
{
    float sorted[ROUNDS];
    memcpy(sorted, samples, (size_t)count * sizeof *sorted);
    qsort(sorted, (size_t)count, sizeof *sorted, float_compare);
    return sorted[count / 2];
}

// Rounds over all candidates, so that a clock that changes changes for each.
static void product_measure(struct bench *b, const struct product_key *key)
{
    cublasLtMatmulAlgo_t candidate[CANDIDATES];
    float us[CANDIDATES][ROUNDS], middle[CANDIDATES];
    bool dropped[CANDIDATES] = {};
    int count = product_candidates(key, CANDIDATES, candidate), best = 0;
    for (int i = 0; i < count; i++) {
        dropped[i] = bench_once(b, key, &candidate[i]) < 0; // the first run loads code
    }
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < count; i++) {
            us[i][round] = dropped[i] ? 0 : bench_once(b, key, &candidate[i]);
        }
        best = 0;
        for (int i = 0; i < count; i++) {
            middle[i] = dropped[i] ? 0 : median(us[i], round + 1);
            best = !dropped[i] && middle[i] < middle[best] ? i : best;
        }
        for (int i = 1; i < count && round + 1 >= ROUNDS_FIRST; i++) {
            dropped[i] = dropped[i] || middle[i] > middle[best] * GIVEN_UP;
        }
    }
    best = middle[best] < middle[0] * WORTH ? best : 0;
    struct product_algorithm entry = {*key, candidate[best], middle[best], middle[0]};
    product_learn(&entry);
}

// The keys of lines for this card, each once; malloc'ed.
static status_t keys_parse(const char *missing, struct product_key **out, size_t *out_count)
{
    char line[LINE], here[PLACE], place[PLACE];
    size_t count = 0;
    int number = 0;
    struct product_key *keys =
        (struct product_key *)malloc((strlen(missing) / 32 + 1) * sizeof *keys);
    if (!keys) {
        return FAIL(STATUS_NOMEM, "no memory for a list of products");
    }
    product_place(here, sizeof here);
    while (line_next(&missing, line, &number)) {
        CHECK(key_parse(line, place, &keys[count]), "this is no product: %s", line);
        size_t same = 0;
        while (same < count && memcmp(&keys[same], &keys[count], sizeof *keys) != 0) {
            same++;
        }
        count += same == count && strcmp(place, here) == 0;
    }
    *out = keys;
    *out_count = count;
    return STATUS_OK;
}

extern "C" status_t kernels_cuda_algorithms_measure(const char *missing)
{
    struct product_key *key;
    struct bench bench = {};
    size_t count, most = 0;
    TRY(keys_parse(missing, &key, &count));
    for (size_t i = 0; i < count; i++) {
        size_t bytes[3];
        operand_bytes(&key[i], bytes);
        most = bytes[0] + bytes[1] + bytes[2] > most ? bytes[0] + bytes[1] + bytes[2] : most;
    }
    if (count > 0 && bench_open(&bench, most)) {
        for (size_t i = 0; i < count; i++) {
            product_measure(&bench, &key[i]);
        }
        bench_close(&bench);
    }
    free(key);
    return STATUS_OK;
}
