// Pools and elementwise kernels in AVX-512, included inside an anonymous namespace by a file compiled for it.

void add_avx512(const Epilogue& e, const float* a, const float* b, const Buffers& to, int64_t begin, int64_t end) {
    const Writer writer{e, to};
    for (int64_t pixel = begin; pixel < end; ++pixel) {
        for (int64_t c = 0; c < e.channels; c += 64) {
            const int64_t n = lesser(64, e.channels - c), at = pixel * e.channels + c;
            __m512 y[4];
            for (int v = 0; v < 4; ++v) y[v] = _mm512_maskz_loadu_ps(lanes(n, v), a + at + 16 * v);
            if (b) add_residual<4>(y, b + at, n);
            writer.write(y, pixel, c, n);
        }
    }
}

void max_pool_avx512(const Window& w, const Epilogue& e, const float* x, const Buffers& to, int64_t begin,
                     int64_t end) {
    const Writer writer{e, to};
    for (int64_t row = begin; row < end; ++row) {
        const int64_t oh = row % w.out_h, image = row / w.out_h, top = oh * w.stride_h - w.pad_top;
        for (int64_t ow = 0; ow < w.out_w; ++ow) {
            const int64_t left = ow * w.stride_w - w.pad_left;
            for (int64_t c = 0; c < e.channels; c += 64) {
                const int64_t n = lesser(64, e.channels - c);
                const __mmask16 masks[4] = {lanes(n, 0), lanes(n, 1), lanes(n, 2), lanes(n, 3)};
                __m512 y[4];
                for (int v = 0; v < 4; ++v) y[v] = _mm512_set1_ps(-__builtin_huge_valf());
                for (int64_t i = 0; i < w.kh; ++i) {
                    const int64_t t = top + i * w.dilation_h;
                    if (t < 0 || t >= w.height) continue;
                    for (int64_t j = 0; j < w.kw; ++j) {
                        const int64_t z = left + j * w.dilation_w;
                        if (z < 0 || z >= w.width) continue;
                        const float* from = x + ((image * w.height + t) * w.width + z) * w.pixel_stride + c;
                        // The later of equal values stays as it is: −0 and 0 are equal.
                        for (int v = 0; v < 4; ++v)
                            y[v] = _mm512_max_ps(_mm512_maskz_loadu_ps(masks[v], from + 16 * v), y[v]);
                    }
                }
                writer.write(y, row * w.out_w + ow, c, n);
            }
        }
    }
}
