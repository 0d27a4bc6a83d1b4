// Sums of groups times their multipliers, added in order for eight rows of the weight side by side.
#include "gemv/gemv.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

namespace bitswitch {
namespace {

// t[i] becomes element i of each of the eight vectors.
inline __attribute__((always_inline)) void transpose(const __m256* p, __m256* t) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(p[i], p[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(p[i], p[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
        b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
        b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

}  // namespace

void add_groups_avx2(const int32_t* sums, int64_t sum_stride, const float* m, int64_t groups, float* y) {
    __m256 total = _mm256_setzero_ps();
    int64_t g = 0;
    for (; g + 8 <= groups; g += 8) {
        __m256 p[8], t[8];
        for (int i = 0; i < 8; ++i) {
            const __m256i sum = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums + i * sum_stride + g));
            p[i] = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_loadu_ps(m + i * groups + g));
        }
        transpose(p, t);
        for (int i = 0; i < 8; ++i) total = _mm256_add_ps(total, t[i]);
    }
    _mm256_storeu_ps(y, total);
    for (; g < groups; ++g)
        for (int i = 0; i < 8; ++i) {
            const float product = static_cast<float>(sums[i * sum_stride + g]) * m[i * groups + g];
            y[i] = y[i] + product;
        }
}

}  // namespace bitswitch
#endif
