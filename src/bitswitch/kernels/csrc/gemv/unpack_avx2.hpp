// Bit planes to bytes, 256 weights at a time: rounding on whole planes, then each plane's bits are spread to masks.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "gemv/round_planes.hpp"

#define BITSWITCH_INLINE inline __attribute__((always_inline))

// For files compiled with AVX2: everything has internal linkage.
namespace bitswitch {
namespace {

constexpr int64_t kChunk = 256;
constexpr int64_t kChunkBytes = kChunk / 8;

// The planes of 256 inputs from byte `at` on, rounded; what lies behind `bytes` bytes is zero.
template <class Planes>
BITSWITCH_INLINE void load_planes(const Planes& rows, int64_t n, int64_t at, int64_t bytes, __m256i* p) {
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

}  // namespace
}  // namespace bitswitch
