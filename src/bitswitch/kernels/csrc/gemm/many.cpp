#include "gemm/many.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "gemm/tiles.hpp"
#include "parallel.hpp"

namespace bitswitch {
namespace {

// Panels of one block stay in the second-level cache while all rows go by.
constexpr int64_t kBlockBytes = 1 << 20;
// 255 · 128 · 65536 is the largest sum below 2^31.
constexpr int64_t kMostInputs = 65536;
constexpr int kMostRows = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory of one thread.
struct Scratch {
    std::vector<int8_t> rows, tile;
    std::vector<int32_t> sums, starts;
    std::vector<float> m, bias;
    std::vector<const uint8_t*> pointers;
};

class Product {
   public:
    explicit Product(const PlaneLinear& a);
    void run();

   private:
    void run_block(int64_t block, int64_t row_begin, int64_t row_end, Scratch& scratch) const;
    const int8_t* load_block(int64_t n, int panels, Scratch& scratch) const;
    void run_rows(const int8_t* tile, const int8_t* ahead, int64_t n, int panels, int64_t row, int rows,
                  Scratch& scratch) const;
    Scratch make_scratch() const;

    const PlaneLinear& a_;
    const WeightPlanes weight_;
    const int64_t k4_, groups_, group_;
    const PanelScratch layout_;
    const int panels_;  // of a block
    // Blocks from one that a thread works on to the next one that it will, or 0 if that is not known.
    int64_t stride_ = 0;
    std::vector<uint8_t> padded_;
    const uint8_t* x_;
    int64_t x_stride_;
};

Product::Product(const PlaneLinear& a)
    : a_(a),
      weight_(weight_planes(a.planes, a.stored_bits, a.bits, a.N, a.K, a.row_bytes)),
      k4_(ceil_div(a.K, 4)),
      groups_(a.group_size ? ceil_div(a.K, a.group_size) : 1),
      group_(a.group_size ? a.group_size : std::max<int64_t>(a.K, 1)),
      layout_(a.K, a.K, 1),
      panels_(static_cast<int>(std::clamp<int64_t>(kBlockBytes / (64 * std::max<int64_t>(k4_, 1)), 1, kMaxPanels))),
      x_(a.x),
      x_stride_(a.x_stride) {
    if (a.K % 4 == 0) return;
    // Codes are read by four.
    x_stride_ = 4 * k4_;
    padded_.resize(a.M * x_stride_);
    for (int64_t row = 0; row < a.M; ++row) std::memcpy(padded_.data() + row * x_stride_, a.x + row * a.x_stride, a.K);
    x_ = padded_.data();
}

Scratch Product::make_scratch() const {
    const int64_t width = panels_ * kPanel;
    Scratch made;
    if (!a_.tiles) {
        made.rows.resize(layout_.bytes);
        made.tile.resize(panels_ * k4_ * 64);
    }
    made.sums.resize(width * groups_);
    made.starts.resize(width * groups_);
    made.m.resize(width * groups_);
    made.bias.resize(width);
    made.pointers.resize(kMostRows);
    return made;
}

void Product::run() {
    const int64_t blocks = ceil_div(a_.N, panels_ * kPanel);
    // With few blocks the rows are divided, too.
    const int64_t threads = max_threads();
    const int64_t parts = blocks >= 4 * threads ? 1 : std::min(ceil_div(4 * threads, blocks), ceil_div(a_.M, 32));
    const int64_t items = blocks * parts;
    const int wanted = static_cast<int>(std::min(items, threads));
    if (parts == 1) stride_ = wanted;
    std::vector<Scratch> scratch;
    for (int i = 0; i < wanted; ++i) scratch.push_back(make_scratch());
    std::atomic<int64_t> next{0};
    on_threads(wanted, [&](int thread, int) {
        for (int64_t item = next++; item < items; item = next++) {
            const int64_t part = item % parts;
            run_block(item / parts, a_.M * part / parts, a_.M * (part + 1) / parts, scratch[thread]);
        }
    });
}

// The panels of a block, and what maps its sums out: by group, channels side by side.
const int8_t* Product::load_block(int64_t n, int panels, Scratch& scratch) const {
    const int width = panels * kPanel;
    const int64_t panel_bytes = k4_ * 64, count = std::min<int64_t>(width, a_.N - n);
    const bool corrected = a_.zp != 0;
    for (int p = 0; p < panels && !a_.tiles; ++p) {
        const int rows = static_cast<int>(std::min<int64_t>(kPanel, count - p * kPanel));
        pack_panel(weight_, n + p * kPanel, rows, a_.K, 1, group_, layout_, scratch.rows.data(),
                   scratch.tile.data() + p * panel_bytes,
                   corrected ? scratch.sums.data() + p * kPanel * groups_ : nullptr);
    }
    const int32_t* sums = a_.tiles ? a_.row_sums + n : scratch.sums.data();
    for (int64_t i = 0; i < width; ++i) {
        const bool exists = i < count;
        for (int64_t g = 0; g < groups_; ++g) {
            scratch.m[g * width + i] = exists ? a_.m[(n + i) * groups_ + g] : 0.0f;
            scratch.starts[g * width + i] = exists && corrected ? -a_.zp * sums[i * groups_ + g] : 0;
        }
        scratch.bias[i] = exists && a_.b ? a_.b[n + i] : 0.0f;
    }
    return a_.tiles ? a_.tiles + n / kPanel * panel_bytes : scratch.tile.data();
}

void Product::run_block(int64_t block, int64_t row_begin, int64_t row_end, Scratch& scratch) const {
    const int64_t n = block * panels_ * kPanel;
    const int panels = static_cast<int>(std::min<int64_t>(panels_, ceil_div(a_.N - n, kPanel)));
    const int8_t* tile = load_block(n, panels, scratch);
    const int64_t panel_bytes = k4_ * 64;
    // While the rows go by, kept tiles of this thread's next block come from memory: a panel with every step.
    const int64_t left = ceil_div(a_.N, kPanel) - (block + stride_) * panels_;
    const int64_t coming = a_.tiles && stride_ ? std::clamp<int64_t>(left, 0, panels_) : 0;
    const int8_t* following = tile + stride_ * panels_ * panel_bytes;
    const int64_t rows = row_end - row_begin, steps = ceil_div(rows, max_rows(panels));
    for (int64_t i = 0; i < steps; ++i) {
        const int64_t begin = row_begin + rows * i / steps, end = row_begin + rows * (i + 1) / steps;
        const int8_t* ahead = i < coming ? following + i * panel_bytes : tile;
        run_rows(tile, ahead, n, panels, begin, static_cast<int>(end - begin), scratch);
    }
}

void Product::run_rows(const int8_t* tile, const int8_t* ahead, int64_t n, int panels, int64_t row, int rows,
                       Scratch& scratch) const {
    const TileKernels& kernels = tile_kernels();
    const Micro multiply = micro(rows, panels);
    const int width = panels * kPanel;
    alignas(64) int32_t c[kMostRows * kPanel];
    alignas(64) float y[kMostRows * kPanel];
    for (int64_t g = 0; g < groups_; ++g) {
        const int64_t first = g * group_, last = std::min(a_.K, first + group_);
        for (int r = 0; r < rows; ++r) scratch.pointers[r] = x_ + (row + r) * x_stride_ + first;
        const int8_t* b = tile + first * kPanel;
        multiply(scratch.pointers.data(), 1, ceil_div(last - first, 4), b, k4_ * 64, scratch.starts.data() + g * width, c,
                 ahead + first * kPanel);
        kernels.add_group({c, scratch.m.data() + g * width, y, rows, width}, g == 0);
    }
    kernels.finish({y, a_.row_scale ? a_.row_scale + row : nullptr, a_.b ? scratch.bias.data() : nullptr,
                    a_.out + row * a_.N + n, a_.N, rows, width,
                    static_cast<int>(std::min<int64_t>(width, a_.N - n))});
}

}  // namespace

bool takes_many(const PlaneLinear& a) { return a.K > 0 && a.K <= kMostInputs && a.group_size % 4 == 0; }

void linear_many(const PlaneLinear& a) {
    if (a.M <= 0 || a.N <= 0) return;
    Product(a).run();
}

}  // namespace bitswitch
