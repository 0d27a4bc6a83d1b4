// What the memory of this machine gives, to compare kernels with.
#pragma once

#include <cstdint>

namespace bitswitch {

// GB/s at which all threads together read `bytes` from `data`, each thread `streams` contiguous parts in turn.
double read_bandwidth(const uint8_t* data, int64_t bytes, int streams);

// Reads `streams` parts of `part` bytes (a multiple of 64) that follow each other; returns something made of them all.
using ReadParts = uint64_t (*)(const uint8_t* data, int64_t part, int streams);

uint64_t read_parts_scalar(const uint8_t* data, int64_t part, int streams);
uint64_t read_parts_avx512(const uint8_t* data, int64_t part, int streams);

}  // namespace bitswitch
