// Panels by 256 weights of a row at a time.
#include "gemm/tiles.hpp"

#if defined(__x86_64__)
#include "gemm/tiles_body.hpp"
#include "gemv/unpack_avx2.hpp"

namespace bitswitch {
namespace {

void unpack_row(const WeightPlanes& weight, int64_t n, int8_t* out) {
    for (int64_t start = 0; start < weight.K; start += kChunk) {
        __m256i planes[8];
        load_planes(weight, n, start / 8, (weight.K - start + 7) / 8, planes);
        for (int r = 0; r < 8; ++r) {
            const __m256i w = weights_of(planes, weight.bits, r);
            __m128i* to = reinterpret_cast<__m128i*>(out + start + 16 * r);
            _mm_storeu_si128(to, _mm256_castsi256_si128(w));
            _mm_storeu_si128(to + 8, _mm256_extracti128_si256(w, 1));
        }
    }
    if (weight.K % 64) std::memset(out + weight.K, 0, 64 - weight.K % 64);
}

constexpr TileKernels kKernels{unpack_row, plain_split_taps, plain_interleave,
                               plain_sum,  plain_add_group,  plain_finish};

}  // namespace

const TileKernels& tile_kernels_avx2() { return kKernels; }

}  // namespace bitswitch
#endif
