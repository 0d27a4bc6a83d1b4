// Depthwise convolutions in AVX-512 VNNI, included inside an anonymous namespace by a file compiled for it. Four rows
// of a column of the window, interleaved byte by byte, are what one multiplication adds up; 64 channels at a time.

// The bytes of 64 channels in four rows of one column, as four vectors of [lane][channel][row].
struct Column {
    __m512i v[4];
};

inline Column interleaved(__m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i low = _mm512_unpacklo_epi8(a, b), high = _mm512_unpackhi_epi8(a, b);
    const __m512i low2 = _mm512_unpacklo_epi8(c, d), high2 = _mm512_unpackhi_epi8(c, d);
    return {{_mm512_unpacklo_epi16(low, low2), _mm512_unpackhi_epi16(low, low2), _mm512_unpacklo_epi16(high, high2),
             _mm512_unpackhi_epi16(high, high2)}};
}

// Four rows of the input under a window; a row outside of the image is a row of zero points that stays in place.
struct Rows {
    const uint8_t* start[4];
    int64_t step[4];
    __mmask64 mask;

    Rows(const DepthwisePlan& plan, const uint8_t* x, int64_t image, int64_t top, int64_t first, int64_t channel,
         __mmask64 channels)
        : mask(channels) {
        const Window& w = plan.window;
        for (int i = 0; i < 4; ++i) {
            const int64_t y = top + (first + i) * w.dilation_h;
            // Rows beyond the window meet weights of zero; they may be any.
            const bool inside = first + i < w.kh && y >= 0 && y < w.height;
            start[i] = inside ? x + (image * w.height + y) * w.width * w.pixel_stride + channel : plan.pad;
            step[i] = inside ? w.pixel_stride : 0;
        }
    }

    template <bool kPartial>
    __m512i bytes(int i, int64_t z) const {
        const uint8_t* from = start[i] + z * step[i];
        return kPartial ? _mm512_maskz_loadu_epi8(mask, from) : _mm512_loadu_si512(from);
    }

    template <bool kPartial>
    Column column(int64_t z) const {
        return interleaved(bytes<kPartial>(0, z), bytes<kPartial>(1, z), bytes<kPartial>(2, z), bytes<kPartial>(3, z));
    }
};

// One block of 64 channels of an output row.
struct DepthwiseRow {
    const DepthwisePlan& plan;
    const Writer& writer;
    const uint8_t* x;
    const int8_t* weights;  // [column of taps][four of its rows][4][64]
    int64_t image, top, pixel, channel, count;

    void start(__m512i (&acc)[4]) const {
        for (int v = 0; v < 4; ++v)
            acc[v] = _mm512_loadu_si512(plan.shuffled_start + channel + 16 * v);
    }

    static void add(__m512i (&acc)[4], const Column& column, const int8_t* w) {
        for (int v = 0; v < 4; ++v) acc[v] = _mm512_dpbusd_epi32(acc[v], column.v[v], _mm512_loadu_si512(w + 64 * v));
    }

    void finish(const __m512i (&acc)[4], int64_t ow) const {
        __m512 y[4];
        for (int v = 0; v < 4; ++v) {
            const int64_t at = channel + 16 * v;
            const __m512 scaled =
                _mm512_mul_ps(_mm512_cvtepi32_ps(acc[v]), _mm512_loadu_ps(plan.shuffled_multiplier + at));
            y[v] = _mm512_add_ps(scaled, _mm512_loadu_ps(plan.shuffled_bias + at));
        }
        const Epilogue& e = plan.epilogue;
        if (!e.residual && !e.write_float) {
            // Packing undoes the interleaving.
            for (int k = 0; k < e.num_quantized; ++k)
                writer.codes(packed_codes(y, e.quantized[k], e.bounded), k, pixel + ow, channel, bytes(count));
            return;
        }
        const __m512 a = _mm512_shuffle_f32x4(y[0], y[1], 0x44), b = _mm512_shuffle_f32x4(y[0], y[1], 0xee);
        const __m512 c = _mm512_shuffle_f32x4(y[2], y[3], 0x44), d = _mm512_shuffle_f32x4(y[2], y[3], 0xee);
        y[0] = _mm512_shuffle_f32x4(a, c, 0x88), y[1] = _mm512_shuffle_f32x4(a, c, 0xdd);
        y[2] = _mm512_shuffle_f32x4(b, d, 0x88), y[3] = _mm512_shuffle_f32x4(b, d, 0xdd);
        if (e.residual) add_residual<4>(y, writer.to.residual + (pixel + ow) * e.channels + channel, count);
        writer.write(y, pixel + ow, channel, count);
    }

