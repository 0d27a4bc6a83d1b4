// Portable bodies, included inside an anonymous namespace of one file for each instruction set so that the compiler
// vectorizes them for it. No templates of the standard library: their instances would be shared between those files.

inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }
inline float clamped(float v, float lo, float hi) {
    v = v < lo ? lo : v;
    return v > hi ? hi : v;
}

// Round to nearest even what lies within ±2^22: the sum has no bits left for a fraction.
inline int32_t rounded(float v) {
    constexpr float magic = 12582912.0f;
    return static_cast<int32_t>((v + magic) - magic);
}

// Write `count` ≤ 64 values of one pixel from `channel` on.
inline void write_values(const Epilogue& e, const Buffers& to, const float* y, int64_t pixel, int64_t channel,
                         int64_t count) {
    if (e.write_float) {
        float* out = to.out + pixel * e.channels + channel;
        for (int64_t i = 0; i < count; ++i) out[i] = y[i];
    }
    for (int k = 0; k < e.num_quantized; ++k) {
        const Quantized q = e.quantized[k];
        uint8_t* out = to.quantized[k] + pixel * q.stride + channel;
        for (int64_t i = 0; i < count; ++i)
            out[i] = static_cast<uint8_t>(rounded(clamped(y[i] * q.inverse, q.low, q.high)) + q.zero_point);
    }
}

inline void plain_epilogue(const Epilogue& e, const Buffers& to, const int32_t* acc, int64_t acc_stride, int rows,
                    int64_t pixel, int64_t channel, int64_t count) {
    alignas(64) float y[64];
    for (int r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < count; c += 64) {
            const int64_t n = lesser(64, count - c);
            const int32_t* a = acc + r * acc_stride + c;
            const float* m = e.multiplier + channel + c;
            const float* b = e.bias + channel + c;
            for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(a[i]) * m[i] + b[i];
            if (e.residual) {
                const float* s = to.residual + (pixel + r) * e.channels + channel + c;
                for (int64_t i = 0; i < n; ++i) y[i] += s[i];
            }
            for (int64_t i = 0; i < n; ++i) y[i] = clamped(y[i], e.lo, e.hi);
            write_values(e, to, y, pixel + r, channel + c, n);
        }
    }
}

inline void plain_pointers(const Window& w, const uint8_t* x, const uint8_t* pad, int64_t pixel, int rows,
                    const uint8_t** a) {
    constexpr int kRows = kMaxTileRows + 8;
    alignas(64) int64_t offset[kRows], top[kRows], left[kRows];
    int64_t ow = pixel % w.out_w, oh = pixel / w.out_w % w.out_h, n = pixel / (w.out_w * w.out_h);
    for (int r = 0; r < rows; ++r) {
        top[r] = oh * w.stride_h - w.pad_top;
        left[r] = ow * w.stride_w - w.pad_left;
        offset[r] = ((n * w.height + top[r]) * w.width + left[r]) * w.pixel_stride;
        if (++ow == w.out_w) {
            ow = 0;
            if (++oh == w.out_h) oh = 0, ++n;
        }
    }
    const int padded = (rows + 7) / 8 * 8;
    for (int r = rows; r < padded; ++r) top[r] = left[r] = offset[r] = 0;
    const int64_t start = reinterpret_cast<int64_t>(x), outside = reinterpret_cast<int64_t>(pad);
    int64_t* to = reinterpret_cast<int64_t*>(a);
    for (int64_t i = 0; i < w.kh; ++i) {
        for (int64_t j = 0; j < w.kw; ++j, to += rows) {
            const int64_t dy = i * w.dilation_h, dx = j * w.dilation_w;
            const int64_t shift = start + (dy * w.width + dx) * w.pixel_stride;
            for (int r = 0; r < padded; ++r) {
                const int64_t y = top[r] + dy, z = left[r] + dx;
                // All ones where the tap lies outside: a negative number has its sign bit set.
                const int64_t mask = (y | (w.height - 1 - y) | z | (w.width - 1 - z)) >> 63;
                to[r] = (outside & mask) | ((offset[r] + shift) & ~mask);
            }
        }
    }
}

inline void plain_depthwise(const DepthwisePlan& plan, const uint8_t* x, const Buffers& to, int64_t begin,
                            int64_t end) {
    const Window& w = plan.window;
    const int64_t blocks = (plan.channels + kDepthwiseBlock - 1) / kDepthwiseBlock;
    const int64_t quads = w.kw * ((w.kh + 3) / 4), block_bytes = quads * 256 + w.kh * w.kw * kDepthwiseBlock;
    alignas(64) int32_t acc[kDepthwiseBlock];
    for (int64_t item = begin; item < end; ++item) {
        const int64_t block = item % blocks, row = item / blocks, oh = row % w.out_h, image = row / w.out_h;
        const int64_t channel = block * kDepthwiseBlock, count = lesser(kDepthwiseBlock, plan.channels - channel);
        const int8_t* weights = plan.weights + block * block_bytes + quads * 256;
        for (int64_t ow = 0; ow < w.out_w; ++ow) {
            for (int64_t c = 0; c < kDepthwiseBlock; ++c) acc[c] = plan.epilogue.start[channel + c];
            for (int64_t i = 0; i < w.kh; ++i) {
                const int64_t y = oh * w.stride_h - w.pad_top + i * w.dilation_h;
                for (int64_t j = 0; j < w.kw; ++j) {
                    const int64_t z = ow * w.stride_w - w.pad_left + j * w.dilation_w;
                    const bool inside = y >= 0 && y < w.height && z >= 0 && z < w.width;
                    const uint8_t* from =
                        inside ? x + ((image * w.height + y) * w.width + z) * w.pixel_stride + channel : plan.pad;
                    const int8_t* tap = weights + (i * w.kw + j) * kDepthwiseBlock;
                    // A product has at most 16 bits with its sign: 255 · −128.
                    for (int64_t c = 0; c < count; ++c)
                        acc[c] += static_cast<int16_t>(static_cast<int16_t>(from[c]) * static_cast<int16_t>(tap[c]));
                }
            }
            plain_epilogue(plan.epilogue, to, acc, kDepthwiseBlock, 1, row * w.out_w + ow, channel, count);
        }
    }
}

