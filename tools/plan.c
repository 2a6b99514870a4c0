/* plan.c - muddpipe plan: partition, shipments, memory and schedule, without running anything. */
#include <stdio.h>
#include <stdlib.h>

#include "base/device.h"
#include "kernels/kernels.h"
#include "runtime/runtime.h"
#include "tools/arguments.h"
#include "tools/tools.h"

enum { COLUMNS = 100 };

static int plan_help(void)
{
    printf(
        "usage: muddpipe plan CONFIG|FOLDER [parallel.pp=P] [key.path=value ...]\n"
        "                     [--ops RANK | --links RANK | --print-schedule | --print-config]\n\n"
        "Prints for P pipeline stages, from one process and without running the model: which\n"
        "units each stage has, what is shipped over each link in bytes, what each stage holds\n"
        "in memory, and a time-line of the schedule.\n\n"
        "  --ops RANK       instead, every operation of that rank's step, one a line\n"
        "  --links RANK     instead, that rank's messages in the order in which others need them, "
        "in\n"
        "                   which they leave for other hosts\n"
        "  --print-schedule instead, a text of who does what when, to edit and to give back as\n"
        "                   parallel.schedule=FILE, or to repeat on one rank as "
        "parallel.replay=FILE\n"
        "  --print-config   print the resolved configuration and stop\n");
    return EXIT_SUCCESS;
}

/* What dense connections cost, counted from the tables; of MUDD beside the paper's closed forms for full
 * connectivity with all four ways: parameters eta/6, FLOPs eta/(3 + rho/4), eta = (L+3)/D, rho = T/D
 * (of the forward pass, head left out). */
static void print_dense_cost(const struct model *model)
{
    struct model_dense_cost cost;
    model_dense_cost(model, &cost);
    double L = (double)model->config.n_layer, D = (double)model->config.dim;
    double eta = (L + 3) / D, rho = (double)model->T / D;
    char parameters[64] = "", flops[64] = "";
    if (model->config.dense_type == DENSE_QKVR || model->config.dense_type == DENSE_L) {
        snprintf(parameters, sizeof parameters, " (closed form for full connectivity %.3f%%)",
                 100 * eta / 6);
        snprintf(flops, sizeof flops, " (closed form %.3f%%)", 100 * eta / (3 + rho / 4));
    }
    if (cost.parameters > 0) {
        printf("dense connections: %lld parameters, %.3f%% of the layers'%s;\n"
               "                   %.3f%% more FLOPs in the layers' forward%s\n",
               (long long)cost.parameters,
               100 * (double)cost.parameters / (double)cost.layer_parameters, parameters,
               100 * cost.flops / cost.layer_flops, flops);
    }
}

/* The value of a key as the configuration has it. */
static const char *value_of(const struct run_config *config, const char *key, char *buffer,
                            size_t size)
{
    return option_print(option_find(config_options, config_options_count, key), config, buffer,
                        size);
}

/* Of every rank, [ranks], and how far it is known before anything runs. */
static status_t find_workspaces(const struct run_config *config, const struct model *model,
                                const struct plan *plan, int64_t *out, char *known, size_t size)
{
    const struct kernels *kernels = kernels_cuda_sizes(model->dtype);
    int threads = place_threads(config, plan->ranks);
    bool gpu = model->dtype == DTYPE_BF16 || config->device == DEVICE_CHOICE_CUDA ||
               (config->device == DEVICE_CHOICE_AUTO && device_count(DEVICE_CUDA, NULL, 0) > 0);
    snprintf(known, size,
             "on a GPU, as far as is known without its libraries (cuDNN may want more)");
    if (!gpu) {
        TRY(kernels_cpu(&kernels));
        snprintf(known, size, "on the host with %d thread%s a rank", threads,
                 threads == 1 ? "" : "s");
    }
    return memory_workspaces(model, plan, kernels, threads, out);
}

/* Of the units of a rank of the plan, what all ranks there of all replicas receive from those that compute with them. */
static void sum_tensor(const struct model *model, const struct plan *plan, int rank,
                       long long *out_rows, long long *out_sums)
{
    *out_rows = *out_sums = 0;
    for (int u = 0; u < plan->graph->units; u++) {
        struct tp_bytes unit;
        if (plan_rank_of(plan, plan_stage_of(plan, u)) != rank) {
            continue;
        }
        for (int r = 0; r < model->tp; r++) {
            model_tp_bytes(model, u, r, &unit);
            *out_rows +=
                (unit.forward + unit.backward + unit.weight) * plan->microbatches * plan->replicas;
        }
        for (int share = 0; share < model->shares; share++) {
            size_t count = model_sum_count(model, u, share);
            *out_sums += 2 * (model->tp - 1) * (long long)(count * sizeof(float));
        }
    }
}

