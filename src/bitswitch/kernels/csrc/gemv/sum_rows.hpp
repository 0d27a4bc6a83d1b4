// The loop over rows of a weight that kernels without specialised loops of their own share.
#pragma once

#include <cstring>

#include "gemv/gemv.hpp"

// Included by files that are compiled for different processors: everything has internal linkage.
namespace bitswitch {
namespace {

// Puts the sums of rows n … n + count of the weight where `PlaneSums` says. one_row(rows, n, sums, row_stride) adds those
// of one row; `pad` is what codes behind the end of a row have added to the last sum.
template <class OneRow>
inline void sum_rows(const PlaneRows& rows, int64_t n, int count, int32_t* sums, int32_t pad, OneRow one_row) {
    if (rows.K == 0) return;
    const int64_t row_stride = count * rows.sum_stride;
    std::memset(sums, 0, rows.M * row_stride * sizeof(int32_t));
    for (int i = 0; i < count; ++i) {
        one_row(rows, n + i, sums + i * rows.sum_stride, row_stride);
        for (int j = 0; j < rows.M; ++j) sums[j * row_stride + i * rows.sum_stride + rows.num_units - 1] -= pad;
    }
}

}  // namespace
}  // namespace bitswitch
