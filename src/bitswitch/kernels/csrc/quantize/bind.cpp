// Bindings of the fused quantizers; addresses and counts come checked from quantizers/_fused.py.
#include "quantize/bind.hpp"

#include "quantize/fused.hpp"

namespace nb = nanobind;

namespace bitswitch {
namespace {

using Address = uintptr_t;

const void* in(Address address) { return reinterpret_cast<const void*>(address); }
void* out(Address address) { return reinterpret_cast<void*>(address); }
const float* floats(Address address) { return reinterpret_cast<const float*>(address); }
float* out_floats(Address address) { return reinterpret_cast<float*>(address); }

void weight_forward(Address weight, Address scale, Address result, int64_t rows, int64_t length, int type,
                    int out_type, int stored_bits, int bits, bool midrise) {
    quantize::weight_forward(in(weight), floats(scale), out(result), {rows, length, type, out_type},
                             {stored_bits, bits, midrise});
}

void weight_backward(Address weight, Address scale, Address grad, Address grad_weight, Address grad_scale, int64_t rows,
                     int64_t length, int type, int out_type, int stored_bits, int bits, bool midrise, double gain,
                     bool log) {
    quantize::weight_backward(in(weight), floats(scale), in(grad), out(grad_weight), out_floats(grad_scale),
                              {rows, length, type, out_type}, {stored_bits, bits, midrise}, gain, log);
}

void input_forward(Address x, Address scale, Address zero_point, Address result, int64_t count, int type, int out_type,
                   float top) {
    quantize::input_forward(in(x), floats(scale), floats(zero_point), out(result), count, type, out_type, top);
}

void input_backward(Address x, Address scale, Address zero_point, Address grad, Address grad_x, Address grad_scale,
                    Address grad_zero_point, int64_t count, int type, int out_type, float top, double gain, bool log) {
    quantize::input_backward(in(x), floats(scale), floats(zero_point), in(grad), out(grad_x), out_floats(grad_scale),
                             out_floats(grad_zero_point), count, type, out_type, top, gain, log);
}

}  // namespace

void bind_quantize(nb::module_& module) {
    using Release = nb::call_guard<nb::gil_scoped_release>;
    module.def("quantize_weight_forward", weight_forward, Release());
    module.def("quantize_weight_backward", weight_backward, Release());
    module.def("quantize_input_forward", input_forward, Release());
    module.def("quantize_input_backward", input_backward, Release());
}

}  // namespace bitswitch
