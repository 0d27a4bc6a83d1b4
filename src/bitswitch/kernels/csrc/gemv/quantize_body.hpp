// Loops that compilers turn into vector instructions, for each processor that includes them.
#pragma once

#include <cstring>

#include "gemv/quantize.hpp"

// Included by files that are compiled for different processors: everything has internal linkage.
namespace bitswitch {
namespace {

inline float load(const float* x, int64_t i) { return x[i]; }

// bfloat16 is the upper half of a float32.
inline float load(const uint16_t* x, int64_t i) {
    const uint32_t bits = static_cast<uint32_t>(x[i]) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

template <class T>
void codes_of(const T* x, int64_t count, float scale, int zp, int low, int top, uint8_t* out) {
    // Adding 1.5·2^23 rounds a small number to an integer, ties to even, and leaves it in the low bits.
    constexpr float kRound = 12582912.0f;
    constexpr int32_t kRoundBits = 0x4b400000;
    const float least = static_cast<float>(low - zp), most = static_cast<float>(top - zp);
    for (int64_t i = 0; i < count; ++i) {
        float steps = load(x, i) / scale;
        steps = steps > least ? steps : least;  // NaN becomes the lowest code
        steps = steps < most ? steps : most;
        steps = steps + kRound;
        int32_t bits;
        std::memcpy(&bits, &steps, 4);
        out[i] = static_cast<uint8_t>(bits - kRoundBits + zp);
    }
}

template <class T>
float largest_of(const T* x, int64_t count) {
    // Sizes of floats are ordered as their bits are; NaN does not count.
    int32_t largest = 0;
    for (int64_t i = 0; i < count; ++i) {
        const float value = load(x, i);
        int32_t bits;
        std::memcpy(&bits, &value, 4);
        bits &= 0x7fffffff;
        bits = bits > 0x7f800000 ? 0 : bits;
        largest = bits > largest ? bits : largest;
    }
    float value;
    std::memcpy(&value, &largest, 4);
    return value;
}

void codes(const void* x, Float type, int64_t count, float scale, int zp, int low, int top, uint8_t* out) {
    if (type == Float::f32) {
        codes_of(static_cast<const float*>(x), count, scale, zp, low, top, out);
    } else {
        codes_of(static_cast<const uint16_t*>(x), count, scale, zp, low, top, out);
    }
}

float largest(const void* x, Float type, int64_t count) {
    if (type == Float::f32) return largest_of(static_cast<const float*>(x), count);
    return largest_of(static_cast<const uint16_t*>(x), count);
}

}  // namespace
}  // namespace bitswitch
