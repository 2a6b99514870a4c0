/* each.h - macros over the arguments of operations.def.
 *
 *     EACH(WHAT, (KIND, a, ..), (KIND, b, ..), ..)     WHAT(KIND, a, ..) WHAT(KIND, b, ..) ..
 */
#ifndef KERNELS_EACH_H
#define KERNELS_EACH_H

/* At most 18. */
#define EACH(what, ...)                                                                            \
    EACH_PICK_(__VA_ARGS__, EACH18_, EACH17_, EACH16_, EACH15_, EACH14_, EACH13_, EACH12_,         \
               EACH11_, EACH10_, EACH9_, EACH8_, EACH7_, EACH6_, EACH5_, EACH4_, EACH3_, EACH2_,   \
               EACH1_, 0)                                                                          \
    (what, __VA_ARGS__)
#define EACH_PICK_(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, picked, ...) picked
#define EACH1_(what, a) what a
#define EACH2_(what, a, ...) what a EACH1_(what, __VA_ARGS__)
#define EACH3_(what, a, ...) what a EACH2_(what, __VA_ARGS__)
#define EACH4_(what, a, ...) what a EACH3_(what, __VA_ARGS__)
#define EACH5_(what, a, ...) what a EACH4_(what, __VA_ARGS__)
#define EACH6_(what, a, ...) what a EACH5_(what, __VA_ARGS__)
#define EACH7_(what, a, ...) what a EACH6_(what, __VA_ARGS__)
#define EACH8_(what, a, ...) what a EACH7_(what, __VA_ARGS__)
#define EACH9_(what, a, ...) what a EACH8_(what, __VA_ARGS__)
#define EACH10_(what, a, ...) what a EACH9_(what, __VA_ARGS__)
#define EACH11_(what, a, ...) what a EACH10_(what, __VA_ARGS__)
#define EACH12_(what, a, ...) what a EACH11_(what, __VA_ARGS__)
#define EACH13_(what, a, ...) what a EACH12_(what, __VA_ARGS__)
#define EACH14_(what, a, ...) what a EACH13_(what, __VA_ARGS__)
#define EACH15_(what, a, ...) what a EACH14_(what, __VA_ARGS__)
#define EACH16_(what, a, ...) what a EACH15_(what, __VA_ARGS__)
#define EACH17_(what, a, ...) what a EACH16_(what, __VA_ARGS__)
#define EACH18_(what, a, ...) what a EACH17_(what, __VA_ARGS__)

/* , type name: what follows the context in an operation's prototype. */
#define OPERATION_PARAMETER(kind, ...) OPERATION_PARAMETER_##kind(__VA_ARGS__)
#define OPERATION_PARAMETER_IN(name, count) , const void *name
#define OPERATION_PARAMETER_OUT(name, count) , void *name
#define OPERATION_PARAMETER_SUM(name, count, onto) , void *name
#define OPERATION_PARAMETER_FLOAT_IN(name, count) , const float *name
#define OPERATION_PARAMETER_FLOAT_OUT(name, count) , float *name
#define OPERATION_PARAMETER_FLOAT_SUM(name, count) , float *name
#define OPERATION_PARAMETER_DOUBLE_OUT(name, count) , double *name
#define OPERATION_PARAMETER_DOUBLE_SUM(name, count) , double *name
#define OPERATION_PARAMETER_INT_IN(name, count) , const int32_t *name
#define OPERATION_PARAMETER_LIST_IN(name, list, count) , const void *const *name
#define OPERATION_PARAMETER_LIST_OUT(name, list, count) , void *const *name
#define OPERATION_PARAMETER_STRUCT(type, name, list) , const struct type *name
#define OPERATION_PARAMETER_SIZE(name) , size_t name
#define OPERATION_PARAMETER_VALUE(type, name) , type name

/* , name: the same in a call. */
#define OPERATION_ARGUMENT(kind, ...) OPERATION_ARGUMENT_##kind(__VA_ARGS__)
#define OPERATION_ARGUMENT_IN(name, count) , name
#define OPERATION_ARGUMENT_OUT(name, count) , name
#define OPERATION_ARGUMENT_SUM(name, count, onto) , name
#define OPERATION_ARGUMENT_FLOAT_IN(name, count) , name
#define OPERATION_ARGUMENT_FLOAT_OUT(name, count) , name
#define OPERATION_ARGUMENT_FLOAT_SUM(name, count) , name
#define OPERATION_ARGUMENT_DOUBLE_OUT(name, count) , name
#define OPERATION_ARGUMENT_DOUBLE_SUM(name, count) , name
#define OPERATION_ARGUMENT_INT_IN(name, count) , name
#define OPERATION_ARGUMENT_LIST_IN(name, list, count) , name
#define OPERATION_ARGUMENT_LIST_OUT(name, list, count) , name
#define OPERATION_ARGUMENT_STRUCT(type, name, list) , name
#define OPERATION_ARGUMENT_SIZE(name) , name
#define OPERATION_ARGUMENT_VALUE(type, name) , name

#endif
