#include "cpu.hpp"

#include <atomic>
#include <stdexcept>

namespace bitswitch {
namespace {

constexpr Isa kAll[] = {Isa::scalar, Isa::neon, Isa::avx2, Isa::avx512};

bool supported(Isa isa) {
    switch (isa) {
        case Isa::scalar:
            return true;
        case Isa::neon:
#if defined(__aarch64__)
            return true;
#else
            return false;
#endif
        case Isa::avx2:
#if defined(__x86_64__)
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
            return false;
#endif
        case Isa::avx512:
#if defined(__x86_64__)
            return supported(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
                   __builtin_cpu_supports("gfni");
#else
            return false;
#endif
    }
    return false;
}

std::atomic<Isa>& active() {
    static std::atomic<Isa> value{best_isa()};
    return value;
}

}  // namespace

Isa best_isa() {
    Isa best = Isa::scalar;
    for (Isa isa : kAll)
        if (supported(isa)) best = isa;
    return best;
}

Isa active_isa() { return active().load(std::memory_order_relaxed); }

void set_isa(const std::string& name) {
    for (Isa isa : kAll) {
        if (name != isa_name(isa)) continue;
        if (!supported(isa)) throw std::invalid_argument("this processor has no " + name);
        active().store(isa, std::memory_order_relaxed);
        return;
    }
    throw std::invalid_argument("unknown instruction set " + name);
}

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::neon:
            return "neon";
        case Isa::avx2:
            return "avx2";
        case Isa::avx512:
            return "avx512";
        case Isa::scalar:
            break;
    }
    return "scalar";
}

}  // namespace bitswitch
