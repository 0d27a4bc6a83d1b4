#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include "gemv/arguments.hpp"
#include "gemv/bandwidth.hpp"
#include "gemv/quantize.hpp"

namespace nb = nanobind;

namespace bitswitch {
namespace {

void bound_linear_planes(const std::vector<uintptr_t>& planes, int stored_bits, int bits, int64_t N, int64_t K,
                         int64_t row_bytes, int64_t group_size, uintptr_t m, uintptr_t b, uintptr_t x, int64_t M,
                         int64_t x_stride, int zp, uintptr_t row_scale, uintptr_t out) {
    PlaneLinear linear = plane_linear(N, K, m, b, M, x_stride, zp);
    set_weight(linear, planes, stored_bits, bits, row_bytes, group_size);
    linear.x = pointer<const uint8_t>(x);
    linear.row_scale = pointer<const float>(row_scale);
    linear.out = pointer<float>(out);
    linear_planes(linear);
}

}  // namespace

void bind_gemv(nb::module_& module) {
    const nb::call_guard<nb::gil_scoped_release> unlocked;
    module.def("linear_planes", &bound_linear_planes, nb::arg("planes"), nb::arg("stored_bits"), nb::arg("bits"),
               nb::arg("N"), nb::arg("K"), nb::arg("row_bytes"), nb::arg("group_size"), nb::arg("m"), nb::arg("b"),
               nb::arg("x_codes"), nb::arg("M"), nb::arg("x_stride"), nb::arg("zp"), nb::arg("row_scale"),
               nb::arg("out"), unlocked);
    module.def(
        "quantize_codes",
        [](uintptr_t x, int type, int64_t count, float scale, int zp, int top, uintptr_t out) {
            quantize_codes(pointer<const void>(x), static_cast<Float>(type), count, scale, zp, top,
                           pointer<uint8_t>(out));
        },
        nb::arg("x"), nb::arg("dtype"), nb::arg("count"), nb::arg("scale"), nb::arg("zp"), nb::arg("top"),
        nb::arg("out"), unlocked);
    module.def(
        "quantize_rows",
        [](uintptr_t x, int type, int64_t rows, int64_t cols, uintptr_t out, uintptr_t row_scale) {
            quantize_rows(pointer<const void>(x), static_cast<Float>(type), rows, cols, pointer<uint8_t>(out),
                          pointer<float>(row_scale));
        },
        nb::arg("x"), nb::arg("dtype"), nb::arg("rows"), nb::arg("cols"), nb::arg("out"), nb::arg("row_scale"),
        unlocked);
    module.def(
        "read_bandwidth",
        [](uintptr_t address, int64_t bytes, int streams) {
            return read_bandwidth(pointer<const uint8_t>(address), bytes, streams);
        },
        nb::arg("address"), nb::arg("bytes"), nb::arg("streams"), unlocked);
}

}  // namespace bitswitch
