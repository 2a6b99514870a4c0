/* timed.c - every op of a table as a span of a timeline. */
#include "base/timeline.h"
#include "kernels/kernels.h"

#define OPERATION(op, category, ...)                                                               \
    static void timed_##op(const struct kernel_ctx *ctx EACH(OPERATION_PARAMETER, __VA_ARGS__))    \
    {                                                                                              \
        timeline_begin(ctx->timeline, ctx->stream, #op, category);                                 \
        ctx->timed->op(ctx EACH(OPERATION_ARGUMENT, __VA_ARGS__));                                 \
        timeline_end(ctx->timeline);                                                               \
    }
#include "kernels/operations.def"
#undef OPERATION

void kernels_time(const struct kernels *real, struct kernels *out)
{
    *out = (struct kernels){
        .name = real->name,
        .dtype = real->dtype,
        .workspace = real->workspace,
#define OPERATION(op, category, ...) .op = timed_##op,
#include "kernels/operations.def"
#undef OPERATION
    };
}
