// greedy_argmax: one pass over the logits; 16 running maxima, each with the first index that reached it. NaN never wins.
#include "simd.h"

namespace qdengine::QDENGINE_ISA {
namespace {

template <class T>
int32_t row_argmax(const T* logits, int64_t vocab) {
  const float lowest = -__builtin_inff();
  Vec best = splat(lowest);
  IVec where = {}, lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const int64_t whole = vocab / kLanes * kLanes;
  IVec at = lane;
  for (int64_t i = 0; i < whole; i += kLanes, at += kLanes) {
    const Vec x = load(logits + i);
    const IVec better = x > best;
    best = better ? x : best;
    where = better ? at : where;
  }
  float value = lowest;
  int32_t id = 0;
  bool found = false;
  for (int i = 0; i < kLanes; ++i) {
    if (best[i] == lowest) continue;
    if (!found || best[i] > value || (best[i] == value && where[i] < id)) {
      value = best[i];
      id = where[i];
      found = true;
    }
  }
  for (int64_t i = whole; i < vocab; ++i) {
    if (load1(logits + i) > value) {
      value = load1(logits + i);
      id = static_cast<int32_t>(i);
    }
  }
  return id;
}

template <class T>
void run(const ArgmaxArgs& a) {
  parallel_rows(a.rows, a.vocab, [&](int64_t row) {
    a.out[row] = row_argmax(static_cast<const T*>(a.logits) + row * a.stride, a.vocab);
  });
}

}  // namespace

void greedy_argmax(const ArgmaxArgs& a, Stream) { a.dtype == DType::bf16 ? run<bf16>(a) : run<float>(a); }

}  // namespace qdengine::QDENGINE_ISA
