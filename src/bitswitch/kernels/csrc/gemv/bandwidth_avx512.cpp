#include "gemv/bandwidth.hpp"
#include "gemv/bandwidth_body.hpp"

namespace bitswitch {

uint64_t read_parts_avx512(const uint8_t* data, int64_t part, int streams) { return read_parts(data, part, streams); }

}  // namespace bitswitch
