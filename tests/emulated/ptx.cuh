// csrc/cuda/ptx.cuh for a CPU, as the PTX ISA defines each instruction: which lane has which elements.
#pragma once

#include "common.cuh"

namespace qdengine::cuda {

template <int kBytes>
void copy(void* to, const void* from, bool live) {
  if (reinterpret_cast<uintptr_t>(to) % kBytes || reinterpret_cast<uintptr_t>(from) % kBytes) std::abort();
  live ? std::memcpy(to, from, kBytes) : std::memset(to, 0, kBytes);
}
inline void copy_async(void* to, const void* from, bool live) { copy<16>(to, from, live); }
inline void copy_async4(void* to, const void* from, bool live) { copy<4>(to, from, live); }
inline void commit_copies() {}
template <int kPending>
void wait_copies() {}

// Lane l gets elements 2 (l % 4) and the next of row l / 4 of each matrix.
inline void load_matrices(uint32_t (&r)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16) std::abort();
  emulator::among_lanes(row, [&](auto of) {
    const unsigned lane = threadIdx.x % 32;
    for (unsigned m = 0; m < 4; ++m) std::memcpy(&r[m], static_cast<const char*>(of(8 * m + lane / 4)) + lane % 4 * 4, 4);
    return 0;
  });
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16) std::abort();
  emulator::among_lanes(row, [&](auto of) {
    const unsigned lane = threadIdx.x % 32;
    for (unsigned m = 0; m < 4; ++m) {
      uint16_t two[2];
      for (unsigned j = 0; j < 2; ++j) two[j] = static_cast<const uint16_t*>(of(8 * m + lane % 4 * 2 + j))[lane / 4];
      std::memcpy(&r[m], two, 4);
    }
    return 0;
  });
}

// Element (row, k) of a is with lane 4 (row % 8) + k % 8 / 2, (k, column) of b with lane 4 column + k % 8 / 2.
template <class T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Mine {
    T a[4][2], b[2][2];
  } mine;
  std::memcpy(mine.a, a, sizeof a);
  std::memcpy(mine.b[0], &b0, 4);
  std::memcpy(mine.b[1], &b1, 4);
  emulator::among_lanes(mine, [&](auto of) {
    const unsigned lane = threadIdx.x % 32;
    for (unsigned j = 0; j < 4; ++j) {
      const unsigned row = lane / 4 + j / 2 * 8, column = lane % 4 * 2 + j % 2;
      float sum = 0.0f;
      for (unsigned k = 0; k < 16; ++k) {
        const T left = of(row % 8 * 4 + k % 8 / 2).a[row / 8 + k / 8 * 2][k % 2];
        sum += static_cast<float>(left) * static_cast<float>(of(column * 4 + k % 8 / 2).b[k / 8][k % 2]);
      }
      c[j] += sum;
    }
    return 0;
  });
}

inline float exp2_fast(float x) { return std::exp2(x); }

}  // namespace qdengine::cuda
