// What a fused quantizer computes on one run of memory that shares a scale, and the table of functions an instruction
// set provides for it.
#pragma once

#include <cstdint>

namespace bitswitch::quantize {

// How a float becomes a multiple of the scale.
//   unsigned_input  code = clamp(rne(x / s), 0, top)                 and the multiple is the code
//   signed_input    code = clamp(rne(x / s) + zp, 0, top)            and the multiple is code - zp
//   stored_weight   code = clamp(rne(w / s), low, top)
//   lower_weight    code = min(floor(clamp(rne(w / s), stored range) · 2^-shift + 0.5), top)
//   stored_midrise  code = clamp(floor(w / s), low, top)             and the multiple is code + 0.5
//   lower_midrise   code = floor(clamp(rne(w / s), stored range) · 2^-shift)       likewise
// All but the inputs count in steps of the width's own scale s · 2^shift.
enum Kind {
    unsigned_input = 0,
    signed_input = 1,
    stored_weight = 2,
    lower_weight = 3,
    stored_midrise = 4,
    lower_midrise = 5,
};
constexpr int kKinds = 6;

struct Grid {
    Kind kind;
    float scale;        // s, or the stored scale s_h of a weight
    float step;         // what one code stands for: s, or s_h · 2^shift
    float zero_point;   // signed inputs only
    float low, high;    // range of the first rounding
    float shrink;       // 2^-shift, lower widths only
    float inside_low;   // the gradient passes where the position lies strictly between these two
    float inside_high;
};

// Element types; the numbers are those of the Python side.
enum Type { float32 = 0, bfloat16 = 1 };

struct Sums {
    double scale = 0;    // Σ g · (multiple - position) inside, Σ g · multiple outside
    double outside = 0;  // Σ g outside, signed inputs only
};

// Quantize and dequantize n elements.
using Forward = void (*)(const void* x, void* out, int64_t n, const Grid&);
// Write the gradient of x and add to the sums; the order of additions depends on n only.
using Backward = void (*)(const void* x, const void* grad, void* grad_x, int64_t n, const Grid&, Sums&);

// By kind, type of x, type of the output (and so of its gradient).
struct Table {
    Forward forward[kKinds][2][2];
    Backward backward[kKinds][2][2];
};

const Table* table_scalar();
const Table* table_avx2();    // null where the build has none
const Table* table_avx512();  // null where the build has none

}  // namespace bitswitch::quantize
