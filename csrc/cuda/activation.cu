// silu_mul: out = silu(gate) * up, [T, 2F] -> [T, F]; gelu: out = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), [T, F];
// quantize: out = x in 8 bits with a scale of each row, which the others write as well where out is of 8 bits;
// dequantize: out = sums * scales * weight_scales + bias, [T, F].
//
// Bound by memory: everything is read and written once. Plan: a thread a pack of 16 bytes, a block 256 packs of one row. For an
// output of 8 bits a block takes the whole row, whose largest number it needs, and its threads hold kHeld packs of the result
// (kHeld = 0: wider rows are read again, from L1).
// Not measured on a GPU yet.
#include "rows.cuh"

namespace qdengine::cuda {
namespace {

constexpr int kThreads = 256;

struct SiluMul {
  template <class T, int N>
  static __device__ __forceinline__ Pack<T, N> result(const T* x, int64_t width) {
    const auto gate = Pack<T, N>::load(x), up = Pack<T, N>::load(x + width);
    Pack<T, N> y;
#pragma unroll
    for (int j = 0; j < N; ++j) y.at[j] = narrow<T>(widen(gate.at[j]) / (1.0f + __expf(-widen(gate.at[j]))) * widen(up.at[j]));
    return y;
  }
};

struct Gelu {
  template <class T, int N>
  static __device__ __forceinline__ Pack<T, N> result(const T* from, int64_t) {
    const auto in = Pack<T, N>::load(from);
    Pack<T, N> y;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float x = widen(in.at[j]);  // x/2 (1 + tanh(u)) = x / (1 + exp(-2u))
      y.at[j] = narrow<T>(x / (1.0f + __expf((x + x * x * x * 0.044715f) * -1.5957691216f)));
    }
    return y;
  }
};

struct Same {
  template <class T, int N>
  static __device__ __forceinline__ Pack<T, N> result(const T* x, int64_t) {
    return Pack<T, N>::load(x);
  }
};

template <class Op, class T, int kPack>
__global__ __launch_bounds__(kThreads) void activation_kernel(ActivationArgs a, unsigned blocks_per_row) {
  const int64_t row = blockIdx.x / blocks_per_row;
  const int64_t i = (static_cast<int64_t>(blockIdx.x % blocks_per_row) * kThreads + threadIdx.x) * kPack;
  if (i >= a.width) return;
  const T* x = static_cast<const T*>(a.x) + row * a.x_stride + i;
  Op::template result<T, kPack>(x, a.width).store(static_cast<T*>(a.out) + row * a.out_stride + i);
}

// The largest of a block's values; every thread gets it.
__device__ __forceinline__ float block_largest(float x) {
  __shared__ float warps[kThreads / kWarp];
  x = max_over(x, kWarp);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = x;
  __syncthreads();
  return max_over(warps[threadIdx.x % (kThreads / kWarp)], kThreads / kWarp);
}

template <class Op, class T, class Out, int kPack, int kHeld>
__global__ __launch_bounds__(kThreads) void row_kernel(ActivationArgs a) {
  using P = Pack<T, kPack>;
  const int64_t row = blockIdx.x;
  const int width = static_cast<int>(a.width);
  const T* x = static_cast<const T*>(a.x) + row * a.x_stride;
  Out* out = static_cast<Out*>(a.out) + row * a.out_stride;
  P held[kHeld ? kHeld : 1];
  const auto visit = [&](auto f) {  // calls f(first element, pack) for the packs of this thread
    if constexpr (kHeld == 0) {
      for (int i = threadIdx.x * kPack; i < width; i += kThreads * kPack) f(i, held[0]);
    } else {
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        const int i = (k * kThreads + threadIdx.x) * kPack;
        if (i < width) f(i, held[k]);
      }
    }
  };
  float largest = 0.0f;
  visit([&](int i, P& p) {
    p = Op::template result<T, kPack>(x + i, a.width);
    largest = larger(largest, p);
  });
  largest = block_largest(largest);
  const float factor = quantize_factor<Out>(largest);
  visit([&](int i, P& p) {
    if (kHeld == 0) p = Op::template result<T, kPack>(x + i, a.width);
    quantize<Out>(p, factor).store(out + i);
  });
  if (threadIdx.x == 0) a.scales[row] = quantize_scale<Out>(largest);
}

template <int kPack>
__device__ __forceinline__ Pack<float, kPack> widened(const Pack<int32_t, kPack>& sums) {
  Pack<float, kPack> wide;
#pragma unroll
  for (int j = 0; j < kPack; ++j) wide.at[j] = static_cast<float>(sums.at[j]);
  return wide;
}

