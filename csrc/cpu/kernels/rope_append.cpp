// rope_append: per token, the optional norm of each head, the rotation, and the copy into the paged cache, in 8 bits with a scale
// a head where the cache has them. Bound by memory; every head is read and written once.
#include "simd.h"

namespace qdengine::QDENGINE_ISA {
namespace {

constexpr int64_t kMaxHeadWidth = 512;  // checked by csrc/ops

// Reads a head, normalises it (weight set) and rotates it (cos set) into `wide`.
template <class T>
void transform(const RopeAppendArgs& a, const T* head, const T* weight, const float* cos, const float* sin, float* wide) {
  const int64_t d = a.head_width, half = d / 2;
  for (int64_t i = 0; i < d; ++i) wide[i] = load1(head + i);
  if (weight) {
    Vec squares = {};
    int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) squares += load(wide + i) * load(wide + i);
    const Vec tail = load_some(wide + i, d - i);
    squares += tail * tail;
    const float scale = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(d) + a.eps);
    for (int64_t j = 0; j < d; ++j) wide[j] *= scale * load1(weight + j);
  }
  if (cos) {
    for (int64_t i = 0; i < half; ++i) {
      const float low = wide[i], high = wide[i + half];
      wide[i] = low * cos[i] - high * sin[i];
      wide[i + half] = high * cos[i] + low * sin[i];
    }
  }
}

// As T has it: rounded in place. Returns max |x|.
template <class T>
float round_head(float* wide, int64_t d) {
  float top = 0.0f;
  for (int64_t i = 0; i < d; ++i) {
    T rounded;
    store1(&rounded, wide[i]);
    wide[i] = load1(&rounded);
    const float size = __builtin_fabsf(wide[i]);
    top = size > top ? size : top;
  }
  return top;
}

// Head number `at` of the cache.
template <class T, class C>
void append_head(float* wide, int64_t d, C* cache, float* scales, int64_t at) {
  C* out = cache + at * d;
  if constexpr (sizeof(C) == sizeof(T)) {
    for (int64_t i = 0; i < d; ++i) store1(out + i, wide[i]);
  } else {
    const float top = round_head<T>(wide, d), factor = quantize_factor<C>(top);
    scales[at] = quantize_scale<C>(top);
    int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) store(out + i, load(wide + i) * factor);
    for (; i < d; ++i) store1(out + i, wide[i] * factor);
  }
}

template <class T, class C>
void append_token(const RopeAppendArgs& a, int64_t t) {
  const int64_t d = a.head_width;
  const T* qkv = static_cast<const T*>(a.qkv) + t * a.qkv_stride;
  T* q = static_cast<T*>(a.q) + t * a.heads * d;
  int64_t position = a.positions[t];
  position = position < 0 ? 0 : (position < a.max_positions ? position : a.max_positions - 1);
  const float* cos = a.cos ? a.cos + position * (d / 2) : nullptr;
  const float* sin = a.cos ? a.sin + position * (d / 2) : nullptr;
  float wide[kMaxHeadWidth];
  for (int64_t h = 0; h < a.heads; ++h) {
    transform(a, qkv + h * d, static_cast<const T*>(a.q_weight), cos, sin, wide);
    for (int64_t i = 0; i < d; ++i) store1(q + h * d + i, wide[i]);
  }
  const int64_t slot = a.slots[t];
  if (slot < 0 || slot >= a.cache_slots) return;
  const T *keys = qkv + a.heads * d, *values = keys + a.kv_heads * d;
  for (int64_t g = 0; g < a.kv_heads; ++g) {
    const int64_t at = slot * a.kv_heads + g;
    transform(a, keys + g * d, static_cast<const T*>(a.k_weight), cos, sin, wide);
    append_head<T>(wide, d, static_cast<C*>(a.k_cache), a.k_scales, at);
    transform<T>(a, values + g * d, nullptr, nullptr, nullptr, wide);
    append_head<T>(wide, d, static_cast<C*>(a.v_cache), a.v_scales, at);
  }
}

template <class T, class C>
void run(const RopeAppendArgs& a) {
  parallel_rows(a.tokens, (a.heads + 2 * a.kv_heads) * a.head_width, [&](int64_t t) { append_token<T, C>(a, t); });
}

}  // namespace

void rope_append(const RopeAppendArgs& a, Stream) {
  with_types(a.dtype, a.cache_dtype, [&](auto number, auto cached) { run<decltype(number), decltype(cached)>(a); });
}

}  // namespace qdengine::QDENGINE_ISA
