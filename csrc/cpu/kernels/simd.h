// 16 float lanes on every instruction set: GCC vector types become SSE2, AVX2 or AVX-512 by the flags of the object. Nothing
// here may come from the standard library's templates: the linker would keep one copy of them, for one instruction set.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstdint>

#include "../pool.h"
#include "qdengine/eight_bit.h"
#include "qdengine/kernels.h"

// What a level has, those above it have too.
#if defined(QDENGINE_ISA_amx)
#define QDENGINE_ISA_avx512_bf16 1
#endif
#if defined(QDENGINE_ISA_avx512_bf16)
#define QDENGINE_ISA_avx512_vnni 1
#endif
#if defined(QDENGINE_ISA_avx512_vnni)
#define QDENGINE_ISA_avx512 1
#endif
#if defined(QDENGINE_ISA_avx2_vnni)
#define QDENGINE_ISA_avx2 1
#endif

namespace qdengine::QDENGINE_ISA {

constexpr int kLanes = 16;
typedef float Vec __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t IVec __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t UVec __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t HVec __attribute__((vector_size(32), aligned(2), may_alias));

struct bf16 {
  uint16_t bits;
};

// Registers of the instruction set. GCC takes what it has no instruction for apart into single elements when a vector is wider:
// conversions, comparisons, shuffles; and keeps sums over a loop in memory.
#if defined(QDENGINE_ISA_avx512)
constexpr int kWidth = 16;
#elif defined(QDENGINE_ISA_avx2)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
typedef float Reg __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));
typedef int32_t IReg __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));
typedef uint32_t UReg __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));
typedef uint16_t HReg __attribute__((vector_size(2 * kWidth), aligned(2), may_alias));

constexpr int kRegs = kLanes / kWidth;  // of a Vec

inline int64_t divide_up(int64_t x, int64_t by) { return (x + by - 1) / by; }

#if defined(QDENGINE_ISA_avx512) && !defined(QDENGINE_EMULATED)
inline Reg vmax(Reg a, Reg b) { return reinterpret_cast<Reg>(_mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b))); }
inline Reg vmin(Reg a, Reg b) { return reinterpret_cast<Reg>(_mm512_min_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b))); }
#elif defined(QDENGINE_ISA_avx2)
inline Reg vmax(Reg a, Reg b) { return reinterpret_cast<Reg>(_mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b))); }
inline Reg vmin(Reg a, Reg b) { return reinterpret_cast<Reg>(_mm256_min_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b))); }
#else
inline Reg vmax(Reg a, Reg b) { return a > b ? a : b; }
inline Reg vmin(Reg a, Reg b) { return a < b ? a : b; }
#endif

#if defined(QDENGINE_ISA_avx2) || (defined(QDENGINE_ISA_avx512) && !defined(QDENGINE_EMULATED))
inline HVec vmax(HVec a, HVec b) { return reinterpret_cast<HVec>(_mm256_max_epu16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b))); }
#else
inline HVec vmax(HVec a, HVec b) { return a > b ? a : b; }
#endif

// a b + c, rounded once where the instruction set has that. Only this fuses (CMakeLists.txt): left to itself, GCC fuses some blocks
// of a kernel and, where it takes a chain of such sums to be slow, others not, and a row's bits would depend on its neighbours.
inline Reg fused(Reg a, Reg b, Reg c) {
#if defined(QDENGINE_EMULATED) || (defined(QDENGINE_ISA_generic) && defined(__FP_FAST_FMAF))
  Reg y;
  for (int i = 0; i < kWidth; ++i) y[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return y;
#elif defined(QDENGINE_ISA_avx512)
  return reinterpret_cast<Reg>(_mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(QDENGINE_ISA_avx2)
  return reinterpret_cast<Reg>(_mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#else
  return a * b + c;
#endif
}

// Numbers of other widths. GCC takes what crosses the halves of a register apart, and puts it together by way of memory.
typedef int8_t BVec __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint8_t UBVec __attribute__((vector_size(16), aligned(1), may_alias));
typedef int16_t SVec __attribute__((vector_size(32), aligned(2), may_alias));
#if defined(QDENGINE_ISA_avx512) && !defined(QDENGINE_EMULATED)
inline UReg widened(HReg x) { return reinterpret_cast<UReg>(_mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(x))); }
inline HReg narrowed(UReg x) { return reinterpret_cast<HReg>(_mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(x))); }
inline IVec widened(BVec x) { return reinterpret_cast<IVec>(_mm512_cvtepi8_epi32(reinterpret_cast<__m128i>(x))); }
inline UVec widened(UBVec x) { return reinterpret_cast<UVec>(_mm512_cvtepu8_epi32(reinterpret_cast<__m128i>(x))); }
inline BVec bytes_of(IVec x) { return reinterpret_cast<BVec>(_mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(x))); }
#else
inline UReg widened(HReg x) { return __builtin_convertvector(x, UReg); }
inline HReg narrowed(UReg x) { return __builtin_convertvector(x, HReg); }
// By way of 16 bits: GCC takes a step of four times the width apart into single elements.
inline IVec widened(BVec x) { return __builtin_convertvector(__builtin_convertvector(x, SVec), IVec); }
inline UVec widened(UBVec x) { return __builtin_convertvector(__builtin_convertvector(x, HVec), UVec); }
inline BVec bytes_of(IVec x) { return __builtin_convertvector(__builtin_convertvector(x, SVec), BVec); }
#endif