template <class T, int kPack>
__global__ __launch_bounds__(kThreads) void dequantize_kernel(DequantizeArgs a, unsigned blocks_per_row) {
  const int64_t row = blockIdx.x / blocks_per_row;
  const int64_t i = (static_cast<int64_t>(blockIdx.x % blocks_per_row) * kThreads + threadIdx.x) * kPack;
  if (i >= a.width) return;
  const auto sums = widened(Pack<int32_t, kPack>::load(a.sums + row * a.sums_stride + i));
  const auto factors = Pack<float, kPack>::load(a.weight_scales + i);
  Pack<T, kPack> bias{}, y;
  if (a.bias) bias = Pack<T, kPack>::load(static_cast<const T*>(a.bias) + i);
  const float scale = a.scales[row];
#pragma unroll
  for (int j = 0; j < kPack; ++j) y.at[j] = narrow<T>(sums.at[j] * (factors.at[j] * scale) + widen(bias.at[j]));
  y.store(static_cast<T*>(a.out) + row * a.out_stride + i);
}

template <class Op, class T>
void run_whole(const ActivationArgs& a, bool packs, cudaStream_t stream) {
  constexpr int64_t n = kVectorBytes / sizeof(T);
  const unsigned per_row = static_cast<unsigned>(divide_up(a.width, kThreads * (packs ? n : 1)));
  const unsigned grid = static_cast<unsigned>(a.rows * per_row);
  if (packs) {
    activation_kernel<Op, T, n><<<grid, kThreads, 0, stream>>>(a, per_row);
  } else {
    activation_kernel<Op, T, 1><<<grid, kThreads, 0, stream>>>(a, per_row);
  }
}

template <class Op, class T, class Out>
void run_eight_bits(const ActivationArgs& a, bool packs, cudaStream_t stream) {
  constexpr int64_t n = kVectorBytes / sizeof(T);
  const unsigned grid = static_cast<unsigned>(a.rows);
  if (packs && a.width <= 2 * kThreads * n) {
    row_kernel<Op, T, Out, n, 2><<<grid, kThreads, 0, stream>>>(a);
  } else if (packs) {
    row_kernel<Op, T, Out, n, 0><<<grid, kThreads, 0, stream>>>(a);
  } else {
    row_kernel<Op, T, Out, 1, 0><<<grid, kThreads, 0, stream>>>(a);
  }
}

template <class Op, class T>
void run(const ActivationArgs& a, cudaStream_t stream) {
  constexpr int64_t n = kVectorBytes / sizeof(T);
  const bool packs =
      a.width % n == 0 && packable(a.out, a.out_stride, n, sizeof(T)) && packable(a.x, a.x_stride, n, sizeof(T));
  switch (a.out_dtype) {
    case DType::i8: return run_eight_bits<Op, T, Int8>(a, packs, stream);
    case DType::f8: return run_eight_bits<Op, T, Float8>(a, packs, stream);
    default: return run_whole<Op, T>(a, packs, stream);
  }
}

template <class Op>
void launch(const char* op, const ActivationArgs& a, Stream stream) {
  const DeviceGuard guard(stream);
  with_type(a.dtype, [&](auto zero) { run<Op, decltype(zero)>(a, handle(stream)); });
  check_launch(op);
}

template <class T>
void run_dequantize(const DequantizeArgs& a, cudaStream_t stream) {
  constexpr int n = 4;  // sums and factors of 16 bytes
  const bool packs = a.width % n == 0 && a.out_stride % n == 0 && a.sums_stride % n == 0 && aligned(a.out) && aligned(a.sums) &&
                     aligned(a.weight_scales) && aligned(a.bias);
  const unsigned per_row = static_cast<unsigned>(divide_up(a.width, kThreads * (packs ? n : 1)));
  const unsigned grid = static_cast<unsigned>(a.rows * per_row);
  if (packs) {
    dequantize_kernel<T, n><<<grid, kThreads, 0, stream>>>(a, per_row);
  } else {
    dequantize_kernel<T, 1><<<grid, kThreads, 0, stream>>>(a, per_row);
  }
}

}  // namespace

void silu_mul(const ActivationArgs& a, Stream stream) { launch<SiluMul>("silu_mul", a, stream); }

void gelu(const ActivationArgs& a, Stream stream) { launch<Gelu>("gelu", a, stream); }

void quantize(const ActivationArgs& a, Stream stream) { launch<Same>("quantize", a, stream); }

void dequantize(const DequantizeArgs& a, Stream stream) {
  const DeviceGuard guard(stream);
  with_type(a.dtype, [&](auto zero) { run_dequantize<decltype(zero)>(a, handle(stream)); });
  check_launch("dequantize");
}

}  // namespace qdengine::cuda
