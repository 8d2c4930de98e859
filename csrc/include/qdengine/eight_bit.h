// Numbers of 8 bits, with a float32 scale for a row of them: x ~ number * scale, scale = max |x| / largest number.
//
// int8 uses -127 to 127; float8 is e4m3fn (arXiv 2209.05433): no infinity, largest number 448. A row of zeros has scale 0. The
// contract is `quantize` of ops/reference: number = round(x * (largest / max |x|)), to nearest, ties to even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "qdengine/host_device.h"

#ifdef __CUDACC__
#include <cuda_fp8.h>
#endif

namespace qdengine {

struct Int8 {
  int8_t bits;
  static constexpr float kLargest = 127.0f;
};

struct Float8 {
  uint8_t bits;
  static constexpr float kLargest = 448.0f;
};

// A row whose largest is smaller counts as zeros: the factor would be infinite.
constexpr float kSmallestRow = 0x1p-116f;

// x / scale = x * factor; 0 for a row of zeros.
template <class N>
QDENGINE_HD float quantize_factor(float largest) {
  return largest >= kSmallestRow ? N::kLargest / largest : 0.0f;
}
template <class N>
QDENGINE_HD float quantize_scale(float largest) {
  return largest / N::kLargest;
}

QDENGINE_HD float dequantize(Int8 x) { return static_cast<float>(x.bits); }

QDENGINE_HD float dequantize(Float8 x) {
#ifdef __CUDA_ARCH__
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(x.bits, __NV_E4M3)));
#else
  // Its exponent and mantissa at the places of a float's, and the difference of the two biases, 127 - 7, as a factor: exact, and
  // right for subnormal numbers as well.
  const uint32_t bits = static_cast<uint32_t>(x.bits & 0x7F) << 20;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  value *= 0x1p120f;
  return x.bits & 0x80 ? -value : value;
#endif
}

// To the nearest number, ties to even; what is beyond the largest becomes that, and NaN some number.
QDENGINE_HD void quantize(Int8& number, float x) {
  const float cut = x < 127.0f ? (x > -127.0f ? x : -127.0f) : 127.0f;
  number.bits = static_cast<int8_t>(rintf(cut));
}

QDENGINE_HD void quantize(Float8& number, float x) {
#ifdef __CUDA_ARCH__
  number.bits = __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
#else
  uint32_t bits, size;
  std::memcpy(&bits, &x, sizeof bits);
  size = bits & 0x7FFFFFFFu;
  if (size > 0x43E00000u) size = 0x43E00000u;  // 448
  // Neighbouring numbers are 2^(exponent - 3) apart, at least 2^-9. Of a sum with 1.5 * 2^23 of that, no more is left.
  const uint32_t exponent = size >> 23 < 121 ? 121 : size >> 23, magic_bits = (exponent + 20) << 23 | 0x400000u;
  float cut, magic;
  std::memcpy(&cut, &size, sizeof cut);
  std::memcpy(&magic, &magic_bits, sizeof magic);
  const float value = ((cut + magic) - magic) * 0x1p-120f;
  std::memcpy(&size, &value, sizeof size);
  number.bits = static_cast<uint8_t>(size >> 20 | (bits >> 24 & 0x80u));
#endif
}

}  // namespace qdengine
