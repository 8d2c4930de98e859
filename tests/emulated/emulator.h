// CUDA kernels on a CPU: what they need of the language, over fibers. A lane is a fiber, a block's lanes take turns, a warp's
// functions and __syncthreads wait for each other; blocks run one after another. Included before every source.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

namespace emulator {

struct Index {
  unsigned x, y, z;
};
inline Index thread, block;  // of the lane that runs

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = false;
};
inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline unsigned running;

inline void yield() {
  Fiber& mine = fibers[running];
  swapcontext(&mine.context, &scheduler);
}

class Barrier {
 public:
  explicit Barrier(unsigned lanes) : lanes_(lanes) {}
  void wait() {
    const unsigned turn = turn_;
    if (++here_ == lanes_) {
      here_ = 0;
      ++turn_;
    }
    while (turn == turn_) yield();
  }

 private:
  unsigned lanes_, here_ = 0, turn_ = 0;
};

// What the lanes of a warp show each other.
struct Warp {
  Barrier barrier{32};
  alignas(16) char shown[32][64];
};
inline std::vector<Warp> warps;
inline std::unique_ptr<Barrier> everyone;

// Calls f(of) where every lane of the warp is, of(l) being what lane l shows.
template <class T, class F>
auto among_lanes(const T& mine, F f) {
  static_assert(sizeof(T) <= sizeof Warp::shown[0]);
  Warp& warp = warps[thread.x / 32];
  std::memcpy(warp.shown[thread.x % 32], &mine, sizeof(T));
  warp.barrier.wait();
  const auto result = f([&](unsigned lane) -> const T& { return *reinterpret_cast<const T*>(warp.shown[lane % 32]); });
  warp.barrier.wait();
  return result;
}

inline void* body;
inline void (*call)(void*);
inline void begin_fiber() {
  call(body);
  fibers[running].done = true;
  yield();
}

template <class F>
void run_block(F& kernel, unsigned threads) {
  constexpr size_t kStack = 1 << 18;
  body = &kernel;
  call = [](void* f) { (*static_cast<F*>(f))(); };
  fibers = std::vector<Fiber>(threads);
  warps = std::vector<Warp>(threads / 32);
  everyone = std::make_unique<Barrier>(threads);
  for (Fiber& fiber : fibers) {
    fiber.stack = std::make_unique<char[]>(kStack);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    makecontext(&fiber.context, begin_fiber, 0);
  }
  for (unsigned left = threads; left > 0;) {
    for (running = 0; running < threads; ++running) {
      if (fibers[running].done) continue;
      thread = {running, 0, 0};
      swapcontext(&scheduler, &fibers[running].context);
      left -= fibers[running].done;
    }
  }
}

template <class F>
void launch(dim3 grid, unsigned threads, F kernel) {
  for (block.z = 0; block.z < grid.z; ++block.z) {
    for (block.y = 0; block.y < grid.y; ++block.y) {
      for (block.x = 0; block.x < grid.x; ++block.x) run_block(kernel, threads);
    }
  }
}

}  // namespace emulator

#undef __device__
#undef __global__
#undef __shared__
#undef __forceinline__
#undef __align__
#undef __launch_bounds__
#define __device__
#define __global__
#define __shared__ static
#define __forceinline__ inline
#define __align__(n)
#define __launch_bounds__(...)
#define threadIdx emulator::thread
#define blockIdx emulator::block

using std::max;
using std::min;

inline void __syncthreads() { emulator::everyone->wait(); }
template <class T>
T __shfl_sync(unsigned, T mine, int lane) {
  return emulator::among_lanes(mine, [&](auto of) { return of(lane); });
}
template <class T>
T __shfl_xor_sync(unsigned all, T mine, int step) {
  return __shfl_sync(all, mine, (threadIdx.x % 32) ^ step);
}
template <class T>
T __shfl_up_sync(unsigned all, T mine, unsigned step) {
  const unsigned lane = threadIdx.x % 32;
  return __shfl_sync(all, mine, lane >= step ? lane - step : lane);
}
inline unsigned __ballot_sync(unsigned, bool mine) {
  return emulator::among_lanes(mine, [](auto of) {
    unsigned all = 0;
    for (unsigned lane = 0; lane < 32; ++lane) all |= static_cast<unsigned>(of(lane)) << lane;
    return all;
  });
}
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned select) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> (select >> 4 * i & 7) * 8 & 0xFF) << 8 * i;
  return result;
}

#define cudaGetDevice(device) (*(device) = 0, cudaSuccess)
#define cudaSetDevice(device) (static_cast<void>(device))
#define cudaGetLastError() cudaSuccess
#define cudaGetErrorString(status) ""
#define cudaFuncSetAttribute(...) cudaSuccess
