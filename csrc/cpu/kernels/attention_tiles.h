// The products of attention in AMX tiles of bfloat16: queries by keys, and weights, which are rounded to bfloat16, by values. Sums
// are float32, over all of a tile of keys in one order: a row's bits depend on that row alone.
#pragma once

#include "gathered.h"
#include "tiles.h"

#if defined(QDENGINE_ISA_amx)
namespace qdengine::QDENGINE_ISA {

// c = a b of 16 rows, one panel of b after the other, and between(i) for i in [0, 16), which the processor does meanwhile. a:
// [16][2 groups], rows of lda; b: [panels][groups][16] pairs, as tiles.h has it; groups a multiple of 16; panels at most 16; c:
// [16][16 panels], rows of ldc. A panel's sums are stored when the next panel has begun.
template <class F>
void multiply_panels(const bf16* a, int64_t lda, const int32_t* b, int64_t groups, float* c, int64_t ldc, int64_t panels, F between) {
  const auto begin = [&]<int T>(int64_t p) {
    if (p >= panels) return;
    tile_zero<T>();
    for (int64_t g = 0; g < groups; g += kTileRows) {
      tile_load<5>(a + 2 * g, 2 * lda), tile_load<6>(b + (p * groups + g) * 16, kTileBytes);
      dot_bf16<T, 5, 6>();
    }
  };
  const auto end = [&]<int T>(int64_t p) {
    if (p >= 0 && p < panels) tile_store<T>(c + p * 16, ldc * static_cast<int64_t>(sizeof(float)));
  };
  for (int64_t p = 0; p < 16; p += 2) {
    between(p);
    begin.template operator()<4>(p), end.template operator()<7>(p - 1);
    between(p + 1);
    begin.template operator()<7>(p + 1), end.template operator()<4>(p);
  }
  end.template operator()<7>(15);
}

// c = a b of 16 rows and P panels of b, 2 or 4, `next` pairs from one to the next; groups at most 8 times 16. between as above.
template <int P, class F>
void multiply_depth(const bf16* a, int64_t lda, const int32_t* b, int64_t next, int64_t groups, float* c, int64_t ldc, F between) {
  tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  for (int64_t g = 0, i = 0; i < 16; i += 2, g += kTileRows) {
    between(i), between(i + 1);
    if (g >= groups) continue;
    const int32_t* from = b + 16 * g;
    tile_load<4>(a + 2 * g, 2 * lda);
    tile_load<5>(from, kTileBytes), dot_bf16<0, 4, 5>();
    tile_load<6>(from + next, kTileBytes), dot_bf16<1, 4, 6>();
    if constexpr (P > 2) {
      tile_load<7>(from + 2 * next, kTileBytes), dot_bf16<2, 4, 7>();
      tile_load<5>(from + 3 * next, kTileBytes), dot_bf16<3, 4, 5>();
    }
  }
  const int64_t apart = ldc * static_cast<int64_t>(sizeof(float));
  tile_store<0>(c, apart), tile_store<1>(c + 16, apart);
  if constexpr (P > 2) tile_store<2>(c + 32, apart), tile_store<3>(c + 48, apart);
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
        const UVec low = widened(*reinterpret_cast<const HVec*>(even)), high = widened(*reinterpret_cast<const HVec*>(odd));
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
  static constexpr int64_t kBlockRows = kTileRows, kAhead = 1;
  static constexpr bool kEightBit = sizeof(C) == 1;
  static constexpr int64_t kWeights = kKeys + 2 * kLanes;  // of a row, so that the rows of a tile lie in other sets of the cache

  struct Operands {
    bf16 q[(kMaxRows + kTileRows) * kMaxHeadWidth], weights[kTileRows * kWeights];
    bf16 wide_keys[kKeys * kMaxHeadWidth], wide_values[kKeys * kMaxHeadWidth];  // of 8 bits
    int32_t key_pairs[kKeys * kMaxHeadWidth / 2], value_pairs[kKeys * kMaxHeadWidth / 2];
    float key_scales[kKeys], value_scales[kKeys];
    int64_t keys;
  };

  static int64_t stride(int64_t d) { return divide_up(d, 2 * kTileRows) * 2 * kTileRows; }  // whole tiles of pairs
  static void begin() { tile_begin(); }
  static void end() { tile_end(); }
  static void lay_query(Operands& m, int64_t row, const bf16* q, int64_t d) {
    bf16* to = m.q + row * stride(d);
    int64_t i = 0;
    for (; i + 2 * kLanes <= d; i += 2 * kLanes) __builtin_memcpy(to + i, q + i, 2 * kLanes * sizeof *q);
    for (; i < stride(d); ++i) to[i] = i < d ? q[i] : bf16{0};
  }
  static void lay(Operands& m, const Gathered<C>& from, int64_t d) {
    const int64_t ld = stride(d);
    m.keys = from.count;
    if constexpr (kEightBit) {
      const bf16 *keys[kKeys], *values[kKeys];
      for (int64_t j = 0; j < from.count; ++j) {
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
  template <class F>
  static void score(Operands& m, float* scores, int64_t first, int64_t, int64_t keys, int64_t d, F between) {
    const int64_t ld = stride(d);
    multiply_panels(m.q + first * ld, ld, m.key_pairs, ld / 2, scores, kScores, keys / 16, between);
  }
  // A score less `top`, which is the largest `scaled` of a row.
  static Reg below(const Operands& m, Reg score, int64_t j, float scale, float top) {
    return kEightBit ? scaled(m, score * scale, j) - top : fused(score, splat_reg(scale), splat_reg(-top));
  }
  static Reg scaled(const Operands& m, Reg score, int64_t j) { return kEightBit ? score * load_reg(m.key_scales + j) : score; }
  static Reg weight(Reg power) { return rough_exp2(power); }
  static void weigh(Operands& m, float*, int64_t row, int64_t j, Reg weight) {
    store_reg(m.weights + row * kWeights + j, kEightBit ? weight * load_reg(m.value_scales + j) : weight);
  }
  template <class F>
  static void add_values(Operands& m, const float*, float* part, int64_t, int64_t keys, int64_t d, F between) {
    const int64_t ld = stride(d), next = 16 * m.keys / 2;
    const auto at = [&](int64_t panel) { return m.value_pairs + panel * next; };
    const auto nothing = [](int64_t) {};
    int64_t p = ld / 16 % 4;  // two or none; then fours, the last of them with `between`
    if (p) multiply_depth<2>(m.weights, kWeights, at(0), next, keys / 2, part, ld, nothing);
    for (; p + 4 < ld / 16; p += 4) multiply_depth<4>(m.weights, kWeights, at(p), next, keys / 2, part + p * 16, ld, nothing);
    if (p < ld / 16) {
      multiply_depth<4>(m.weights, kWeights, at(p), next, keys / 2, part + p * 16, ld, between);
    } else {
      for (int64_t i = 0; i < 16; ++i) between(i);
    }
  }

 private:
  static void lay_pairs(Operands& m, const bf16* const* keys, const bf16* const* values, int64_t d) {
    lay_key_pairs(keys, d, stride(d) / 2, m.key_pairs, m.keys / 16);
    lay_value_pairs(values, d, m.keys / 2, m.value_pairs, stride(d) / 16);
  }
};

}  // namespace qdengine::QDENGINE_ISA
#endif
