// A stretch of a network as one call: ops on places that are only known when it runs.
#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace bitswitch {

// An address relative to one of the memories that a run is given; memory −1 is no address at all.
struct Place {
    int memory;
    int64_t offset;
};

class Program {
   public:
    // The memories of one run.
    class Memories {
       public:
        explicit Memories(const uintptr_t* starts) : starts_(starts) {}
        template <class T>
        T* at(const Place& place) const {
            return place.memory < 0 ? nullptr : reinterpret_cast<T*>(starts_[place.memory] + place.offset);
        }

       private:
        const uintptr_t* starts_;
    };
    using Step = std::function<void(const Memories&)>;

    void add(Step step) { steps_.push_back(std::move(step)); }
    void run(const uintptr_t* starts) const {
        const Memories memories(starts);
        for (const Step& step : steps_) step(memories);
    }
    size_t size() const { return steps_.size(); }

   private:
    std::vector<Step> steps_;
};

}  // namespace bitswitch
