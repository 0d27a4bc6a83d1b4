#pragma once

#include <nanobind/nanobind.h>

namespace bitswitch {

void bind_quantize(nanobind::module_& module);

}  // namespace bitswitch
