// 256 weights at a time: rounding on whole planes, then each plane's bits are spread to masks of bytes.
#include "gemv/gemv.hpp"

#if defined(__x86_64__)
#include "gemv/sum_rows.hpp"
#include "gemv/unpack_avx2.hpp"

namespace bitswitch {
namespace {

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
