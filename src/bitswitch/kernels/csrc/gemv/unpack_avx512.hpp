// Bit planes to bytes, 512 weights at a time: rounding on whole planes, then 8×8 bit-matrix transposes (GFNI).
//
// Weights come out as signed bytes w̃·2^(8 − bits): plane 0 is the top bit, inverted by the constant of the affine
// instruction. Byte 16·q + i of vector r is input 128·q + 16·r + i.
#pragma once

#include <immintrin.h>

#include <cstdint>

// GCC 12 takes the vectors that its own intrinsics leave undefined on purpose for mistakes.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define BITSWITCH_INLINE inline __attribute__((always_inline))

// For files compiled with AVX-512 alone: everything has internal linkage.
namespace bitswitch {
namespace {

constexpr int64_t kChunk = 512;
constexpr int64_t kChunkBytes = kChunk / 8;
// How far ahead of its reads each plane is asked for.
constexpr int64_t kAhead = 2048;

constexpr int num_planes(int bits, bool rounded) { return bits + rounded; }

// The kernel of round_planes.hpp with three-input instructions.
template <int L>
BITSWITCH_INLINE void round_512(__m512i* p) {
    __m512i carry = p[L];
    if constexpr (L == 2) {
        carry = _mm512_ternarylogic_epi64(p[2], p[0], p[1], 0x70);  // a & ~(b & c)
    } else {
        __m512i full = p[0];
        int i = 1;
        for (; i + 1 < L; i += 2) full = _mm512_ternarylogic_epi64(full, p[i], p[i + 1], 0x80);
        carry = i < L ? _mm512_ternarylogic_epi64(carry, full, p[i], 0x70) : _mm512_andnot_si512(full, carry);
    }
    for (int i = L - 1; i >= 0; i -= 2) {
        const __m512i low = p[i];
        p[i] = _mm512_xor_si512(low, carry);
        if (i == 0) break;
        const __m512i next = p[i - 1];
        p[i - 1] = _mm512_ternarylogic_epi64(next, low, carry, 0x78);  // a ^ (b & c)
        carry = _mm512_ternarylogic_epi64(next, low, carry, 0x80);
    }
}

// Interleave the bytes of eight planes, so that each 64-bit element holds one byte of all, and transpose.
template <int L>
BITSWITCH_INLINE void transpose(const __m512i* p, __m512i* w) {
    const __m512i zero = _mm512_setzero_si512();
    const __m512i unit = _mm512_set1_epi64(static_cast<long long>(0x8040201008040201ull));
    __m512i pairs[4][2], fours[2][4], eights[8];
    for (int i = 0; i < 4; ++i) {
        if (2 * i >= L) {
            pairs[i][0] = pairs[i][1] = zero;
            continue;
        }
        const __m512i low = 2 * i + 1 < L ? p[2 * i + 1] : zero;
        pairs[i][0] = _mm512_unpacklo_epi8(p[2 * i], low);
        pairs[i][1] = _mm512_unpackhi_epi8(p[2 * i], low);
    }
    if constexpr (L == 2) {
        // Two bytes for each element, and zeros: 0x80 selects none.
        for (int i = 0; i < 4; ++i) {
            const __m512i pick = _mm512_set4_epi32(-1, static_cast<int>(0x80800302u + 0x0404u * i), -1,
                                                   static_cast<int>(0x80800100u + 0x0404u * i));
            eights[i] = _mm512_shuffle_epi8(pairs[0][0], pick);
            eights[i + 4] = _mm512_shuffle_epi8(pairs[0][1], pick);
        }
    } else {
        for (int i = 0; i < 2; ++i)
            for (int half = 0; half < 2; ++half) {
                if (4 * i >= L) {
                    fours[i][2 * half] = fours[i][2 * half + 1] = zero;
                    continue;
                }
                fours[i][2 * half] = _mm512_unpacklo_epi16(pairs[2 * i][half], pairs[2 * i + 1][half]);
                fours[i][2 * half + 1] = _mm512_unpackhi_epi16(pairs[2 * i][half], pairs[2 * i + 1][half]);
            }
        for (int i = 0; i < 4; ++i) {
            eights[2 * i] = _mm512_unpacklo_epi32(fours[0][i], fours[1][i]);
            eights[2 * i + 1] = _mm512_unpackhi_epi32(fours[0][i], fours[1][i]);
        }
    }
    for (int r = 0; r < 8; ++r) w[r] = _mm512_gf2p8affine_epi64_epi8(unit, eights[r], 0x80);
}

BITSWITCH_INLINE __m512i load_bytes(__mmask64 mask, const uint8_t* from) {
#if defined(__SANITIZE_ADDRESS__)
    // The sanitizer does not see masked loads.
    const volatile uint8_t first = from[0], last = from[63 - __builtin_clzll(mask)];
    (void)first, (void)last;
#endif
    return _mm512_maskz_loadu_epi8(mask, from);
}

// The weights of 512 inputs from byte `at` of the planes on.
template <int L, bool R>
BITSWITCH_INLINE void unpack(const uint8_t* const* planes, int64_t at, __mmask64 mask, __m512i* w) {
    __m512i p[8];
    for (int i = 0; i < num_planes(L, R); ++i) {
        _mm_prefetch(reinterpret_cast<const char*>(planes[i] + at + kAhead), _MM_HINT_T0);
        p[i] = load_bytes(mask, planes[i] + at);
    }
    if constexpr (R) round_512<L>(p);
    transpose<L>(p, w);
}

BITSWITCH_INLINE __mmask64 mask_of(int64_t K, int64_t start) {
    const int64_t bytes = (K - start + 7) / 8;
    return bytes >= kChunkBytes ? ~__mmask64{0} : (__mmask64{1} << bytes) - 1;
}

}  // namespace
}  // namespace bitswitch
