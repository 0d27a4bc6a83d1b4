// The innermost loop of matrix products and convolutions: rows of codes times panels of weights.
//
// Weights lie in panels of 16 output channels, [panel][tap][k4][16][4]: four neighbouring inputs of each of 16 channels
// make the 64 bytes that one vector instruction multiplies.
#pragma once

#include <cstdint>

namespace bitswitch {

constexpr int kPanel = 16;
constexpr int kMaxPanels = 4;

// c[row][16·panel + n] = start[16·panel + n] + Σ over taps and inputs of a·b, exactly modulo 2^32.
//
// a[tap·rows + row]: where 4·k4 codes of that tap begin. b: the first panel, panel_stride bytes before the next. ahead:
// taps·k4·64 bytes that are wanted soon and may be fetched into the second-level cache meanwhile.
using Micro = void (*)(const uint8_t* const* a, int64_t taps, int64_t k4, const int8_t* b, int64_t panel_stride,
                       const int32_t* start, int32_t* c, const int8_t* ahead);

// The most rows that a kernel for so many panels takes, with the active instruction set.
int max_rows(int panels);

// The kernel of the active instruction set for 1 … max_rows(panels) rows and 1 … kMaxPanels panels.
Micro micro(int rows, int panels);

// Those of one instruction set.
struct MicroKernels {
    int max_rows[kMaxPanels];
    Micro (*choose)(int rows, int panels);
};

const MicroKernels& micro_kernels_avx2();
const MicroKernels& micro_kernels_avx512();

}  // namespace bitswitch
