#include "gemv/gemv.hpp"

namespace bitswitch {

PlaneKernel plane_kernel_avx2() { return plane_kernel_scalar(); }

}  // namespace bitswitch
