#include "conv/ops.hpp"

#include <algorithm>
#include <cmath>

#include "parallel.hpp"

namespace bitswitch {

EpilogueStore::EpilogueStore(const Settings& settings, int64_t channels, int64_t products, const float* multiplier,
                             const float* bias, const int32_t* row_sums, int32_t zero_point)
    : multiplier_(round_up(channels, 64) + 16, 1.0f),
      bias_(round_up(channels, 64) + 16, 0.0f),
      start_(round_up(channels, 64) + 16, 0) {
    if (multiplier) std::copy(multiplier, multiplier + channels, multiplier_.begin());
    if (bias) std::copy(bias, bias + channels, bias_.begin());
    if (row_sums) {
        // Unsigned arithmetic: this wraps as the accumulators do, and what they arrive at is exact.
        for (int64_t n = 0; n < channels; ++n)
            start_[n] =
                static_cast<int32_t>(-static_cast<uint32_t>(row_sums[n]) * static_cast<uint32_t>(zero_point));
    }
    epilogue_ = {};
    epilogue_.start = start_.data();
    epilogue_.multiplier = multiplier_.data();
    epilogue_.bias = bias_.data();
    epilogue_.lo = settings.lo;
    epilogue_.hi = settings.hi;
    epilogue_.residual = settings.residual;
    epilogue_.write_float = settings.write_float;
    epilogue_.num_quantized = static_cast<int>(settings.quantized.size());
    std::copy(settings.quantized.begin(), settings.quantized.end(), epilogue_.quantized);
    for (int k = 0; k < epilogue_.num_quantized; ++k) {
        Quantized& q = epilogue_.quantized[k];
        q.least = std::min(std::max(settings.lo * q.inverse, q.low), q.high);
        q.most = std::min(std::max(settings.hi * q.inverse, q.low), q.high);
        q.least_code = static_cast<uint8_t>(std::nearbyint(q.least) + q.zero_point);
        q.most_code = static_cast<uint8_t>(std::nearbyint(q.most) + q.zero_point);
    }
    epilogue_.channels = channels;
    epilogue_.bounded = products > 0 && !settings.residual && is_bounded(products);
}

bool EpilogueStore::is_bounded(int64_t products) const {
    const float most_sum = static_cast<float>(products) * 255 * 256;
    float inverse = 0.0f, scaled = 0.0f;
    for (int k = 0; k < epilogue_.num_quantized; ++k) inverse = std::max(inverse, epilogue_.quantized[k].inverse);
    for (int64_t n = 0; n < epilogue_.channels; ++n)
        scaled = std::max(scaled, most_sum * std::fabs(multiplier_[n]) + std::fabs(bias_[n]));
    return scaled * inverse < 1 << 30;
}

DepthwiseOp::DepthwiseOp(const Window& window, int64_t channels, const int8_t* weights, const int32_t* row_sums,
                         int32_t zero_point, const float* multiplier, const float* bias,
                         const EpilogueStore::Settings& settings)
    : epilogue_(settings, channels, window.kh * window.kw, multiplier, bias, row_sums, zero_point),
      pad_(round_up(window.pixel_stride, 64), static_cast<uint8_t>(zero_point)) {
    const Epilogue& e = epilogue_.get();
    const int64_t padded = round_up(channels, kDepthwiseBlock);
    multiplier_.resize(padded), bias_.resize(padded), start_.resize(padded);
    for (int64_t c = 0; c < padded; ++c) {
        const int64_t in_block = c % 64;
        const int64_t at = c - in_block + in_block % 16 / 4 * 16 + in_block / 16 * 4 + in_block % 4;
        multiplier_[at] = e.multiplier[c], bias_[at] = e.bias[c], start_[at] = e.start[c];
    }
    plan_ = {window, channels, weights, pad_.data(), e, start_.data(), multiplier_.data(), bias_.data()};
}

void DepthwiseOp::run(const uint8_t* x, const Buffers& buffers) const {
    const ConvKernels& kernels = conv_kernels();
    const int64_t rows = plan_.window.batch * plan_.window.out_h;
    const int64_t blocks = round_up(plan_.channels, kDepthwiseBlock) / kDepthwiseBlock;
    parallel_for(rows * blocks, 1,
                 [&](int64_t begin, int64_t end) { kernels.depthwise(plan_, x, buffers, begin, end); });
}

int64_t depthwise_bytes(int64_t channels, int64_t kh, int64_t kw) {
    return round_up(channels, kDepthwiseBlock) / kDepthwiseBlock *
           (kw * ((kh + 3) / 4) * 256 + kh * kw * kDepthwiseBlock);
}

// A block of 64 channels: first, for every column of taps and every four of its rows, 4 × 16 × 4 weights in the order
// that interleaving four rows of bytes gives them (vector, 128-bit lane, channel, row); then plainly [taps][64].
void pack_depthwise(const int8_t* codes, int64_t channels, int64_t kh, int64_t kw, int8_t* packed, int32_t* row_sums) {
    const int64_t high = (kh + 3) / 4, quads = kw * high, block_bytes = quads * 256 + kh * kw * kDepthwiseBlock;
    std::fill(packed, packed + depthwise_bytes(channels, kh, kw), static_cast<int8_t>(0));
    for (int64_t c = 0; c < channels; ++c) {
        int8_t* block = packed + c / kDepthwiseBlock * block_bytes;
        const int64_t k = c % kDepthwiseBlock, at = k % 16 / 4 * 64 + k / 16 * 16 + k % 4 * 4;
        int32_t sum = 0;
        for (int64_t i = 0; i < kh; ++i) {
            for (int64_t j = 0; j < kw; ++j) {
                const int8_t value = codes[(c * kh + i) * kw + j];
                block[(j * high + i / 4) * 256 + at + i % 4] = value;
                block[quads * 256 + (i * kw + j) * kDepthwiseBlock + k] = value;
                sum += value;
            }
        }
        row_sums[c] = sum;
    }
}

AddOp::AddOp(int64_t pixels, int64_t channels, const EpilogueStore::Settings& settings)
    : pixels_(pixels), epilogue_(settings, channels) {}

void AddOp::run(const float* a, const float* b, const Buffers& buffers) const {
    const ConvKernels& kernels = conv_kernels();
    const int64_t grain = std::max<int64_t>(1, 4096 / epilogue_.get().channels);
    parallel_for(pixels_, grain,
                 [&](int64_t begin, int64_t end) { kernels.add(epilogue_.get(), a, b, buffers, begin, end); });
}

MaxPoolOp::MaxPoolOp(const Window& window, int64_t channels, const EpilogueStore::Settings& settings)
    : window_(window), epilogue_(settings, channels) {}

void MaxPoolOp::run(const float* x, const Buffers& buffers) const {
    const ConvKernels& kernels = conv_kernels();
    parallel_for(window_.batch * window_.out_h, 1, [&](int64_t begin, int64_t end) {
        kernels.max_pool(window_, epilogue_.get(), x, buffers, begin, end);
    });
}

MeanPoolOp::MeanPoolOp(int64_t batch, int64_t pixels, int64_t channels, const EpilogueStore::Settings& settings)
    : batch_(batch), pixels_(pixels), epilogue_(settings, channels) {}

void MeanPoolOp::run(const float* x, const Buffers& buffers) const {
    const ConvKernels& kernels = conv_kernels();
    parallel_for(batch_, 1, [&](int64_t begin, int64_t end) {
        kernels.mean_pool(epilogue_.get(), x, pixels_, buffers, begin, end);
    });
}

void QuantizeOp::run(const float* x, uint8_t* out) const {
    const ConvKernels& kernels = conv_kernels();
    const int64_t grain = std::max<int64_t>(64, 4096 / plan_.channels);
    parallel_for(plan_.batch * plan_.pixels, grain,
                 [&](int64_t begin, int64_t end) { kernels.quantize(plan_, x, out, begin, end); });
}

}  // namespace bitswitch
