// attention_cudnn.cu - bf16 attention by cuDNN, through its header-only C++ frontend, loaded when a GPU
// is first asked for.
//
// Two ways backward: the fast one adds the parts of dq in the order in which they come; the ordered one
// keeps the gradient of the scores ([T, T] bf16 a head) and goes over it twice. So that this stays
// small, the ordered one runs on groups of heads, one sequence at a time. Groups that do not fill a card
// are slower than the own kernel, which is ordered as it is (H200, T = 4096, width 64, ms: own 1.28,
// groups of 8 heads 0.97, of 2 heads 2.60).
#define NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING
#include <cudnn_frontend.h>

#include <map>
#include <tuple>

#include "kernels/cuda/common.cuh"

extern "C" {
#include "base/log.h"
#include "kernels/cuda/cudnn.h"
}

namespace cudnn_frontend
{
void *cudnn_dlhandle; // where the frontend looks for the library's functions
}

namespace fe = cudnn_frontend;

enum { VERSION_LEAST = 91400, VERSION_ANY_LENGTH = 91600 };
enum { ROWS_LEAST = 64, WIDTH_LEAST = 32, WIDTH_MOST = 128 }; // of a sequence; of a head
enum { ORDERED_BLOCK = 128, ORDERED_BLOCKS_LEAST = 160 };     // rows of a block; blocks of a group
enum { ALIGNED_ROWS = 16 / sizeof(float) };
static const size_t ORDERED_BYTES = (size_t)256 << 20; // of a group's gradients of scores

enum pass { PASS_FORWARD, PASS_BACKWARD, PASS_ORDERED };
enum uid { Q = 1, K, V, O, LSE, SCALE, DO, DQ, DK, DV }; // the graphs' tensors

// B sequences, of each `heads` query heads out of H, and as large a part of G.
struct layout {
    int pass;
    size_t B, T, heads, H, G, E;
};

struct attention_plan {
    std::shared_ptr<fe::graph::Graph> graph; // NULL: cuDNN does not do this
    size_t bytes;
};

typedef std::tuple<int, int, size_t, size_t, size_t, size_t, size_t, size_t> plan_key;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static cudnnHandle_t handles[DEVICES_MOST];
static int capability[DEVICES_MOST]; // 90: sm_90
// Never destroyed: at exit the library may be gone before it.
static std::map<plan_key, attention_plan> &plans = *new std::map<plan_key, attention_plan>;
static bool suits; // the library that is loaded
static char title[48];

// ---- library ----

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#define LIBRARY_NAME "libcudnn.so." TEXT(CUDNN_MAJOR)

// Names the CUDA runtime that this program has, before the frontend looks for one of its own.
static void runtime_name(void)
{
    char name[32];
    snprintf(name, sizeof name, "libcudart.so.%d", CUDART_VERSION / 1000);
    (void)setenv("CUDNN_FRONTEND_CUDART_LIB_NAME", name, 0);
}

// What is loaded: is it new enough, and does the frontend find the CUDA runtime? Throws what it lacks.
static bool library_suits(char *why, size_t size)
{
    size_t version = fe::detail::get_backend_version();
    snprintf(title, sizeof title, "cuDNN %zu.%zu.%zu", version / 10000, version / 100 % 100,
             version % 100);
    if (version < VERSION_LEAST) {
        snprintf(why, size, "%s: %d.%d or newer is needed", title, VERSION_LEAST / 10000,
                 VERSION_LEAST / 100 % 100);
        return false;
    }
    if (fe::detail::get_cuda_runtime_version() == 0) {
        snprintf(why, size, "%s: it finds no CUDA runtime", title);
        return false;
    }
    return true;
}

static bool library_load(char *why, size_t size)
{
    if (suits) {
        return true;
    }
    void *loaded = dlopen(LIBRARY_NAME, RTLD_NOW | RTLD_LOCAL);
#ifdef KERNELS_CUDA_FOLDER
    if (!loaded) {
        loaded = dlopen(KERNELS_CUDA_FOLDER "/" LIBRARY_NAME, RTLD_NOW | RTLD_LOCAL);
    }
#endif
    if (!loaded) {
        snprintf(why, size, "%s", dlerror());
        return false;
    }
    runtime_name();
    fe::cudnn_dlhandle = loaded;
    suits = library_suits(why, size);
    return suits;
}

