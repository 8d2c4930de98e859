// The products of attention in AMX tiles of bfloat16: queries by keys, and weights, which are rounded to bfloat16, by values. Sums
// are float32, over all of a tile of keys in one order: a row's bits depend on that row alone.
#pragma once

#include "gathered.h"
#include "tiles.h"

#if defined(QDENGINE_ISA_amx)
namespace qdengine::QDENGINE_ISA {

constexpr int64_t kTilePad = 2 * kTileRows;  // rows past the last one that tiles read and write

// c[rows][16 panels] = or += a b. a: [rows][2 groups], rows of lda; b: [panels][groups][16] pairs, as tiles.h has it; groups a
// multiple of 16, panels even. Rows up to the next multiple of 32 are written too.
template <bool kAdd>
void tile_product(const bf16* a, int64_t lda, const int32_t* b, int64_t groups, float* c, int64_t ldc, int64_t rows,
                  int64_t panels) {
  const int64_t apart = ldc * static_cast<int64_t>(sizeof(float)), next = groups * 16;
  for (int64_t r = 0; r < rows; r += kTilePad) {
    for (int64_t p = 0; p < panels; p += 2) {
      float *top = c + r * ldc + p * 16, *low = top + kTileRows * ldc;
      if constexpr (kAdd) {
        tile_load<0>(top, apart), tile_load<1>(top + 16, apart), tile_load<2>(low, apart), tile_load<3>(low + 16, apart);
      } else {
        tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
      }
      for (int64_t g = 0; g < groups; g += kTileRows) {
        const bf16* from = a + r * lda + 2 * g;
        tile_load<4>(from, 2 * lda), tile_load<5>(from + kTileRows * lda, 2 * lda);
        tile_load<6>(b + p * next + g * 16, kTileBytes), tile_load<7>(b + (p + 1) * next + g * 16, kTileBytes);
        dot_bf16<0, 4, 6>(), dot_bf16<1, 4, 7>(), dot_bf16<2, 5, 6>(), dot_bf16<3, 5, 7>();
      }
      tile_store<0>(top, apart), tile_store<1>(top + 16, apart), tile_store<2>(low, apart), tile_store<3>(low + 16, apart);
    }
  }
}

// keys[16 panels][d], to [panels][groups][16] pairs, with zeros behind d.
inline void lay_key_pairs(const bf16* const* keys, int64_t d, int64_t groups, int32_t* to, int64_t panels) {
  const int64_t whole = d % 2 ? 0 : d / 2 / kWidth * kWidth;  // rows of an odd width do not begin at a pair
  for (int64_t p = 0; p < panels; ++p, to += groups * 16) {
    const float* rows[16];  // a pair is 32 bits that are only moved
    for (int64_t r = 0; r < 16; ++r) rows[r] = reinterpret_cast<const float*>(keys[p * 16 + r]);
    for (int64_t g = 0; g < whole; g += kWidth) transpose(rows, g, reinterpret_cast<float*>(to + g * 16), 16);
    for (int64_t g = whole; g < groups; ++g) {
      for (int64_t r = 0; r < 16; ++r) {
        const int64_t left = d - 2 * g;
        int32_t pair = 0;
        if (left > 0) __builtin_memcpy(&pair, keys[p * 16 + r] + 2 * g, left > 1 ? 4 : 2);
        to[g * 16 + r] = pair;
      }
    }
  }
}

// values[2 groups][d], to [panels][groups][16] pairs of one column's neighbours, with zeros behind d.
inline void lay_value_pairs(const bf16* const* values, int64_t d, int64_t groups, int32_t* to, int64_t panels) {
  for (int64_t p = 0; p < panels; ++p) {
    for (int64_t g = 0; g < groups; ++g, to += 16) {
      const bf16 *even = values[2 * g] + p * 16, *odd = values[2 * g + 1] + p * 16;
      if ((p + 1) * 16 <= d) {
        const UVec low = __builtin_convertvector(*reinterpret_cast<const HVec*>(even), UVec);
        const UVec high = __builtin_convertvector(*reinterpret_cast<const HVec*>(odd), UVec);
        *reinterpret_cast<UVec*>(to) = low | high << 16;
        continue;
      }
      for (int64_t i = 0; i < 16; ++i) {
        to[i] = p * 16 + i < d ? static_cast<int32_t>(even[i].bits | static_cast<uint32_t>(odd[i].bits) << 16) : 0;
      }
    }
  }
}

// C: of the cache. Numbers of 8 bits are exact in bfloat16; their scales multiply scores and weights.
template <class C>
struct InTiles {
  using Query = bf16;
  using Cached = C;
  // All rows are one block: what reads a tile just after it was stored waits for it (blocks of 32 rows took 1.19 times as long).
  static constexpr int64_t kPadRows = kTilePad, kBlockRows = kMaxRows;
  static constexpr bool kEightBit = sizeof(C) == 1;

