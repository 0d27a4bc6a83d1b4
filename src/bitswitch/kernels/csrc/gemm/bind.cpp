#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "gemm/many.hpp"
#include "gemm/tiles.hpp"
#include "gemv/arguments.hpp"

namespace nb = nanobind;

namespace bitswitch {
namespace {

WeightPlanes bound_planes(const std::vector<uintptr_t>& addresses, int stored_bits, int bits, int64_t N, int64_t K,
                          int64_t row_bytes) {
    const uint8_t* planes[8] = {};
    set_planes(addresses, stored_bits, bits, planes);
    return weight_planes(planes, stored_bits, bits, N, K, row_bytes);
}

TileShape bound_shape(int64_t N, int64_t groups, int64_t channels, int64_t taps) {
    if (groups < 1 || N % groups) throw std::invalid_argument("groups do not divide the output channels");
    return {N, groups, channels, taps};
}

}  // namespace

void bind_gemm(nb::module_& module) {
    const nb::call_guard<nb::gil_scoped_release> unlocked;
    module.def(
        "tiles_bytes",
        [](int64_t N, int64_t groups, int64_t channels, int64_t taps) {
            return bound_shape(N, groups, channels, taps).bytes();
        },
        nb::arg("N"), nb::arg("groups"), nb::arg("channels"), nb::arg("taps"));
    module.def(
        "pack_tiles",
        [](const std::vector<uintptr_t>& planes, int stored_bits, int bits, int64_t N, int64_t groups,
           int64_t channels, int64_t taps, int64_t row_bytes, uintptr_t tiles, uintptr_t row_sums) {
            pack_tiles(bound_planes(planes, stored_bits, bits, N, channels * taps, row_bytes),
                       bound_shape(N, groups, channels, taps), pointer<int8_t>(tiles), pointer<int32_t>(row_sums));
        },
        nb::arg("planes"), nb::arg("stored_bits"), nb::arg("bits"), nb::arg("N"), nb::arg("groups"),
        nb::arg("channels"), nb::arg("taps"), nb::arg("row_bytes"), nb::arg("tiles"), nb::arg("row_sums"), unlocked);
    module.def(
        "unpack_codes",
        [](const std::vector<uintptr_t>& planes, int stored_bits, int bits, int64_t N, int64_t K, int64_t row_bytes,
           uintptr_t codes) {
            unpack_codes(bound_planes(planes, stored_bits, bits, N, K, row_bytes), pointer<int8_t>(codes));
        },
        nb::arg("planes"), nb::arg("stored_bits"), nb::arg("bits"), nb::arg("N"), nb::arg("K"), nb::arg("row_bytes"),
        nb::arg("codes"), unlocked);
    module.def(
        "linear_tiled",
        [](uintptr_t tiles, uintptr_t row_sums, int64_t N, int64_t K, uintptr_t m, uintptr_t b, uintptr_t x, int64_t M,
           int64_t x_stride, int zp, uintptr_t row_scale, uintptr_t out) {
            PlaneLinear linear = plane_linear(N, K, m, b, M, x_stride, zp);
            linear.x = pointer<const uint8_t>(x);
            linear.row_scale = pointer<const float>(row_scale);
            linear.out = pointer<float>(out);
            if (!takes_many(linear)) throw std::invalid_argument("no product of tiles for so many inputs");
            linear.tiles = pointer<const int8_t>(tiles);
            linear.row_sums = pointer<const int32_t>(row_sums);
            linear_many(linear);
        },
        nb::arg("tiles"), nb::arg("row_sums"), nb::arg("N"), nb::arg("K"), nb::arg("m"), nb::arg("b"),
        nb::arg("x_codes"), nb::arg("M"), nb::arg("x_stride"), nb::arg("zp"), nb::arg("row_scale"), nb::arg("out"),
        unlocked);
}

}  // namespace bitswitch
