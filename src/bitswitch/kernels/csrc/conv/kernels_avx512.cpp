#include "conv/types.hpp"

#if defined(__AVX512VNNI__)
// GCC takes the deliberately undefined operands inside its own intrinsics for mistakes.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

namespace bitswitch {
namespace {

#include "conv/body.inl"
// Built on the functions above:
#include "conv/epilogue_avx512.hpp"
#include "conv/depthwise_avx512.hpp"
#include "conv/pool_avx512.hpp"
#include "conv/pointers_avx512.hpp"

constexpr ConvKernels kKernels{epilogue_avx512, pointers_avx512, depthwise_avx512, add_avx512,
                               max_pool_avx512, plain_mean_pool, plain_quantize};

}  // namespace

const ConvKernels* avx512_conv_kernels() { return &kKernels; }

}  // namespace bitswitch
#else
namespace bitswitch {
const ConvKernels* avx512_conv_kernels() { return nullptr; }
}  // namespace bitswitch
#endif
