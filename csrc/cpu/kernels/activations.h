// Activation functions, of 16 lanes.
#pragma once

#include "simd.h"

namespace qdengine::QDENGINE_ISA {

// x / (1 + exp(-y)), of which the exponential is bounded.
inline Vec logistic(Vec x, Vec y) {
  Vec power = y * -kLog2e;
#pragma GCC unroll 4
  for (int j = 0; j < kRegs; ++j) reinterpret_cast<Reg*>(&power)[j] = vmin(reinterpret_cast<const Reg*>(&power)[j], splat_reg(126.0f));
  const Vec below = exp2(power) + 1.0f;
#if defined(QDENGINE_ISA_avx512) && !defined(QDENGINE_EMULATED)
  // The inverse by the instruction's 14 bits and one step of Newton's: a division takes 16 cycles.
  const Vec near = reinterpret_cast<Vec>(_mm512_rcp14_ps(reinterpret_cast<__m512>(below)));
  return x * fused(near, fused(-near, below, splat(1.0f)), near);
#else
  return x / below;
#endif
}

inline Vec silu(Vec x) { return logistic(x, x); }

// x/2 (1 + tanh(u)) = x / (1 + exp(-2u))
inline Vec gelu_tanh(Vec x) { return logistic(x, (x + x * x * x * 0.044715f) * 1.5957691216f); }

}  // namespace qdengine::QDENGINE_ISA
