// silu_mul and gelu: one pass, bound by memory and, in a core's cache, by the exponential (about 12 operations for 16 lanes).
#include "simd.h"

namespace qdengine::QDENGINE_ISA {
namespace {

inline Vec silu(Vec x) { return x / (exp(-x) + 1.0f); }

// x/2 (1 + tanh(u)) = x / (1 + exp(-2u))
inline Vec gelu_tanh(Vec x) { return x / (exp((x + x * x * x * 0.044715f) * -1.5957691216f) + 1.0f); }

template <class T>
void run_silu_mul(const ActivationArgs& a) {
#pragma omp parallel for schedule(static) if (a.rows * a.width >= kParallelWork)
  for (int64_t row = 0; row < a.rows; ++row) {
    T* out = static_cast<T*>(a.out) + row * a.out_stride;
    const T* gate = static_cast<const T*>(a.x) + row * a.x_stride;
    const T* up = gate + a.width;
    const int64_t whole = a.width / kLanes * kLanes, rest = a.width - whole;
    for (int64_t i = 0; i < whole; i += kLanes) store(out + i, silu(load(gate + i)) * load(up + i));
    if (rest) store_some(out + whole, silu(load_some(gate + whole, rest)) * load_some(up + whole, rest), rest);
  }
}

template <class T>
void run_gelu(const ActivationArgs& a) {
#pragma omp parallel for schedule(static) if (a.rows * a.width >= kParallelWork)
  for (int64_t row = 0; row < a.rows; ++row) {
    T* out = static_cast<T*>(a.out) + row * a.out_stride;
    const T* x = static_cast<const T*>(a.x) + row * a.x_stride;
    const int64_t whole = a.width / kLanes * kLanes, rest = a.width - whole;
    for (int64_t i = 0; i < whole; i += kLanes) store(out + i, gelu_tanh(load(x + i)));
    if (rest) store_some(out + whole, gelu_tanh(load_some(x + whole, rest)), rest);
  }
}

}  // namespace

void silu_mul(const ActivationArgs& a, Stream) { a.dtype == DType::bf16 ? run_silu_mul<bf16>(a) : run_silu_mul<float>(a); }
void gelu(const ActivationArgs& a, Stream) { a.dtype == DType::bf16 ? run_gelu<bf16>(a) : run_gelu<float>(a); }

}  // namespace qdengine::QDENGINE_ISA
