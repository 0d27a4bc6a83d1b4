// What surrounds the inner kernels: arrangement of the activations, division of work, and the affine map out.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "gemm/many.hpp"
#include "gemv/gemv.hpp"
#include "parallel.hpp"

namespace bitswitch {
namespace {

// Rows of the weight whose sums are kept before they are mapped out.
constexpr int kBlock = 8;
// From so many rows on, a weight is unpacked to panels rather than multiplied straight from its planes.
constexpr int64_t kFewRows = 8;
// Bytes of planes that make it worth waking another thread.
constexpr int64_t kThreadBytes = 16384;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

PlaneKernel choose(int64_t unit) {
    PlaneKernel kernel = plane_kernel_scalar();
#if defined(__x86_64__)
    if (active_isa() == Isa::avx512) kernel = plane_kernel_avx512();
    if (active_isa() == Isa::avx2) kernel = plane_kernel_avx2();
#elif defined(__aarch64__)
    if (active_isa() == Isa::neon) kernel = plane_kernel_neon();
#endif
    if (!kernel.any_unit && unit % 32 != 0) return plane_kernel_scalar();
    return kernel;
}

// Copy K codes into the order of the kernel, zero-padded to whole vectors.
void arrange(const uint8_t* x, int64_t K, int lanes, uint8_t* out) {
    const int64_t chunk = 128 * lanes;
    for (int64_t start = 0; start < K; start += chunk)
        for (int q = 0; q < lanes; ++q)
            for (int r = 0; r < 8; ++r) {
                uint8_t* to = out + start + 16 * (r * lanes + q);
                const int64_t from = start + 128 * q + 16 * r;
                const int64_t left = std::clamp<int64_t>(K - from, 0, 16);
                if (left == 16) {
                    std::memcpy(to, x + from, 16);
                } else {
                    std::memset(to, 0, 16);
                    if (left > 0) std::memcpy(to, x + from, left);
                }
            }
}

// Add the sums of the units of each group, in place; whether int32 holds them follows from the size of a group.
void join_units(int32_t* sums, int64_t num_units, int64_t per_group, int64_t groups) {
    for (int64_t g = 0; g < groups; ++g) {
        const int64_t end = std::min(num_units, (g + 1) * per_group);
        int32_t total = 0;
        for (int64_t u = g * per_group; u < end; ++u) total += sums[u];
        sums[g] = total;
    }
}

// Multipliers times sums that need more than 32 bits, or whose units are not joined.
float add_long_groups(const int32_t* sums, int64_t num_units, int64_t per_group, const float* m, int64_t groups) {
    float y = 0.0f;
    for (int64_t g = 0; g < groups; ++g) {
        int64_t total = 0;
        const int64_t end = std::min(num_units, (g + 1) * per_group);
        for (int64_t u = g * per_group; u < end; ++u) total += sums[u];
        const float product = static_cast<float>(total) * m[g];
        y = y + product;
    }
    return y;
}

// y[i] = Σ_g float(sum of group g)·m[i, g] for `count` rows of the weight, groups in order.
void add_groups(const PlaneLinear& a, const PlaneRows& rows, int count, int32_t* sums, const float* m, int64_t groups,
                float* y) {
    const int64_t per_group = a.group_size ? a.group_size / rows.unit : std::max<int64_t>(rows.num_units, 1);
    const bool fits = per_group * rows.unit <= kPiece;
    if (!fits) {
        for (int i = 0; i < count; ++i)
            y[i] = add_long_groups(sums + i * rows.sum_stride, rows.num_units, per_group, m + i * groups, groups);
        return;
    }
    if (per_group > 1)
        for (int i = 0; i < count; ++i) join_units(sums + i * rows.sum_stride, rows.num_units, per_group, groups);
#if defined(__x86_64__)
    if (count == kBlock && groups >= 8 && active_isa() >= Isa::avx2)
        return add_groups_avx2(sums, rows.sum_stride, m, groups, y);
#endif
    for (int i = 0; i < count; ++i) y[i] = 0.0f;
    if (rows.num_units == 0) return;
    for (int64_t g = 0; g < groups; ++g)
        for (int i = 0; i < count; ++i) {
            const float product = static_cast<float>(sums[i * rows.sum_stride + g]) * m[i * groups + g];
            y[i] = y[i] + product;
        }
}

// Map the sums of `count` rows of the weight and M rows of activations out.
void map_out(const PlaneLinear& a, const PlaneRows& rows, int64_t n, int count, int64_t row, int32_t* sums,
             int64_t groups) {
    for (int j = 0; j < rows.M; ++j) {
        float y[kBlock];
        add_groups(a, rows, count, sums + j * count * rows.sum_stride, a.m + n * groups, groups, y);
        float* out = a.out + (row + j) * a.N + n;
        for (int i = 0; i < count; ++i) {
            float value = y[i];
            if (a.row_scale) value = value * a.row_scale[row + j];
            if (a.b) value = value + a.b[n + i];
            out[i] = value;
        }
    }
}

int64_t unit_of(const PlaneLinear& a) {
    if (a.group_size == 0) return kPiece;
    for (int64_t unit : {128, 64, 32})
        if (a.group_size % unit == 0) return unit;
    // Any other size is summed as it is, by the scalar kernel, if an int32 holds the sum, and else one by one.
    return a.group_size <= kPiece ? a.group_size : 1;
}

}  // namespace

void linear_planes(const PlaneLinear& a) {
    if (a.bits < 2 || a.bits > a.stored_bits || a.stored_bits > 8) throw std::invalid_argument("no such width");
    if (a.M <= 0 || a.N <= 0) return;
    if (a.M > kFewRows && takes_many(a)) return linear_many(a);
    const int64_t unit = unit_of(a);
    const PlaneKernel kernel = choose(unit);
    const int64_t groups = a.group_size ? ceil_div(a.K, a.group_size) : 1;
    // A cache line more than the codes: rows at a distance of a power of two would share cache sets.
    const int64_t padded = ceil_div(a.K, 128 * kernel.lanes) * 128 * kernel.lanes + 64;

    PlaneRows rows{};
    std::copy(a.planes, a.planes + 8, rows.planes);
    rows.bits = a.bits;
    rows.rounded = a.bits < a.stored_bits;
    rows.K = a.K;
    rows.row_bytes = a.row_bytes;
    rows.x_stride = padded;
    rows.zp = a.zp;
    rows.unit = unit;
    rows.num_units = ceil_div(a.K, unit);
    rows.sum_stride = ceil_div(std::max<int64_t>(rows.num_units, 1), 16) * 16;

    const int64_t most = std::min<int64_t>(a.M, kMaxRows);
    const int64_t row_work = a.K * (a.bits + rows.rounded) / 8 + 1;
    const int64_t blocks = ceil_div(a.N, kBlock);
    const int64_t useful = std::max<int64_t>(1, a.N * row_work / kThreadBytes);
    const int wanted = static_cast<int>(std::min<int64_t>({blocks, useful, max_threads()}));
    const int64_t num_sums = most * kBlock * rows.sum_stride;
    std::vector<uint8_t> codes(most * padded + 64);
    std::vector<int32_t> sums(wanted * num_sums);
    // Vectors of activations start at cache lines.
    uint8_t* const x = codes.data() + (-reinterpret_cast<uintptr_t>(codes.data()) & 63);
    rows.x = x;
    for (int64_t row = 0; row < a.M; row += kMaxRows) {
        rows.M = static_cast<int>(std::min<int64_t>(kMaxRows, a.M - row));
        for (int j = 0; j < rows.M; ++j) arrange(a.x + (row + j) * a.x_stride, a.K, kernel.lanes, x + j * padded);
        on_threads(wanted, [&](int thread, int num_threads) {
            int32_t* const own = sums.data() + thread * num_sums;
            const int64_t end = blocks * (thread + 1) / num_threads;
            for (int64_t block = blocks * thread / num_threads; block < end; ++block) {
                const int64_t n = block * kBlock;
                const int count = static_cast<int>(std::min<int64_t>(kBlock, a.N - n));
                kernel.sums(rows, n, count, own);
                map_out(a, rows, n, count, row, own, groups);
            }
        });
    }
}

}  // namespace bitswitch
