// The multiplication of gathered pixels by panels of weight tiles, in portable code.
#pragma once

#include <cstdint>

namespace bitswitch {

// c[rows][panels · 16] = Σ over taps and k4 blocks of four products; a[t · rows + r] is where tap t of pixel r starts.
using Micro = void (*)(const uint8_t* const* a, int64_t taps, int64_t k4, const int8_t* b, int64_t panel_stride,
                       int32_t* c);

template <int R, int P>
void standin(const uint8_t* const* a, int64_t taps, int64_t k4, const int8_t* b, int64_t panel_stride, int32_t* c) {
    for (int r = 0; r < R; ++r) {
        for (int p = 0; p < P; ++p) {
            int32_t acc[16] = {};
            const int8_t* w = b + p * panel_stride;
            for (int64_t t = 0; t < taps; ++t) {
                for (int64_t k = 0; k < k4; ++k, w += 64) {
                    const uint8_t* x = a[t * R + r] + k * 4;
                    for (int n = 0; n < 16; ++n)
                        for (int i = 0; i < 4; ++i) acc[n] += x[i] * w[n * 4 + i];
                }
            }
            for (int n = 0; n < 16; ++n) c[(r * P + p) * 16 + n] = acc[n];
        }
    }
}

template <int P>
Micro standin_rows(int rows) {
    constexpr Micro of_rows[] = {standin<1, P>, standin<2, P>, standin<3, P>,
                                 standin<4, P>, standin<5, P>, standin<6, P>};
    return of_rows[rows - 1];
}

// Pixels that one call takes at most.
inline int max_rows(int) { return 6; }

// The function for a number of pixels and of panels, 1 … 4.
inline Micro micro(int rows, int panels) {
    switch (panels) {
        case 1: return standin_rows<1>(rows);
        case 2: return standin_rows<2>(rows);
        case 3: return standin_rows<3>(rows);
        default: return standin_rows<4>(rows);
    }
}

}  // namespace bitswitch