inline void plain_add(const Epilogue& e, const float* a, const float* b, const Buffers& to, int64_t begin,
                      int64_t end) {
    alignas(64) float y[64];
    for (int64_t pixel = begin; pixel < end; ++pixel) {
        for (int64_t c = 0; c < e.channels; c += 64) {
            const int64_t n = lesser(64, e.channels - c), at = pixel * e.channels + c;
            if (b) {
                for (int64_t i = 0; i < n; ++i) y[i] = clamped(a[at + i] + b[at + i], e.lo, e.hi);
            } else {
                for (int64_t i = 0; i < n; ++i) y[i] = clamped(a[at + i], e.lo, e.hi);
            }
            write_values(e, to, y, pixel, c, n);
        }
    }
}

inline void plain_max_pool(const Window& w, const Epilogue& e, const float* x, const Buffers& to, int64_t begin,
                           int64_t end) {
    alignas(64) float y[64];
    for (int64_t row = begin; row < end; ++row) {
        const int64_t oh = row % w.out_h, image = row / w.out_h, top = oh * w.stride_h - w.pad_top;
        for (int64_t ow = 0; ow < w.out_w; ++ow) {
            const int64_t left = ow * w.stride_w - w.pad_left;
            for (int64_t c = 0; c < e.channels; c += 64) {
                const int64_t n = lesser(64, e.channels - c);
                for (int64_t i = 0; i < 64; ++i) y[i] = -__builtin_huge_valf();
                for (int64_t i = 0; i < w.kh; ++i) {
                    const int64_t v = top + i * w.dilation_h;
                    if (v < 0 || v >= w.height) continue;
                    for (int64_t j = 0; j < w.kw; ++j) {
                        const int64_t z = left + j * w.dilation_w;
                        if (z < 0 || z >= w.width) continue;
                        const float* from = x + ((image * w.height + v) * w.width + z) * w.pixel_stride + c;
                        if (n == 64) {
                            for (int k = 0; k < 64; ++k) y[k] = from[k] > y[k] ? from[k] : y[k];
                        } else {
                            for (int64_t k = 0; k < n; ++k) y[k] = from[k] > y[k] ? from[k] : y[k];
                        }
                    }
                }
                for (int64_t i = 0; i < n; ++i) y[i] = clamped(y[i], e.lo, e.hi);
                write_values(e, to, y, row * w.out_w + ow, c, n);
            }
        }
    }
}

inline void plain_mean_pool(const Epilogue& e, const float* x, int64_t pixels, const Buffers& to, int64_t begin,
                            int64_t end) {
    alignas(64) float y[64];
    for (int64_t image = begin; image < end; ++image) {
        for (int64_t c = 0; c < e.channels; c += 64) {
            const int64_t n = lesser(64, e.channels - c);
            for (int64_t i = 0; i < n; ++i) y[i] = 0.0f;
            for (int64_t p = 0; p < pixels; ++p) {
                const float* from = x + (image * pixels + p) * e.channels + c;
                for (int64_t i = 0; i < n; ++i) y[i] += from[i];
            }
            for (int64_t i = 0; i < n; ++i) y[i] = clamped(y[i] / static_cast<float>(pixels), e.lo, e.hi);
            write_values(e, to, y, image, c, n);
        }
    }
}

inline uint8_t quantized_value(const QuantizePlan& plan, float v) {
    return static_cast<uint8_t>(rounded(clamped(v / plan.scale, plan.low, plan.high)) + plan.zero_point);
}

// Pixels of one image, no more than 64.
inline void quantize_planar(const QuantizePlan& plan, const float* x, uint8_t* out, int64_t count) {
    alignas(64) uint8_t codes[4][64];
    for (int64_t c = 0; c < plan.out_stride; c += 4) {
        const int64_t n = lesser(4, plan.channels - c);
        for (int64_t k = 0; k < 4; ++k) {
            const float* from = x + (c + (k < n ? k : 0)) * plan.pixels;
            for (int64_t i = 0; i < count; ++i) codes[k][i] = quantized_value(plan, from[i]);
        }
        for (int64_t i = 0; i < count; ++i) {
            uint8_t* to = out + i * plan.out_stride + c;
            to[0] = codes[0][i], to[1] = codes[1][i], to[2] = codes[2][i], to[3] = codes[3][i];
        }
    }
}

inline void plain_quantize(const QuantizePlan& plan, const float* x, uint8_t* out, int64_t begin, int64_t end) {
    if (plan.channels_last) {
        for (int64_t pixel = begin; pixel < end; ++pixel) {
            const float* from = x + pixel * plan.channels;
            uint8_t* to = out + pixel * plan.out_stride;
            for (int64_t c = 0; c < plan.channels; ++c) to[c] = quantized_value(plan, from[c]);
        }
        return;
    }
    for (int64_t pixel = begin; pixel < end;) {
        const int64_t image = pixel / plan.pixels, within = pixel % plan.pixels;
        const int64_t count = lesser(lesser(64, end - pixel), plan.pixels - within);
        quantize_planar(plan, x + image * plan.channels * plan.pixels + within, out + pixel * plan.out_stride, count);
        pixel += count;
    }
}
