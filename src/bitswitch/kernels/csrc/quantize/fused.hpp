// Quantizers of training, forward and backward, over whole tensors: one pass over memory, on all threads.
#pragma once

#include <cstdint>

namespace bitswitch::quantize {

// A tensor of `rows` runs of `length` elements each, in memory one after the other; every run has a scale of its own.
struct Rows {
    int64_t rows, length;
    int type;        // of x, and of its gradient
    int out_type;    // of the output, and of the output's gradient
};

// What weights are rounded to: `stored_bits` bits first, then `bits` bits, whose levels are (c + 1/2) · s if `midrise`.
struct Widths {
    int stored_bits, bits;
    bool midrise;
};

// Weights, Eq. (1)-(3): Double Rounding. `scale` has a float a row.
void weight_forward(const void* weight, const float* scale, void* out, Rows, Widths);
// `grad_scale` gets Σ of Eq. (13) times `gain` a row, and times the scale itself if its logarithm is learned.
void weight_backward(const void* weight, const float* scale, const void* grad, void* grad_weight, float* grad_scale,
                     Rows, Widths, double gain, bool log);

// Inputs, Eq. (4)-(5), with one scale; `zero_point` is null for unsigned ones.
void input_forward(const void* x, const float* scale, const float* zero_point, void* out, int64_t count, int type,
                   int out_type, float top);
// `grad_scale` as above; `grad_zero_point` is written if there is a zero point.
void input_backward(const void* x, const float* scale, const float* zero_point, const void* grad, void* grad_x,
                    float* grad_scale, float* grad_zero_point, int64_t count, int type, int out_type, float top,
                    double gain, bool log);

}  // namespace bitswitch::quantize
