#include "gemv/quantize_body.hpp"

namespace bitswitch {

QuantizeKernel quantize_kernel_avx512() { return {codes, largest}; }

}  // namespace bitswitch
