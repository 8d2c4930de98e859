// RMS norm and layer norm, with or without adding to the residual first.
//
//   RMS norm:    out = x / sqrt(mean(x^2) + eps) * weight
//   layer norm:  out = (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias
//
// and where out is of 8 bits, that in 8 bits with a scale of each row. [T, E] rows. Bound by memory: a row is read once (and the residual written) and out is written once.
// Plan: a warp a row, 4 rows a block; a lane holds kHeld packs of 16 bytes in registers between the passes (kHeld = 0: wider
// rows are read again, from L1). Sums run in one order whatever the batch, so a row's result never depends on its neighbours.
// Not measured on a GPU yet.
#include "rows.cuh"

namespace qdengine::cuda {
namespace {

constexpr int kWarps = 4;

// 8 blocks on a multiprocessor leave 64 registers a thread, which is enough for all to be held.
template <class T, class Out, int kPack, int kHeld>
__global__ __launch_bounds__(kWarps * kWarp, 8) void norm_kernel(NormArgs a) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= a.rows) return;
  using P = Pack<T, kPack>;
  const int lane = threadIdx.x % kWarp, width = static_cast<int>(a.width);
  const T* x = static_cast<const T*>(a.x) + row * a.x_stride;
  T* residual = a.residual ? static_cast<T*>(a.residual) + row * a.residual_stride : nullptr;
  const T* source = residual ? residual : x;
  P held[kHeld ? kHeld : 1];

  // Calls f(first element, pack) for the packs of this lane: the first pass reads and adds, later ones reuse.
  const auto visit = [&](bool first, auto f) {
    const auto one = [&](int i, P& p) {
      if (first) {
        p = P::load(x + i);
        if (residual) {
          const P old = P::load(residual + i);
#pragma unroll
          for (int j = 0; j < kPack; ++j) p.at[j] = narrow<T>(widen(old.at[j]) + widen(p.at[j]));
          p.store(residual + i);
        }
      } else if (kHeld == 0) {
        p = P::load(source + i);
      }
      f(i, p);
    };
    if constexpr (kHeld == 0) {
      for (int i = lane * kPack; i < width; i += kWarp * kPack) one(i, held[0]);
    } else {
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        const int i = (k * kWarp + lane) * kPack;
        if (i < width) one(i, held[k]);
      }
    }
  };

  float total = 0.0f;
  visit(true, [&](int, const P& p) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) total += a.bias ? widen(p.at[j]) : widen(p.at[j]) * widen(p.at[j]);
  });
  total = sum_over(total, kWarp) / static_cast<float>(width);
  const float mean = a.bias ? total : 0.0f;
  if (a.bias) {
    total = 0.0f;
    visit(false, [&](int, const P& p) {
#pragma unroll
      for (int j = 0; j < kPack; ++j) total += (widen(p.at[j]) - mean) * (widen(p.at[j]) - mean);
    });
    total = sum_over(total, kWarp) / static_cast<float>(width);
  }
  const float scale = 1.0f / sqrtf(total + a.eps);
  Out* out = static_cast<Out*>(a.out) + row * a.out_stride;
  const auto result = [&](int i, const P& p) {
    const P weight = P::load(static_cast<const T*>(a.weight) + i);
    P bias{}, y;
    if (a.bias) bias = P::load(static_cast<const T*>(a.bias) + i);
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      y.at[j] = narrow<T>((widen(p.at[j]) - mean) * scale * widen(weight.at[j]) + (a.bias ? widen(bias.at[j]) : 0.0f));
    }
    return y;
  };
  if constexpr (kEightBits<Out>) {
    float largest = 0.0f;
    visit(false, [&](int i, P& p) {
      p = result(i, p);
      largest = larger(largest, p);
    });
    largest = max_over(largest, kWarp);
    const float factor = quantize_factor<Out>(largest);
    visit(false, [&](int i, const P& p) { quantize<Out>(kHeld ? p : result(i, p), factor).store(out + i); });
    if (lane == 0) a.scales[row] = quantize_scale<Out>(largest);
  } else {
    visit(false, [&](int i, const P& p) { result(i, p).store(out + i); });
  }
}

template <class T, class Out>
void run(const NormArgs& a, cudaStream_t stream) {
  constexpr int64_t n = kVectorBytes / sizeof(T);
  const bool packs = a.width % n == 0 && packable(a.out, a.out_stride, n, sizeof(T)) && packable(a.x, a.x_stride, n, sizeof(T)) &&
                     packable(a.residual, a.residual_stride, n, sizeof(T)) && aligned(a.weight) && aligned(a.bias);
  const unsigned grid = static_cast<unsigned>(divide_up(a.rows, kWarps));
  const int64_t per_lane = divide_up(a.width, kWarp * n);
  if (packs && per_lane <= 2) {
    norm_kernel<T, Out, n, 2><<<grid, kWarps * kWarp, 0, stream>>>(a);
  } else if (packs && per_lane <= 4) {
    norm_kernel<T, Out, n, 4><<<grid, kWarps * kWarp, 0, stream>>>(a);
  } else if (packs) {
    norm_kernel<T, Out, n, 0><<<grid, kWarps * kWarp, 0, stream>>>(a);
  } else {
    norm_kernel<T, Out, 1, 0><<<grid, kWarps * kWarp, 0, stream>>>(a);
  }
}

}  // namespace

void norm(const NormArgs& a, Stream stream) {
  const DeviceGuard guard(stream);
  with_type(a.dtype, [&](auto zero) {
    with_output(a.out_dtype, zero, [&](auto out) { run<decltype(zero), decltype(out)>(a, handle(stream)); });
  });
  check_launch("norm");
}

}  // namespace qdengine::cuda
