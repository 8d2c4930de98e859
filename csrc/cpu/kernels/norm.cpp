// RMS norm and layer norm, with or without adding to the residual first. Bound by memory: a row (2-4 KiB) is read once or twice more,
// and stays in L1. The sum runs over 16 lanes and is folded in one fixed order, so that a row's result does not depend on the batch
// or on the thread.
#include "rows.h"

namespace qdengine::QDENGINE_ISA {
namespace {

inline Reg add(Reg a, Reg b) { return a + b; }

template <class T, class Out>
void row_norm(const NormArgs& a, int64_t row) {
  const T* x = static_cast<const T*>(a.x) + row * a.x_stride;
  const T* weight = static_cast<const T*>(a.weight);
  const T* bias = static_cast<const T*>(a.bias);

  const auto square = [](Reg total, Reg y) { return fused(y, y, total); };
  Lanes squares;
  float mean = 0.0f;
  if (a.residual) {
    T* residual = static_cast<T*>(a.residual) + row * a.residual_stride;
    for_lanes(a.width, [&, x](int64_t i, int64_t n) {
      const Vec y = rounded<T>(load_lanes(residual + i, n) + load_lanes(x + i, n));
      store_lanes(residual + i, y, n);
      if (!bias) squares.combine(y, square);
    });
    x = residual;
  }
  if (bias) {
    Lanes total;
    for_lanes(a.width, [&](int64_t i, int64_t n) { total.combine(load_lanes(x + i, n), add); });
    mean = sum(total.all()) / static_cast<float>(a.width);
  }
  if (bias || !a.residual) {
    for_lanes(a.width, [&](int64_t i, int64_t n) { squares.combine(load_lanes(x + i, n, mean) - mean, square); });
  }
  const float scale = 1.0f / __builtin_sqrtf(sum(squares.all()) / static_cast<float>(a.width) + a.eps);
  write_row<T>(static_cast<Out*>(a.out) + row * a.out_stride, a.scales ? a.scales + row : nullptr, a.width, [=](int64_t i, int64_t n) {
    if (!bias) return load_lanes(x + i, n) * scale * load_lanes(weight + i, n);
    return (load_lanes(x + i, n) - mean) * scale * load_lanes(weight + i, n) + load_lanes(bias + i, n);
  });
}

template <class T, class Out>
void run(const NormArgs& a) {
  parallel_rows(a.rows, a.width, [&](int64_t row) { row_norm<T, Out>(a, row); });
}

}  // namespace

void norm(const NormArgs& a, Stream) {
  with_types(a.dtype, a.out_dtype, [&](auto x, auto out) { run<decltype(x), decltype(out)>(a); });
}

}  // namespace qdengine::QDENGINE_ISA
