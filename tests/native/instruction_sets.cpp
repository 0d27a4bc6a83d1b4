// Compares the kernels of every instruction set that runs here with a plain loop; for processors without Python at hand.
//
//     cd src/bitswitch/kernels/csrc
//     g++ -std=c++17 -O2 -ffp-contract=off -I . ../../../../tests/native/instruction_sets.cpp
//         {cpu,parallel}.cpp gemv/{linear_planes,rows_scalar,rows_neon}.cpp -ldl -pthread && ./a.out
//
// (on one line, and on x86-64 with the objects of rows_avx2.cpp and rows_avx512.cpp). Prints a line for each set.
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "gemv/gemv.hpp"

using namespace bitswitch;

namespace {

std::mt19937 random_bits(0);

int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random_bits); }

struct Problem {
    PlaneLinear linear{};
    std::vector<uint8_t> planes[8], x;
    std::vector<int> stored;
    std::vector<float> m, b, out;
};

void fill(Problem& problem) {
    PlaneLinear& a = problem.linear;
    a.stored_bits = static_cast<int>(draw(2, 8));
    a.bits = static_cast<int>(draw(2, a.stored_bits));
    a.N = draw(1, 20);
    a.K = draw(1, 700);
    a.M = draw(1, 20);
    a.x_stride = a.K;
    a.row_bytes = (a.K + 63) / 64 * 8;
    const int64_t sizes[] = {0, 0, 32, 64, 128, 256, 5, 48};
    a.group_size = sizes[draw(0, 7)];
    const int64_t groups = a.group_size ? (a.K + a.group_size - 1) / a.group_size : 1;
    a.zp = draw(0, 1) ? static_cast<int>(draw(1, 255)) : 0;
    problem.stored.resize(a.N * a.K);
    for (auto& plane : problem.planes) plane.assign(a.N * a.row_bytes, 0);
    for (int64_t i = 0; i < a.N * a.K; ++i) {
        problem.stored[i] = static_cast<int>(draw(0, (1 << a.stored_bits) - 1));
        for (int p = 0; p < a.stored_bits; ++p)
            problem.planes[p][i / a.K * a.row_bytes + i % a.K / 8] |=
                (problem.stored[i] >> (a.stored_bits - 1 - p) & 1) << (i % a.K % 8);
    }
    problem.x.resize(a.M * a.K);
    for (auto& code : problem.x) code = static_cast<uint8_t>(draw(0, 255));
    problem.m.resize(a.N * groups);
    for (auto& value : problem.m) value = static_cast<float>(draw(-1000, 1000)) / 777;
    problem.b.resize(a.N);
    for (auto& value : problem.b) value = static_cast<float>(draw(-1000, 1000)) / 33;
    problem.out.resize(a.M * a.N);
    for (int p = 0; p < 8; ++p) a.planes[p] = problem.planes[p].data();
    a.m = problem.m.data();
    a.b = problem.b.data();
    a.x = problem.x.data();
    a.out = problem.out.data();
}

float expected(const Problem& problem, int64_t row, int64_t n) {
    const PlaneLinear& a = problem.linear;
    const int64_t size = a.group_size ? a.group_size : a.K, groups = (a.K + size - 1) / size;
    const int shift = a.stored_bits - a.bits, top = (1 << a.bits) - 1;
    float y = 0;
    for (int64_t g = 0; g < groups; ++g) {
        int64_t sum = 0;
        for (int64_t k = g * size; k < a.K && k < (g + 1) * size; ++k) {
            int code = problem.stored[n * a.K + k];
            if (shift) code = (code + (1 << (shift - 1))) >> shift;
            if (code > top) code = top;
            sum += (problem.x[row * a.K + k] - a.zp) * (code - (1 << (a.bits - 1)));
        }
        const float product = static_cast<float>(sum) * problem.m[n * groups + g];
        y = y + product;
    }
    return y + problem.b[n];
}

int mistakes() {
    int wrong = 0;
    for (int round = 0; round < 400; ++round) {
        Problem problem;
        fill(problem);
        linear_planes(problem.linear);
        for (int64_t row = 0; row < problem.linear.M; ++row)
            for (int64_t n = 0; n < problem.linear.N; ++n) {
                const float y = expected(problem, row, n);
                wrong += std::memcmp(&y, &problem.out[row * problem.linear.N + n], sizeof y) != 0;
            }
    }
    return wrong;
}

}  // namespace

int main() {
    int wrong = 0, sets = 0;
    for (const char* name : {"scalar", "neon", "avx2", "avx512"}) {
        try {
            set_isa(name);
        } catch (const std::exception&) {
            continue;
        }
        const int here = mistakes();
        std::printf("%s: %d wrong\n", name, here);
        wrong += here;
        ++sets;
    }
    return wrong || !sets;
}
