#include "conv/types.hpp"

namespace bitswitch {
#if defined(__AVX512F__)
namespace {

#include "conv/body.inl"

constexpr ConvKernels kKernels{plain_epilogue, plain_pointers,  plain_depthwise, plain_add,
                               plain_max_pool, plain_mean_pool, plain_quantize};

}  // namespace

const ConvKernels* avx512_conv_kernels() { return &kKernels; }
#else
const ConvKernels* avx512_conv_kernels() { return nullptr; }
#endif
}  // namespace bitswitch
