// The products of attention in float32, in register blocks of kRows x kCols vectors.
#pragma once

#include "gathered.h"

namespace qdengine::QDENGINE_ISA {

#if defined(QDENGINE_ISA_avx512)
constexpr int kRows = 6, kCols = 4;
#elif defined(QDENGINE_ISA_avx2)
constexpr int kRows = 6, kCols = 1;
#else
constexpr int kRows = 2, kCols = 1;
#endif

// c[R][C lanes] = a[R][depth] b[depth][C lanes]; a by rows of lda, b and c by rows of ldb, ldc.
template <int R, int C>
inline void block(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t depth) {
  constexpr int kRegs = C * kLanes / kWidth;  // of a row
  Reg acc[R][kRegs] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Reg column[kRegs];
    for (int j = 0; j < kRegs; ++j) column[j] = load_reg(b + k * ldb + j * kWidth);
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < kRegs; ++j) acc[r][j] = fused(column[j], splat_reg(a[r * lda + k]), acc[r][j]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < kRegs; ++j) store_reg(c + r * ldc + j * kWidth, acc[r][j]);
  }
}

// The same for `rows` <= R rows, all in one register block: a row's sums do not depend on its neighbours.
template <int R, int C>
inline void last_block(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t rows,
                       int64_t depth) {
  if constexpr (R > 0) {
    if (rows == R) return block<R, C>(a, lda, b, ldb, c, ldc, depth);
    last_block<R - 1, C>(a, lda, b, ldb, c, ldc, rows, depth);
  }
}

// c[rows][cols] = a b, cols a multiple of 16.
inline void product(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t rows, int64_t cols,
             int64_t depth) {
  int64_t j = 0;
  for (; j + kCols * kLanes <= cols; j += kCols * kLanes) {
    int64_t r = 0;
    for (; r + kRows <= rows; r += kRows) block<kRows, kCols>(a + r * lda, lda, b + j, ldb, c + r * ldc + j, ldc, depth);
    last_block<kRows - 1, kCols>(a + r * lda, lda, b + j, ldb, c + r * ldc + j, ldc, rows - r, depth);
  }
  for (; j < cols; j += kLanes) {
    for (int64_t r = 0; r < rows; ++r) block<1, 1>(a + r * lda, lda, b + j, ldb, c + r * ldc + j, ldc, depth);
  }
}

// The two products in float32, in registers. T: of queries; C: of the cache.
template <class T, class C>
struct InRegisters {
  using Query = T;
  using Cached = C;
  static constexpr int64_t kBlockRows = 24, kAhead = 0;  // whole register blocks of every instruction set

  struct Operands {
    float q[kMaxRows * kMaxHeadWidth];
    float k[kMaxHeadWidth * kKeys];  // transposed: [D][keys]
    float v[kKeys * kMaxHeadWidth];
    float wide[kKeys * kMaxHeadWidth];  // keys of 8 bits
  };

  static int64_t stride(int64_t d) { return padded(d); }
  static void begin() {}
  static void end() {}
  static void lay_query(Operands& m, int64_t row, const T* q, int64_t d) {
    for (int64_t i = 0; i < d; ++i) m.q[row * d + i] = load1(q + i);
  }
  static void lay(Operands& m, const Gathered<C>& from, int64_t d) {
    const int64_t ld = padded(d);
    if constexpr (sizeof(C) == 1) {
      const float* wide[kKeys];
      for (int64_t j = 0; j < from.count; ++j) {
        wide[j] = m.wide + j * ld;
        widen(from.keys[j], from.key_scales[j], m.wide + j * ld, d);
      }
      lay_keys(m, wide, from.count, d);
    } else {
      lay_keys(m, from.keys, from.count, d);
    }
    for (int64_t j = 0; j < from.count; ++j) widen(from.values[j], from.value_scales[j], m.v + j * ld, d);
  }
  template <class F>
  static void score(Operands& m, float* scores, int64_t first, int64_t n, int64_t keys, int64_t d, F) {
    product(m.q + first * d, d, m.k, kKeys, scores, kScores, n, keys, d);
  }
  static Reg scaled(const Operands&, Reg score, int64_t) { return score; }
  static Reg below(const Operands&, Reg score, int64_t, float scale, float top) { return fused(score, splat_reg(scale), splat_reg(-top)); }
  static Reg weight(Reg power) { return exp2(power); }
  static void weigh(Operands&, float* score, int64_t, int64_t, Reg weight) { store_reg(score, weight); }
  template <class F>
  static void add_values(Operands& m, const float* scores, float* part, int64_t n, int64_t keys, int64_t d, F) {
    const int64_t ld = padded(d);
    product(scores, kScores, m.v, ld, part, ld, n, ld, keys);
  }

 private:
  // The keys of a split, transposed.
  template <class Number>
  static void lay_keys(Operands& m, const Number* const* keys, int64_t count, int64_t d) {
    const int64_t whole = d / kWidth * kWidth;
    for (int64_t j = 0; j < count; j += kWidth) {
      for (int64_t i = 0; i < whole; i += kWidth) transpose(keys + j, i, m.k + i * kKeys + j, kKeys);
      for (int64_t i = whole; i < d; ++i) {
        for (int64_t r = j; r < j + kWidth; ++r) m.k[i * kKeys + r] = load1(keys[r] + i);
      }
    }
  }
};

}  // namespace qdengine::QDENGINE_ISA