inline Reg splat_reg(float x) { return x - Reg{}; }  // + would be an addition: minus zero becomes zero
inline Vec splat(float x) { return x - Vec{}; }

inline Reg load_reg(const float* p) { return *reinterpret_cast<const Reg*>(p); }
inline Reg load_reg(const bf16* p) {
  return reinterpret_cast<Reg>(widened(*reinterpret_cast<const HReg*>(p)) << 16);
}
inline void store_reg(float* p, Reg x) { *reinterpret_cast<Reg*>(p) = x; }
// To nearest, ties to even; NaN stays NaN. The instruction makes 0 of subnormal numbers.
inline void store_reg(bf16* p, Reg x) {
#if defined(QDENGINE_ISA_avx512_bf16) && !defined(QDENGINE_EMULATED)
  *reinterpret_cast<HReg*>(p) = reinterpret_cast<HReg>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(x)));
#else
  const UReg bits = reinterpret_cast<UReg>(x);
  const UReg rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const UReg quiet = (bits >> 16) | 0x40u;
  *reinterpret_cast<HReg*>(p) = narrowed(x == x ? rounded : quiet);
#endif
}

inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline Vec load(const bf16* p) {
  Vec x;
#pragma GCC unroll 4
  for (int j = 0; j < kRegs; ++j) reinterpret_cast<Reg*>(&x)[j] = load_reg(p + j * kWidth);
  return x;
}
inline void store(float* p, Vec x) { *reinterpret_cast<Vec*>(p) = x; }
inline void store(bf16* p, Vec x) {
#pragma GCC unroll 4
  for (int j = 0; j < kRegs; ++j) store_reg(p + j * kWidth, reinterpret_cast<const Reg*>(&x)[j]);
}

// As T has it.
template <class T>
inline Vec rounded(Vec x) {
  if constexpr (sizeof(T) == sizeof(float)) return x;
  T held[kLanes];
  store(held, x);
  return load(held);
}

inline Vec load(const int32_t* p) {
  Vec x;
#pragma GCC unroll 4
  for (int j = 0; j < kRegs; ++j) {
    reinterpret_cast<Reg*>(&x)[j] = __builtin_convertvector(*reinterpret_cast<const IReg*>(p + j * kWidth), Reg);
  }
  return x;
}

inline float load1(const float* p) { return *p; }
inline float load1(const int32_t* p) { return static_cast<float>(*p); }
inline float load1(const bf16* p) { return __builtin_bit_cast(float, static_cast<uint32_t>(p->bits) << 16); }
inline void store1(float* p, float x) { *p = x; }
inline void store1(bf16* p, float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  p->bits = static_cast<uint16_t>(x == x ? (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16 : (bits >> 16) | 0x40u);
}

// Numbers of 8 bits, without their scale: as the scalar functions of eight_bit.h.
inline Vec load(const Int8* p) {
#if defined(QDENGINE_ISA_avx2)
  Vec x;
  for (int j = 0; j < 2; ++j) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8 * j));
    reinterpret_cast<Reg*>(&x)[j] = reinterpret_cast<Reg>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
  }
  return x;
#else
  return __builtin_convertvector(widened(*reinterpret_cast<const BVec*>(p)), Vec);
