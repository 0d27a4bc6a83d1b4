// The fused quantizers without any instruction set in particular; also what runs on ARM, where compilers vectorize it.
#include <cmath>
#include <cstring>

#include "quantize/grid.hpp"

namespace {

struct M {
    bool v[16];
};

struct V {
    float v[16];

    static V all(float x) {
        V r;
        for (float& e : r.v) e = x;
        return r;
    }
    static V load(const float* p) {
        V r;
        std::memcpy(r.v, p, sizeof r.v);
        return r;
    }
    static V load(const uint16_t* p) {
        V r;
        for (int i = 0; i < 16; ++i) {
            const uint32_t bits = static_cast<uint32_t>(p[i]) << 16;
            std::memcpy(&r.v[i], &bits, 4);
        }
        return r;
    }
    void store(float* p) const { std::memcpy(p, v, sizeof v); }
    void store(uint16_t* p) const {
        for (int i = 0; i < 16; ++i) {
            uint32_t bits;
            std::memcpy(&bits, &v[i], 4);
            p[i] = v[i] != v[i] ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
        }
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

template <class F>
inline V map(V a, V b, F f) {
    V r;
    for (int i = 0; i < 16; ++i) r.v[i] = f(a.v[i], b.v[i]);
    return r;
}

inline V operator+(V a, V b) { return map(a, b, [](float x, float y) { return x + y; }); }
inline V operator-(V a, V b) { return map(a, b, [](float x, float y) { return x - y; }); }
inline V operator*(V a, V b) { return map(a, b, [](float x, float y) { return x * y; }); }
inline V operator/(V a, V b) { return map(a, b, [](float x, float y) { return x / y; }); }
inline V min(V a, V b) { return map(a, b, [](float x, float y) { return x < y ? x : y; }); }
inline V max(V a, V b) { return map(a, b, [](float x, float y) { return x > y ? x : y; }); }

// Adding and taking away 2^23 leaves the nearest integer, ties to even; larger numbers are integers already.
inline float round_even(float x) {
    const float size = std::fabs(x);
    return size < 8388608.0f ? std::copysign((size + 8388608.0f) - 8388608.0f, x) : x;
}
inline V round_even(V a) { return map(a, a, [](float x, float) { return round_even(x); }); }
inline V floor(V a) {
    return map(a, a, [](float x, float) {
        const float r = round_even(x);
        return r > x ? r - 1.0f : r;
    });
}

inline M operator<(V a, V b) {
    M r;
    for (int i = 0; i < 16; ++i) r.v[i] = a.v[i] < b.v[i];
    return r;
}
inline M operator&(M a, M b) {
    for (int i = 0; i < 16; ++i) a.v[i] = a.v[i] && b.v[i];
    return a;
}
inline V keep(M m, V a) {
    for (int i = 0; i < 16; ++i) a.v[i] = m.v[i] ? a.v[i] : 0.0f;
    return a;
}

struct Lanes64 {
    double v[16] = {};
    void add(V a) {
        for (int i = 0; i < 16; ++i) v[i] += a.v[i];
    }
    double sum() const {
        double total = 0;
        for (double e : v) total += e;
        return total;
    }
};

#include "quantize/spans.inc"

}  // namespace

namespace bitswitch::quantize {

const Table* table_scalar() {
    static const Table table = make_table();
    return &table;
}

}  // namespace bitswitch::quantize
