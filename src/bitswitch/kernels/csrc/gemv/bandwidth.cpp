#include "gemv/bandwidth.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "cpu.hpp"
#include "gemv/bandwidth_body.hpp"
#include "parallel.hpp"

namespace bitswitch {

uint64_t read_parts_scalar(const uint8_t* data, int64_t part, int streams) { return read_parts(data, part, streams); }

double read_bandwidth(const uint8_t* data, int64_t bytes, int streams) {
    streams = std::max(1, streams);
    ReadParts read = read_parts_scalar;
#if defined(__x86_64__)
    if (active_isa() == Isa::avx512) read = read_parts_avx512;
#endif
    // Kept, so that no compiler finds the reads useless.
    static std::atomic<uint64_t> kept{0};
    std::atomic<int64_t> total{0};
    const auto begin = std::chrono::steady_clock::now();
    on_threads(max_threads(), [&](int thread, int num_threads) {
        const int64_t part = bytes / num_threads / streams / 64 * 64;
        kept += read(data + thread * part * streams, part, streams);
        total += part * streams;
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    return static_cast<double>(total.load()) / seconds.count() / 1e9;
}

}  // namespace bitswitch