static bool device_start(int device, char *why, size_t size)
{
    if (handles[device]) {
        return true;
    }
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    cudnnHandle_t handle = NULL;
    cudnnStatus_t status = fe::detail::create_handle(&handle);
    if (status != CUDNN_STATUS_SUCCESS) {
        snprintf(why, size, "%s does not start: %s", title, fe::detail::get_error_string(status));
        return false;
    }
    capability[device] = major * 10 + minor;
    handles[device] = handle;
    return true;
}

extern "C" const char *cudnn_open(char *why, size_t size)
{
    int device = device_bound();
    bool opened = false;
    pthread_mutex_lock(&mutex);
    try {
        opened = library_load(why, size) && device_start(device, why, size);
    } catch (const std::exception &error) {
        snprintf(why, size, "%s", error.what());
    }
    pthread_mutex_unlock(&mutex);
    return opened ? title : NULL;
}

// ---- plans ----

typedef std::shared_ptr<fe::graph::Tensor_attributes> tensor;

// `heads` of the `all` heads of [B, T, all, E].
template <typename A>
static void tensor_place(A &attributes, const struct layout &l, size_t heads, size_t all, int uid)
{
    int64_t E = (int64_t)l.E, row = (int64_t)(all * l.E), T = (int64_t)l.T;
    attributes.set_uid(uid)
        .set_dim({(int64_t)l.B, (int64_t)heads, T, E})
        .set_stride({T * row, E, row, 1});
}

static tensor tensor_in(fe::graph::Graph &graph, const struct layout &l, size_t heads, size_t all,
                        int uid)
{
    fe::graph::Tensor_attributes attributes;
    tensor_place(attributes, l, heads, all, uid);
    return graph.tensor(attributes);
}

static void tensor_out(const tensor &t, const struct layout &l, size_t heads, size_t all, int uid)
{
    tensor_place(*t, l, heads, all, uid);
    t->set_output(true);
}

template <typename A> static void lse_place(A &attributes, const struct layout &l)
{
    int64_t T = (int64_t)l.T, heads = (int64_t)l.heads;
    attributes.set_uid(LSE)
        .set_data_type(fe::DataType_t::FLOAT)
        .set_dim({(int64_t)l.B, heads, T, 1})
        .set_stride({heads * T, T, 1, 1});
}

static tensor scale_in(fe::graph::Graph &graph)
{
    return graph.tensor(fe::graph::Tensor_attributes()
                            .set_uid(SCALE)
                            .set_data_type(fe::DataType_t::FLOAT)
                            .set_dim({1, 1, 1, 1})
                            .set_stride({1, 1, 1, 1})
                            .set_is_pass_by_value(true));
}

static void forward_describe(fe::graph::Graph &graph, const struct layout &l, size_t kv_heads)
{
    tensor q = tensor_in(graph, l, l.heads, l.H, Q);
    tensor k = tensor_in(graph, l, kv_heads, l.G, K);
    tensor v = tensor_in(graph, l, kv_heads, l.G, V);
    auto attributes = fe::graph::SDPA_attributes().set_name("attention").set_generate_stats(true);
    attributes.set_attn_scale(scale_in(graph)).set_causal_mask(true);
    auto results = graph.sdpa(q, k, v, attributes);
    tensor_out(results[0], l, l.heads, l.H, O);
    lse_place(*results[1], l);
    results[1]->set_output(true);
}

static void backward_describe(fe::graph::Graph &graph, const struct layout &l, size_t kv_heads)
{
    tensor q = tensor_in(graph, l, l.heads, l.H, Q);
    tensor k = tensor_in(graph, l, kv_heads, l.G, K);
    tensor v = tensor_in(graph, l, kv_heads, l.G, V);
    tensor out = tensor_in(graph, l, l.heads, l.H, O);
    tensor dout = tensor_in(graph, l, l.heads, l.H, DO);
    fe::graph::Tensor_attributes lse;
    lse_place(lse, l);
    auto attributes = fe::graph::SDPA_backward_attributes().set_name("attention");
    attributes.set_attn_scale(scale_in(graph)).set_causal_mask(true);
    attributes.set_deterministic_algorithm(l.pass == PASS_ORDERED);
    auto results = graph.sdpa_backward(q, k, v, out, dout, graph.tensor(lse), attributes);
    tensor_out(results[0], l, l.heads, l.H, DQ);
    tensor_out(results[1], l, kv_heads, l.G, DK);
    tensor_out(results[2], l, kv_heads, l.G, DV);
}

