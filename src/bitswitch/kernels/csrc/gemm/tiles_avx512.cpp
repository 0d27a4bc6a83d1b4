// Panels by 512 weights of a row at a time: GFNI makes bytes of the planes, permutations bring them into place.
#include "gemm/tiles.hpp"

#if defined(__x86_64__)
#include "gemm/tiles_body.hpp"
#include "gemv/unpack_avx512.hpp"

namespace bitswitch {
namespace {

// The matrix that shifts signed bytes right.
constexpr long long shift_matrix(int shift) {
    uint64_t matrix = 0;
    for (int bit = 0; bit < 8; ++bit) {
        const int from = bit + shift < 7 ? bit + shift : 7;
        matrix |= uint64_t{1} << (8 * (7 - bit) + from);
    }
    return static_cast<long long>(matrix);
}

BITSWITCH_INLINE __m512i lanes(__m512i a, __m512i b, bool high) {
    return high ? _mm512_shuffle_i64x2(a, b, 0xee) : _mm512_shuffle_i64x2(a, b, 0x44);
}

// Lane q of vector r becomes lane r of vector q.
BITSWITCH_INLINE void transpose_lanes(const __m512i* in, __m512i* out) {
    const __m512i a = lanes(in[0], in[1], false), b = lanes(in[2], in[3], false);
    const __m512i c = lanes(in[0], in[1], true), d = lanes(in[2], in[3], true);
    out[0] = _mm512_shuffle_i64x2(a, b, 0x88);
    out[1] = _mm512_shuffle_i64x2(a, b, 0xdd);
    out[2] = _mm512_shuffle_i64x2(c, d, 0x88);
    out[3] = _mm512_shuffle_i64x2(c, d, 0xdd);
}

template <int L, bool R>
void unpack_row(const WeightPlanes& weight, int64_t n, int8_t* out) {
    const uint8_t* planes[8];
    for (int p = 0; p < num_planes(L, R); ++p) planes[p] = weight.planes[p] + n * weight.row_bytes;
    const __m512i shift = _mm512_set1_epi64(shift_matrix(8 - L));
    for (int64_t start = 0; start < weight.K; start += kChunk) {
        __m512i w[8], ordered[2][4];
        unpack<L, R>(planes, start / 8, mask_of(weight.K, start), w);
        if constexpr (L < 8)
            for (int r = 0; r < 8; ++r) w[r] = _mm512_gf2p8affine_epi64_epi8(w[r], shift, 0);
        transpose_lanes(w, ordered[0]);
        transpose_lanes(w + 4, ordered[1]);
        for (int v = 0; v < 8; ++v)
            _mm512_storeu_si512(out + start + 64 * v, ordered[v % 2][v / 2]);
    }
    const int64_t tail = weight.K % 64;
    if (tail) {
        int8_t* last = out + weight.K - tail;
        _mm512_storeu_si512(last, _mm512_maskz_mov_epi8((__mmask64{1} << tail) - 1, _mm512_loadu_si512(last)));
    }
}

void unpack_row_of_width(const WeightPlanes& weight, int64_t n, int8_t* out) {
    using Unpack = void (*)(const WeightPlanes&, int64_t, int8_t*);
    static constexpr Unpack kUnpack[2][9] = {
        {nullptr, nullptr, unpack_row<2, false>, unpack_row<3, false>, unpack_row<4, false>, unpack_row<5, false>,
         unpack_row<6, false>, unpack_row<7, false>, unpack_row<8, false>},
        {nullptr, nullptr, unpack_row<2, true>, unpack_row<3, true>, unpack_row<4, true>, unpack_row<5, true>,
         unpack_row<6, true>, unpack_row<7, true>, nullptr}};
    kUnpack[weight.rounded][weight.bits](weight, n, out);
}

// 64 channels of `Taps` taps are as many vectors, and so are the results: each takes some bytes of each vector.
template <int Taps>
struct TapOrder {
    alignas(64) uint8_t index[Taps][Taps][64];
    uint64_t mask[Taps][Taps];

