// Plain loops for each instruction set's compiler options: included by one file of each, with internal linkage.
#pragma once

#include <cstring>

#include "gemm/tiles.hpp"

namespace bitswitch {
namespace {

inline void plain_split_taps(const int8_t* from, int64_t channels, int64_t taps, int64_t stride, int8_t* to) {
    for (int64_t t = 0; t < taps; ++t) {
        for (int64_t c = 0; c < channels; ++c) to[t * stride + c] = from[c * taps + t];
        std::memset(to + t * stride + channels, 0, (64 - channels % 64) % 64);
    }
}

inline void plain_interleave(const int8_t* rows, int64_t stride, int64_t k4, int8_t* panel) {
    for (int64_t k = 0; k < k4; ++k)
        for (int i = 0; i < kPanel; ++i) std::memcpy(panel + 64 * k + 4 * i, rows + i * stride + 4 * k, 4);
}

inline int32_t plain_sum(const int8_t* codes, int64_t count) {
    int32_t total = 0;
    for (int64_t k = 0; k < count; ++k) total += codes[k];
    return total;
}

inline void plain_add_group(const MapOut& map, bool first) {
    for (int r = 0; r < map.rows; ++r) {
        const int32_t* c = map.c + r * map.width;
        float* y = map.y + r * map.width;
        for (int block = 0; block < map.width; block += kPanel) {
            float product[kPanel];
            for (int i = 0; i < kPanel; ++i) product[i] = static_cast<float>(c[block + i]) * map.m[block + i];
            for (int i = 0; i < kPanel; ++i) y[block + i] = (first ? 0.0f : y[block + i]) + product[i];
        }
    }
}

inline void plain_finish(const FinishRows& rows) {
    for (int r = 0; r < rows.rows; ++r) {
        const float* y = rows.y + r * rows.width;
        float* out = rows.out + r * rows.out_stride;
        const float scale = rows.row_scale ? rows.row_scale[r] : 1.0f;
        if (rows.bias) {
            for (int i = 0; i < rows.count; ++i) out[i] = y[i] * scale + rows.bias[i];
        } else {
            for (int i = 0; i < rows.count; ++i) out[i] = y[i] * scale;
        }
    }
}

}  // namespace
}  // namespace bitswitch
