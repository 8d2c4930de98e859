// greedy_argmax: the lowest id with the highest logit, [R, V] -> [R]. NaN never wins.
//
// Bound by memory: every logit is read once. Plan: a block a row; a logit and its id are packed in one integer whose order is
// "higher logit, then lower id", so that the reduction is a plain maximum and its result does not depend on its order.
// Not measured on a GPU yet.
#include "common.cuh"

namespace qdengine::cuda {
namespace {

constexpr int kThreads = 256;

// Floats in the order of unsigned integers; NaN counts as -infinity, and -0 as +0.
__device__ __forceinline__ uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(isnan(x) ? -INFINITY : x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Non-negative, since the sign bit of a 64-bit integer must not decide: 32 bits of logit, 31 of id.
__device__ __forceinline__ int64_t worth(float x, int id) {
  return static_cast<int64_t>((static_cast<uint64_t>(ordered(x)) << 31) | (0x7FFFFFFFu - static_cast<uint32_t>(id)));
}

template <class T, int kPack>
__global__ __launch_bounds__(kThreads) void argmax_kernel(ArgmaxArgs a) {
  using P = Pack<T, kPack>;
  const T* logits = static_cast<const T*>(a.logits) + static_cast<int64_t>(blockIdx.x) * a.stride;
  const int vocab = static_cast<int>(a.vocab), packs = vocab / kPack;
  int64_t best = 0;
  const auto take = [&best](float x, int id) {
    const int64_t here = worth(x, id);
    best = here > best ? here : best;
  };
  for (int i = threadIdx.x; i < packs; i += kThreads) {
    const P p = P::load(logits + i * kPack);
#pragma unroll
    for (int j = 0; j < kPack; ++j) take(widen(p.at[j]), i * kPack + j);
  }
  for (int i = packs * kPack + threadIdx.x; i < vocab; i += kThreads) take(widen(logits[i]), i);
  best = block_max<kThreads>(best);
  if (threadIdx.x == 0) a.out[blockIdx.x] = 0x7FFFFFFF - static_cast<int32_t>(best & 0x7FFFFFFF);
}

template <class T>
void run(const ArgmaxArgs& a, cudaStream_t stream) {
  constexpr int64_t n = kVectorBytes / sizeof(T);
  const unsigned grid = static_cast<unsigned>(a.rows);
  if (packable(a.logits, a.stride, n, sizeof(T))) {
    argmax_kernel<T, n><<<grid, kThreads, 0, stream>>>(a);
  } else {
    argmax_kernel<T, 1><<<grid, kThreads, 0, stream>>>(a);
  }
}

}  // namespace

void greedy_argmax(const ArgmaxArgs& a, Stream stream) {
  const DeviceGuard guard(stream);
  with_type(a.dtype, [&](auto zero) { run<decltype(zero)>(a, handle(stream)); });
  check_launch("greedy_argmax");
}

}  // namespace qdengine::cuda
