/* sample.c - text from the model as it stands: the whole window again for every token (no key/value
 * cache; training software has no use for one). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "runtime/trainer.h"

static const double temperature = 0.8;

struct sampler {
    struct trainer *trainer;
    struct worker *worker;
    int32_t *window; /* [B*T], the first sequence counts */
    int64_t length;  /* tokens in it */
    float *logits;   /* [V] on the head's rank */
    uint64_t seed;
    int64_t drawn;
    status_t taken; /* of the logits */
};

/* Called after the head's forward: the row of the last token. */
static void take_logits(void *argument, struct part *part, int frame, int microbatch)
{
    struct sampler *sampler = argument;
    (void)microbatch;
    sampler->taken =
        trainer_logits(sampler->trainer, part, frame, sampler->length - 1, 1, sampler->logits);
}

/* Inverse CDF over softmax(logits / temperature) of the first 256 entries. */
static int32_t draw(const struct sampler *sampler)
{
    double best = -INFINITY, total = 0, weight[256];
    for (int i = 0; i < 256; i++) {
        best = fmax(best, (double)sampler->logits[i]);
    }
    for (int i = 0; i < 256; i++) {
        weight[i] = exp(((double)sampler->logits[i] - best) / temperature);
        total += weight[i];
    }
    double left =
        total * rng_uniform(sampler->seed, rng_stream("sample"), (uint64_t)sampler->drawn);
    for (int i = 0; i < 256; i++) {
        left -= weight[i];
        if (left <= 0) {
            return i;
        }
    }
    return 255;
}

static void push(struct sampler *sampler, int32_t token)
{
    int64_t T = sampler->trainer->model->T;
    if (sampler->length == T) { /* half of the window makes room */
        int64_t gone = T > 1 ? T / 2 : 1;
        memmove(sampler->window, sampler->window + gone, (size_t)(T - gone) * sizeof(int32_t));
        sampler->length = T - gone;
    }
    sampler->window[sampler->length++] = token;
}

static status_t next_token(struct sampler *sampler, int32_t *out)
{
    struct worker *worker = sampler->worker;
    struct batch batch = {.inputs = sampler->window};
    int last = worker->model->graph.units - 1;
    int root = plan_rank_of(worker->plan, plan_stage_of(worker->plan, last));
    TRY(trainer_walk(sampler->trainer, worker, &batch, 1.0f, NULL));
    TRY(group_agree(sampler->trainer->group, sampler->taken));
    if (sampler->trainer->mesh.place == root) {
        *out = draw(sampler);
    }
    sampler->drawn++;
    return group_broadcast(sampler->trainer->mesh.pipeline, out, sizeof *out, root);
}

static status_t sampler_init(struct sampler *sampler)
{
    struct trainer *trainer = sampler->trainer;
    const struct model *model = trainer->model;
    status_t status = STATUS_OK;
    sampler->window = calloc((size_t)(model->B * model->T), sizeof(int32_t));
    sampler->logits = calloc((size_t)model->config.vocab_size, sizeof(float));
    if (!sampler->window || !sampler->logits) {
        status = FAIL(STATUS_NOMEM, "no memory for a sample");
    }
    TRY(group_agree(trainer->group, status));
    TRY(trainer_forward_worker(trainer, 1, &trainer->workers.sampling));
    sampler->worker = trainer->workers.sampling;
    return STATUS_OK;
}

status_t trainer_sample(struct trainer *trainer, const char *prompt, int count, uint64_t seed,
                        char *out, bool *out_whole)
{
    struct sampler sampler = {.trainer = trainer, .seed = seed};
    status_t status = sampler_init(&sampler);
    bool stop = false;
    if (status == STATUS_OK) {
        sampler.worker->head.fn = take_logits;
        sampler.worker->head.arg = &sampler;
        for (const char *c = prompt[0] ? prompt : "\n"; *c; c++) {
            push(&sampler, (unsigned char)*c);
        }
    }
    for (int i = 0; i < count && status == STATUS_OK; i++) {
        int32_t token = 0;
        status = job_stop_agreed(trainer->group, &stop);
        if (status != STATUS_OK || stop) {
            break;
        }
        status = next_token(&sampler, &token);
        out[i] = (char)token;
        out[i + 1] = '\0';
        push(&sampler, token);
    }
    free(sampler.window);
    free(sampler.logits);
    *out_whole = !stop;
    return status;
}
