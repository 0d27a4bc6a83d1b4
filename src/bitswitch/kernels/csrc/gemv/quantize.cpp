#include "gemv/quantize.hpp"

#include <algorithm>

#include "cpu.hpp"
#include "gemv/quantize_body.hpp"
#include "parallel.hpp"

namespace bitswitch {
namespace {

constexpr int64_t kGrain = 16384;

QuantizeKernel choose() {
#if defined(__x86_64__)
    if (active_isa() == Isa::avx512) return quantize_kernel_avx512();
    if (active_isa() == Isa::avx2) return quantize_kernel_avx2();
#endif
    return quantize_kernel_scalar();
}

const void* at(const void* x, Float type, int64_t index) {
    return static_cast<const char*>(x) + index * (type == Float::f32 ? 4 : 2);
}

}  // namespace

QuantizeKernel quantize_kernel_scalar() { return {codes, largest}; }

void quantize_codes(const void* x, Float type, int64_t count, float scale, int zp, int top, uint8_t* out) {
    const QuantizeKernel kernel = choose();
    parallel_for(count, kGrain, [&](int64_t begin, int64_t end) {
        kernel.codes(at(x, type, begin), type, end - begin, scale, zp, 0, top, out + begin);
    });
}

void quantize_rows(const void* x, Float type, int64_t rows, int64_t cols, uint8_t* out, float* row_scale) {
    const QuantizeKernel kernel = choose();
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, cols));
    parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const void* from = at(x, type, row * cols);
            float scale = kernel.largest(from, type, cols) / 127.0f;
            if (!(scale > 0)) scale = 1.0f;
            row_scale[row] = scale;
            kernel.codes(from, type, cols, scale, 128, 1, 255, out + row * cols);
        }
    });
}

}  // namespace bitswitch
