// The Python module bitswitch.kernels._native. Tensors come as addresses; what they must be is checked in Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "cpu.hpp"
#include "parallel.hpp"

namespace nb = nanobind;

namespace bitswitch {
void bind_conv(nb::module_& module);
void bind_gemm(nb::module_& module);
void bind_gemv(nb::module_& module);
void bind_quantize(nb::module_& module);
void bind_program(nb::module_& module);
}  // namespace bitswitch

NB_MODULE(_native, module) {
    module.def("best_isa", [] { return std::string(bitswitch::isa_name(bitswitch::best_isa())); });
    module.def("active_isa", [] { return std::string(bitswitch::isa_name(bitswitch::active_isa())); });
    module.def("set_isa", &bitswitch::set_isa);
    module.def("max_threads", &bitswitch::max_threads);
    bitswitch::bind_conv(module);
    bitswitch::bind_gemm(module);
    bitswitch::bind_gemv(module);
    bitswitch::bind_quantize(module);
    bitswitch::bind_program(module);
}
