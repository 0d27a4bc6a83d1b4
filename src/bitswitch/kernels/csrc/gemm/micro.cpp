// Portable microkernels, and the choice among those of all instruction sets.
#include "gemm/micro.hpp"

#include "cpu.hpp"

namespace bitswitch {
namespace {

constexpr int kRows = 4;

template <int Rows, int Panels>
void multiply(const uint8_t* const* a, int64_t taps, int64_t k4, const int8_t* b, int64_t panel_stride,
              const int32_t* start, int32_t* c, const int8_t*) {
    for (int r = 0; r < Rows; ++r)
        for (int p = 0; p < Panels; ++p) {
            int32_t sums[kPanel];
            for (int n = 0; n < kPanel; ++n) sums[n] = start[p * kPanel + n];
            const int8_t* w = b + p * panel_stride;
            for (int64_t t = 0; t < taps; ++t) {
                const uint8_t* x = a[t * Rows + r];
                for (int64_t k = 0; k < k4; ++k, x += 4, w += 64)
                    for (int n = 0; n < kPanel; ++n)
                        for (int i = 0; i < 4; ++i) sums[n] += x[i] * w[4 * n + i];
            }
            for (int n = 0; n < kPanel; ++n) c[(r * Panels + p) * kPanel + n] = sums[n];
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

constexpr MicroKernels kScalar{{kRows, kRows, kRows, kRows}, choose};

const MicroKernels& active() {
#if defined(__x86_64__)
    if (active_isa() == Isa::avx512) return micro_kernels_avx512();
    if (active_isa() == Isa::avx2) return micro_kernels_avx2();
#endif
    return kScalar;
}

}  // namespace

int max_rows(int panels) { return active().max_rows[panels - 1]; }

Micro micro(int rows, int panels) { return active().choose(rows, panels); }

}  // namespace bitswitch
