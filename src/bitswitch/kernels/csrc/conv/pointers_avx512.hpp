// Where the taps of pixels lie, in AVX-512, included inside an anonymous namespace by a file compiled for it.

// Positions are whole numbers below 2^53 in doubles: quotients then need no division.
struct Positions {
    __m512d top, left, offset;  // of the window's first tap; offset in bytes from the input
};

constexpr int kMostColumns = 16;  // of a window

inline Positions positions(const Window& w, int64_t pixel) {
    const __m512d iota = _mm512_setr_pd(0, 1, 2, 3, 4, 5, 6, 7), half = _mm512_set1_pd(0.5);
    const __m512d out_w = _mm512_set1_pd(static_cast<double>(w.out_w));
    const __m512d out_h = _mm512_set1_pd(static_cast<double>(w.out_h));
    const __m512d pixels = _mm512_add_pd(_mm512_set1_pd(static_cast<double>(pixel)), iota);
    // The half keeps the product away from whole numbers by much more than the rounding of the reciprocal.
    const auto quotient = [&](__m512d a, double reciprocal) {
        return _mm512_floor_pd(_mm512_mul_pd(_mm512_add_pd(a, half), _mm512_set1_pd(reciprocal)));
    };
    const auto minus_product = [](__m512d a, __m512d b, __m512d c) { return _mm512_sub_pd(a, _mm512_mul_pd(b, c)); };
    const auto scaled = [](__m512d a, int64_t b, int64_t c) {
        return _mm512_add_pd(_mm512_mul_pd(a, _mm512_set1_pd(static_cast<double>(b))),
                             _mm512_set1_pd(static_cast<double>(c)));
    };
    const __m512d row = quotient(pixels, 1.0 / static_cast<double>(w.out_w));
    const __m512d image = quotient(row, 1.0 / static_cast<double>(w.out_h));
    const __m512d left = scaled(minus_product(pixels, row, out_w), w.stride_w, -w.pad_left);
    const __m512d top = scaled(minus_product(row, image, out_h), w.stride_h, -w.pad_top);
    const __m512d line = _mm512_add_pd(_mm512_mul_pd(image, _mm512_set1_pd(static_cast<double>(w.height))), top);
    const __m512d place = _mm512_add_pd(_mm512_mul_pd(line, _mm512_set1_pd(static_cast<double>(w.width))), left);
    return {top, left, scaled(place, w.pixel_stride, 0)};
}

// The lanes whose coordinate plus `shift` is within 0 … size − 1.
inline __mmask8 within(__m512d coordinate, int64_t shift, int64_t size) {
    return _mm512_cmp_pd_mask(coordinate, _mm512_set1_pd(static_cast<double>(-shift)), _CMP_GE_OQ) &
           _mm512_cmp_pd_mask(coordinate, _mm512_set1_pd(static_cast<double>(size - shift)), _CMP_LT_OQ);
}

// V vectors of eight rows. Those of a tap are written before those of the next, as the last may write too many.
template <int V>
void pointers_of(const Window& w, const uint8_t* x, const uint8_t* pad, int64_t pixel, int rows, const uint8_t** a) {
    const __m512i outside = _mm512_set1_epi64(reinterpret_cast<int64_t>(pad));
    Positions at[V];
    __m512i start[V];
    __mmask8 columns[kMostColumns][V];
    for (int v = 0; v < V; ++v) {
        at[v] = positions(w, pixel + 8 * v);
        start[v] = _mm512_add_epi64(_mm512_cvtpd_epi64(at[v].offset), _mm512_set1_epi64(reinterpret_cast<int64_t>(x)));
        for (int64_t j = 0; j < w.kw; ++j) columns[j][v] = within(at[v].left, j * w.dilation_w, w.width);
    }
    for (int64_t i = 0; i < w.kh; ++i) {
        __mmask8 line[V];
        for (int v = 0; v < V; ++v) line[v] = within(at[v].top, i * w.dilation_h, w.height);
        int64_t shift = i * w.dilation_h * w.width * w.pixel_stride;
        for (int64_t j = 0; j < w.kw; ++j, a += rows, shift += w.dilation_w * w.pixel_stride)
            for (int v = 0; v < V; ++v)
                _mm512_storeu_si512(a + 8 * v, _mm512_mask_add_epi64(outside, line[v] & columns[j][v], start[v],
                                                                     _mm512_set1_epi64(shift)));
    }
}

void pointers_avx512(const Window& w, const uint8_t* x, const uint8_t* pad, int64_t pixel, int rows,
                     const uint8_t** a) {
    const bool pixel_by_pixel = w.kh == 1 && w.kw == 1 && w.out_h == w.height && w.out_w == w.width &&
                                w.stride_h == 1 && w.stride_w == 1 && w.pad_top == 0 && w.pad_left == 0;
    if (pixel_by_pixel) {
        for (int r = 0; r < rows; ++r) a[r] = x + (pixel + r) * w.pixel_stride;
    } else if (rows > 16 || w.kw > kMostColumns) {
        plain_pointers(w, x, pad, pixel, rows, a);
    } else {
        rows > 8 ? pointers_of<2>(w, x, pad, pixel, rows, a) : pointers_of<1>(w, x, pad, pixel, rows, a);
    }
}