    constexpr TapOrder() : index{}, mask{} {
        for (int t = 0; t < Taps; ++t)
            for (int c = 0; c < 64; ++c) {
                const int at = c * Taps + t;
                index[t][at / 64][c] = static_cast<uint8_t>(at % 64);
                mask[t][at / 64] |= uint64_t{1} << c;
            }
    }
};

template <int Taps>
void split_fixed_taps(const int8_t* from, int64_t channels, int64_t stride, int8_t* to) {
    static constexpr TapOrder<Taps> kOrder;
    for (int64_t c = 0; c < channels; c += 64, from += 64 * Taps) {
        const int64_t left = channels - c;
        const __mmask64 exists = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
        // Vectors that begin behind the last code are not there to be read.
        const int64_t codes = left >= 64 ? 64 * Taps : left * Taps;
        __m512i in[Taps];
        for (int v = 0; v < Taps; ++v)
            in[v] = 64 * v < codes ? _mm512_loadu_si512(from + 64 * v) : _mm512_setzero_si512();
        for (int t = 0; t < Taps; ++t) {
            __m512i out = _mm512_setzero_si512();
            for (int v = 0; v < Taps; ++v)
                out = _mm512_mask_permutexvar_epi8(out, kOrder.mask[t][v], _mm512_load_si512(kOrder.index[t][v]),
                                                   in[v]);
            _mm512_storeu_si512(to + t * stride + c, _mm512_maskz_mov_epi8(exists, out));
        }
    }
}

void split_taps(const int8_t* from, int64_t channels, int64_t taps, int64_t stride, int8_t* to) {
    if (taps == 9) return split_fixed_taps<9>(from, channels, stride, to);
    plain_split_taps(from, channels, taps, stride, to);
}

// Transpose 16 × 16 words of 32 bits.
BITSWITCH_INLINE void transpose_words(const int8_t* rows, int64_t stride, __m512i* out) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        const __m512i x = _mm512_loadu_si512(rows + i * stride), y = _mm512_loadu_si512(rows + (i + 1) * stride);
        a[i] = _mm512_unpacklo_epi32(x, y);
        a[i + 1] = _mm512_unpackhi_epi32(x, y);
    }
    // b[4i + j]: word j of each lane of rows 4i … 4i + 3.
    for (int i = 0; i < 16; i += 4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int j = 0; j < 4; ++j) {
        const __m512i four[4] = {b[j], b[4 + j], b[8 + j], b[12 + j]};
        __m512i by_lane[4];
        transpose_lanes(four, by_lane);
        for (int q = 0; q < 4; ++q) out[4 * q + j] = by_lane[q];
    }
}

void interleave(const int8_t* rows, int64_t stride, int64_t k4, int8_t* panel) {
    __m512i words[16];
    int64_t k = 0;
    for (; k + 16 <= k4; k += 16) {
        transpose_words(rows + 4 * k, stride, words);
        for (int j = 0; j < 16; ++j) _mm512_storeu_si512(panel + 64 * (k + j), words[j]);
    }
    if (k == k4) return;
    transpose_words(rows + 4 * k, stride, words);
    for (int j = 0; k + j < k4; ++j) _mm512_storeu_si512(panel + 64 * (k + j), words[j]);
}

int32_t sum(const int8_t* codes, int64_t count) {
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i total = _mm512_setzero_si512();
    int64_t k = 0;
    for (; k + 64 <= count; k += 64) total = _mm512_dpbusd_epi32(total, ones, _mm512_loadu_si512(codes + k));
    if (k < count) {
        const uint8_t* rest = reinterpret_cast<const uint8_t*>(codes + k);
        total = _mm512_dpbusd_epi32(total, ones, load_bytes((__mmask64{1} << (count - k)) - 1, rest));
    }
    return _mm512_reduce_add_epi32(total);
}

void add_group(const MapOut& map, bool first) {
    for (int block = 0; block < map.width; block += kPanel) {
        const __m512 m = _mm512_loadu_ps(map.m + block);
        for (int r = 0; r < map.rows; ++r) {
            const int at = r * map.width + block;
            const __m512i c = _mm512_loadu_si512(map.c + at);
            const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(c), m);
            const __m512 before = first ? _mm512_setzero_ps() : _mm512_loadu_ps(map.y + at);
            _mm512_storeu_ps(map.y + at, _mm512_add_ps(before, product));
        }
    }
}

constexpr TileKernels kKernels{unpack_row_of_width, split_taps, interleave, sum, add_group, plain_finish};

}  // namespace

const TileKernels& tile_kernels_avx512() { return kKernels; }

}  // namespace bitswitch
#endif
