// greedy_argmax: the lowest id with the highest logit, [R, V] -> [R]. NaN never wins. allowed_argmax: the same among the tokens
// that go on with a span of the document, for the rows of verbatim sequences; its logic is qdengine/span.h, which the CPU kernel
// shares.
//
// Plan: a block a row; a logit and its id are packed in one integer whose order is "higher logit, then lower id", so that the
// reduction is a plain maximum and its result does not depend on its order. greedy_argmax is bound by memory: every logit is read
// once. allowed_argmax is bound by latency: its threads look at the places of the document in strides, few of which are sentence
// starts, and read the logits of those that go on; blocks of other rows leave at once. Not measured on a GPU yet.
#include "common.cuh"
#include "qdengine/span.h"

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

__device__ __forceinline__ int32_t id_of(int64_t worth) { return 0x7FFFFFFF - static_cast<int32_t>(worth & 0x7FFFFFFF); }

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
  if (threadIdx.x == 0) a.out[blockIdx.x] = id_of(best);
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

template <class T>
__global__ __launch_bounds__(kThreads) void allowed_kernel(AllowedArgs a) {
  __shared__ int32_t owner, opened;
  const int32_t row = static_cast<int32_t>(blockIdx.x), thread = static_cast<int32_t>(threadIdx.x);
  if (thread == 0) {
    owner = span::kNone;
    opened = 0;
  }
  __syncthreads();
  for (int32_t s = thread; s < a.sequences; s += kThreads) {
    if (span::owns(a, s, row)) owner = s;
  }
  __syncthreads();
  if (owner == span::kNone) return;
  const T* logits = static_cast<const T*>(a.logits) + row * a.logits_stride;
  const span::Document d = span::document(a, owner);
  const span::Context c = span::context(a, owner, row);
  for (int32_t i = thread; i < c.length; i += kThreads) {
    if (span::at(c, i) == d.break_id) atomicMax(&opened, i + 1);
  }
  __syncthreads();
  int64_t best = 0;
  const auto take = [&](int32_t from, int32_t token) {
    const int64_t here = worth(widen(logits[from]), token);
    best = here > best ? here : best;
  };
  bool may_end = false;
  for (int32_t place = d.begin + thread; place < d.end; place += kThreads) {
    const span::Next next = span::next(d, c, opened, place);
    may_end |= next.ends;
    if (next.token == span::kNone) continue;
    take(next.token, next.token);
    take(span::twin(d, opened == c.length, next.token), next.token);
  }
  const int32_t closing = span::closing(a, c, opened, __syncthreads_or(may_end) != 0);
  for (int32_t i = thread; i < closing; i += kThreads) {
    const int32_t token = span::closer(a, d, i);
    if (token != span::kNone) take(token, token);
  }
  best = block_max<kThreads>(best);
  if (thread == 0) a.chosen[row] = best == 0 ? a.stop_ids[0] : id_of(best);
}

}  // namespace

void greedy_argmax(const ArgmaxArgs& a, Stream stream) {
  const DeviceGuard guard(stream);
  with_type(a.dtype, [&](auto zero) { run<decltype(zero)>(a, handle(stream)); });
  check_launch("greedy_argmax");
}

void allowed_argmax(const AllowedArgs& a, Stream stream) {
  const DeviceGuard guard(stream);
  with_type(a.dtype, [&](auto zero) {
    allowed_kernel<decltype(zero)><<<static_cast<unsigned>(a.rows), kThreads, 0, handle(stream)>>>(a);
  });
  check_launch("allowed_argmax");
}

}  // namespace qdengine::cuda
