#include "parallel.hpp"

#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

// PyTorch brings an OpenMP runtime (GNU's, or LLVM's with the same entry points) and loads it for all to see. A pool of
// our own, or a second copy of the runtime, would compete with its spinning threads for the same cores, so the kernels
// look up the one that is there instead of linking against one. Without it, threads are started for every loop.
namespace bitswitch {
namespace {

struct OpenMp {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
    int (*thread_num)() = nullptr;
    int (*num_threads)() = nullptr;
    int (*max_threads)() = nullptr;
    int (*in_parallel)() = nullptr;

    OpenMp() {
#if !defined(_WIN32)
        find(parallel, "GOMP_parallel");
        find(thread_num, "omp_get_thread_num");
        find(num_threads, "omp_get_num_threads");
        find(max_threads, "omp_get_max_threads");
        find(in_parallel, "omp_in_parallel");
        if (!(thread_num && num_threads && max_threads && in_parallel)) parallel = nullptr;
#endif
    }

    template <class F>
    static void find(F& function, const char* name) {
#if !defined(_WIN32)
        function = reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name));
#else
        (void)function, (void)name;
#endif
    }
};

const OpenMp& openmp() {
    static const OpenMp found;
    return found;
}

struct Region {
    void (*body)(void*, int, int);
    void* context;
};

void enter(void* data) {
    const Region& region = *static_cast<Region*>(data);
    region.body(region.context, openmp().thread_num(), openmp().num_threads());
}

}  // namespace

int max_threads() {
    if (openmp().parallel) return openmp().in_parallel() ? 1 : openmp().max_threads();
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

void run_threads(int wanted, void (*body)(void*, int, int), void* context) {
    if (openmp().parallel) {
        Region region{body, context};
        openmp().parallel(enter, &region, static_cast<unsigned>(wanted), 0);
        return;
    }
    std::vector<std::thread> threads;
    threads.reserve(wanted - 1);
    for (int thread = 1; thread < wanted; ++thread) threads.emplace_back(body, context, thread, wanted);
    body(context, 0, wanted);
    for (std::thread& thread : threads) thread.join();
}

}  // namespace bitswitch
