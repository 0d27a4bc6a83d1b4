// What the bindings make of addresses and numbers.
#pragma once

#include <stdexcept>
#include <vector>

#include "gemv/gemv.hpp"

namespace bitswitch {

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// Set the planes of a weight at a width. Throws std::invalid_argument if there are too few for it, or too many.
inline void set_planes(const std::vector<uintptr_t>& addresses, int stored_bits, int bits, const uint8_t* (&planes)[8]) {
    if (bits > stored_bits || addresses.size() > 8 || static_cast<int>(addresses.size()) < bits + (bits < stored_bits))
        throw std::invalid_argument("too few planes for the width, or too many");
    for (size_t p = 0; p < addresses.size(); ++p) planes[p] = pointer<const uint8_t>(addresses[p]);
}

// A product of M rows of codes with a weight of N rows that is still to be set.
inline PlaneLinear plane_linear(int64_t N, int64_t K, uintptr_t m, uintptr_t b, int64_t M, int64_t x_stride, int zp) {
    PlaneLinear linear{};
    linear.stored_bits = linear.bits = 8;
    linear.N = N;
    linear.K = K;
    linear.m = pointer<const float>(m);
    linear.b = pointer<const float>(b);
    linear.M = M;
    linear.x_stride = x_stride;
    linear.zp = zp;
    return linear;
}

// The weight's planes at a width, `row_bytes` from row to row.
inline void set_weight(PlaneLinear& linear, const std::vector<uintptr_t>& planes, int stored_bits, int bits,
                       int64_t row_bytes, int64_t group_size) {
    set_planes(planes, stored_bits, bits, linear.planes);
    linear.stored_bits = stored_bits;
    linear.bits = bits;
    linear.row_bytes = row_bytes;
    linear.group_size = group_size;
}

}  // namespace bitswitch
