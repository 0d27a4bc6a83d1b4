#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>

#include "conv/ops.hpp"
#include "gemv/arguments.hpp"
#include "program/program.hpp"

namespace nb = nanobind;

namespace bitswitch {
namespace {

using PlaceArgs = std::pair<int, int64_t>;

Place place(const PlaceArgs& args) { return {args.first, args.second}; }

// Where an op with an epilogue writes.
struct Outputs {
    Place residual, out, quantized[kMaxQuantized];

    Buffers at(const Program::Memories& memories) const {
        Buffers to{memories.at<const float>(residual), memories.at<float>(out), {}};
        for (int i = 0; i < kMaxQuantized; ++i) to.quantized[i] = memories.at<uint8_t>(quantized[i]);
        return to;
    }
};

// Bind add(op, x, residual, out, quantized) for a kind of op; the program keeps the op.
template <class In, class Op, class Run>
void bind_add(nb::class_<Program>& bound, Run run) {
    bound.def(
        "add",
        [run](Program& program, const Op& op, const PlaceArgs& x, const PlaceArgs& residual, const PlaceArgs& out,
              const std::vector<PlaceArgs>& quantized) {
            if (quantized.size() > kMaxQuantized) throw std::invalid_argument("too many quantized copies");
            Outputs to{place(residual), place(out), {}};
            std::fill(to.quantized, to.quantized + kMaxQuantized, Place{-1, 0});
            std::transform(quantized.begin(), quantized.end(), to.quantized, place);
            program.add([run, &op, x = place(x), to](const Program::Memories& memories) {
                run(op, memories.at<In>(x), to.at(memories));
            });
        },
        nb::keep_alive<1, 2>(), nb::arg("op"), nb::arg("x"), nb::arg("residual"), nb::arg("out"), nb::arg("quantized"));
}

void add_linear(Program& program, const std::vector<uintptr_t>& planes, int stored_bits, int bits, int64_t N, int64_t K,
                int64_t row_bytes, int64_t group_size, uintptr_t m, uintptr_t b, const PlaceArgs& x, int64_t M,
                int64_t x_stride, int zp, const PlaceArgs& out, uintptr_t tiles, uintptr_t row_sums) {
    PlaneLinear linear = plane_linear(N, K, m, b, M, x_stride, zp);
    set_weight(linear, planes, stored_bits, bits, row_bytes, group_size);
    linear.tiles = pointer<const int8_t>(tiles);
    linear.row_sums = pointer<const int32_t>(row_sums);
    program.add([linear, x = place(x), out = place(out)](const Program::Memories& memories) {
        PlaneLinear now = linear;
        now.x = memories.at<const uint8_t>(x);
        now.out = memories.at<float>(out);
        linear_planes(now);
    });
}

}  // namespace

void bind_program(nb::module_& module) {
    auto program = nb::class_<Program>(module, "Program")
                       .def(nb::init<>())
                       .def("__len__", &Program::size)
                       .def("run", [](const Program& self, const std::vector<uintptr_t>& starts) {
                           nb::gil_scoped_release release;
                           self.run(starts.data());
                       });
    const auto on_codes = [](const auto& op, const uint8_t* x, const Buffers& to) { op.run(x, to); };
    const auto on_floats = [](const auto& op, const float* x, const Buffers& to) { op.run(x, to); };
    bind_add<const uint8_t, ConvOp>(program, on_codes);
    bind_add<const uint8_t, DepthwiseOp>(program, on_codes);
    bind_add<const float, MaxPoolOp>(program, on_floats);
    bind_add<const float, MeanPoolOp>(program, on_floats);
    bind_add<const float, AddOp>(
        program, [](const AddOp& op, const float* x, const Buffers& to) { op.run(x, to.residual, to); });
    bind_add<const float, QuantizeOp>(
        program, [](const QuantizeOp& op, const float* x, const Buffers& to) { op.run(x, to.quantized[0]); });
    program.def("add_linear", &add_linear);
}

}  // namespace bitswitch
