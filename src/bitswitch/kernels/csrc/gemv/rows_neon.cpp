// 128 weights at a time: rounding on whole planes, then each plane's bits are spread to masks of bytes.
#include "gemv/gemv.hpp"

#if defined(__aarch64__)
#include <arm_neon.h>

#include <cstring>

#include "gemv/round_planes.hpp"
#include "gemv/sum_rows.hpp"

namespace bitswitch {
namespace {

constexpr int64_t kChunk = 128;

// The planes of 128 inputs from byte `at` on, rounded; what lies behind `bytes` bytes is zero.
inline void load_planes(const PlaneRows& rows, int64_t n, int64_t at, int64_t bytes, uint8x16_t* p) {
    const int count = rows.bits + rows.rounded;
    for (int i = 0; i < count; ++i) {
        const uint8_t* from = rows.planes[i] + n * rows.row_bytes + at;
        uint8_t part[16] = {};
        if (bytes < 16) std::memcpy(part, from, bytes);
        p[i] = vld1q_u8(bytes < 16 ? part : from);
    }
    if (rows.rounded) round_planes(p, rows.bits);
}

// Signed weights of the inputs 16·r … 16·r + 15: −2^(bits − 1) plus the bits of the planes.
inline int8x16_t weights_of(const uint8x16_t* p, int bits, int r) {
    const uint8x16_t spread = vcombine_u8(vdup_n_u8(2 * r), vdup_n_u8(2 * r + 1));
    const uint8x16_t select = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
    // Plane 0 makes a weight −1 or 0, which the doublings turn into −2^(bits − 1) or 0.
    int8x16_t w = vreinterpretq_s8_u8(vmvnq_u8(vtstq_u8(vqtbl1q_u8(p[0], spread), select)));
    for (int i = 1; i < bits; ++i) {
        const int8x16_t mask = vreinterpretq_s8_u8(vtstq_u8(vqtbl1q_u8(p[i], spread), select));
        w = vsubq_s8(vaddq_s8(w, w), mask);
    }
    return w;
}

// Add the sums of products to four sums.
inline int32x4_t multiply(int32x4_t sum, const uint8_t* x, int8x16_t w) {
    const uint8x16_t codes = vld1q_u8(x);
    const int16x8_t x_low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(codes)));
    const int16x8_t x_high = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(codes)));
    const int16x8_t w_low = vmovl_s8(vget_low_s8(w)), w_high = vmovl_s8(vget_high_s8(w));
    sum = vmlal_s16(sum, vget_low_s16(x_low), vget_low_s16(w_low));
    sum = vmlal_s16(sum, vget_high_s16(x_low), vget_high_s16(w_low));
    sum = vmlal_s16(sum, vget_low_s16(x_high), vget_low_s16(w_high));
    return vmlal_s16(sum, vget_high_s16(x_high), vget_high_s16(w_high));
}

// Bits beyond K count as the lowest weight; activations are 0 there, so only the zero point multiplies them.
inline int32_t padding(const PlaneRows& rows) {
    const int64_t read = (rows.K + 31) / 32 * 32;
    return static_cast<int32_t>(rows.zp * (read - rows.K) << (rows.bits - 1));
}

inline void one_row(const PlaneRows& rows, int64_t n, int32_t* sums, int64_t row_stride) {
    for (int64_t start = 0; start < rows.K; start += kChunk) {
        uint8x16_t p[8];
        load_planes(rows, n, start / 8, (rows.K - start + 7) / 8, p);
        for (int f = 0; f < 4; ++f) {
            const int64_t k = start + 32 * f;
            if (k >= rows.K) break;
            const int8x16_t w0 = weights_of(p, rows.bits, 2 * f), w1 = weights_of(p, rows.bits, 2 * f + 1);
            const int32_t correction = rows.zp * (vaddlvq_s8(w0) + vaddlvq_s8(w1));
            for (int j = 0; j < rows.M; ++j) {
                const uint8_t* x = rows.x + j * rows.x_stride + k;
                const int32x4_t sum = multiply(multiply(vdupq_n_s32(0), x, w0), x + 16, w1);
                sums[j * row_stride + k / rows.unit] += vaddvq_s32(sum) - correction;
            }
        }
    }
}

void sums_neon(const PlaneRows& rows, int64_t n, int count, int32_t* sums) {
    sum_rows(rows, n, count, sums, padding(rows), one_row);
}

}  // namespace

PlaneKernel plane_kernel_neon() { return {sums_neon, 1, false}; }

}  // namespace bitswitch
#endif
