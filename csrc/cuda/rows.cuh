// How the result of a row is written: as it is, or in 8 bits with one scale.
#pragma once

#include "common.cuh"
#include "qdengine/eight_bit.h"

namespace qdengine::cuda {

template <class Out>
constexpr bool kEightBits = sizeof(Out) == 1;

// The largest magnitude of a pack, and `before`.
template <class T, int N>
__device__ __forceinline__ float larger(float before, const Pack<T, N>& y) {
#pragma unroll
  for (int j = 0; j < N; ++j) before = fmaxf(before, fabsf(widen(y.at[j])));
  return before;
}

template <class Out, class T, int N>
__device__ __forceinline__ Pack<Out, N> quantize(const Pack<T, N>& y, float factor) {
  Pack<Out, N> numbers;
#pragma unroll
  for (int j = 0; j < N; ++j) quantize(numbers.at[j], widen(y.at[j]) * factor);
  return numbers;
}

// Calls f with a zero of the output's type: that of the inputs, or one of 8 bits.
template <class T, class F>
void with_output(DType dtype, T same, F f) {
  switch (dtype) {
    case DType::i8: return f(Int8{});
    case DType::f8: return f(Float8{});
    default: return f(same);
  }
}

}  // namespace qdengine::cuda
