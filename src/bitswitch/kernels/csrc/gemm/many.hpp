// Many rows of activations times a weight.
#pragma once

#include "gemv/gemv.hpp"

namespace bitswitch {

// Whether linear_many takes it; linear_planes takes everything.
bool takes_many(const PlaneLinear& linear);

// The same as linear_planes: the weight is unpacked to panels, a few of them at a time.
// tiles, row_sums: of pack_tiles for one tap and group, which are then used instead of the planes; or null.
void linear_many(const PlaneLinear& linear, const int8_t* tiles, const int32_t* row_sums);

}  // namespace bitswitch
