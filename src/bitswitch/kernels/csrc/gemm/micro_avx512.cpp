// Microkernels with VNNI: sums of a block of rows × channels stay in registers over the whole product.
#include "gemm/micro.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>
#include <utility>

namespace bitswitch {
namespace {

// Rows for each number of panels: 24 vectors of sums leave registers for the weights and one broadcast.
constexpr int kRows[kMaxPanels] = {16, 12, 8, 6};
// Inputs (in fours) that are multiplied for one row before the next: where there are more rows than general registers,
// a row's address then is loaded once for several products.
constexpr int kSteps[kMaxPanels] = {4, 2, 2, 1};

inline __attribute__((always_inline)) __m512i four_codes(const uint8_t* x) {
    int32_t codes;
    std::memcpy(&codes, x, 4);
    return _mm512_set1_epi32(codes);
}

template <int Rows, int Panels, int Steps>
inline __attribute__((always_inline)) void step(const uint8_t* const* x, int64_t at, const int8_t* b,
                                                int64_t panel_stride, const int8_t* ahead,
                                                __m512i (&sums)[Rows][Panels]) {
    __m512i w[Steps][Panels];
#pragma GCC unroll 4
    for (int s = 0; s < Steps; ++s)
#pragma GCC unroll 4
        for (int p = 0; p < Panels; ++p) w[s][p] = _mm512_loadu_si512(b + p * panel_stride + 64 * s);
#pragma GCC unroll 4
    for (int s = 0; s < Steps; ++s) _mm_prefetch(reinterpret_cast<const char*>(ahead + 64 * s), _MM_HINT_T1);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int s = 0; s < Steps; ++s) {
            const __m512i codes = four_codes(x[r] + at + 4 * s);
#pragma GCC unroll 4
            for (int p = 0; p < Panels; ++p) sums[r][p] = _mm512_dpbusd_epi32(sums[r][p], codes, w[s][p]);
        }
}

template <int Rows, int Panels>
void multiply(const uint8_t* const* a, int64_t taps, int64_t k4, const int8_t* b, int64_t panel_stride,
              const int32_t* start, int32_t* c, const int8_t* ahead) {
    constexpr int kStep = kSteps[Panels - 1];
    __m512i sums[Rows][Panels];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int p = 0; p < Panels; ++p) sums[r][p] = _mm512_loadu_si512(start + p * kPanel);
    for (int64_t t = 0; t < taps; ++t, a += Rows) {
        const uint8_t* x[Rows];
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) x[r] = a[r];
        int64_t k = 0;
        for (; k + kStep <= k4; k += kStep, b += 64 * kStep, ahead += 64 * kStep)
            step<Rows, Panels, kStep>(x, 4 * k, b, panel_stride, ahead, sums);
        for (; k < k4; ++k, b += 64, ahead += 64) step<Rows, Panels, 1>(x, 4 * k, b, panel_stride, ahead, sums);
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
        for (int p = 0; p < Panels; ++p) _mm512_storeu_si512(c + (r * Panels + p) * kPanel, sums[r][p]);
}

template <int Panels, int... Rows>
Micro of_rows(int rows, std::integer_sequence<int, Rows...>) {
    static constexpr Micro table[] = {multiply<Rows + 1, Panels>...};
    return table[rows - 1];
}

template <int Panels>
Micro of_rows(int rows) {
    return of_rows<Panels>(rows, std::make_integer_sequence<int, kRows[Panels - 1]>());
}

Micro choose(int rows, int panels) {
    constexpr Micro (*table[kMaxPanels])(int) = {of_rows<1>, of_rows<2>, of_rows<3>, of_rows<4>};
    return table[panels - 1](rows);
}

constexpr MicroKernels kKernels{{kRows[0], kRows[1], kRows[2], kRows[3]}, choose};

}  // namespace

const MicroKernels& micro_kernels_avx512() { return kKernels; }

}  // namespace bitswitch
#endif