    // Every column of the input is interleaved once and added to the three outputs that see it.
    template <bool kPartial>
    void sliding() const {
        const Window& w = plan.window;
        const Rows rows(plan, x, image, top, 0, channel, bytes(count));
        const __m512i pad = _mm512_set1_epi8(static_cast<char>(plan.pad[0]));
        const Column outside{{pad, pad, pad, pad}};
        __m512i oldest[4], middle[4], newest[4];
        start(oldest), start(middle);
        for (int64_t i = 0; i < w.out_w + 2; ++i) {
            const int64_t z = i - w.pad_left;
            const Column column = z >= 0 && z < w.width ? rows.column<kPartial>(z) : outside;
            start(newest);
            add(oldest, column, weights + 512), add(middle, column, weights + 256), add(newest, column, weights);
            if (i >= 2) finish(oldest, i - 2);
            for (int v = 0; v < 4; ++v) oldest[v] = middle[v], middle[v] = newest[v];
        }
    }

    template <bool kPartial>
    void any() const {
        const Window& w = plan.window;
        const int64_t quads = (w.kh + 3) / 4;
        const __m512i pad = _mm512_set1_epi8(static_cast<char>(plan.pad[0]));
        const Column outside{{pad, pad, pad, pad}};
        __m512i acc[kStrip][4];
        for (int64_t first = 0; first < w.out_w; first += kStrip) {
            const int64_t strip = lesser(kStrip, w.out_w - first);
            for (int64_t s = 0; s < strip; ++s) start(acc[s]);
            for (int64_t q = 0; q < quads; ++q) {
                const Rows rows(plan, x, image, top, 4 * q, channel, bytes(count));
                for (int64_t s = 0; s < strip; ++s) {
                    for (int64_t j = 0; j < w.kw; ++j) {
                        const int64_t z = (first + s) * w.stride_w - w.pad_left + j * w.dilation_w;
                        const Column column = z >= 0 && z < w.width ? rows.column<kPartial>(z) : outside;
                        add(acc[s], column, weights + (j * quads + q) * 256);
                    }
                }
            }
            for (int64_t s = 0; s < strip; ++s) finish(acc[s], first + s);
        }
    }

    static constexpr int64_t kStrip = 8;
};

void depthwise_avx512(const DepthwisePlan& plan, const uint8_t* x, const Buffers& to, int64_t begin, int64_t end) {
    const Window& w = plan.window;
    const Writer writer{plan.epilogue, to};
    const int64_t blocks = (plan.channels + kDepthwiseBlock - 1) / kDepthwiseBlock;
    const int64_t block_bytes = w.kw * ((w.kh + 3) / 4) * 256 + w.kh * w.kw * kDepthwiseBlock;
    const bool slides = w.kw == 3 && w.kh <= 4 && w.stride_w == 1 && w.dilation_w == 1;
    for (int64_t item = begin; item < end; ++item) {
        const int64_t block = item % blocks, row = item / blocks, channel = block * kDepthwiseBlock;
        const DepthwiseRow one{plan,
                               writer,
                               x,
                               plan.weights + block * block_bytes,
                               row / w.out_h,
                               row % w.out_h * w.stride_h - w.pad_top,
                               row * w.out_w,
                               channel,
                               lesser(kDepthwiseBlock, plan.channels - channel)};
        if (one.count == kDepthwiseBlock) {
            slides ? one.sliding<false>() : one.any<false>();
        } else {
            slides ? one.sliding<true>() : one.any<true>();
        }
    }
}
