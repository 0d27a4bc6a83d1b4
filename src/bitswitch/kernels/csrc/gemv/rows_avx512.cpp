// 512 weights at a time become bytes that VNNI multiplies. They are w̃·2^(8 − bits); sums are shifted back at the end,
// which is exact.
#include "gemv/gemv.hpp"

#if defined(__x86_64__)
#include "gemv/unpack_avx512.hpp"

namespace bitswitch {
namespace {

// Chunks whose weights stay in the first-level cache while several rows of activations are multiplied with them.
constexpr int64_t kTile = 8;
static_assert(kPiece % (kTile * kChunk) == 0, "a sum would cover parts of tiles");

// Sums of four neighbours of each of four vectors: sixteen sums of 32 inputs, in order.
BITSWITCH_INLINE __m512i sums_of_32(const __m512i* s) {
    const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(s[0], s[1]), _mm512_unpackhi_epi32(s[0], s[1]));
    const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(s[2], s[3]), _mm512_unpackhi_epi32(s[2], s[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

BITSWITCH_INLINE __m512i add_4(const __m512i* s) {
    return _mm512_add_epi32(_mm512_add_epi32(s[0], s[1]), _mm512_add_epi32(s[2], s[3]));
}

// Eight sums of 64 inputs, in order.
BITSWITCH_INLINE __m256i sums_of_64(const __m512i* s) {
    const __m512i a = _mm512_add_epi32(s[0], s[1]), b = _mm512_add_epi32(s[2], s[3]);
    __m512i t = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    t = _mm512_add_epi32(t, _mm512_shuffle_epi32(t, _MM_PERM_BADC));
    return _mm512_castsi512_si256(_mm512_maskz_compress_epi32(0x3333, t));
}

// Four sums of 128 inputs, in order.
BITSWITCH_INLINE __m128i sums_of_128(const __m512i* s) {
    __m512i a = add_4(s);
    a = _mm512_add_epi32(a, _mm512_shuffle_epi32(a, _MM_PERM_BADC));
    a = _mm512_add_epi32(a, _mm512_shuffle_epi32(a, _MM_PERM_CDAB));
    return _mm512_castsi512_si128(_mm512_maskz_compress_epi32(0x1111, a));
}

BITSWITCH_INLINE void clear(__m512i* s) {
    for (int i = 0; i < 4; ++i) s[i] = _mm512_setzero_si512();
}

// Add the products of 512 weights with activations, or with ones, to four vectors of sums of 128 each.
BITSWITCH_INLINE void multiply(const uint8_t* x, const __m512i* w, __m512i* s) {
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) s[r / 2] = _mm512_dpbusd_epi32(s[r / 2], _mm512_loadu_si512(x + 64 * r), w[r]);
}

BITSWITCH_INLINE void add_up(const __m512i* w, __m512i* s) {
    const __m512i ones = _mm512_set1_epi8(1);
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) s[r / 2] = _mm512_dpbusd_epi32(s[r / 2], ones, w[r]);
}

// Sums of one chunk by units of Unit inputs: (x·w − zp·w) >> shift.
template <int Unit, bool Zp>
BITSWITCH_INLINE void store_units(const __m512i* dots, const __m512i* weights, int zp, int shift, int32_t* to) {
    if constexpr (Unit == 32) {
        __m512i y = sums_of_32(dots);
        if constexpr (Zp) y = _mm512_sub_epi32(y, _mm512_mullo_epi32(sums_of_32(weights), _mm512_set1_epi32(zp)));
        _mm512_storeu_si512(to, _mm512_sra_epi32(y, _mm_cvtsi32_si128(shift)));
    } else if constexpr (Unit == 64) {
        __m256i y = sums_of_64(dots);
        if constexpr (Zp) y = _mm256_sub_epi32(y, _mm256_mullo_epi32(sums_of_64(weights), _mm256_set1_epi32(zp)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_sra_epi32(y, _mm_cvtsi32_si128(shift)));
    } else {
        __m128i y = sums_of_128(dots);
        if constexpr (Zp) y = _mm_sub_epi32(y, _mm_mullo_epi32(sums_of_128(weights), _mm_set1_epi32(zp)));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_sra_epi32(y, _mm_cvtsi32_si128(shift)));
    }
}

template <bool Zp>
BITSWITCH_INLINE int32_t whole_sum(const __m512i* dots, const __m512i* weights, int zp, int shift) {
    __m512i y = add_4(dots);
    if constexpr (Zp) y = _mm512_sub_epi32(y, _mm512_mullo_epi32(add_4(weights), _mm512_set1_epi32(zp)));
    return _mm512_reduce_add_epi32(y) >> shift;
}

// Bits beyond K count as the lowest weight: of no consequence for products with activations, which are 0 there, but
// their sum comes with the zero point.
BITSWITCH_INLINE int32_t padding(const PlaneRows& rows) {
    int64_t end = rows.num_units * rows.unit;
    const int64_t read = (rows.K + kChunk - 1) / kChunk * kChunk;
    if (end > read) end = read;
    return static_cast<int32_t>(rows.zp * (end - rows.K) << (rows.bits - 1));
}

// One row of activations: weights go from the planes to the sums without leaving registers.
template <int L, bool R, int Unit, bool Zp>
void one_row(const PlaneRows& rows, int64_t n, int count, int32_t* sums) {
    const int32_t pad = Zp ? padding(rows) : 0;
    for (int i = 0; i < count; ++i, sums += rows.sum_stride) {
        const uint8_t* planes[8];
        for (int p = 0; p < num_planes(L, R); ++p) planes[p] = rows.planes[p] + (n + i) * rows.row_bytes;
        __m512i dots[4], weights[4], w[8];
        clear(dots);
        clear(weights);
        for (int64_t start = 0; start < rows.K; start += kChunk) {
            if constexpr (Unit == 0) {
                if (start > 0 && start % kPiece == 0) {
                    sums[start / kPiece - 1] = whole_sum<Zp>(dots, weights, rows.zp, 8 - L);
                    clear(dots);
                    clear(weights);
                }
            } else {
                clear(dots);
                clear(weights);
            }
            unpack<L, R>(planes, start / 8, mask_of(rows.K, start), w);
            multiply(rows.x + start, w, dots);
            if constexpr (Zp) add_up(w, weights);
            if constexpr (Unit != 0) store_units<Unit, Zp>(dots, weights, rows.zp, 8 - L, sums + start / Unit);
        }
        if constexpr (Unit == 0) sums[rows.num_units - 1] = whole_sum<Zp>(dots, weights, rows.zp, 8 - L);
        if constexpr (Zp) sums[rows.num_units - 1] -= pad;
    }
}

template <int L, bool R>
void unpack_tile(const PlaneRows& rows, int64_t n, int64_t start, int64_t chunks, __m512i (*w)[8]) {
    const uint8_t* planes[8];
    for (int p = 0; p < num_planes(L, R); ++p) planes[p] = rows.planes[p] + n * rows.row_bytes;
    for (int64_t c = 0; c < chunks; ++c)
        unpack<L, R>(planes, start / 8 + c * kChunkBytes, mask_of(rows.K, start + c * kChunk), w[c]);
}

// J rows of activations times the weights of one tile, of which `weights` are the sums by chunks and `total` by all.
template <int J, int Unit, bool Zp>
BITSWITCH_INLINE void multiply_rows(const PlaneRows& rows, int j, int64_t start, int64_t chunks, const __m512i (*w)[8],
                                    const __m512i (*weights)[4], const __m512i* total, int32_t* sums,
                                    int64_t row_stride) {
    const int shift = 8 - rows.bits;
    const uint8_t* x = rows.x + j * rows.x_stride + start;
    __m512i dots[J][4];
    for (int i = 0; i < J; ++i) clear(dots[i]);
    for (int64_t c = 0; c < chunks; ++c, x += kChunk) {
#pragma GCC unroll 8
        for (int r = 0; r < 8; ++r) {
            const __m512i weight = w[c][r];
#pragma GCC unroll 4
            for (int i = 0; i < J; ++i)
                dots[i][r / 2] = _mm512_dpbusd_epi32(
                    dots[i][r / 2], _mm512_loadu_si512(x + i * rows.x_stride + 64 * r), weight);
        }
        if constexpr (Unit != 0)
            for (int i = 0; i < J; ++i) {
                int32_t* to = sums + (j + i) * row_stride + (start + c * kChunk) / Unit;
                store_units<Unit, Zp>(dots[i], weights[c], rows.zp, shift, to);
                clear(dots[i]);
            }
    }
    if constexpr (Unit == 0)
        for (int i = 0; i < J; ++i)
            sums[(j + i) * row_stride + start / kPiece] += whole_sum<Zp>(dots[i], total, rows.zp, shift);
}

template <int Unit, bool Zp>
void multiply_tile(const PlaneRows& rows, int64_t start, int64_t chunks, const __m512i (*w)[8], int32_t* sums,
                   int64_t row_stride) {
    __m512i weights[kTile][4], total[4];
    clear(total);
    if constexpr (Zp)
        for (int64_t c = 0; c < chunks; ++c) {
            __m512i sum[4];
            clear(sum);
            add_up(w[c], sum);
            for (int f = 0; f < 4; ++f) {
                weights[c][f] = sum[f];
                total[f] = _mm512_add_epi32(total[f], sum[f]);
            }
        }
    int j = 0;
    for (; j + 4 <= rows.M; j += 4)
        multiply_rows<4, Unit, Zp>(rows, j, start, chunks, w, weights, total, sums, row_stride);
    if (j + 2 <= rows.M) {
        multiply_rows<2, Unit, Zp>(rows, j, start, chunks, w, weights, total, sums, row_stride);
        j += 2;
    }
    if (j < rows.M) multiply_rows<1, Unit, Zp>(rows, j, start, chunks, w, weights, total, sums, row_stride);
}

template <int Unit, bool Zp>
void several_rows(const PlaneRows& rows, int64_t n, int count, int32_t* sums) {
    using Unpack = void (*)(const PlaneRows&, int64_t, int64_t, int64_t, __m512i(*)[8]);
    static constexpr Unpack kUnpack[2][9] = {
        {nullptr, nullptr, unpack_tile<2, false>, unpack_tile<3, false>, unpack_tile<4, false>, unpack_tile<5, false>,
         unpack_tile<6, false>, unpack_tile<7, false>, unpack_tile<8, false>},
        {nullptr, nullptr, unpack_tile<2, true>, unpack_tile<3, true>, unpack_tile<4, true>, unpack_tile<5, true>,
         unpack_tile<6, true>, unpack_tile<7, true>, nullptr}};
    const Unpack unpack_rows = kUnpack[rows.rounded][rows.bits];
    const int64_t row_stride = count * rows.sum_stride;
    const int32_t pad = Zp ? padding(rows) : 0;
    __m512i w[kTile][8];
    for (int i = 0; i < count; ++i, sums += rows.sum_stride) {
        if constexpr (Unit == 0)
            for (int j = 0; j < rows.M; ++j)
                for (int64_t u = 0; u < rows.num_units; ++u) sums[j * row_stride + u] = 0;
        for (int64_t start = 0; start < rows.K; start += kTile * kChunk) {
            int64_t chunks = (rows.K - start + kChunk - 1) / kChunk;
            if (chunks > kTile) chunks = kTile;
            unpack_rows(rows, n + i, start, chunks, w);
            multiply_tile<Unit, Zp>(rows, start, chunks, w, sums, row_stride);
        }
        if constexpr (Zp)
            for (int j = 0; j < rows.M; ++j) sums[j * row_stride + rows.num_units - 1] -= pad;
    }
}

template <int Unit, bool Zp>
void dispatch(const PlaneRows& rows, int64_t n, int count, int32_t* sums) {
    static constexpr PlaneSums kOne[2][9] = {
        {nullptr, nullptr, one_row<2, false, Unit, Zp>, one_row<3, false, Unit, Zp>, one_row<4, false, Unit, Zp>,
         one_row<5, false, Unit, Zp>, one_row<6, false, Unit, Zp>, one_row<7, false, Unit, Zp>,
         one_row<8, false, Unit, Zp>},
        {nullptr, nullptr, one_row<2, true, Unit, Zp>, one_row<3, true, Unit, Zp>, one_row<4, true, Unit, Zp>,
         one_row<5, true, Unit, Zp>, one_row<6, true, Unit, Zp>, one_row<7, true, Unit, Zp>, nullptr}};
    if (rows.M == 1) return kOne[rows.rounded][rows.bits](rows, n, count, sums);
    several_rows<Unit, Zp>(rows, n, count, sums);
}

void sums_avx512(const PlaneRows& rows, int64_t n, int count, int32_t* sums) {
    if (rows.K == 0) return;
    static constexpr PlaneSums kDispatch[4][2] = {{dispatch<0, false>, dispatch<0, true>},
                                                  {dispatch<32, false>, dispatch<32, true>},
                                                  {dispatch<64, false>, dispatch<64, true>},
                                                  {dispatch<128, false>, dispatch<128, true>}};
    const int by_unit = rows.unit == kPiece ? 0 : rows.unit == 32 ? 1 : rows.unit == 64 ? 2 : 3;
    kDispatch[by_unit][rows.zp != 0](rows, n, count, sums);
}

}  // namespace

PlaneKernel plane_kernel_avx512() { return {sums_avx512, 4, false}; }

}  // namespace bitswitch
#endif