static struct attention_plan plan_make(const struct layout &l, int device)
{
    struct attention_plan plan = {std::make_shared<fe::graph::Graph>(), 0};
    size_t kv_heads = l.heads * l.G / l.H;
    int64_t bytes = 0;
    plan.graph->set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT)
        .set_sm_version(capability[device]);
    l.pass == PASS_FORWARD ? forward_describe(*plan.graph, l, kv_heads)
                           : backward_describe(*plan.graph, l, kv_heads);
    auto built = plan.graph->build(handles[device], {fe::HeurMode_t::A});
    auto made = built.is_good() ? plan.graph->get_workspace_size(bytes) : built;
    plan.bytes = (size_t)bytes;
    if (made.is_bad()) {
        log_info(
            "%s does no %s attention of %zu heads of %zu over %zu tokens, which is left to own "
            "kernels: %s",
            title, l.pass == PASS_FORWARD ? "forward" : "backward", l.heads, l.E, l.T,
            made.get_message().c_str());
        plan.graph = nullptr;
    }
    return plan;
}

// The layout's plan, made once. Under the mutex.
static const struct attention_plan *plan_find(const struct layout &l, int device)
{
    plan_key key(device, l.pass, l.B, l.T, l.heads, l.H, l.G, l.E);
    auto found = plans.find(key);
    if (found == plans.end()) {
        struct attention_plan plan = {nullptr, 0};
        try {
            plan = plan_make(l, device);
        } catch (const std::exception &error) {
            log_info("%s: no attention, which is left to own kernels: %s", title, error.what());
        }
        found = plans.emplace(key, plan).first;
    }
    return found->second.graph ? &found->second : NULL;
}

// How a pass lays out a shape: most heads at once whose gradients of scores stay in bounds.
static struct layout layout_of(int pass, size_t B, size_t T, size_t H, size_t G, size_t E)
{
    struct layout l = {pass, B, T, H, H, G, E};
    size_t edge = blocks_of(T, ORDERED_BLOCK) * ORDERED_BLOCK;
    for (size_t groups = 1; pass == PASS_ORDERED && groups <= G; groups++) {
        l.B = 1;
        if (G % groups == 0) {
            l.heads = H / groups;
        }
        if (l.heads * edge * edge * sizeof(bf16) <= ORDERED_BYTES) {
            break;
        }
    }
    return l;
}

static bool layout_ordered_pays(const struct layout &l)
{
    size_t edge = blocks_of(l.T, ORDERED_BLOCK) * ORDERED_BLOCK;
    return l.heads * edge * edge * sizeof(bf16) <= ORDERED_BYTES &&
           (l.heads * blocks_of(l.T, ORDERED_BLOCK) >= ORDERED_BLOCKS_LEAST ||
            cuda_attention_choice() == CUDA_ATTENTION_CUDNN);
}

// Is this for cuDNN at all? Older versions pad masks of odd lengths by copies from the host, which wait.
static bool layout_suits(const struct layout &l)
{
    if (l.E % 8 != 0 || l.E < WIDTH_LEAST || l.E > WIDTH_MOST || l.T < ROWS_LEAST ||
        l.T > INT32_MAX / 2 || l.G == 0 || l.H == 0 || l.H % l.G != 0) {
        return false;
    }
    if (l.pass == PASS_ORDERED && l.T % ALIGNED_ROWS != 0) {
        return false; // a group's lse would begin anywhere
    }
    size_t version = fe::detail::get_backend_version();
    return l.pass == PASS_FORWARD || ((version >= VERSION_ANY_LENGTH || l.T % 128 == 0) &&
                                      (l.pass == PASS_BACKWARD || layout_ordered_pays(l)));
}

static const struct attention_plan *plan_of(const struct layout &l, int device)
{
    if (device >= DEVICES_MOST || !handles[device] || !layout_suits(l)) {
        return NULL;
    }
    return plan_find(l, device);
}