#endif
}
inline Vec load(const Float8* p) {
  const UVec bits = widened(*reinterpret_cast<const UBVec*>(p));
  return reinterpret_cast<Vec>((bits & 0x7Fu) << 20 | (bits & 0x80u) << 24) * 0x1p120f;
}
inline void store(Int8* p, Vec x) {
#if defined(QDENGINE_ISA_avx512) && !defined(QDENGINE_EMULATED)
  const __m512i numbers = _mm512_cvtps_epi32(reinterpret_cast<__m512>(vmax(vmin(x, splat(127.0f)), splat(-127.0f))));
  *reinterpret_cast<BVec*>(p) = reinterpret_cast<BVec>(_mm512_cvtsepi32_epi8(numbers));
#else
  constexpr int32_t kMagic = 0x4B400000;  // of 1.5 * 2^23: what is added to it is rounded to nearest, ties to even
  IVec numbers;
#pragma GCC unroll 4
  for (int j = 0; j < kRegs; ++j) {
    const Reg cut = vmax(vmin(reinterpret_cast<const Reg*>(&x)[j], splat_reg(127.0f)), splat_reg(-127.0f));
    reinterpret_cast<IReg*>(&numbers)[j] = reinterpret_cast<IReg>(cut + 12582912.0f) - kMagic;
  }
#if defined(QDENGINE_ISA_avx2)
  const __m256i_u* halves = reinterpret_cast<const __m256i_u*>(&numbers);
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(halves[0], halves[1]), 0xD8);
  *reinterpret_cast<__m128i_u*>(p) = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
#else
  *reinterpret_cast<BVec*>(p) = bytes_of(numbers);
#endif
#endif
}
inline void store(Float8* p, Vec x) {
  const UVec bits = reinterpret_cast<UVec>(x), all = bits & 0x7FFFFFFFu, most = UVec{} + 0x43E00000u;
  const UVec size = all < most ? all : most;
  const UVec exponent = size >> 23, least = UVec{} + 121u;
  const Vec magic = reinterpret_cast<Vec>(((exponent > least ? exponent : least) + 20u) << 23 | 0x400000u);
  const Vec value = ((reinterpret_cast<Vec>(size) + magic) - magic) * 0x1p-120f;
  *reinterpret_cast<BVec*>(p) = bytes_of(reinterpret_cast<IVec>(reinterpret_cast<UVec>(value) >> 20 | (bits >> 24 & 0x80u)));
}
inline float load1(const Int8* p) { return dequantize(*p); }
inline float load1(const Float8* p) { return dequantize(*p); }
inline void store1(Int8* p, float x) { quantize(*p, x); }
inline void store1(Float8* p, float x) { quantize(*p, x); }

// The first n lanes, the rest as `fill`; and their store.
template <class T>
inline Vec load_some(const T* p, int64_t n, float fill = 0.0f) {
  Vec x = splat(fill);
  for (int64_t i = 0; i < n; ++i) x[i] = load1(p + i);
  return x;
}
template <class T>
inline void store_some(T* p, Vec x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store1(p + i, x[i]);
}

// to[c * ld + r] = rows[r][i + c] for kWidth rows and columns, by log2(kWidth) rounds that interleave the halves of the set.
template <class T>
inline void transpose(const T* const* rows, int64_t i, float* to, int64_t ld) {
  IReg low, high;
  for (int k = 0; k < kWidth; ++k) {
    low[k] = k / 2 + k % 2 * kWidth;
    high[k] = low[k] + kWidth / 2;
  }
  Reg x[kWidth], y[kWidth];
  for (int r = 0; r < kWidth; ++r) x[r] = load_reg(rows[r] + i);
#pragma GCC unroll 4
  for (int round = 1; round < kWidth; round *= 2) {
#pragma GCC unroll 8
    for (int r = 0; r < kWidth / 2; ++r) {
      y[2 * r] = __builtin_shuffle(x[r], x[r + kWidth / 2], low);
      y[2 * r + 1] = __builtin_shuffle(x[r], x[r + kWidth / 2], high);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kWidth; ++r) x[r] = y[r];
  }
#pragma GCC unroll 16
  for (int r = 0; r < kWidth; ++r) store_reg(to + r * ld, x[r]);
}

typedef float Quarter __attribute__((vector_size(16), aligned(4), may_alias));

// One fixed order of addition on every instruction set.
inline float sum(const Vec& x) {
  const Quarter* part = reinterpret_cast<const Quarter*>(&x);
  const Quarter total = (part[0] + part[1]) + (part[2] + part[3]);
  return (total[0] + total[1]) + (total[2] + total[3]);
}
inline float max(const Vec& x) {
  const auto larger = [](auto a, auto b) { return a > b ? a : b; };
  const Quarter* part = reinterpret_cast<const Quarter*>(&x);
  const Quarter best = larger(larger(part[0], part[1]), larger(part[2], part[3]));
  return larger(larger(best[0], best[1]), larger(best[2], best[3]));
}

// A Vec that a loop accumulates, in registers: as a Vec, GCC keeps it in memory, and loads it in other pieces than it stores.
struct Lanes {
  Reg part[kRegs] = {};

