// The scalar kernels, and which kernels are in use.
#include "conv/types.hpp"
#include "cpu.hpp"

namespace bitswitch {
namespace {

#include "conv/body.inl"

constexpr ConvKernels kKernels{plain_epilogue, plain_pointers,  plain_depthwise, plain_add,
                               plain_max_pool, plain_mean_pool, plain_quantize};

}  // namespace

const ConvKernels& scalar_conv_kernels() { return kKernels; }

const ConvKernels& conv_kernels() {
    const ConvKernels* found = nullptr;
    if (active_isa() == Isa::avx512) found = avx512_conv_kernels();
    if (active_isa() == Isa::avx2) found = avx2_conv_kernels();
    return found ? *found : kKernels;
}

}  // namespace bitswitch
