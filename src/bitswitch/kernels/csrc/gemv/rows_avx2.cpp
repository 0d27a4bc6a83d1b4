// 256 weights at a time: rounding on whole planes, then each plane's bits are spread to masks of bytes.
#include "gemv/gemv.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>

#include "gemv/round_planes.hpp"
#include "gemv/sum_rows.hpp"

namespace bitswitch {
namespace {

constexpr int64_t kChunk = 256;
constexpr int64_t kChunkBytes = kChunk / 8;

#define BITSWITCH_INLINE inline __attribute__((always_inline))

// The planes of 256 inputs from byte `at` on, rounded; what lies behind `bytes` bytes is zero.
BITSWITCH_INLINE void load_planes(const PlaneRows& rows, int64_t n, int64_t at, int64_t bytes, __m256i* p) {
    const int count = rows.bits + rows.rounded;
    for (int i = 0; i < count; ++i) {
        const uint8_t* from = rows.planes[i] + n * rows.row_bytes + at;
        if (bytes >= kChunkBytes) {
            p[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        } else {
            alignas(32) uint8_t part[kChunkBytes] = {};
            std::memcpy(part, from, bytes);
            p[i] = _mm256_load_si256(reinterpret_cast<const __m256i*>(part));
        }
    }
    if (rows.rounded) round_planes(p, rows.bits);
}

// Signed weights of the inputs 16·r … 16·r + 15 of each lane: −2^(bits − 1) plus the bits of the planes.
BITSWITCH_INLINE __m256i weights_of(const __m256i* p, int bits, int r) {
    const __m256i spread = _mm256_add_epi8(_mm256_set1_epi8(static_cast<char>(2 * r)),
                                           _mm256_broadcastsi128_si256(_mm_set_epi64x(0x0101010101010101, 0)));
    const __m256i select = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ull));
    __m256i w = _mm256_set1_epi8(-1);  // plane 0 makes it −1 or 0, which the doublings turn into −2^(bits − 1) or 0
    for (int i = 0; i < bits; ++i) {
        const __m256i set = _mm256_and_si256(_mm256_shuffle_epi8(p[i], spread), select);
        const __m256i mask = _mm256_cmpeq_epi8(set, select);
        w = i == 0 ? _mm256_xor_si256(mask, w) : _mm256_sub_epi8(_mm256_add_epi8(w, w), mask);
    }
    return w;
}

// Sums of products of four neighbours, in 32 bits. Pairs of products do not fit 16 bits when weights have 8.
BITSWITCH_INLINE __m256i products(__m256i x, __m256i w, bool narrow) {
    if (narrow) return _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1));
    const __m256i low = _mm256_set1_epi16(0x00ff);
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(x, low), _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8));
    return _mm256_add_epi32(even, _mm256_madd_epi16(_mm256_srli_epi16(x, 8), _mm256_srai_epi16(w, 8)));
}

// Sums of 32 inputs: lane q of the result holds those of the inputs 128·q …, in order.
BITSWITCH_INLINE __m256i sums_of_32(const __m256i* s) {
    return _mm256_hadd_epi32(_mm256_hadd_epi32(s[0], s[1]), _mm256_hadd_epi32(s[2], s[3]));
}

// Add the sums of one chunk to those of its units.
BITSWITCH_INLINE void add_units(const PlaneRows& rows, int64_t start, const __m256i* dots, const __m256i* weights,
                                int32_t* sums) {
    __m256i y = sums_of_32(dots);
    if (rows.zp) y = _mm256_sub_epi32(y, _mm256_mullo_epi32(sums_of_32(weights), _mm256_set1_epi32(rows.zp)));
    alignas(32) int32_t parts[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(parts), y);
    for (int i = 0; i < 8; ++i) {
        const int64_t unit = (start + 32 * i) / rows.unit;
        if (unit < rows.num_units) sums[unit] += parts[i];
    }
}

// Bits beyond K count as the lowest weight; activations are 0 there, so only the zero point multiplies them.
BITSWITCH_INLINE int32_t padding(const PlaneRows& rows) {
    int64_t end = rows.num_units * rows.unit;
    const int64_t read = (rows.K + kChunk - 1) / kChunk * kChunk;
    if (end > read) end = read;
    return static_cast<int32_t>(rows.zp * (end - rows.K) << (rows.bits - 1));
}

void one_row(const PlaneRows& rows, int64_t n, int32_t* sums, int64_t row_stride) {
    const bool narrow = rows.bits < 8;
    const __m256i ones = _mm256_set1_epi8(1);
    for (int64_t start = 0; start < rows.K; start += kChunk) {
        __m256i p[8], w[8], weights[4];
        load_planes(rows, n, start / 8, (rows.K - start + 7) / 8, p);
        for (int r = 0; r < 8; ++r) w[r] = weights_of(p, rows.bits, r);
        for (int f = 0; f < 4; ++f)
            weights[f] = _mm256_add_epi32(products(ones, w[2 * f], true), products(ones, w[2 * f + 1], true));
        for (int j = 0; j < rows.M; ++j) {
            const uint8_t* x = rows.x + j * rows.x_stride + start;
            __m256i dots[4];
            for (int f = 0; f < 4; ++f) {
                const auto* at = reinterpret_cast<const __m256i*>(x + 64 * f);
                dots[f] = _mm256_add_epi32(products(_mm256_loadu_si256(at), w[2 * f], narrow),
                                           products(_mm256_loadu_si256(at + 1), w[2 * f + 1], narrow));
            }
            add_units(rows, start, dots, weights, sums + j * row_stride);
        }
    }
}

void sums_avx2(const PlaneRows& rows, int64_t n, int count, int32_t* sums) {
    sum_rows(rows, n, count, sums, padding(rows), one_row);
}

}  // namespace

PlaneKernel plane_kernel_avx2() { return {sums_avx2, 2, false}; }

}  // namespace bitswitch
#endif
