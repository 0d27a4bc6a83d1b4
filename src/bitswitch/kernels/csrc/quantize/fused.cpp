#include "quantize/fused.hpp"

#include <algorithm>
#include <vector>

#include "cpu.hpp"
#include "parallel.hpp"
#include "quantize/grid.hpp"

namespace bitswitch::quantize {
namespace {

// A unit of work; sums are formed unit by unit and then in order, so they do not depend on the number of threads.
constexpr int64_t kUnit = 16384;

const Table& active_table() {
    const Table* table = nullptr;
    switch (active_isa()) {
        case Isa::avx512:
            table = table_avx512();
            break;
        case Isa::avx2:
            table = table_avx2();
            break;
        case Isa::neon:
        case Isa::scalar:
            break;
    }
    return table ? *table : *table_scalar();
}

Grid weight_grid(float scale, Widths w) {
    const float shift = static_cast<float>(int64_t{1} << (w.stored_bits - w.bits));
    const float low = -static_cast<float>(1 << (w.bits - 1)), low_stored = -static_cast<float>(1 << (w.stored_bits - 1));
    const Kind kind = w.stored_bits == w.bits ? (w.midrise ? stored_midrise : stored_weight)
                                              : (w.midrise ? lower_midrise : lower_weight);
    // Mid-rise codes are floors: the cell of the highest one ends at -low.
    const float inside_high = w.midrise ? -low : -low - 1.0f;
    return {kind, scale, scale * shift, 0.0f, low_stored, -low_stored - 1.0f, 1.0f / shift, low, inside_high};
}

Grid input_grid(float scale, const float* zero_point, float top) {
    return {zero_point ? signed_input : unsigned_input, scale, scale, zero_point ? *zero_point : 0.0f,
            0.0f, top, 1.0f, 0.0f, top};
}

int64_t units_of(const Rows& r) { return (r.length + kUnit - 1) / kUnit; }

// Call f(row, unit, first element, length) for every unit of every row, on all threads.
template <class F>
void for_units(const Rows& r, F f) {
    const int64_t units = units_of(r), all = r.rows * units;
    if (all == 0) return;
    const int64_t grain = std::max<int64_t>(1, kUnit / std::max<int64_t>(1, std::min(r.length, kUnit)));
    parallel_for(all, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t row = i / units, at = i % units * kUnit;
            f(row, i, row * r.length + at, std::min(kUnit, r.length - at));
        }
    });
}

const char* at(const void* p, int64_t index, int type) {
    return static_cast<const char*>(p) + index * (type == bfloat16 ? 2 : 4);
}
char* at(void* p, int64_t index, int type) { return static_cast<char*>(p) + index * (type == bfloat16 ? 2 : 4); }

template <class MakeGrid>
void forward(const void* x, void* out, const Rows& r, MakeGrid grid) {
    const Table& table = active_table();
    for_units(r, [&](int64_t row, int64_t, int64_t first, int64_t length) {
        const Grid g = grid(row);
        table.forward[g.kind][r.type][r.out_type](at(x, first, r.type), at(out, first, r.out_type), length, g);
    });
}

// Returns the sums of every unit.
template <class MakeGrid>
std::vector<Sums> backward(const void* x, const void* grad, void* grad_x, const Rows& r, MakeGrid grid) {
    const Table& table = active_table();
    std::vector<Sums> sums(static_cast<size_t>(r.rows * units_of(r)));
    for_units(r, [&](int64_t row, int64_t unit, int64_t first, int64_t length) {
        const Grid g = grid(row);
        Sums own;
        table.backward[g.kind][r.type][r.out_type](at(x, first, r.type), at(grad, first, r.out_type),
                                                   at(grad_x, first, r.type), length, g, own);
        sums[unit] = own;
    });
    return sums;
}

}  // namespace

void weight_forward(const void* weight, const float* scale, void* out, Rows r, Widths w) {
    forward(weight, out, r, [=](int64_t row) { return weight_grid(scale[row], w); });
}

void weight_backward(const void* weight, const float* scale, const void* grad, void* grad_weight, float* grad_scale,
                     Rows r, Widths w, double gain, bool log) {
    const std::vector<Sums> sums =
        backward(weight, grad, grad_weight, r, [=](int64_t row) { return weight_grid(scale[row], w); });
    // Ŵ = code · 2^Δ · s: a code counts 2^Δ times.
    gain *= static_cast<double>(int64_t{1} << (w.stored_bits - w.bits));
    const int64_t units = units_of(r);
    for (int64_t row = 0; row < r.rows; ++row) {
        double total = 0;
        for (int64_t i = 0; i < units; ++i) total += sums[row * units + i].scale;
        grad_scale[row] = static_cast<float>(total * gain * (log ? scale[row] : 1.0f));
    }
}

void input_forward(const void* x, const float* scale, const float* zero_point, void* out, int64_t count, int type,
                   int out_type, float top) {
    forward(x, out, {1, count, type, out_type}, [=](int64_t) { return input_grid(*scale, zero_point, top); });
}

void input_backward(const void* x, const float* scale, const float* zero_point, const void* grad, void* grad_x,
                    float* grad_scale, float* grad_zero_point, int64_t count, int type, int out_type, float top,
                    double gain, bool log) {
    const std::vector<Sums> sums = backward(x, grad, grad_x, {1, count, type, out_type},
                                            [=](int64_t) { return input_grid(*scale, zero_point, top); });
    Sums total;
    for (const Sums& part : sums) {
        total.scale += part.scale;
        total.outside += part.outside;
    }
    *grad_scale = static_cast<float>(total.scale * gain * (log ? *scale : 1.0f));
    if (zero_point) *grad_zero_point = static_cast<float>(-total.outside * *scale);
}

}  // namespace bitswitch::quantize
