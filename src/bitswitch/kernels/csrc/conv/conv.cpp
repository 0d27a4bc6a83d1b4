// Convolutions as multiplications of gathered rows: every tap of a pixel is a pointer into the input, so nothing is
// copied but what has too few channels for that.
#include <algorithm>
#include <cstring>
#include <memory>

#include "conv/ops.hpp"
#include "gemm/micro.hpp"
#include "parallel.hpp"

namespace bitswitch {
namespace {

// Below this many bytes a pixel, the taps of one kernel row are read as one run from a padded copy.
constexpr int64_t kFewBytes = 16;
// Weights that a thread goes over again and again should stay in its second-level cache, gathered pixels in the first.
constexpr int64_t kWeightBudget = 1280 << 10;
constexpr int64_t kPixelBudget = 24 << 10;

// Memory that grows and stays with its thread.
uint8_t* scratch(int64_t bytes) {
    thread_local std::vector<uint8_t> memory;
    if (static_cast<int64_t>(memory.size()) < bytes) memory.resize(bytes);
    return memory.data();
}

}  // namespace

ConvOp::ConvOp(const Window& window, int64_t channels, int64_t out_channels, int64_t groups, const int8_t* tiles,
               const int32_t* row_sums, int32_t zero_point, const float* multiplier, const float* bias,
               const EpilogueStore::Settings& settings)
    : window_(window),
      given_(window),
      channels_(channels),
      out_channels_(out_channels),
      groups_(groups),
      group_bytes_(round_up(channels / groups, 4)),
      out_group_(out_channels / groups),
      k4_(group_bytes_ / 4),
      taps_(window.kh * window.kw),
      zero_point_(zero_point),
      tiles_(tiles),
      epilogue_(settings, out_channels, taps_ * (channels / groups), multiplier, bias, row_sums, zero_point) {
    const bool runs = groups == 1 && window.kw > 1 && window.dilation_w == 1 && group_bytes_ <= kFewBytes;
    // A group that starts inside of four bytes reads beyond the last pixel: give every group its own padding.
    spread_ = runs || (groups > 1 && channels / groups % 4 != 0);
    if (spread_) {
        window_.pixel_stride = groups * group_bytes_;
        window_.height = (window.out_h - 1) * window.stride_h + (window.kh - 1) * window.dilation_h + 1;
        window_.width = (window.out_w - 1) * window.stride_w + (window.kw - 1) * window.dilation_w + 1;
        window_.pad_top = window_.pad_left = 0;
    }
    if (runs) {
        k4_ *= window.kw;
        taps_ = window.kh;
        window_.kw = 1;
    }
    pad_.assign(k4_ * 4 + 64, static_cast<uint8_t>(zero_point));
}

// Copy the input with its padding written out and every group's channels padded to four.
const uint8_t* ConvOp::spread(const uint8_t* x) const {
    const int64_t row_bytes = window_.width * window_.pixel_stride, group = channels_ / groups_;
    uint8_t* to = scratch(window_.batch * window_.height * row_bytes);
    const bool whole = groups_ == 1 && given_.pixel_stride == window_.pixel_stride;
    parallel_for(window_.batch * window_.height, 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            uint8_t* line = to + row * row_bytes;
            const int64_t y = row % window_.height - given_.pad_top;
            std::memset(line, zero_point_, row_bytes);
            if (y < 0 || y >= given_.height) continue;
            const uint8_t* from = x + (row / window_.height * given_.height + y) * given_.width * given_.pixel_stride;
            const int64_t width = std::min(given_.width, window_.width - given_.pad_left);
            line += given_.pad_left * window_.pixel_stride;
            if (whole) {
                if (width > 0) std::memcpy(line, from, width * given_.pixel_stride);
                continue;
            }
            for (int64_t p = 0; p < width; ++p) {
                for (int64_t g = 0; g < groups_; ++g)
                    std::memcpy(line + p * window_.pixel_stride + g * group_bytes_,
                                from + p * given_.pixel_stride + g * group, group);
            }
        }
    });
    return to;
}

// Cycles of the multiplication for every way to divide it, roughly: the two ports that multiply, the two that load, and
// a fixed part of every call and of every value that leaves.
ConvOp::Split ConvOp::choose_split(int threads) const {
    const int64_t pixels = window_.batch * window_.out_h * window_.out_w;
    const int64_t panels = round_up(out_group_, kPanel) / kPanel, steps = taps_ * k4_;
    Split best{1, 1, 1, 1, 1e300};
    for (int channel_parts = 1; channel_parts <= threads; ++channel_parts) {
        if (channel_parts > panels) break;
        const int pixel_parts = static_cast<int>(std::min<int64_t>(threads / channel_parts, pixels));
        const int64_t part_pixels = (pixels + pixel_parts - 1) / pixel_parts;
        const int64_t part_panels = (panels + channel_parts - 1) / channel_parts;
        for (int block = 1; block <= 4 && block <= part_panels; ++block) {
            const int64_t tiles = (part_pixels + max_rows(block) - 1) / max_rows(block);
            const int64_t rows = (part_pixels + tiles - 1) / tiles;
            double cost = 0;
            for (int64_t first = 0; first < part_panels; first += block) {
                const int64_t p = std::min<int64_t>(block, part_panels - first);
                const double step = std::max({rows * p / 2.0, (rows + p) / 2.0, 4.5});
                cost += tiles * (steps * step + 40.0 + rows * p * 8.0);
            }
            // A cache line of weights or pixels from beyond the second-level cache.
            const double weights = part_panels * steps * 64.0;
            const double input = part_pixels * steps * 4.0 / (window_.kh * window_.kw);
            cost += (weights + input) / 12.0 + tiles * taps_ * rows;
            if (cost < best.cost) best = {block, static_cast<int>(rows), pixel_parts, channel_parts, cost};
        }
    }
    return best;
}

