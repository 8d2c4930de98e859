// rope_append: per token and head the optional RMS norm, the rotation of the pairs (i, i + D/2), and the copy of k and v into
// the paged cache.
//
// qkv [T, (H + 2G) D] -> q [T, H, D], k_cache and v_cache [N, P, G, D], of 8 bits with a scale for every head where the caches have
// them. Bound by memory: every head is read and written once.
// Plan: `lanes` lanes a head (a power of two: D/2 packs of 16 bytes where D allows, else a warp of single elements), so that
// a warp moves several heads of 64. Sums and maxima come first, over the lanes of a head, and what is read again then comes from L1.
// Products and sums are rounded as written, so that a head is the same every time it is computed. Not measured on a GPU yet.
#include "common.cuh"

namespace qdengine::cuda {
namespace {

constexpr int kThreads = 128;

// 1 / sqrt(mean(x^2) + eps) of a head that `lanes` lanes share. Every lane of the warp must come here.
template <class T, int kPack>
__device__ __forceinline__ float rms_scale(const T* in, int width, float eps, int lane, int lanes) {
  using P = Pack<T, kPack>;
  float squares = 0.0f;
  for (int i = lane * kPack; i < width; i += lanes * kPack) {
    const P x = P::load(in + i);
#pragma unroll
    for (int j = 0; j < kPack; ++j) squares += widen(x.at[j]) * widen(x.at[j]);
  }
  return 1.0f / sqrtf(sum_over(squares, lanes) / static_cast<float>(width) + eps);
}

// A head as it is read: scaled by `scale` and `weight` (null: not) and rotated by cos and sin (null: not).
template <class T, int kPack>
struct Head {
  using P = Pack<T, kPack>;
  const T *in, *weight;
  const float *cos, *sin;
  float scale;
  int width, lane, lanes;

  __device__ __forceinline__ float scaled(T x, int i) const {
    return weight ? __fmul_rn(__fmul_rn(widen(x), scale), widen(weight[i])) : widen(x);
  }

  // Calls f(place, pack) with the rounded elements of this lane.
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    const int half = width / 2;
    for (int i = lane * kPack; i < half; i += lanes * kPack) {
      P low = P::load(in + i), high = P::load(in + half + i);
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        const float x = scaled(low.at[j], i + j), y = scaled(high.at[j], half + i + j);
        const float c = cos ? cos[i + j] : 1.0f, s = cos ? sin[i + j] : 0.0f;
        low.at[j] = narrow<T>(cos ? __fmaf_rn(x, c, -__fmul_rn(y, s)) : x);
        high.at[j] = narrow<T>(cos ? __fmaf_rn(y, c, __fmul_rn(x, s)) : y);
      }
      f(i, low);
      f(half + i, high);
    }
    // An odd width has no rotation and one element left; it is not read in packs.
    if constexpr (kPack == 1) {
      if (width % 2 && lane == 0) f(width - 1, P{{narrow<T>(scaled(in[width - 1], width - 1))}});
    }
  }

  __device__ __forceinline__ float largest() const {
    float most = 0.0f;
    each([&](int, const P& x) {
#pragma unroll
      for (int j = 0; j < kPack; ++j) most = fmaxf(most, fabsf(widen(x.at[j])));
    });
    return most;
  }

  template <class C>
  __device__ __forceinline__ void quantize_to(C* out, float factor) const {
    each([&](int i, const P& x) {
      Pack<C, kPack> numbers;
#pragma unroll
      for (int j = 0; j < kPack; ++j) quantize(numbers.at[j], __fmul_rn(widen(x.at[j]), factor));
      numbers.store(out + i);
    });
  }
};

template <class T, class C, int kPack>
__global__ __launch_bounds__(kThreads) void rope_append_kernel(RopeAppendArgs a, int lanes) {
  const int heads = static_cast<int>(a.heads), kv_heads = static_cast<int>(a.kv_heads), width = static_cast<int>(a.head_width);
  const int64_t all = heads + 2 * kv_heads, count = a.tokens * all;
  const int64_t index = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / lanes;
  // Lanes past the end share the last head's sums, which need whole warps, and then leave.
  const int64_t item = index < count ? index : count - 1, token = item / all;
  const int head = static_cast<int>(item % all), lane = threadIdx.x % lanes;
  const bool is_q = head < heads, is_v = head >= heads + kv_heads, rotated = a.cos && !is_v;
  int64_t position = a.positions[token];
  position = position < 0 ? 0 : (position < a.max_positions ? position : a.max_positions - 1);
  const int64_t angle = position * (width / 2);
  const T* in = static_cast<const T*>(a.qkv) + token * a.qkv_stride + static_cast<int64_t>(head) * width;
  const float scale = a.q_weight ? rms_scale<T, kPack>(in, width, a.eps, lane, lanes) : 1.0f;
  const void* weight = is_q ? a.q_weight : (is_v ? nullptr : a.k_weight);
  const Head<T, kPack> x{in, static_cast<const T*>(weight), rotated ? a.cos + angle : nullptr, rotated ? a.sin + angle : nullptr,
                         scale, width, lane, lanes};
  float largest = 0.0f;
  if constexpr (sizeof(C) == 1) largest = max_over(is_q ? 0.0f : x.largest(), lanes);

  const int64_t slot = a.slots[token];
  const bool kept = is_q || (slot >= 0 && slot < a.cache_slots);
  if (index >= count || !kept) return;
  const auto copy_to = [&](T* out) { x.each([&](int i, const Pack<T, kPack>& pack) { pack.store(out + i); }); };
  if (is_q) return copy_to(static_cast<T*>(a.q) + (token * heads + head) * width);
  const int64_t at = slot * kv_heads + (head - heads) % kv_heads;
  C* out = static_cast<C*>(is_v ? a.v_cache : a.k_cache) + at * width;
  if constexpr (sizeof(C) == 1) {
    x.quantize_to(out, quantize_factor<C>(largest));
    if (lane == 0) (is_v ? a.v_scales : a.k_scales)[at] = quantize_scale<C>(largest);
  } else {
    copy_to(out);
  }
}

template <class T, class C>
void run(const RopeAppendArgs& a, cudaStream_t stream) {
  constexpr int64_t n = kVectorBytes / sizeof(T);
  const bool packs = a.head_width % (2 * n) == 0 && packable(a.qkv, a.qkv_stride, n, sizeof(T)) && aligned(a.q) &&
                     aligned(a.k_cache) && aligned(a.v_cache);
  int lanes = 1;
  while (lanes < kWarp && lanes * (packs ? n : 1) < a.head_width / 2) lanes *= 2;
  const int64_t items = a.tokens * (a.heads + 2 * a.kv_heads);
  const unsigned grid = static_cast<unsigned>(divide_up(items * lanes, kThreads));
  if (packs) {
    rope_append_kernel<T, C, n><<<grid, kThreads, 0, stream>>>(a, lanes);
  } else {
    rope_append_kernel<T, C, 1><<<grid, kThreads, 0, stream>>>(a, lanes);
  }
}

}  // namespace

void rope_append(const RopeAppendArgs& a, Stream stream) {
  const DeviceGuard guard(stream);
  with_types(a.dtype, a.cache_dtype,
             [&](auto number, auto cached) { run<decltype(number), decltype(cached)>(a, handle(stream)); });
  check_launch("rope_append");
}

}  // namespace qdengine::cuda
