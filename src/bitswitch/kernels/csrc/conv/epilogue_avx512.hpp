// The epilogue in AVX-512, included inside an anonymous namespace by files compiled for it: 64 channels of a pixel at
// once, in four vectors of 16 floats that leave as one vector of bytes.

// Operands in the order that keeps y where it equals a bound (−0 and 0 do).
inline __m512 between(__m512 y, __m512 low, __m512 high) { return _mm512_min_ps(high, _mm512_max_ps(low, y)); }

// The bits of the channels that are there, for vector v of 16.
inline __mmask16 lanes(int64_t count, int v) {
    const int64_t left = count - 16 * v;
    return left >= 16 ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
}

inline __mmask64 bytes(int64_t count) { return count >= 64 ? ~0ull : (1ull << count) - 1; }

// Codes of four vectors, interleaved by dwords within 128-bit lanes. 16-bit and then 8-bit numbers saturate, also from
// the least integer, which is what conversion makes of anything too low; too high a number must not come.
inline __m512i packed_codes(const __m512 (&y)[4], const Quantized& q, bool bounded) {
    const __m512 inverse = _mm512_set1_ps(q.inverse);
    __m512 scaled[4];
    for (int i = 0; i < 4; ++i) scaled[i] = _mm512_mul_ps(y[i], inverse);
    if (!bounded)
        for (int i = 0; i < 4; ++i) scaled[i] = _mm512_min_ps(_mm512_set1_ps(q.most), scaled[i]);
    __m512i v[4];
    for (int i = 0; i < 4; ++i) v[i] = _mm512_cvtps_epi32(scaled[i]);
    __m512i a = _mm512_packs_epi32(v[0], v[1]), b = _mm512_packs_epi32(v[2], v[3]);
    if (q.zero_point) {
        const __m512i zero_point = _mm512_set1_epi16(static_cast<int16_t>(q.zero_point));
        a = _mm512_adds_epi16(a, zero_point), b = _mm512_adds_epi16(b, zero_point);
    }
    __m512i codes = _mm512_packus_epi16(a, b);
    if (q.least_code > 0) codes = _mm512_max_epu8(codes, _mm512_set1_epi8(static_cast<char>(q.least_code)));
    if (q.most_code < 255) codes = _mm512_min_epu8(codes, _mm512_set1_epi8(static_cast<char>(q.most_code)));
    return codes;
}

// From [lane][vector] to [vector][lane] dwords.
inline __m512i in_order(__m512i codes) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, codes);
}

// Write 64 (or fewer) channels of one pixel: floats as they are, codes by their bounds.
struct Writer {
    const Epilogue& e;
    const Buffers& to;

    void codes(__m512i codes, int k, int64_t pixel, int64_t channel, __mmask64 mask) const {
        uint8_t* out = to.quantized[k] + pixel * e.quantized[k].stride + channel;
        if (mask == ~0ull) {
            _mm512_storeu_si512(out, codes);
        } else {
            _mm512_mask_storeu_epi8(out, mask, codes);
        }
    }

    void write(const __m512 (&y)[4], int64_t pixel, int64_t channel, int64_t count) const {
        const __mmask64 mask = bytes(count);
        if (e.write_float) {
            const __m512 lo = _mm512_set1_ps(e.lo), hi = _mm512_set1_ps(e.hi);
            float* out = to.out + pixel * e.channels + channel;
            if (mask == ~0ull) {
                for (int v = 0; v < 4; ++v) _mm512_storeu_ps(out + 16 * v, between(y[v], lo, hi));
            } else {
                for (int v = 0; v < 4; ++v)
                    _mm512_mask_storeu_ps(out + 16 * v, lanes(count, v), between(y[v], lo, hi));
            }
        }
        for (int k = 0; k < e.num_quantized; ++k)
            codes(in_order(packed_codes(y, e.quantized[k], e.bounded)), k, pixel, channel, mask);
    }
};

template <int V>
void add_residual(__m512 (&y)[4], const float* residual, int64_t count) {
    if (count == 16 * V) {  // a masked load costs an operation more
        for (int v = 0; v < V; ++v) y[v] = _mm512_add_ps(y[v], _mm512_loadu_ps(residual + 16 * v));
    } else {
        for (int v = 0; v < V; ++v)
            y[v] = _mm512_add_ps(y[v], _mm512_maskz_loadu_ps(lanes(count, v), residual + 16 * v));
    }
}

// V vectors of 16 channels are there; the rest of y stays zero.
template <int V>
void epilogue_rows(const Epilogue& e, const Buffers& to, const int32_t* acc, int64_t acc_stride, int rows,
                   int64_t pixel, int64_t channel, int64_t count) {
    const Writer writer{e, to};
    __m512 multiplier[V], bias[V], y[4] = {};
    for (int v = 0; v < V; ++v) {
        const int64_t at = channel + 16 * v;
        multiplier[v] = _mm512_loadu_ps(e.multiplier + at);
        bias[v] = _mm512_loadu_ps(e.bias + at);
    }
    for (int r = 0; r < rows; ++r, acc += acc_stride, ++pixel) {
        for (int v = 0; v < V; ++v) {
            const __m512i sum = _mm512_loadu_si512(acc + 16 * v);
            y[v] = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), multiplier[v]), bias[v]);
        }
        if (e.residual) {
            const float* residual = to.residual + pixel * e.channels + channel;
            // Strides of whole pixels are too long for the hardware to see; two calls ahead is in time.
            for (int v = 0; v < V; ++v) _mm_prefetch(residual + 2 * rows * e.channels + 16 * v, _MM_HINT_T0);
            add_residual<V>(y, residual, count);
        }
        writer.write(y, pixel, channel, count);
    }
}

void epilogue_avx512(const Epilogue& e, const Buffers& to, const int32_t* acc, int64_t acc_stride, int rows,
                     int64_t pixel, int64_t channel, int64_t count) {
    for (; count > 0; count -= 64, channel += 64, acc += 64) {
        const int64_t n = lesser(count, 64);
        const auto write = n > 48   ? epilogue_rows<4>
                           : n > 32 ? epilogue_rows<3>
                           : n > 16 ? epilogue_rows<2>
                                    : epilogue_rows<1>;
        write(e, to, acc, acc_stride, rows, pixel, channel, n);
    }
}
