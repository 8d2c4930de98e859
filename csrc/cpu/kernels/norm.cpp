// RMS norm and layer norm, with or without adding to the residual first. Bound by memory: a row (2-4 KiB) is read twice and
// stays in L1. The sum runs over 16 lanes and is folded in one fixed order, so that a row's result does not depend on the
// batch, on the thread, or (but for fused multiply-add) on the instruction set.
#include "simd.h"

namespace qdengine::QDENGINE_ISA {
namespace {

template <class T>
void row_norm(const NormArgs& a, int64_t row) {
  T* out = static_cast<T*>(a.out) + row * a.out_stride;
  const T* x = static_cast<const T*>(a.x) + row * a.x_stride;
  const T* weight = static_cast<const T*>(a.weight);
  const T* bias = static_cast<const T*>(a.bias);
  const int64_t whole = a.width / kLanes * kLanes, rest = a.width - whole;

  if (a.residual) {
    T* residual = static_cast<T*>(a.residual) + row * a.residual_stride;
    for (int64_t i = 0; i < whole; i += kLanes) store(residual + i, load(residual + i) + load(x + i));
    if (rest) store_some(residual + whole, load_some(residual + whole, rest) + load_some(x + whole, rest), rest);
    x = residual;
  }
  float mean = 0.0f;
  if (bias) {
    Vec total = load_some(x + whole, rest);
    for (int64_t i = 0; i < whole; i += kLanes) total += load(x + i);
    mean = sum(total) / static_cast<float>(a.width);
  }
  Vec squares = load_some(x + whole, rest, mean) - mean;
  squares *= squares;
  for (int64_t i = 0; i < whole; i += kLanes) {
    const Vec centred = load(x + i) - mean;
    squares += centred * centred;
  }
  const float scale = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(a.width) + a.eps);
  for (int64_t i = 0; i < whole; i += kLanes) {
    const Vec y = (load(x + i) - mean) * scale * load(weight + i);
    store(out + i, bias ? y + load(bias + i) : y);
  }
  if (rest) {
    const Vec y = (load_some(x + whole, rest) - mean) * scale * load_some(weight + whole, rest);
    store_some(out + whole, bias ? y + load_some(bias + whole, rest) : y, rest);
  }
}

template <class T>
void run(const NormArgs& a) {
#pragma omp parallel for schedule(static) if (a.rows * a.width >= kParallelWork)
  for (int64_t row = 0; row < a.rows; ++row) row_norm<T>(a, row);
}

}  // namespace

void norm(const NormArgs& a, Stream) { a.dtype == DType::bf16 ? run<bf16>(a) : run<float>(a); }

}  // namespace qdengine::QDENGINE_ISA
