// AMX: eight tiles of 16 rows of 64 bytes, and their products. In a build for tests (QDENGINE_EMULATED) plain code over arrays.
//
// dot_int8 and dot_bf16 add a b to c: a has 16 rows of 64 numbers of int8, or 32 of bfloat16; b has fours (pairs) of a column's
// numbers side by side, [16][16 columns][4 or 2]; c has 16 rows of 16 columns, int32 or float32.
#pragma once

#include "simd.h"

#if defined(QDENGINE_ISA_amx)
namespace qdengine::QDENGINE_ISA {

constexpr int kTileRows = 16, kTileBytes = 64;

#if defined(QDENGINE_EMULATED)

struct Tiles {
  alignas(64) uint8_t bytes[8][kTileRows][kTileBytes];
};
inline Tiles& tiles() {
  static thread_local Tiles all;
  return all;
}
inline void tile_begin() {}
inline void tile_end() {}
template <int T>
inline void tile_zero() {
  __builtin_memset(tiles().bytes[T], 0, sizeof tiles().bytes[T]);
}
template <int T>
inline void tile_load(const void* from, int64_t stride) {
  for (int r = 0; r < kTileRows; ++r) __builtin_memcpy(tiles().bytes[T][r], static_cast<const char*>(from) + r * stride, kTileBytes);
}
template <int T>
inline void tile_store(void* to, int64_t stride) {
  for (int r = 0; r < kTileRows; ++r) __builtin_memcpy(static_cast<char*>(to) + r * stride, tiles().bytes[T][r], kTileBytes);
}
template <class Number, class Sum, int C, int A, int B>
inline void tile_dot() {
  constexpr int kDepth = 4 / sizeof(Number);
  Sum(*c)[16] = reinterpret_cast<Sum(*)[16]>(tiles().bytes[C]);
  for (int m = 0; m < kTileRows; ++m) {
    for (int k = 0; k < 16 * kDepth; ++k) {
      const Number a = reinterpret_cast<const Number*>(tiles().bytes[A][m])[k];
      const Number* b = reinterpret_cast<const Number*>(tiles().bytes[B][k / kDepth]) + k % kDepth;
      for (int n = 0; n < 16; ++n) c[m][n] += static_cast<Sum>(load1(&a)) * static_cast<Sum>(load1(b + n * kDepth));
    }
  }
}
template <int C, int A, int B>
inline void dot_int8() {
  tile_dot<Int8, int32_t, C, A, B>();
}
template <int C, int A, int B>
inline void dot_bf16() {
  tile_dot<bf16, float, C, A, B>();
}

#else

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
// Every task sets the tiles up and gives them back: a thread whose tiles are in use is dearer to switch.
inline void tile_begin() {
  TileConfig config;
  for (int t = 0; t < 8; ++t) config.row_bytes[t] = kTileBytes, config.rows[t] = kTileRows;
  asm volatile("ldtilecfg %0" ::"m"(config));
}
inline void tile_end() { asm volatile("tilerelease" ::: "memory"); }
template <int T>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
inline void tile_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void tile_store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
}
template <int C, int A, int B>
inline void dot_int8() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
template <int C, int A, int B>
inline void dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#endif

}  // namespace qdengine::QDENGINE_ISA
#endif
