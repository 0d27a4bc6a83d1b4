// Kernels bound to one layer, width and input shape, so that a run takes addresses and nothing else.
#pragma once

#include <cstdint>
#include <vector>

#include "conv/types.hpp"

namespace bitswitch {

// What an op does with its sums: owns the arrays that an Epilogue points to. Copying would leave pointers behind.
class EpilogueStore {
   public:
    struct Settings {
        float lo, hi;
        bool residual, write_float;
        std::vector<Quantized> quantized;
    };

    // multiplier, bias and row_sums may be null (1, 0, 0); sums start at −zero_point · row_sums. Sums are of so many
    // products of codes and weights.
    EpilogueStore(const Settings& settings, int64_t channels, int64_t products, const float* multiplier,
                  const float* bias, const int32_t* row_sums, int32_t zero_point);
    // For floats that come as they are.
    EpilogueStore(const Settings& settings, int64_t channels)
        : EpilogueStore(settings, channels, 0, nullptr, nullptr, nullptr, 0) {}
    EpilogueStore(const EpilogueStore&) = delete;
    EpilogueStore& operator=(const EpilogueStore&) = delete;

    const Epilogue& get() const { return epilogue_; }

   private:
    bool is_bounded(int64_t products) const;

    std::vector<float> multiplier_, bias_;
    std::vector<int32_t> start_;
    Epilogue epilogue_;
};

// A convolution from weight tiles: those of each group in turn, each with taps · ceil(Cg / 4) blocks of 4 × 16 weights
// for a panel. The tiles stay the caller's.
class ConvOp {
   public:
    ConvOp(const Window& window, int64_t channels, int64_t out_channels, int64_t groups, const int8_t* tiles,
           const int32_t* row_sums, int32_t zero_point, const float* multiplier, const float* bias,
           const EpilogueStore::Settings& settings);
    void run(const uint8_t* x, const Buffers& buffers) const;

   private:
    // How the work of one run is divided; see ops.cpp.
    struct Split {
        int panels, rows, pixel_parts, channel_parts;
        double cost;
    };
    struct Part {
        int64_t pixel_begin, pixel_end, panel_begin, panel_end;
    };
    Split choose_split(int threads) const;
    void run_part(const ConvKernels& kernels, const Split& split, const Part& part, int64_t group, const uint8_t* x,
                  const Buffers& buffers) const;
    const uint8_t* spread(const uint8_t* x) const;

    Window window_;  // of the input that the multiplication reads
    Window given_;   // of the caller's input
    int64_t channels_, out_channels_, groups_, group_bytes_, out_group_, k4_, taps_;
    bool spread_;
    int32_t zero_point_;
    const int8_t* tiles_;
    std::vector<uint8_t> pad_;
    EpilogueStore epilogue_;
};

class DepthwiseOp {
   public:
    DepthwiseOp(const Window& window, int64_t channels, const int8_t* weights, const int32_t* row_sums,
                int32_t zero_point, const float* multiplier, const float* bias,
                const EpilogueStore::Settings& settings);
    void run(const uint8_t* x, const Buffers& buffers) const;

   private:
    EpilogueStore epilogue_;
    std::vector<uint8_t> pad_;
    std::vector<float> multiplier_, bias_;
    std::vector<int32_t> start_;
    DepthwisePlan plan_;
};

int64_t depthwise_bytes(int64_t channels, int64_t kh, int64_t kw);

// Weights from codes (channels, kh, kw) to the layout of the depthwise kernels.
void pack_depthwise(const int8_t* codes, int64_t channels, int64_t kh, int64_t kw, int8_t* packed, int32_t* row_sums);

// y = clamp(a + b) or clamp(a) over `pixels` rows.
class AddOp {
   public:
    AddOp(int64_t pixels, int64_t channels, const EpilogueStore::Settings& settings);
    void run(const float* a, const float* b, const Buffers& buffers) const;

   private:
    int64_t pixels_;
    EpilogueStore epilogue_;
};

class MaxPoolOp {
   public:
    MaxPoolOp(const Window& window, int64_t channels, const EpilogueStore::Settings& settings);
    void run(const float* x, const Buffers& buffers) const;

   private:
    Window window_;
    EpilogueStore epilogue_;
};

class MeanPoolOp {
   public:
    MeanPoolOp(int64_t batch, int64_t pixels, int64_t channels, const EpilogueStore::Settings& settings);
    void run(const float* x, const Buffers& buffers) const;

   private:
    int64_t batch_, pixels_;
    EpilogueStore epilogue_;
};

class QuantizeOp {
   public:
    explicit QuantizeOp(const QuantizePlan& plan) : plan_(plan) {}
    void run(const float* x, uint8_t* out) const;

   private:
    QuantizePlan plan_;
};

}  // namespace bitswitch
