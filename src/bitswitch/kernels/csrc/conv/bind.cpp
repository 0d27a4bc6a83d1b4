#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <stdexcept>
#include <tuple>

#include "conv/ops.hpp"

namespace nb = nanobind;

namespace bitswitch {
namespace {

// batch, height, width, out_h, out_w, kh, kw, stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w, stride
using WindowArgs = std::array<int64_t, 14>;
// inverse scale, zero point, top, channel stride
using QuantizedArgs = std::vector<std::tuple<float, int32_t, int32_t, int64_t>>;

template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

Window window(const WindowArgs& a) {
    return {a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13]};
}

EpilogueStore::Settings settings(float lo, float hi, bool residual, bool write_float, const QuantizedArgs& quantized) {
    if (quantized.size() > kMaxQuantized) throw std::invalid_argument("an epilogue writes at most 4 quantized copies");
    EpilogueStore::Settings made{lo, hi, residual, write_float, {}};
    for (const auto& [inverse, zero_point, top, stride] : quantized)
        made.quantized.push_back(
            {inverse, static_cast<float>(-zero_point), static_cast<float>(top - zero_point), 0, 0, 0, 0, zero_point,
             stride});
    return made;
}

Buffers buffers(uintptr_t residual, uintptr_t out, uintptr_t q0, uintptr_t q1, uintptr_t q2, uintptr_t q3) {
    return {at<const float>(residual),
            at<float>(out),
            {at<uint8_t>(q0), at<uint8_t>(q1), at<uint8_t>(q2), at<uint8_t>(q3)}};
}

// Bind run(x, residual, out, q0 … q3) of an op; residual is the second summand of an addition.
template <class Op, class Run>
void bind_run(nb::class_<Op>& bound, Run run) {
    bound.def(
        "run",
        [run](const Op& op, uintptr_t x, uintptr_t residual, uintptr_t out, uintptr_t q0, uintptr_t q1, uintptr_t q2,
              uintptr_t q3) {
            nb::gil_scoped_release release;
            run(op, x, buffers(residual, out, q0, q1, q2, q3));
        },
        nb::arg("x"), nb::arg("residual") = 0, nb::arg("out") = 0, nb::arg("q0") = 0, nb::arg("q1") = 0,
        nb::arg("q2") = 0, nb::arg("q3") = 0);
}

}  // namespace

void bind_conv(nb::module_& module) {
    auto conv = nb::class_<ConvOp>(module, "ConvOp", nb::dynamic_attr()).def(
        "__init__", [](ConvOp* op, const WindowArgs& w, int64_t channels, int64_t out_channels, int64_t groups,
                       uintptr_t tiles, uintptr_t row_sums, int32_t zero_point, uintptr_t multiplier, uintptr_t bias,
                       float lo, float hi, bool residual, bool write_float, const QuantizedArgs& quantized) {
            new (op) ConvOp(window(w), channels, out_channels, groups, at<const int8_t>(tiles),
                            at<const int32_t>(row_sums), zero_point, at<const float>(multiplier), at<const float>(bias),
                            settings(lo, hi, residual, write_float, quantized));
        });
    bind_run(conv, [](const ConvOp& op, uintptr_t x, const Buffers& to) { op.run(at<const uint8_t>(x), to); });

    auto depthwise = nb::class_<DepthwiseOp>(module, "DepthwiseOp", nb::dynamic_attr()).def(
        "__init__", [](DepthwiseOp* op, const WindowArgs& w, int64_t channels, uintptr_t weights, uintptr_t row_sums,
                       int32_t zero_point, uintptr_t multiplier, uintptr_t bias, float lo, float hi, bool residual,
                       bool write_float, const QuantizedArgs& quantized) {
            new (op) DepthwiseOp(window(w), channels, at<const int8_t>(weights), at<const int32_t>(row_sums),
                                 zero_point, at<const float>(multiplier), at<const float>(bias),
                                 settings(lo, hi, residual, write_float, quantized));
        });
    bind_run(depthwise,
             [](const DepthwiseOp& op, uintptr_t x, const Buffers& to) { op.run(at<const uint8_t>(x), to); });

    auto add = nb::class_<AddOp>(module, "AddOp").def(
        "__init__", [](AddOp* op, int64_t pixels, int64_t channels, float lo, float hi, bool write_float,
                       const QuantizedArgs& quantized) {
            new (op) AddOp(pixels, channels, settings(lo, hi, false, write_float, quantized));
        });
    bind_run(add, [](const AddOp& op, uintptr_t x, const Buffers& to) { op.run(at<const float>(x), to.residual, to); });

    auto max_pool = nb::class_<MaxPoolOp>(module, "MaxPoolOp").def(
        "__init__", [](MaxPoolOp* op, const WindowArgs& w, int64_t channels, float lo, float hi, bool write_float,
                       const QuantizedArgs& quantized) {
            new (op) MaxPoolOp(window(w), channels, settings(lo, hi, false, write_float, quantized));
        });
    bind_run(max_pool, [](const MaxPoolOp& op, uintptr_t x, const Buffers& to) { op.run(at<const float>(x), to); });

    auto mean_pool = nb::class_<MeanPoolOp>(module, "MeanPoolOp").def(
        "__init__", [](MeanPoolOp* op, int64_t batch, int64_t pixels, int64_t channels, float lo, float hi,
                       bool write_float, const QuantizedArgs& quantized) {
            new (op) MeanPoolOp(batch, pixels, channels, settings(lo, hi, false, write_float, quantized));
        });
    bind_run(mean_pool, [](const MeanPoolOp& op, uintptr_t x, const Buffers& to) { op.run(at<const float>(x), to); });

    nb::class_<QuantizeOp>(module, "QuantizeOp")
        .def("__init__",
             [](QuantizeOp* op, int64_t batch, int64_t channels, int64_t pixels, int64_t stride, bool channels_last,
                float scale, int32_t zero_point, int32_t top) {
                 new (op) QuantizeOp({batch, channels, pixels, stride, channels_last, scale,
                                      static_cast<float>(-zero_point), static_cast<float>(top - zero_point),
                                      zero_point});
             })
        .def("run", [](const QuantizeOp& op, uintptr_t x, uintptr_t out) {
            nb::gil_scoped_release release;
            op.run(at<const float>(x), at<uint8_t>(out));
        });

    module.def("depthwise_bytes", &depthwise_bytes);
    module.def("pack_depthwise", [](uintptr_t codes, int64_t channels, int64_t kh, int64_t kw, uintptr_t packed,
                                    uintptr_t row_sums) {
        nb::gil_scoped_release release;
        pack_depthwise(at<const int8_t>(codes), channels, kh, kw, at<int8_t>(packed), at<int32_t>(row_sums));
    });
}

}  // namespace bitswitch
