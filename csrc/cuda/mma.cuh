// Registers of two 16-bit numbers, as fragments of matrices have them: packed from float32, unpacked from numbers of 8 bits.
#pragma once

#include <type_traits>

#include "ptx.cuh"
#include "qdengine/eight_bit.h"

namespace qdengine::cuda {

template <class T>
struct PairOf;
template <>
struct PairOf<__half> {
  using Type = __half2;
};
template <>
struct PairOf<__nv_bfloat16> {
  using Type = __nv_bfloat162;
};
template <class T>
__device__ __forceinline__ typename PairOf<T>::Type as_pair(uint32_t bits) {
  return *reinterpret_cast<const typename PairOf<T>::Type*>(&bits);
}
template <class Pair>
__device__ __forceinline__ uint32_t as_bits(Pair pair) {
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <class T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
  const Pack<T, 2> pair{{narrow<T>(low), narrow<T>(high)}};
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Bytes 0 and 2 of four numbers of 8 bits as T, exactly, and bytes 1 and 3.
template <class T>
__device__ __forceinline__ uint32_t unpack_two(Int8, uint32_t bytes) {
  // The low 7 bits as the mantissa above 2^7 or 2^10, less that and, for a negative number, 128 more.
  constexpr uint32_t kOne = std::is_same_v<T, __half> ? 0x64006400u : 0x43004300u;
  return as_bits(__hsub2(as_pair<T>((bytes & 0x007F007Fu) | kOne), as_pair<T>((bytes & 0x00800080u) | kOne)));
}
template <class T>
__device__ __forceinline__ uint32_t unpack_two(Float8, uint32_t bytes) {
  // Exponent and mantissa at the places of T's; the difference of the biases, 7 and 15 or 127, as a factor.
  constexpr bool kHalf = std::is_same_v<T, __half>;
  constexpr uint32_t kFactor = kHalf ? 0x5C005C00u : 0x7B807B80u;  // 2^8, 2^120
  const uint32_t bits = (bytes & 0x007F007Fu) << (kHalf ? 7 : 4) | (bytes & 0x00800080u) << 8;
  return as_bits(__hmul2(as_pair<T>(bits), as_pair<T>(kFactor)));
}
template <class T, class C>
__device__ __forceinline__ void unpack(C type, uint32_t bytes, uint32_t& even, uint32_t& odd) {
  even = unpack_two<T>(type, bytes);
  odd = unpack_two<T>(type, bytes >> 8);
}

}  // namespace qdengine::cuda