/* By the tables that runs are held against. */
static void print_tensor(const struct model *model, const struct plan *plan)
{
    long long rows, sums, all = 0;
    if (model->tp == 1) {
        return;
    }
    printf("\ntensor parallelism: each rank of the plan is %d, and sends and holds what the tables "
           "say of "
           "one;\nbytes that all of them receive from each other in a step\n"
           "  rank     gathers and scatters        sums of gradients\n",
           model->tp);
    for (int rank = 0; rank < plan->ranks; rank++) {
        sum_tensor(model, plan, rank, &rows, &sums);
        printf("  %4d  %23lld  %23lld\n", rank, rows, sums);
        all += rows + sums;
    }
    printf("  all ranks  %lld\n", all);
}

static status_t print_all(const struct run_config *config, const struct model *model,
                          const struct plan *plan)
{
    char precision[32], recompute[32], known[128], replicas[48] = "", together[48] = "";
    int64_t workspace[plan->ranks];
    TRY(find_workspaces(config, model, plan, workspace, known, sizeof known));
    print_dense_cost(model);
    if (plan->replicas > 1) {
        snprintf(replicas, sizeof replicas, " on each of %d replicas", plan->replicas);
    }
    if (model->tp > 1) {
        snprintf(together, sizeof together, " of %d ranks each", model->tp);
    }
    printf("%lld parameters; %d stage%s%s, %d microbatches of %lld x %lld tokens%s, schedule %s\n"
           "precision %s, recompute %s\n\n",
           (long long)model_parameter_count(model), plan->stages, plan->stages == 1 ? "" : "s",
           together, plan->microbatches, (long long)model->B, (long long)model->T, replicas,
           plan->schedule, value_of(config, "precision", precision, sizeof precision),
           value_of(config, "parallel.recompute", recompute, sizeof recompute));
    plan_print_partition(plan, stdout);
    printf("\n");
    plan_print_traffic(plan, stdout);
    print_tensor(model, plan);
    printf("\n");
    plan_print_memory(plan, workspace, known, stdout);
    saver_print_plan(config, plan, stdout);
    printf("\n");
    plan_print_timeline(plan, COLUMNS, stdout);
    return STATUS_OK;
}

/* What plan prints instead of everything. */
struct plan_choice {
    long long ops_rank, links_rank; /* the operations, or messages, of a rank; -1 */
    bool config, schedule;
};

static status_t plan_run(const struct run_config *config, const struct plan_choice *choice)
{
    struct model_config model_config;
    struct model *model;
    struct plan *plan = NULL;
    TRY(model_config_load(config->model, &config->model_keys, &config->dense_keys, &model_config));
    int64_t T = config->data.seq_len > 0 ? config->data.seq_len : model_config.block_size;
    int64_t microbatches =
        config->parallel.microbatches > 0 ? config->parallel.microbatches : DEFAULT_MICROBATCHES;
    struct model_use use = model_use_of(config, config->data.micro_batch, T);
    TRY(model_create(&model_config, &use, &model));
    int stages = config->parallel.pp > 0 ? (int)config->parallel.pp : 1;
    struct plan_options options = plan_options_of(config, stages, (int)microbatches, true);
    status_t status = plan_create(&model->graph, &options, &plan);
    long long most = choice->ops_rank > choice->links_rank ? choice->ops_rank : choice->links_rank;
    if (status == STATUS_OK && most >= plan->ranks) {
        status = FAIL(STATUS_INVALID, "--%s %lld: the ranks are 0 to %d",
                      choice->ops_rank == most ? "ops" : "links", most, plan->ranks - 1);
    } else if (status == STATUS_OK && choice->links_rank >= 0) {
        status = plan_print_links(plan, (int)choice->links_rank, stdout);
    } else if (status == STATUS_OK && choice->ops_rank >= 0) {
        plan_print_ops(plan, (int)choice->ops_rank, stdout);
    } else if (status == STATUS_OK && choice->schedule) {
        plan_print_schedule(plan, stdout);
    } else if (status == STATUS_OK && choice->config) {
        config_print(config, stdout);
    } else if (status == STATUS_OK) {
        status = print_all(config, model, plan);
    }
    plan_destroy(plan);
    model_destroy(model);
    return status;
}

int plan_main(int argc, char **argv)
{
    struct arguments arguments;
    const char *ops = NULL, *links = NULL;
    struct plan_choice choice = {.ops_rank = -1, .links_rank = -1};
    const struct flag flags[] = {{"--ops", &ops, NULL},
                                 {"--links", &links, NULL},
                                 {"--print-config", NULL, &choice.config},
                                 {"--print-schedule", NULL, &choice.schedule}};
    if (arguments_read(argc, argv, flags, 4, true, &arguments) != STATUS_OK) {
        return arguments_exit(&arguments);
    }
    if (arguments.help) {
        return plan_help();
    }
    if ((ops && arguments_number("--ops", ops, 0, &choice.ops_rank) != STATUS_OK) ||
        (links && arguments_number("--links", links, 0, &choice.links_rank) != STATUS_OK)) {
        config_free(&arguments.config);
        return EXIT_USAGE;
    }
    status_t status = plan_run(&arguments.config, &choice);
    config_free(&arguments.config);
    return status == STATUS_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