  struct Operands {
    bf16 q[(kMaxRows + kTilePad) * kMaxHeadWidth], weights[(kMaxRows + kTilePad) * kKeys];
    bf16 wide_keys[kKeys * kMaxHeadWidth], wide_values[kKeys * kMaxHeadWidth];  // of 8 bits
    int32_t key_pairs[kKeys * kMaxHeadWidth / 2], value_pairs[kKeys * kMaxHeadWidth / 2];
    float key_scales[kKeys], value_scales[kKeys];
  };

  static int64_t stride(int64_t d) { return (d + kTilePad - 1) / kTilePad * kTilePad; }
  static void begin() { tile_begin(); }
  static void end() { tile_end(); }
  static void lay_query(Operands& m, int64_t row, const bf16* q, int64_t d) {
    bf16* to = m.q + row * stride(d);
    for (int64_t i = 0; i < d; ++i) to[i] = q[i];
    for (int64_t i = d; i < stride(d); ++i) to[i] = bf16{0};
  }
  static void lay(Operands& m, const Gathered<C>& from, int64_t d) {
    const int64_t ld = stride(d);
    if constexpr (kEightBit) {
      const bf16 *keys[kKeys], *values[kKeys];
      for (int64_t j = 0; j < kKeys; ++j) {
        // Of a row of zeros any scale does; but a hidden score, minus infinity, times 0 would be no number.
        m.key_scales[j] = from.key_scales[j] > 0.0f ? from.key_scales[j] : 1.0f;
        m.value_scales[j] = from.value_scales[j];
        widen(from.keys[j], 1.0f, m.wide_keys + j * ld, d);
        widen(from.values[j], 1.0f, m.wide_values + j * ld, d);
        keys[j] = m.wide_keys + j * ld, values[j] = m.wide_values + j * ld;
      }
      lay_pairs(m, keys, values, d);
    } else {
      lay_pairs(m, from.keys, from.values, d);
    }
  }
  static void score(Operands& m, float* scores, int64_t first, int64_t n, int64_t d) {
    const int64_t ld = stride(d);
    tile_product<false>(m.q + first * ld, ld, m.key_pairs, ld / 2, scores + first * kKeys, kKeys, n - first, kKeys / 16);
  }
  static Reg scaled(const Operands& m, Reg score, int64_t j) { return kEightBit ? score * load_reg(m.key_scales + j) : score; }
  static void weigh(Operands& m, float*, int64_t row, int64_t j, Reg weight) {
    store_reg(m.weights + row * kKeys + j, kEightBit ? weight * load_reg(m.value_scales + j) : weight);
  }
  static void add_values(Operands& m, const float*, float* part, int64_t first, int64_t n, int64_t d) {
    const int64_t ld = stride(d);
    tile_product<true>(m.weights + first * kKeys, kKeys, m.value_pairs, kKeys / 2, part + first * ld, ld, n - first, ld / 16);
  }

 private:
  static void lay_pairs(Operands& m, const bf16* const* keys, const bf16* const* values, int64_t d) {
    lay_key_pairs(keys, d, stride(d) / 2, m.key_pairs, kKeys / 16);
    lay_value_pairs(values, d, kKeys / 2, m.value_pairs, stride(d) / 16);
  }
};

}  // namespace qdengine::QDENGINE_ISA
#endif
