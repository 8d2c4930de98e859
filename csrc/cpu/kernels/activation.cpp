// silu_mul, gelu and quantize, which writes its input in 8 bits: one pass, bound by memory and, in a core's cache, by the
// exponential (about 12 operations for 16 lanes). dequantize: one pass, bound by memory.
#include "activations.h"
#include "rows.h"

namespace qdengine::QDENGINE_ISA {
namespace {

struct SiluMul {
  template <class T>
  static Vec result(const T* x, int64_t width, int64_t n) {
    return silu(load_lanes(x, n)) * load_lanes(x + width, n);
  }
};
struct Gelu {
  template <class T>
  static Vec result(const T* x, int64_t, int64_t n) {
    return gelu_tanh(load_lanes(x, n));
  }
};
template <class F, class T, class Out>
void run_rows(const ActivationArgs& a) {
  parallel_rows(a.rows, a.width, [&](int64_t row) {
    const T* x = static_cast<const T*>(a.x) + row * a.x_stride;
    write_row<T>(static_cast<Out*>(a.out) + row * a.out_stride, a.scales ? a.scales + row : nullptr, a.width,
                 [&](int64_t i, int64_t n) { return F::result(x + i, a.width, n); });
  });
}

template <class F>
void run(const ActivationArgs& a) {
  with_types(a.dtype, a.out_dtype, [&](auto x, auto out) { run_rows<F, decltype(x), decltype(out)>(a); });
}

template <class T, class Out>
void run_quantize(const ActivationArgs& a) {
  parallel_rows(a.rows, a.width, [&](int64_t row) {
    const T* x = static_cast<const T*>(a.x) + row * a.x_stride;
    Largest<T> largest;
    for_lanes(a.width, [&](int64_t i, int64_t n) { n == kLanes ? largest.add(x + i) : largest.add_some(x + i, n); });
    quantize_row(static_cast<Out*>(a.out) + row * a.out_stride, a.scales + row, x, a.width, largest.all());
  });
}

template <class T>
void run_dequantize(const DequantizeArgs& a) {
  parallel_rows(a.rows, a.width, [&](int64_t row) {
    const int32_t* sums = a.sums + row * a.sums_stride;
    T* out = static_cast<T*>(a.out) + row * a.out_stride;
    const T* bias = static_cast<const T*>(a.bias);
    const float scale = a.scales[row];
    for_lanes(a.width, [&](int64_t i, int64_t n) {
      Vec y = load_lanes(sums + i, n) * (load_lanes(a.weight_scales + i, n) * scale);
      if (bias) y += load_lanes(bias + i, n);
      store_lanes(out + i, y, n);
    });
  });
}

}  // namespace

void silu_mul(const ActivationArgs& a, Stream) { run<SiluMul>(a); }
void gelu(const ActivationArgs& a, Stream) { run<Gelu>(a); }
void quantize(const ActivationArgs& a, Stream) {
  const auto with = [&](auto x) { a.out_dtype == DType::i8 ? run_quantize<decltype(x), Int8>(a) : run_quantize<decltype(x), Float8>(a); };
  a.dtype == DType::bf16 ? with(bf16{}) : with(float{});
}
void dequantize(const DequantizeArgs& a, Stream) {
  a.dtype == DType::bf16 ? run_dequantize<bf16>(a) : run_dequantize<float>(a);
}

}  // namespace qdengine::QDENGINE_ISA