void ConvOp::run_part(const ConvKernels& kernels, const Split& split, const Part& part, int64_t group,
                      const uint8_t* x, const Buffers& buffers) const {
    const int64_t panel_stride = taps_ * k4_ * 64, panels = round_up(out_group_, kPanel) / kPanel;
    const int8_t* tiles = tiles_ + group * panels * panel_stride;
    x += group * (spread_ ? group_bytes_ : channels_ / groups_);
    const int64_t weight_bytes = (part.panel_end - part.panel_begin) * panel_stride;
    const int64_t tile_bytes = split.rows * taps_ * k4_ * 4;
    int64_t chunk = kPixelBudget / tile_bytes;
    if (weight_bytes > kWeightBudget) chunk = std::max<int64_t>(chunk, (512 << 10) / tile_bytes);
    chunk = std::min<int64_t>(std::max<int64_t>(chunk, 1), 64);

    const Epilogue& epilogue = epilogue_.get();
    alignas(64) int32_t acc[kMaxTileRows * kPanel];
    thread_local std::vector<const uint8_t*> pointers;
    const int64_t tile_pointers = taps_ * split.rows;
    if (static_cast<int64_t>(pointers.size()) < chunk * tile_pointers + 8)
        pointers.resize(chunk * tile_pointers + 8);
    const int64_t chunk_pixels = chunk * split.rows;
    for (int64_t first = part.pixel_begin; first < part.pixel_end; first += chunk_pixels) {
        const int64_t last = std::min(first + chunk_pixels, part.pixel_end);
        for (int64_t p = first, i = 0; p < last; p += split.rows, ++i)
            kernels.pointers(window_, x, pad_.data(), p, static_cast<int>(std::min<int64_t>(split.rows, last - p)),
                             pointers.data() + i * tile_pointers);
        for (int64_t panel = part.panel_begin; panel < part.panel_end; panel += split.panels) {
            const int count = static_cast<int>(std::min<int64_t>(split.panels, part.panel_end - panel));
            const int64_t channel = group * out_group_ + panel * kPanel;
            const int64_t channels = std::min<int64_t>(count * kPanel, out_group_ - panel * kPanel);
            const Micro full = micro(split.rows, count);
            // The next weights come from afar while these are multiplied.
            const int8_t* here = tiles + panel * panel_stride;
            const int64_t after = std::min<int64_t>(split.panels, part.panel_end - panel - count);
            const int64_t next = first == part.pixel_begin ? after : 0;
            for (int64_t p = first, i = 0; p < last; p += split.rows, ++i) {
                const int rows = static_cast<int>(std::min<int64_t>(split.rows, last - p));
                const Micro multiply = rows == split.rows ? full : micro(rows, count);
                const int8_t* ahead = i < next ? here + (count + i) * panel_stride : here;
                multiply(pointers.data() + i * tile_pointers, taps_, k4_, here, panel_stride, epilogue.start + channel,
                         acc, ahead);
                kernels.epilogue(epilogue, buffers, acc, count * kPanel, rows, p, channel, channels);
            }
        }
    }
}

void ConvOp::run(const uint8_t* x, const Buffers& buffers) const {
    const int64_t pixels = window_.batch * window_.out_h * window_.out_w;
    if (pixels == 0) return;
    const ConvKernels& kernels = conv_kernels();
    if (spread_) x = spread(x);
    const int64_t panels = round_up(out_group_, kPanel) / kPanel;
    const Split split = choose_split(max_threads());
    const int parts = split.pixel_parts * split.channel_parts;
    on_threads(parts, [&](int thread, int n) {
        for (int part = thread; part < parts; part += n) {
            const int64_t i = part % split.pixel_parts, j = part / split.pixel_parts;
            const Part bounds{pixels * i / split.pixel_parts, pixels * (i + 1) / split.pixel_parts,
                              panels * j / split.channel_parts, panels * (j + 1) / split.channel_parts};
            for (int64_t group = 0; group < groups_; ++group)
                run_part(kernels, split, bounds, group, x, buffers);
        }
    });
}

}  // namespace bitswitch
