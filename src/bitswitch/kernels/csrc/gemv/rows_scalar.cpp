// Portable kernel: eight weights at a time in a 64-bit word.
#include <algorithm>
#include <cstring>

#include "gemv/gemv.hpp"
#include "gemv/round_planes.hpp"

namespace bitswitch {
namespace {

constexpr int64_t kChunk = 128;

// spread[byte]: byte i is bit i of `byte`.
struct Spread {
    uint64_t of[256];

    constexpr Spread() : of{} {
        for (uint64_t byte = 0; byte < 256; ++byte)
            for (int i = 0; i < 8; ++i) of[byte] |= (byte >> i & 1) << (8 * i);
    }
};

constexpr Spread kSpread;

// Codes w̃ of up to 128 inputs from `start` on; those beyond the row are −2^(bits − 1).
void unpack(const PlaneRows& rows, int64_t n, int64_t start, int16_t* codes) {
    const int num_planes = rows.bits + rows.rounded;
    uint64_t plane[2][8] = {};
    const int64_t bytes = std::min<int64_t>(kChunk / 8, (rows.K + 7) / 8 - start / 8);
    for (int p = 0; p < num_planes; ++p) {
        uint8_t raw[16] = {};
        std::memcpy(raw, rows.planes[p] + n * rows.row_bytes + start / 8, bytes);
        for (int half = 0; half < 2; ++half)
            for (int i = 0; i < 8; ++i) plane[half][p] |= static_cast<uint64_t>(raw[8 * half + i]) << (8 * i);
    }
    const int low = 1 << (rows.bits - 1);
    for (int half = 0; half < 2; ++half) {
        if (rows.rounded) round_planes(plane[half], rows.bits);
        for (int i = 0; i < 8; ++i) {
            uint64_t word = 0;
            for (int p = 0; p < rows.bits; ++p) word = word << 1 | kSpread.of[plane[half][p] >> (8 * i) & 255];
            for (int j = 0; j < 8; ++j)
                codes[64 * half + 8 * i + j] = static_cast<int16_t>(static_cast<int>(word >> (8 * j) & 255) - low);
        }
    }
}

// Sum of (x − zp)·w. Sixteen-bit factors are what the oldest vector units multiply.
int32_t dot(const uint8_t* x, const int16_t* w, int64_t count, int zp) {
    int32_t total = 0;
    for (int64_t k = 0; k < count; ++k) {
        const int16_t centred = static_cast<int16_t>(x[k] - zp);
        total += centred * w[k];
    }
    return total;
}

void sums_scalar(const PlaneRows& rows, int64_t n, int count, int32_t* sums) {
    int16_t codes[kChunk];
    std::fill(sums, sums + rows.M * count * rows.sum_stride, 0);
    for (int i = 0; i < count; ++i)
        for (int64_t start = 0; start < rows.K; start += kChunk) {
            unpack(rows, n + i, start, codes);
            const int64_t end = std::min(start + kChunk, rows.K);
            for (int64_t k = start; k < end;) {
                const int64_t unit = k / rows.unit;
                const int64_t length = std::min(end, (unit + 1) * rows.unit) - k;
                for (int j = 0; j < rows.M; ++j)
                    sums[(j * count + i) * rows.sum_stride + unit] +=
                        dot(rows.x + j * rows.x_stride + k, codes + (k - start), length, rows.zp);
                k += length;
            }
        }
}

}  // namespace

PlaneKernel plane_kernel_scalar() { return {sums_scalar, 1, true}; }

}  // namespace bitswitch
