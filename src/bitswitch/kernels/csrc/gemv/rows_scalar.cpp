// Portable kernel: eight weights at a time in a 64-bit word.
#include <algorithm>
#include <cstring>

#include "gemv/gemv.hpp"
#include "gemv/round_planes.hpp"

namespace bitswitch {
namespace {

constexpr int64_t kChunk = 128;

// Byte i of the result is bit i of `byte`.
uint64_t spread(uint64_t byte) {
    const uint64_t chosen = (byte * 0x0101010101010101u) & 0x8040201008040201u;
    return ((chosen + 0x7f7f7f7f7f7f7f7fu) | chosen) >> 7 & 0x0101010101010101u;
}

// Codes w̃ of up to 128 inputs from `start` on; those beyond the row are −2^(bits − 1).
void unpack(const PlaneRows& rows, int64_t n, int64_t start, int8_t* codes) {
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
            for (int p = 0; p < rows.bits; ++p) word = word << 1 | spread(plane[half][p] >> (8 * i) & 255);
            for (int j = 0; j < 8; ++j)
                codes[64 * half + 8 * i + j] = static_cast<int8_t>(static_cast<int>(word >> (8 * j) & 255) - low);
        }
    }
}

int32_t dot(const uint8_t* x, const int8_t* w, int64_t count, int zp) {
    int32_t total = 0;
    for (int64_t k = 0; k < count; ++k) total += (static_cast<int32_t>(x[k]) - zp) * w[k];
    return total;
}

void sums_scalar(const PlaneRows& rows, int64_t n, int count, int32_t* sums) {
    int8_t codes[kChunk];
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
