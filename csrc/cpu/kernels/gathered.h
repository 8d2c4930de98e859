// What attention works on at a time.
#pragma once

#include "qdengine/attention.h"
#include "simd.h"

namespace qdengine::QDENGINE_ISA {

constexpr int32_t kKeys = attention::kSplitKeys, kKeyStep = 32;  // of a split, which is laid out in steps
constexpr int64_t kMaxHeadWidth = 512, kMaxGroup = 16;  // checked by csrc/ops
constexpr int32_t kTokenTile = 64;                      // new tokens worked on together at most, with all heads of a group
constexpr int64_t kMaxRows = kTokenTile * kMaxGroup;

constexpr int64_t kScores = kKeys + kLanes;  // of a row, so that the rows of a tile lie in other sets of the cache

// Of one kv head, where they are in the cache; scales of 8 bits, else 1.
template <class C>
struct Gathered {
  int64_t count;  // a multiple of kKeyStep
  const C *keys[kKeys], *values[kKeys];
  float key_scales[kKeys], value_scales[kKeys];
};

inline int64_t padded(int64_t width) { return (width + kLanes - 1) / kLanes * kLanes; }

// A head of a slot in the cache, `scale` times the numbers, to wider ones.
template <class C, class To>
void widen(const C* from, float scale, To* to, int64_t d) {
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) store(to + i, load(from + i) * scale);
  if (i < d) store(to + i, load_some(from + i, d - i) * scale);
}

}  // namespace qdengine::QDENGINE_ISA
