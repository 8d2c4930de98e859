// greedy_argmax: one pass over the logits; 16 running maxima, each with the first index that reached it. NaN never wins.
#include "simd.h"

namespace qdengine::QDENGINE_ISA {
namespace {

template <class T>
int32_t row_argmax(const T* logits, int64_t vocab) {
  const float lowest = -__builtin_inff();
  Reg best_of[kRegs];
  IReg where_of[kRegs], at_of[kRegs];
  for (int j = 0; j < kRegs; ++j) {
    best_of[j] = splat_reg(lowest);
    where_of[j] = IReg{};
    for (int i = 0; i < kWidth; ++i) at_of[j][i] = j * kWidth + i;
  }
  const int64_t whole = vocab / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < kRegs; ++j) {
      const Reg x = load_reg(logits + i + j * kWidth);
      const IReg better = x > best_of[j];
      best_of[j] = better ? x : best_of[j];
      where_of[j] = better ? at_of[j] : where_of[j];
      at_of[j] += kLanes;
    }
  }
  float best[kLanes];
  int32_t where[kLanes];
  __builtin_memcpy(best, best_of, sizeof best);
  __builtin_memcpy(where, where_of, sizeof where);
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