extern "C" size_t cudnn_attention_workspace(size_t B, size_t T, size_t H, size_t G, size_t E,
                                            bool deterministic)
{
    int device = device_bound();
    size_t most = 0;
    pthread_mutex_lock(&mutex);
    for (int pass : {(int)PASS_FORWARD, (int)(deterministic ? PASS_ORDERED : PASS_BACKWARD)}) {
        const struct attention_plan *plan = plan_of(layout_of(pass, B, T, H, G, E), device);
        most = plan && plan->bytes > most ? plan->bytes : most;
    }
    pthread_mutex_unlock(&mutex);
    return most;
}

// ---- execution ----

typedef std::unordered_map<int64_t, void *> arguments;

// Enqueues one group; the handle belongs to whoever holds the mutex.
static void plan_run(const struct kernel_ctx *ctx, const struct attention_plan *plan, int device,
                     arguments &a)
{
    cudnnStatus_t status = fe::detail::set_stream(handles[device], stream_of(ctx));
    CHECK(status == CUDNN_STATUS_SUCCESS, "%s: %s", title, fe::detail::get_error_string(status));
    try {
        auto done = plan->graph->execute(handles[device], a, ctx->workspace);
        CHECK(done.is_good(), "%s: attention: %s", title, done.get_message().c_str());
    } catch (const std::exception &error) {
        CHECK(false, "%s: attention: %s", title, error.what());
    }
}

static bool runs(const struct kernel_ctx *ctx, const struct attention_plan *plan)
{
    return plan && plan->bytes <= ctx->workspace_bytes && aligned(ctx->workspace);
}

extern "C" bool cudnn_attention_forward(const struct kernel_ctx *ctx,
                                        const struct attention_shape *shape, void *out, float *lse,
                                        const void *q, const void *k, const void *v)
{
    if (shape->first || !aligned(q) || !aligned(k) || !aligned(v) || !aligned(out)) {
        return false;
    }
    struct layout l = layout_of(PASS_FORWARD, shape->B, shape->T, shape->H, shape->G, shape->E);
    int device = device_bound();
    float scale = shape->scale;
    pthread_mutex_lock(&mutex);
    const struct attention_plan *plan = plan_of(l, device);
    bool taken = runs(ctx, plan);
    if (taken) {
        arguments a = {{Q, (void *)q}, {K, (void *)k}, {V, (void *)v},
                       {O, out},       {LSE, lse},     {SCALE, &scale}};
        plan_run(ctx, plan, device, a);
    }
    pthread_mutex_unlock(&mutex);
    return taken;
}

static void *heads_at(const void *base, size_t element)
{
    return (char *)base + element * sizeof(bf16);
}

extern "C" bool cudnn_attention_backward(const struct kernel_ctx *ctx,
                                         const struct attention_shape *shape, bool deterministic,
                                         void *dq, void *dk, void *dv, const void *dout,
                                         const void *out, const float *lse, const void *q,
                                         const void *k, const void *v)
{
    if (shape->first || !aligned(q) || !aligned(k) || !aligned(v) || !aligned(out) ||
        !aligned(dout) || !aligned(dq) || !aligned(dk) || !aligned(dv)) {
        return false;
    }
    struct layout l = layout_of(deterministic ? PASS_ORDERED : PASS_BACKWARD, shape->B, shape->T,
                                shape->H, shape->G, shape->E);
    int device = device_bound();
    float scale = shape->scale;
    pthread_mutex_lock(&mutex);
    const struct attention_plan *plan = plan_of(l, device);
    bool taken = runs(ctx, plan);
    for (size_t b = 0; taken && b < shape->B; b += l.B) {
        for (size_t h = 0; h < l.H; h += l.heads) {
            size_t at = b * l.T * l.H * l.E + h * l.E;
            size_t kv = b * l.T * l.G * l.E + h * l.G / l.H * l.E;
            const float *sums = lse + (b * l.H + h) * l.T;
            arguments a = {{Q, heads_at(q, at)},   {K, heads_at(k, kv)},     {V, heads_at(v, kv)},
                           {O, heads_at(out, at)}, {DO, heads_at(dout, at)}, {LSE, (void *)sums},
                           {DQ, heads_at(dq, at)}, {DK, heads_at(dk, kv)},   {DV, heads_at(dv, kv)},
                           {SCALE, &scale}};
            plan_run(ctx, plan, device, a);
        }
    }
    pthread_mutex_unlock(&mutex);
    return taken;
}
