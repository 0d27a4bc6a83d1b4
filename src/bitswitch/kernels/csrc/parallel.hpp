// Parallel loops on the threads that PyTorch already has.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace bitswitch {

// Threads that a loop of the calling thread may use; follows torch.set_num_threads.
int max_threads();

// Call body(context, thread, num_threads) on up to `wanted` threads at once and wait for all of them. The number that
// ran is what num_threads says, and may be smaller than wanted.
void run_threads(int wanted, void (*body)(void* context, int thread, int num_threads), void* context);

// Call f(thread, num_threads) on up to `wanted` threads. f must not throw.
template <class F>
void on_threads(int wanted, F&& f) {
    wanted = std::min(wanted, max_threads());
    if (wanted <= 1) {
        f(0, 1);
        return;
    }
    using Body = std::remove_reference_t<F>;
    run_threads(
        wanted, [](void* context, int thread, int n) { (*static_cast<Body*>(context))(thread, n); },
        const_cast<void*>(static_cast<const void*>(&f)));
}

// Call f(begin, end) on contiguous parts of 0 … count, each a multiple of `grain` long but the last, at most one part a
// thread. f must not throw.
template <class F>
void parallel_for(int64_t count, int64_t grain, F&& f) {
    const int64_t grains = (count + grain - 1) / grain;
    if (grains <= 0) return;
    const int wanted = static_cast<int>(std::min<int64_t>(grains, max_threads()));
    on_threads(wanted, [&](int thread, int n) {
        const int64_t begin = grains * thread / n * grain;
        const int64_t end = std::min(count, grains * (thread + 1) / n * grain);
        if (begin < end) f(begin, end);
    });
}

}  // namespace bitswitch
