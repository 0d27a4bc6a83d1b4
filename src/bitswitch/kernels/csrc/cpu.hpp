// Which instruction set the kernels use.
#pragma once

#include <string>

namespace bitswitch {

// In rising order; a set includes those below it on the same processor family.
enum class Isa { scalar = 0, neon = 1, avx2 = 2, avx512 = 3 };

// The best set that this processor and this build have. avx512 stands for F, BW, VL, DQ, VBMI, VNNI and GFNI together.
Isa best_isa();

// The set in use: `best_isa()` until `set_isa` chooses another.
Isa active_isa();

// Choose a set by name; throws std::invalid_argument for an unknown one or one that this processor does not have.
void set_isa(const std::string& name);

const char* isa_name(Isa isa);

}  // namespace bitswitch
