// The fused quantizers on two AVX2 registers of 8 floats.
#include "quantize/grid.hpp"

#if defined(__AVX2__)
#include <immintrin.h>

#include <cstring>

namespace {

struct M {
    __m256 a, b;
};

inline __m256 widen(__m128i h) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)); }

inline __m256i narrow(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), _mm256_set1_epi32(0x7fc0), nan);
}

struct V {
    __m256 a, b;

    static V all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
    static V load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static V load(const uint16_t* p) {
        return {widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
                widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
    }
    void store(float* p) const {
        _mm256_storeu_ps(p, a);
        _mm256_storeu_ps(p + 8, b);
    }
    void store(uint16_t* p) const {
        const __m256i packed = _mm256_packus_epi32(narrow(a), narrow(b));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
    }
    template <class T>
    static V load_part(const T* p, int64_t n) {
        T full[16] = {};
        std::memcpy(full, p, sizeof(T) * n);
        return load(full);
    }
    template <class T>
    void store_part(T* p, int64_t n) const {
        T full[16];
        store(full);
        std::memcpy(p, full, sizeof(T) * n);
    }
};

inline V operator+(V x, V y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline V operator-(V x, V y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline V operator*(V x, V y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline V operator/(V x, V y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline V min(V x, V y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline V max(V x, V y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline V round_even(V x) {
    constexpr int how = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.a, how), _mm256_round_ps(x.b, how)};
}
inline V floor(V x) { return {_mm256_floor_ps(x.a), _mm256_floor_ps(x.b)}; }
inline M operator<(V x, V y) { return {_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)}; }
inline M operator&(M x, M y) { return {_mm256_and_ps(x.a, y.a), _mm256_and_ps(x.b, y.b)}; }
inline V keep(M m, V x) { return {_mm256_and_ps(m.a, x.a), _mm256_and_ps(m.b, x.b)}; }

struct Lanes64 {
    __m256d v[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()};
    void add(V x) {
        v[0] = _mm256_add_pd(v[0], _mm256_cvtps_pd(_mm256_castps256_ps128(x.a)));
        v[1] = _mm256_add_pd(v[1], _mm256_cvtps_pd(_mm256_extractf128_ps(x.a, 1)));
        v[2] = _mm256_add_pd(v[2], _mm256_cvtps_pd(_mm256_castps256_ps128(x.b)));
        v[3] = _mm256_add_pd(v[3], _mm256_cvtps_pd(_mm256_extractf128_ps(x.b, 1)));
    }
    double sum() const {
        double lanes[16], total = 0;
        for (int i = 0; i < 4; ++i) _mm256_storeu_pd(lanes + 4 * i, v[i]);
        for (double e : lanes) total += e;
        return total;
    }
};

#include "quantize/spans.inc"

}  // namespace

namespace bitswitch::quantize {

const Table* table_avx2() {
    static const Table table = make_table();
    return &table;
}

}  // namespace bitswitch::quantize

#else

namespace bitswitch::quantize {

const Table* table_avx2() { return nullptr; }

}  // namespace bitswitch::quantize

#endif
