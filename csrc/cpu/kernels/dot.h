// The instruction that each instruction set multiplies with, as one interface: Dot::add(sum, a, b) adds to every lane of `sum` the
// products of kDepth numbers of a row (one unit of 32 bits, the same for all lanes) and kDepth numbers of the lane's column. Sums are
// 16 of them.
//
// Where a build for tests has no such instruction (QDENGINE_EMULATED), plain code says what it does.
#pragma once

#include "simd.h"

namespace qdengine::QDENGINE_ISA {

// float32 by float32, or by bfloat16, which is widened.
template <class Number>
struct FloatDot {
  using B = Number;
  using Sum = Reg;
  using Sums = Vec;
  using Unit = float;
  static constexpr int kDepth = 1;
  static Reg load(const Number* b) { return load_reg(b); }
  static Reg add(Reg sum, float a, Reg b) { return fused(b, splat_reg(a), sum); }
};

#if defined(QDENGINE_ISA_avx2) || defined(QDENGINE_ISA_avx512)
// int8 in fours; `a` unsigned, that is with 128 added, which a column's sum times 128 takes off again. Without VNNI the sum of two
// products is in 16 bits, which saturate: columns are scaled so that no pair of weights lets them.
struct FourDot {
  using B = int8_t;
  using Sum = IReg;
  using Sums = IVec;
  using Unit = int32_t;
  static constexpr int kDepth = 4;
  static const IReg* load(const int8_t* b) { return reinterpret_cast<const IReg*>(b); }
  static IReg add(IReg sum, int32_t a, const IReg* column) {
    const IReg& b = *column;
    const IReg unit = IReg{} + a;
#if defined(QDENGINE_EMULATED)
    for (int i = 0; i < 32; i += 8) sum += ((unit >> i) & 0xFF) * (b << (24 - i) >> 24);
    return sum;
#elif defined(QDENGINE_ISA_avx512_vnni)
    return reinterpret_cast<IReg>(_mm512_dpbusd_epi32(
        reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(unit), reinterpret_cast<__m512i>(b)));
#elif defined(QDENGINE_ISA_avx2_vnni)
    return reinterpret_cast<IReg>(_mm256_dpbusd_avx_epi32(
        reinterpret_cast<__m256i>(sum), reinterpret_cast<__m256i>(unit), reinterpret_cast<__m256i>(b)));
#elif defined(QDENGINE_ISA_avx512)
    const __m512i pairs = _mm512_maddubs_epi16(reinterpret_cast<__m512i>(unit), reinterpret_cast<__m512i>(b));
    return sum + reinterpret_cast<IReg>(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#else
    __m256i pairs;  // the column from memory: in registers there is no place for it beside the sums
    asm("vpmaddubsw %2, %1, %0" : "=x"(pairs) : "x"(unit), "m"(b));
    return sum + reinterpret_cast<IReg>(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
  }
};
using Int8Dot = FourDot;
#else
typedef int8_t BReg2 __attribute__((vector_size(2 * kWidth), aligned(1), may_alias));
typedef int16_t SReg __attribute__((vector_size(4 * kWidth), aligned(2), may_alias));

// int8, in pairs of int16.
struct Int16Dot {
  using B = int8_t;
  using Sum = IReg;
  using Sums = IVec;
  using Unit = int32_t;
  static constexpr int kDepth = 2;
  static SReg load(const int8_t* b) {
#if defined(__SSE2__)
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(b));
    return reinterpret_cast<SReg>(_mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8));
#else
    return __builtin_convertvector(*reinterpret_cast<const BReg2*>(b), SReg);
#endif
  }
  static IReg add(IReg sum, int32_t a, SReg b) {
    const IReg unit = IReg{} + a;
#if defined(__SSE2__)
    return sum + reinterpret_cast<IReg>(_mm_madd_epi16(reinterpret_cast<__m128i>(unit), reinterpret_cast<__m128i>(b)));
#else
    const IReg pairs = reinterpret_cast<IReg>(b);  // the odd number of a lane is its upper half
    return sum + (unit << 16 >> 16) * (pairs << 16 >> 16) + (unit >> 16) * (pairs >> 16);
#endif
  }
};
using Int8Dot = Int16Dot;
#endif

#if defined(QDENGINE_ISA_avx512_bf16)
// bfloat16 in pairs.
struct Bf16Dot {
  using B = bf16;
  using Sum = Reg;
  using Sums = Vec;
  using Unit = int32_t;
  static constexpr int kDepth = 2;
  static IReg load(const bf16* b) { return *reinterpret_cast<const IReg*>(b); }
  static Reg add(Reg sum, int32_t a, IReg b) {
    const IReg unit = IReg{} + a;
#if defined(QDENGINE_EMULATED)
    const auto high = [](IReg x) { return reinterpret_cast<Reg>(x >> 16 << 16); };
    sum += high(unit) * high(b);
    return sum + high(unit << 16) * high(b << 16);
#else
    return reinterpret_cast<Reg>(_mm512_dpbf16_ps(
        reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(unit), reinterpret_cast<__m512bh>(b)));
#endif
  }
};
#endif

// The largest sum of two neighbouring int8 weights, without their signs, that is multiplied exactly: 255 times it fits 16 bits. 0: any.
#if defined(QDENGINE_ISA_generic) || defined(QDENGINE_ISA_avx2_vnni) || defined(QDENGINE_ISA_avx512_vnni)
constexpr int kLargestPair = 0;
#else
constexpr int kLargestPair = 128;
#endif
// Whether registers hold the sums of two panels, so that a product may be gated as it is written.
#if defined(QDENGINE_ISA_avx512)
constexpr bool kGates = true;
#else
constexpr bool kGates = false;
#endif
#if defined(QDENGINE_ISA_avx512_bf16)
using BfloatDot = Bf16Dot;
#else
using BfloatDot = FloatDot<bf16>;
#endif

}  // namespace qdengine::QDENGINE_ISA
