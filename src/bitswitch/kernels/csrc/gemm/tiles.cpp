// Packing of whole weights, and the portable kernels.
#include "gemm/tiles.hpp"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "cpu.hpp"
#include "gemm/tiles_body.hpp"
#include "gemv/round_planes.hpp"
#include "parallel.hpp"

namespace bitswitch {
namespace {

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// 64 inputs at a time, in words.
void scalar_unpack_row(const WeightPlanes& weight, int64_t n, int8_t* out) {
    const int low = 1 << (weight.bits - 1);
    const int num_planes = weight.bits + weight.rounded;
    for (int64_t start = 0; start < weight.K; start += 64) {
        uint64_t planes[8] = {};
        for (int p = 0; p < num_planes; ++p)
            for (int i = 0; i < 8; ++i)
                planes[p] |= static_cast<uint64_t>(weight.planes[p][n * weight.row_bytes + start / 8 + i]) << (8 * i);
        if (weight.rounded) round_planes(planes, weight.bits);
        const int64_t count = std::min<int64_t>(64, weight.K - start);
        for (int64_t k = 0; k < count; ++k) {
            int code = 0;
            for (int p = 0; p < weight.bits; ++p) code = code << 1 | static_cast<int>(planes[p] >> k & 1);
            out[start + k] = static_cast<int8_t>(code - low);
        }
        std::fill(out + start + count, out + start + 64, static_cast<int8_t>(0));
    }
}

constexpr TileKernels kScalar{scalar_unpack_row, plain_split_taps, plain_interleave,
                              plain_sum,         plain_add_group,  plain_finish};

}  // namespace

const TileKernels& tile_kernels() {
#if defined(__x86_64__)
    if (active_isa() == Isa::avx512) return tile_kernels_avx512();
    if (active_isa() == Isa::avx2) return tile_kernels_avx2();
#endif
    return kScalar;
}

WeightPlanes weight_planes(const uint8_t* const* planes, int stored_bits, int bits, int64_t N, int64_t K,
                           int64_t row_bytes) {
    if (bits < 2 || bits > stored_bits || stored_bits > 8) throw std::invalid_argument("no such width");
    WeightPlanes weight{{}, bits, bits < stored_bits, N, K, row_bytes};
    std::copy(planes, planes + bits + weight.rounded, weight.planes);
    return weight;
}

PanelScratch::PanelScratch(int64_t K, int64_t channels, int64_t taps)
    // A cache line more than whole steps: rows at a distance of a power of two would share cache sets.
    : row_stride(round_up(K, kUnpackStep) + 64),
      tap_stride(round_up(channels, 64)),
      bytes(kPanel * (row_stride + (taps > 1 ? taps * tap_stride + 64 : 0))) {}

void pack_panel(const WeightPlanes& weight, int64_t n, int count, int64_t channels, int64_t taps, int64_t group,
                const PanelScratch& layout, int8_t* scratch, int8_t* panel, int32_t* sums) {
    const TileKernels& kernels = tile_kernels();
    const int64_t num_groups = weight.K ? (weight.K + group - 1) / group : 1;
    for (int i = 0; i < kPanel; ++i) {
        int8_t* row = scratch + i * layout.row_stride;
        if (i >= count) {
            std::fill(row, row + round_up(weight.K, 64), static_cast<int8_t>(0));
            continue;
        }
        kernels.unpack_row(weight, n + i, row);
        if (!sums) continue;
        for (int64_t g = 0; g < num_groups; ++g)
            sums[i * num_groups + g] = kernels.sum(row + g * group, std::min(group, weight.K - g * group));
    }
    const int64_t k4 = (channels + 3) / 4;
    if (taps == 1) {
        kernels.interleave(scratch, layout.row_stride, k4, panel);
        return;
    }
    int8_t* by_tap = scratch + kPanel * layout.row_stride;
    const int64_t stride = taps * layout.tap_stride + 64;
    for (int i = 0; i < kPanel; ++i)
        kernels.split_taps(scratch + i * layout.row_stride, channels, taps, layout.tap_stride, by_tap + i * stride);
    for (int64_t t = 0; t < taps; ++t)
        kernels.interleave(by_tap + t * layout.tap_stride, stride, k4, panel + t * k4 * 64);
}

void pack_tiles(const WeightPlanes& weight, const TileShape& shape, int8_t* tiles, int32_t* row_sums) {
    const PanelScratch layout(weight.K, shape.channels, shape.taps);
    const int threads = max_threads();
    std::vector<int8_t> scratch(threads * layout.bytes);
    const int64_t panels = shape.panels(), items = shape.groups * panels, rows = shape.group_rows();
    on_threads(static_cast<int>(std::min<int64_t>(threads, items)), [&](int thread, int num_threads) {
        for (int64_t item = items * thread / num_threads; item < items * (thread + 1) / num_threads; ++item) {
            const int64_t within = item % panels * kPanel, n = item / panels * rows + within;
            const int count = static_cast<int>(std::min<int64_t>(kPanel, rows - within));
            pack_panel(weight, n, count, shape.channels, shape.taps, std::max<int64_t>(weight.K, 1), layout,
                       scratch.data() + thread * layout.bytes, tiles + item * shape.panel_bytes(), row_sums + n);
        }
    });
}

void unpack_codes(const WeightPlanes& weight, int8_t* codes) {
    const int64_t stride = round_up(weight.K, kUnpackStep);
    const int threads = max_threads();
    std::vector<int8_t> scratch(threads * stride);
    on_threads(static_cast<int>(std::min<int64_t>(threads, weight.N)), [&](int thread, int num_threads) {
        int8_t* row = scratch.data() + thread * stride;
        for (int64_t n = weight.N * thread / num_threads; n < weight.N * (thread + 1) / num_threads; ++n) {
            tile_kernels().unpack_row(weight, n, row);
            std::copy(row, row + weight.K, codes + n * weight.K);
        }
    });
}

}  // namespace bitswitch