  template <class F>
  void combine(Vec x, F f) {
#pragma GCC unroll 4
    for (int j = 0; j < kRegs; ++j) part[j] = f(part[j], reinterpret_cast<const Reg*>(&x)[j]);
  }
  Vec all() const {
    Vec x;
    __builtin_memcpy(&x, part, sizeof x);
    return x;
  }
};

// 2^x, of x up to 127, by a polynomial for what is left of x, in [-1/2, 1/2]: its coefficients from the highest power down to the
// first. Below kLeastPower 0, so that no weight is subnormal, which products are slow with; NaN stays NaN.
constexpr float kLeastPower = -126.0f, kLog2e = 1.44269504f;
template <int N>
inline Reg exp2_by(const float (&coefficients)[N], Reg x) {
#if defined(QDENGINE_ISA_avx512) && !defined(QDENGINE_EMULATED)
  const __m512 n = _mm512_roundscale_ps(reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Reg r = x - reinterpret_cast<Reg>(n);
#else
  const Reg clamped = vmax(splat_reg(kLeastPower), x), shifted = clamped + 12582912.0f;  // 1.5 * 2^23
  const Reg r = clamped - (shifted - 12582912.0f);
#endif
  Reg p = splat_reg(coefficients[0]);
#pragma GCC unroll 8
  for (int i = 1; i < N; ++i) p = fused(p, r, splat_reg(coefficients[i]));
  p = fused(p, r, splat_reg(1.0f));
#if defined(QDENGINE_ISA_avx512) && !defined(QDENGINE_EMULATED)
  const __mmask16 kept = _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), _mm512_set1_ps(kLeastPower), _CMP_NLT_UQ);
  return reinterpret_cast<Reg>(_mm512_maskz_scalef_ps(kept, reinterpret_cast<__m512>(p), n));
#else
  const Reg y = p * reinterpret_cast<Reg>((reinterpret_cast<IReg>(shifted) + (127 - 0x4B400000)) << 23);  // 1.5 * 2^23 is 0x4B400000
  return reinterpret_cast<Reg>(reinterpret_cast<IReg>(y) & ~(x < splat_reg(kLeastPower)));
#endif
}

// Cephes' exp2f: relative error below 2e-7.
inline Reg exp2(Reg x) {
  constexpr float kCephes[] = {1.535336188e-4f, 1.339887440e-3f, 9.618437357e-3f, 5.550332471e-2f, 2.402264791e-1f, 6.931472028e-1f};
  return exp2_by(kCephes, x);
}
// For a weight that is rounded to bfloat16: relative error below 5e-5.
inline Reg rough_exp2(Reg x) {
  constexpr float kSeries[] = {9.618129e-3f, 5.550411e-2f, 2.402265e-1f, 6.931472e-1f};
  return exp2_by(kSeries, x);
}

#if !defined(QDENGINE_ISA_avx512)
inline Vec exp2(Vec x) {
  Vec y;
#pragma GCC unroll 4
  for (int j = 0; j < kRegs; ++j) reinterpret_cast<Reg*>(&y)[j] = exp2(reinterpret_cast<const Reg*>(&x)[j]);
  return y;
}
#endif

// Calls f with a zero of the type of a call's tensors, and one of the type of its cache.
template <class F>
inline void with_types(DType dtype, DType cache, F f) {
  const auto with_cache = [&](auto number) {
    if (cache == DType::i8) return f(number, Int8{});
    if (cache == DType::f8) return f(number, Float8{});
    return f(number, number);
  };
  dtype == DType::bf16 ? with_cache(bf16{}) : with_cache(float{});
}

// f(i) for every i in [0, count), on the threads of the pool.
template <class F>
inline void parallel(int64_t count, const F& f) {
  run_tasks(count, [](const void* data, int64_t i) { (*static_cast<const F*>(data))(i); }, &f);
}

// f(row) for every row, of `work` elements each: a loop of few is not worth waking other threads (about 5 us).
constexpr int64_t kParallelWork = 1 << 15, kTaskWork = 1 << 13;
template <class F>
inline void parallel_rows(int64_t rows, int64_t work, const F& f) {
  if (rows * work < kParallelWork) {
    for (int64_t row = 0; row < rows; ++row) f(row);
    return;
  }
  const int64_t each = work < kTaskWork ? kTaskWork / (work + 1) + 1 : 1;
  parallel((rows + each - 1) / each, [&](int64_t task) {
    const int64_t end = (task + 1) * each < rows ? (task + 1) * each : rows;
    for (int64_t row = task * each; row < end; ++row) f(row);
  });
}

}  // namespace qdengine::QDENGINE_ISA
