// From bit planes to panels of weights, and from the sums of a product to its outputs.
#pragma once

#include <cstdint>

#include "gemm/micro.hpp"

namespace bitswitch {

// A weight in its planes, at one width.
struct WeightPlanes {
    const uint8_t* planes[8];
    int bits;
    bool rounded;       // one plane more than `bits` is read, and its bit rounds
    int64_t N;
    int64_t K;
    int64_t row_bytes;  // from one row of a plane to the next
};

// Throws std::invalid_argument for a width that does not exist.
WeightPlanes weight_planes(const uint8_t* const* planes, int stored_bits, int bits, int64_t N, int64_t K,
                           int64_t row_bytes);

// How a convolution's weight (N, Cg, taps) is divided.
struct TileShape {
    int64_t N;
    int64_t groups;
    int64_t channels;  // inputs of one group
    int64_t taps;

    int64_t group_rows() const { return N / groups; }
    int64_t panels() const { return (group_rows() + kPanel - 1) / kPanel; }  // of one group
    int64_t k4() const { return (channels + 3) / 4; }
    int64_t panel_bytes() const { return taps * k4() * 64; }
    int64_t bytes() const { return groups * panels() * panel_bytes(); }
};

// Panels of all groups in turn, and the sum of each row's codes (both written whole). Throws std::bad_alloc.
void pack_tiles(const WeightPlanes& weight, const TileShape& shape, int8_t* tiles, int32_t* row_sums);

// Codes of all rows, [N][K]. Throws std::bad_alloc.
void unpack_codes(const WeightPlanes& weight, int8_t* codes);

// Room for the rows of one panel while they are rearranged.
struct PanelScratch {
    int64_t row_stride, tap_stride, bytes;
    PanelScratch(int64_t K, int64_t channels, int64_t taps);
};

// Panel of the rows n … n + count, count ≤ 16; `scratch` has PanelScratch::bytes. Sums of the codes of each row by
// groups of `group` inputs go to sums[i·num_groups + g], unless it is null.
void pack_panel(const WeightPlanes& weight, int64_t n, int count, int64_t channels, int64_t taps, int64_t group,
                const PanelScratch& layout, int8_t* scratch, int8_t* panel, int32_t* sums);

// Rows × channels of outputs from their sums:
// y = ((Σ_g float(c_g) · m_g) · row_scale) + bias, one group being added after the other.
struct MapOut {
    const int32_t* c;  // [rows][width]
    const float* m;    // [width]
    float* y;          // [rows][width]: sums so far
    int rows;
    int width;  // a multiple of 16
};

struct FinishRows {
    const float* y;          // [rows][width]
    const float* row_scale;  // of these rows, or null
    const float* bias;       // [width], or null
    float* out;
    int64_t out_stride;
    int rows;
    int width;  // of y
    int count;  // channels that exist
};

constexpr int64_t kUnpackStep = 512;

struct TileKernels {
    // Codes of one row in order, zeros from K to the next multiple of 64. Writes whole multiples of kUnpackStep.
    void (*unpack_row)(const WeightPlanes& weight, int64_t n, int8_t* out);
    // to[t·stride + c] = from[c·taps + t], zeros behind the channels up to a multiple of 64.
    void (*split_taps)(const int8_t* from, int64_t channels, int64_t taps, int64_t stride, int8_t* to);
    // panel[k][i][0 … 3] = rows[i·stride + 4k …] for 16 rows; rows are readable up to a multiple of 64.
    void (*interleave)(const int8_t* rows, int64_t stride, int64_t k4, int8_t* panel);
    // Sum of `count` codes.
    int32_t (*sum)(const int8_t* codes, int64_t count);
    // y = 0.0f + products, for the first group, or y + products.
    void (*add_group)(const MapOut& map, bool first);
    void (*finish)(const FinishRows& rows);
};

const TileKernels& tile_kernels_avx2();
const TileKernels& tile_kernels_avx512();
const TileKernels& tile_kernels();  // of the active instruction set

}  // namespace bitswitch
