// Many rows of activations times a weight.
#pragma once

#include "gemv/gemv.hpp"

namespace bitswitch {

// Whether linear_many takes it; linear_planes takes everything.
bool takes_many(const PlaneLinear& linear);

// The same as linear_planes: without tiles, the weight is unpacked to panels, a few of them at a time.
void linear_many(const PlaneLinear& linear);

}  // namespace bitswitch
