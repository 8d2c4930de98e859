// silu_mul: out = silu(gate) * up, [T, 2F] -> [T, F]; gelu: out = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), [T, F].
//
// Bound by memory: everything is read and written once. Plan: a thread a pack of 16 bytes, a block 256 packs of one row.
// Not measured on a GPU yet.
#include "common.cuh"

namespace qdengine::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float silu(float x) { return x / (1.0f + __expf(-x)); }

// x/2 (1 + tanh(u)) = x / (1 + exp(-2u))
__device__ __forceinline__ float gelu_tanh(float x) {
  return x / (1.0f + __expf((x + x * x * x * 0.044715f) * -1.5957691216f));
}

template <class T, int kPack, bool kGated>
__global__ __launch_bounds__(kThreads) void activation_kernel(ActivationArgs a, unsigned blocks_per_row) {
  using P = Pack<T, kPack>;
  const int64_t row = blockIdx.x / blocks_per_row;
  const int64_t i = (static_cast<int64_t>(blockIdx.x % blocks_per_row) * kThreads + threadIdx.x) * kPack;
  if (i >= a.width) return;
  const T* x = static_cast<const T*>(a.x) + row * a.x_stride + i;
  const P in = P::load(x);
  P up{}, out;
  if constexpr (kGated) up = P::load(x + a.width);
#pragma unroll
  for (int j = 0; j < kPack; ++j) {
    out.at[j] = narrow<T>(kGated ? silu(widen(in.at[j])) * widen(up.at[j]) : gelu_tanh(widen(in.at[j])));
  }
  out.store(static_cast<T*>(a.out) + row * a.out_stride + i);
}

template <class T, bool kGated>
void run(const ActivationArgs& a, cudaStream_t stream) {
  constexpr int64_t n = kVectorBytes / sizeof(T);
  const bool packs =
      a.width % n == 0 && packable(a.out, a.out_stride, n, sizeof(T)) && packable(a.x, a.x_stride, n, sizeof(T));
  const unsigned per_row = static_cast<unsigned>(divide_up(a.width, kThreads * (packs ? n : 1)));
  const unsigned grid = static_cast<unsigned>(a.rows * per_row);
  if (packs) {
    activation_kernel<T, n, kGated><<<grid, kThreads, 0, stream>>>(a, per_row);
  } else {
    activation_kernel<T, 1, kGated><<<grid, kThreads, 0, stream>>>(a, per_row);
  }
}

}  // namespace

void silu_mul(const ActivationArgs& a, Stream stream) {
  const DeviceGuard guard(stream);
  with_type(a.dtype, [&](auto zero) { run<decltype(zero), true>(a, handle(stream)); });
  check_launch("silu_mul");
}

void gelu(const ActivationArgs& a, Stream stream) {
  const DeviceGuard guard(stream);
  with_type(a.dtype, [&](auto zero) { run<decltype(zero), false>(a, handle(stream)); });
  check_launch("gelu");
}

}  // namespace qdengine::cuda
