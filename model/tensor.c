/* tensor.c - element types of stored tensors. */
#include <math.h>
#include <string.h>

#include "model/safetensors.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors hold little-endian numbers; this machine would have to swap their bytes"
#endif

static const struct {
    const char *name;
    size_t size;
} dtypes[] = {
    [TENSOR_F32] = {"F32", 4}, [TENSOR_F16] = {"F16", 2}, [TENSOR_BF16] = {"BF16", 2},
    [TENSOR_F64] = {"F64", 8}, [TENSOR_I32] = {"I32", 4}, [TENSOR_I64] = {"I64", 8},
};

const char *tensor_dtype_name(enum tensor_dtype dtype)
{
    return dtypes[dtype].name;
}

size_t tensor_dtype_size(enum tensor_dtype dtype)
{
    return dtypes[dtype].size;
}

const char *tensor_shape_print(const int64_t *shape, int dims, char *buffer, size_t size)
{
    size_t used = 0;

    for (int i = 0; i <= dims && used < size; i++) {
        int length = i < dims ? snprintf(buffer + used, size - used, "%s%lld", i > 0 ? ", " : "[",
                                         (long long)shape[i])
                              : snprintf(buffer + used, size - used, dims > 0 ? "]" : "[]");
        used += length > 0 ? (size_t)length : 0;
    }
    return buffer;
}

static float float_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float float_from_half(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t exponent = (half >> 10) & 31, fraction = half & 0x3ff;

    if (exponent == 0) { /* zero and subnormals: fraction * 2^-24 */
        float magnitude = ldexpf((float)fraction, -24);
        return sign != 0 ? -magnitude : magnitude;
    }
    if (exponent == 31) {
        return float_from_bits(sign | 0x7f800000u | fraction << 13);
    }
    return float_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

static void halves_to_float(const struct tensor *tensor, float *out)
{
    const unsigned char *data = tensor->data;
    uint16_t value;

    for (int64_t i = 0; i < tensor->count; i++) {
        memcpy(&value, data + 2 * i, sizeof value);
        out[i] = tensor->dtype == TENSOR_F16 ? float_from_half(value)
                                             : float_from_bits((uint32_t)value << 16);
    }
}

static void doubles_to_float(const struct tensor *tensor, float *out)
{
    const unsigned char *data = tensor->data;
    double value;

    for (int64_t i = 0; i < tensor->count; i++) {
        memcpy(&value, data + 8 * i, sizeof value);
        out[i] = (float)value;
    }
}

status_t tensor_to_float(const struct tensor *tensor, float *out)
{
    switch (tensor->dtype) {
    case TENSOR_F32:
        memcpy(out, tensor->data, (size_t)tensor->count * sizeof *out);
        return STATUS_OK;
    case TENSOR_F16:
    case TENSOR_BF16:
        halves_to_float(tensor, out);
        return STATUS_OK;
    case TENSOR_F64:
        doubles_to_float(tensor, out);
        return STATUS_OK;
    case TENSOR_I32:
    case TENSOR_I64:
        break;
    }
    return FAIL(STATUS_INVALID, "tensor %s holds integers (%s); real numbers were expected",
                tensor->name, tensor_dtype_name(tensor->dtype));
}
