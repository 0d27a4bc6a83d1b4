// Activation codes of float inputs.
#pragma once

#include <cstdint>

namespace bitswitch {

enum class Float { f32 = 0, bf16 = 1 };

// out = clamp(round(x / scale) + zp, 0, top), ties to even, by true division; NaN becomes 0.
void quantize_codes(const void* x, Float type, int64_t count, float scale, int zp, int top, uint8_t* out);

// A symmetric scale for each row, max|x| / 127 (1 where that is 0), and codes with zero point 128.
void quantize_rows(const void* x, Float type, int64_t rows, int64_t cols, uint8_t* out, float* row_scale);

// The same of a part, on one thread.
struct QuantizeKernel {
    void (*codes)(const void* x, Float type, int64_t count, float scale, int zp, int low, int top, uint8_t* out);
    float (*largest)(const void* x, Float type, int64_t count);
};

QuantizeKernel quantize_kernel_scalar();
QuantizeKernel quantize_kernel_avx2();
QuantizeKernel quantize_kernel_avx512();

}  // namespace bitswitch
