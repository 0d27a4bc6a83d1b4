// Microkernels without VNNI: products of 16-bit numbers, as adding pairs of 8-bit products would saturate.
#include "gemm/micro.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>

namespace bitswitch {
namespace {

constexpr int kRows = 4;
constexpr int kPairs = 2;  // rows whose sums stay in registers together

// Four codes, widened to 16 bits, four times.
inline __m256i four_codes(const uint8_t* x) {
    int32_t codes;
    std::memcpy(&codes, x, 4);
    return _mm256_cvtepu8_epi16(_mm_set1_epi32(codes));
}

// Sums of 16 channels for up to two rows; `step` rows lie between the addresses of two taps.
template <int Rows>
void panel(const uint8_t* const* a, int64_t step, int64_t taps, int64_t k4, const int8_t* b, const int32_t* start,
           int32_t* c, int64_t c_stride) {
    // Vector q of a row holds, for channels 4q … 4q + 3, two sums of two inputs each.
    __m256i sums[Rows][4];
    for (int r = 0; r < Rows; ++r)
        for (int q = 0; q < 4; ++q) sums[r][q] = _mm256_setzero_si256();
    for (int64_t t = 0; t < taps; ++t, a += step)
        for (int64_t k = 0; k < k4; ++k, b += 64) {
            __m256i x[Rows];
            for (int r = 0; r < Rows; ++r) x[r] = four_codes(a[r] + 4 * k);
            for (int q = 0; q < 4; ++q) {
                const __m256i w =
                    _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(b + 16 * q)));
                for (int r = 0; r < Rows; ++r)
                    sums[r][q] = _mm256_add_epi32(sums[r][q], _mm256_madd_epi16(x[r], w));
            }
        }
    for (int r = 0; r < Rows; ++r)
        for (int q = 0; q < 4; q += 2) {
            const __m256i pairs = _mm256_hadd_epi32(sums[r][q], sums[r][q + 1]);
            const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(start + 4 * q));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(c + r * c_stride + 4 * q),
                                _mm256_add_epi32(first, _mm256_permute4x64_epi64(pairs, 0xd8)));
        }
}

template <int Rows, int Panels>
void multiply(const uint8_t* const* a, int64_t taps, int64_t k4, const int8_t* b, int64_t panel_stride,
              const int32_t* start, int32_t* c, const int8_t*) {
    for (int p = 0; p < Panels; ++p, b += panel_stride)
        for (int r = 0; r < Rows; r += kPairs) {
            int32_t* to = c + (r * Panels + p) * kPanel;
            if (r + 1 < Rows) {
                panel<2>(a + r, Rows, taps, k4, b, start + p * kPanel, to, Panels * kPanel);
            } else {
                panel<1>(a + r, Rows, taps, k4, b, start + p * kPanel, to, Panels * kPanel);
            }
        }
}

template <int Panels>
Micro of_rows(int rows) {
    constexpr Micro table[kRows] = {multiply<1, Panels>, multiply<2, Panels>, multiply<3, Panels>, multiply<4, Panels>};
    return table[rows - 1];
}

Micro choose(int rows, int panels) {
    constexpr Micro (*table[kMaxPanels])(int) = {of_rows<1>, of_rows<2>, of_rows<3>, of_rows<4>};
    return table[panels - 1](rows);
}

constexpr MicroKernels kKernels{{kRows, kRows, kRows, kRows}, choose};

}  // namespace

const MicroKernels& micro_kernels_avx2() { return kKernels; }

}  // namespace bitswitch
#endif
