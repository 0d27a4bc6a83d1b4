// Few rows of activations times a weight that stays in its bit planes.
#pragma once

#include <cstdint>

#include "cpu.hpp"

namespace bitswitch {

// out[row, n] = (Σ_g float(Σ_{k in g} (x − zp)·w̃_nk) · m[n, g]) · row_scale[row] + b[n]
struct PlaneLinear {
    const uint8_t* planes[8];
    int stored_bits;
    int bits;
    int64_t N;
    int64_t K;
    int64_t row_bytes;   // from one row of a plane to the next; bits beyond K are zero
    int64_t group_size;  // 0: one group
    const float* m;      // [N][groups]
    const float* b;      // [N], or null
    const uint8_t* x;    // [M][x_stride]
    int64_t M;
    int64_t x_stride;
    int zp;
    const float* row_scale;  // [M], or null
    float* out;              // [M][N]
    // Of pack_tiles for one tap and one group, or null: what many rows are multiplied with instead of the planes.
    const int8_t* tiles;
    const int32_t* row_sums;
};

// Throws std::invalid_argument for widths that do not exist and std::bad_alloc.
void linear_planes(const PlaneLinear& linear);

// Inputs whose products with a weight an int32 surely holds: longer rows are summed in pieces.
constexpr int64_t kPiece = 32768;
constexpr int kMaxRows = 8;

// What the inner kernels work on.
struct PlaneRows {
    const uint8_t* planes[8];
    int bits;
    bool rounded;  // one plane more than `bits` is given, and its bit rounds
    int64_t K;
    int64_t row_bytes;
    const uint8_t* x;  // rows arranged by `arrange`
    int64_t x_stride;
    int M;  // 1 … kMaxRows
    int zp;
    int64_t unit;       // inputs that one sum covers
    int64_t num_units;  // ceil(K / unit)
    int64_t sum_stride;  // from the sums of one row to those of the next, ≥ num_units rounded up to 16
};

// Sums of (x − zp)·w̃ for rows n … n + count of the weight: sums[(m·count + i)·sum_stride + unit].
using PlaneSums = void (*)(const PlaneRows& rows, int64_t n, int count, int32_t* sums);

struct PlaneKernel {
    PlaneSums sums;
    // Planes are read in vectors of `lanes` × 16 bytes, so of 128·lanes inputs. A vector of bytes made from them holds,
    // in each lane, 16 inputs that are 16·r … of the 128 of that lane; activations are arranged in the same order.
    int lanes;
    bool any_unit;  // otherwise units are kPiece, 128, 64 or 32
};

// y[i] = Σ_g float(sums[i·sum_stride + g])·m[i·groups + g], in order, for i = 0 … 7.
void add_groups_avx2(const int32_t* sums, int64_t sum_stride, const float* m, int64_t groups, float* y);

PlaneKernel plane_kernel_scalar();
PlaneKernel plane_kernel_avx2();
PlaneKernel plane_kernel_avx512();
PlaneKernel plane_kernel_neon();

}  // namespace bitswitch
