// The fused quantizers on one AVX-512 register of 16 floats.
#include "quantize/grid.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
// GCC 12 takes the undefined operands of its own intrinsics for a mistake.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

namespace {

using M = __mmask16;

inline __m512 widen(__m256i h) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }

inline __m256i narrow(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_srli_epi32(up, 16), nan, _mm512_set1_epi32(0x7fc0)));
}

struct V {
    __m512 a;

    static M first(int64_t n) { return static_cast<M>((1u << n) - 1); }
    static V all(float x) { return {_mm512_set1_ps(x)}; }
    static V load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static V load(const uint16_t* p) { return {widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
    static V load_part(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
    static V load_part(const uint16_t* p, int64_t n) { return {widen(_mm256_maskz_loadu_epi16(first(n), p))}; }
    void store(float* p) const { _mm512_storeu_ps(p, a); }
    void store(uint16_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a)); }
    void store_part(float* p, int64_t n) const { _mm512_mask_storeu_ps(p, first(n), a); }
    void store_part(uint16_t* p, int64_t n) const { _mm256_mask_storeu_epi16(p, first(n), narrow(a)); }
};

inline V operator+(V x, V y) { return {_mm512_add_ps(x.a, y.a)}; }
inline V operator-(V x, V y) { return {_mm512_sub_ps(x.a, y.a)}; }
inline V operator*(V x, V y) { return {_mm512_mul_ps(x.a, y.a)}; }
inline V operator/(V x, V y) { return {_mm512_div_ps(x.a, y.a)}; }
inline V min(V x, V y) { return {_mm512_min_ps(x.a, y.a)}; }
inline V max(V x, V y) { return {_mm512_max_ps(x.a, y.a)}; }
inline V round_even(V x) { return {_mm512_roundscale_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline V floor(V x) { return {_mm512_roundscale_ps(x.a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }
inline M operator<(V x, V y) { return _mm512_cmp_ps_mask(x.a, y.a, _CMP_LT_OQ); }
inline V keep(M m, V x) { return {_mm512_maskz_mov_ps(m, x.a)}; }

struct Lanes64 {
    __m512d v[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};
    void add(V x) {
        v[0] = _mm512_add_pd(v[0], _mm512_cvtps_pd(_mm512_castps512_ps256(x.a)));
        v[1] = _mm512_add_pd(v[1], _mm512_cvtps_pd(_mm512_extractf32x8_ps(x.a, 1)));
    }
    double sum() const {
        double lanes[16], total = 0;
        for (int i = 0; i < 2; ++i) _mm512_storeu_pd(lanes + 8 * i, v[i]);
        for (double e : lanes) total += e;
        return total;
    }
};

#include "quantize/spans.inc"

}  // namespace

namespace bitswitch::quantize {

const Table* table_avx512() {
    static const Table table = make_table();
    return &table;
}

}  // namespace bitswitch::quantize

#else

namespace bitswitch::quantize {

const Table* table_avx512() { return nullptr; }

}  // namespace bitswitch::quantize

#endif
