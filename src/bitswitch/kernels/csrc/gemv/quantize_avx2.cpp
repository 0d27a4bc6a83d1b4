#include "gemv/quantize_body.hpp"

namespace bitswitch {

QuantizeKernel quantize_kernel_avx2() { return {codes, largest}; }

}  // namespace bitswitch
