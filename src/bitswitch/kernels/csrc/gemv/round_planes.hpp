// The second rounding on whole planes, many weights at a time.
#pragma once

// Included by files that are compiled for different processors: everything has internal linkage.
namespace bitswitch {
namespace {

// planes[0 … bits]: leading bits t of the stored codes, from the top. Puts min((t + 1) >> 1, 2^bits − 1) into planes
// 0 … bits − 1: the last bit is added to those above it by a carry that ripples upwards, unless all of those are set.
template <class Word>
inline void round_planes(Word* planes, int bits) {
    Word full = planes[0];
    for (int p = 1; p < bits; ++p) full = full & planes[p];
    Word carry = planes[bits] & ~full;
    for (int p = bits - 1; p >= 0; --p) {
        const Word bit = planes[p];
        planes[p] = bit ^ carry;
        carry = bit & carry;
    }
}

}  // namespace
}  // namespace bitswitch
