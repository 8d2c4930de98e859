// What every CUDA kernel of this folder shares: number types, 16-byte access, reductions, launching.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "qdengine/eight_bit.h"
#include "qdengine/kernels.h"

namespace qdengine::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xFFFFFFFFu;
constexpr int64_t kVectorBytes = 16;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(Int8 x) { return dequantize(x); }
__device__ __forceinline__ float widen(Float8 x) { return dequantize(x); }

template <class T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) { return x; }
template <>
__device__ __forceinline__ __half narrow<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// N adjacent elements, moved by one instruction.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];

  static __device__ __forceinline__ Pack load(const T* p) { return *reinterpret_cast<const Pack*>(p); }
  __device__ __forceinline__ void store(T* p) const { *reinterpret_cast<Pack*>(p) = *this; }
};

// Sum over `lanes` neighbouring lanes (a power of two), in one fixed order; every lane gets it.
__device__ __forceinline__ float sum_over(float x, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
  return x;
}

__device__ __forceinline__ float max_over(float x, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, step));
  return x;
}

// The largest value of a block of kThreads; thread 0 gets it.
template <int kThreads>
__device__ __forceinline__ int64_t block_max(int64_t x) {
  __shared__ int64_t best[kThreads / kWarp];
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const int64_t other = __shfl_xor_sync(kAll, x, step);
    x = other > x ? other : x;
  }
  if (threadIdx.x % kWarp == 0) best[threadIdx.x / kWarp] = x;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < kThreads / kWarp; ++i) x = best[i] > x ? best[i] : x;
  }
  return x;
}

inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0; }

// Whether rows that begin at `p`, `stride` elements apart, can be read in packs of n elements of `size` bytes.
inline bool packable(const void* p, int64_t stride, int64_t n, int64_t size) {
  return aligned(p) && stride % n == 0 && n * size == kVectorBytes;
}

// Makes the tensors' device current while an op launches.
class DeviceGuard {
 public:
  explicit DeviceGuard(Stream stream) {
    cudaGetDevice(&before_);
    if (before_ != stream.device) cudaSetDevice(stream.device);
    changed_ = before_ != stream.device;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

inline cudaStream_t handle(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

inline void check(const char* op, cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(op) + ": CUDA error: " + cudaGetErrorString(status));
}

inline void check_launch(const char* op) { check(op, cudaGetLastError()); }

// Calls f with a zero of the type that `dtype` names; csrc/ops has refused the others.
template <class F>
void with_type(DType dtype, F f) {
  switch (dtype) {
    case DType::bf16: return f(__nv_bfloat16{});
    case DType::f16: return f(__half{});
    default: return f(float{});
  }
}

// The same for a call's tensors and its cache.
template <class F>
void with_types(DType dtype, DType cache, F f) {
  with_type(dtype, [&](auto number) {
    switch (cache) {
      case DType::i8: return f(number, Int8{});
      case DType::f8: return f(number, Float8{});
      default: return f(number, number);
    }
  });
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace qdengine::cuda
