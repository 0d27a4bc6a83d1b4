#pragma once

#include <cstdint>
#include <cstring>

// Included by files that are compiled for different processors: everything has internal linkage.
namespace bitswitch {
namespace {

// A cache line of each stream in turn.
inline uint64_t read_parts(const uint8_t* data, int64_t part, int streams) {
    uint64_t sum[8] = {};
    for (int64_t at = 0; at < part; at += 64)
        for (int stream = 0; stream < streams; ++stream) {
            uint64_t line[8];
            std::memcpy(line, data + stream * part + at, 64);
            for (int i = 0; i < 8; ++i) sum[i] ^= line[i];
        }
    uint64_t all = 0;
    for (uint64_t value : sum) all ^= value;
    return all;
}

}  // namespace
}  // namespace bitswitch
