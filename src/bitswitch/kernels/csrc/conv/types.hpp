// What the convolution kernels of every instruction set share: shapes, the fused epilogue, and the table of functions.
#pragma once

#include <cstdint>

namespace bitswitch {

constexpr int kMaxQuantized = 4;    // quantized copies that an epilogue can write
constexpr int kMaxTileRows = 64;    // pixels of one call of the microkernel, at most
constexpr int kDepthwiseBlock = 64; // channels that a depthwise kernel handles at once

// Static: an inline function would be shared with files that are compiled for another instruction set.
static inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// A window that slides over NHWC rows; strides of the input in elements.
struct Window {
    int64_t batch, height, width, out_h, out_w;
    int64_t kh, kw, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
    int64_t pixel_stride;
};

// One quantized copy of an output: clamp(rne(y · inverse) + zero_point, 0, top), written at `stride` codes a pixel.
struct Quantized {
    float inverse;
    float low, high;  // −zero_point and top − zero_point: clamping before rounding is the same and cannot overflow
    // Those bounds and the float's own times `inverse`: rounded products keep their order, so clamping a product once
    // gives the codes of the clamped value. Rounding to whole numbers keeps the order as well: the same as codes.
    float least, most;
    uint8_t least_code, most_code;
    int32_t zero_point;
    int64_t stride;
};

// y = clamp(float(acc) · multiplier[n] + bias[n] (+ residual), lo, hi), then its copies. Sums of codes and weights start
// at start[n], for the zero point. The arrays are readable up to the next multiple of 64 channels and 16 more.
struct Epilogue {
    const int32_t* start;
    const float* multiplier;
    const float* bias;
    float lo, hi;
    bool residual, write_float;
    bool bounded;  // whether every product by an inverse scale is known to fit into 32 bits
    int num_quantized;
    Quantized quantized[kMaxQuantized];
    int64_t channels;  // row stride of the float tensors
};

// Addresses of one run. The float tensors are NHWC without padding.
struct Buffers {
    const float* residual;
    float* out;
    uint8_t* quantized[kMaxQuantized];
};

struct DepthwisePlan {
    Window window;
    int64_t channels;
    const int8_t* weights;  // see depthwise_pack.cpp
    const uint8_t* pad;     // a row of zero points, as long as a pixel
    Epilogue epilogue;
    // The epilogue's arrays in the order in which bytes leave two rounds of interleaving within 128-bit lanes.
    const int32_t* shuffled_start;
    const float* shuffled_multiplier;
    const float* shuffled_bias;
};

struct QuantizePlan {
    int64_t batch, channels, pixels, out_stride;  // pixels of one image
    bool channels_last;
    float scale, low, high;
    int32_t zero_point;
};

struct ConvKernels {
    // Write `rows` pixels from `pixel` and channels [channel, channel + count): acc[r * acc_stride + i].
    void (*epilogue)(const Epilogue&, const Buffers&, const int32_t* acc, int64_t acc_stride, int rows, int64_t pixel,
                     int64_t channel, int64_t count);
    // a[t * rows + r] = where tap t of pixel `pixel + r` starts, `pad` outside of the image. May write 8 entries more.
    void (*pointers)(const Window&, const uint8_t* x, const uint8_t* pad, int64_t pixel, int rows, const uint8_t** a);
    // Items [begin, end) of (output row, block of channels), the block running faster.
    void (*depthwise)(const DepthwisePlan&, const uint8_t* x, const Buffers&, int64_t begin, int64_t end);
    // Pixels [begin, end) of y = clamp(a + b) (b may be null) and its copies.
    void (*add)(const Epilogue&, const float* a, const float* b, const Buffers&, int64_t begin, int64_t end);
    // Output rows [begin, end) of a maximum over windows and its copies.
    void (*max_pool)(const Window&, const Epilogue&, const float* x, const Buffers&, int64_t begin, int64_t end);
    // Images [begin, end) of the mean over all pixels.
    void (*mean_pool)(const Epilogue&, const float* x, int64_t pixels, const Buffers&, int64_t begin, int64_t end);
    // Pixels [begin, end) of all images.
    void (*quantize)(const QuantizePlan&, const float* x, uint8_t* out, int64_t begin, int64_t end);
};

const ConvKernels& scalar_conv_kernels();
const ConvKernels* avx2_conv_kernels();    // null where the build has none
const ConvKernels* avx512_conv_kernels();  // null where the build has none
const ConvKernels& conv_kernels();         // those of the active instruction set

}  // namespace bitswitch
