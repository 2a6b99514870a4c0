/* audit_table.c - every op of a table computed twice (audit.h). */
#include "kernels/audit_table.h"

#include <string.h>

struct uses {
    struct tensor_use use[AUDIT_USES];
    int count;
};

static void add(struct uses *uses, const char *name, const void *at, size_t bytes, bool read,
                bool written)
{
    if (at && bytes > 0) {
        CHECK(uses->count < AUDIT_USES, "an operation with more than %d tensors", AUDIT_USES);
        uses->use[uses->count++] =
            (struct tensor_use){name, (void *)(uintptr_t)at, bytes, read, written};
    }
}

/* What an argument's row says; `element` has the bytes of the table's dtype. */
#define USE(kind, ...) USE_##kind(__VA_ARGS__)
#define USE_IN(name, count) add(&uses, #name, name, (count)*element, true, false);
#define USE_OUT(name, count) add(&uses, #name, name, (count)*element, false, true);
#define USE_SUM(name, count, onto) add(&uses, #name, name, (count)*element, onto, true);
#define USE_FLOAT_IN(name, count) add(&uses, #name, name, (count) * sizeof(float), true, false);
#define USE_FLOAT_OUT(name, count) add(&uses, #name, name, (count) * sizeof(float), false, true);
#define USE_FLOAT_SUM(name, count) add(&uses, #name, name, (count) * sizeof(float), true, true);
#define USE_DOUBLE_OUT(name, count) add(&uses, #name, name, (count) * sizeof(double), false, true);
#define USE_DOUBLE_SUM(name, count) add(&uses, #name, name, (count) * sizeof(double), true, true);
#define USE_INT_IN(name, count) add(&uses, #name, name, (count) * sizeof(int32_t), true, false);
#define USE_LIST_IN(name, list, count)                                                             \
    for (size_t i = 0; i < (list); i++) {                                                          \
        add(&uses, #name, name[i], (count)*element, true, false);                                  \
    }
#define USE_LIST_OUT(name, list, count)                                                            \
    for (size_t i = 0; i < (list); i++) {                                                          \
        add(&uses, #name, name[i], (count)*element, false, true);                                  \
    }
#define USE_STRUCT(type, name, list)
#define USE_SIZE(name)
#define USE_VALUE(type, name)

#define largest(ids, count) audit_largest(ctx->audit, ids, count)

/* Its count is one of bytes. */
static size_t element_of(const char *operation, const struct kernels *real)
{
    return strcmp(operation, "zero") == 0 ? 1 : dtype_size(real->dtype);
}

#define OPERATION(op, category, ...)                                                               \
    static void audited_##op(const struct kernel_ctx *ctx EACH(OPERATION_PARAMETER, __VA_ARGS__))  \
    {                                                                                              \
        struct uses uses = {.count = 0};                                                           \
        size_t element = element_of(#op, ctx->audited);                                            \
        (void)element;                                                                             \
        EACH(USE, __VA_ARGS__)                                                                     \
        bool begun = audit_begin(ctx->audit, #op, uses.use, uses.count);                           \
        ctx->audited->op(ctx EACH(OPERATION_ARGUMENT, __VA_ARGS__));                               \
        if (begun && audit_again(ctx->audit, uses.use, uses.count)) {                              \
            ctx->audited->op(ctx EACH(OPERATION_ARGUMENT, __VA_ARGS__));                           \
            audit_end(ctx->audit, uses.use, uses.count);                                           \
        }                                                                                          \
    }
#include "kernels/operations.def"
#undef OPERATION

void kernels_audit(const struct kernels *real, struct kernels *out)
{
    *out = (struct kernels){
        .name = real->name,
        .dtype = real->dtype,
        .workspace = real->workspace,
#define OPERATION(op, category, ...) .op = audited_##op,
#include "kernels/operations.def"
#undef OPERATION
    };
}
