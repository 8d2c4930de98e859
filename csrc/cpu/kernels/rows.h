// How the result of a row is written: as it is, or in 8 bits with one scale.
#pragma once

#include "simd.h"

namespace qdengine::QDENGINE_ISA {

// Calls f(i, n) for every 16 lanes of a row from i on, of which n are the row's.
template <class F>
inline void for_lanes(int64_t width, F f) {
  const int64_t whole = width / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) f(i, int64_t{kLanes});
  if (whole < width) f(whole, width - whole);
}

template <class T>
inline Vec load_lanes(const T* p, int64_t n, float fill = 0.0f) {
  return n == kLanes ? load(p) : load_some(p, n, fill);
}
template <class T>
inline void store_lanes(T* p, Vec x, int64_t n) {
  n == kLanes ? store(p, x) : store_some(p, x, n);
}

// The largest |x| of a row, lane by lane: of bfloat16 by its bits, which are in the order of what they stand for.
template <class T>
struct Largest {
  Lanes best;

  void add(const T* x) {
    best.combine(load(x), [](Reg most, Reg y) { return vmax(most, vmax(y, -y)); });
  }
  void add_some(const T* x, int64_t n) {
    best.combine(load_some(x, n), [](Reg most, Reg y) { return vmax(most, vmax(y, -y)); });
  }
  float all() const { return max(best.all()); }
};
template <>
struct Largest<bf16> {
  HVec best = {};

  void add(const bf16* x) { best = vmax(best, *reinterpret_cast<const HVec*>(x) & kSize); }
  void add_some(const bf16* x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) best[i] = best[i] > (x[i].bits & kSize) ? best[i] : x[i].bits & kSize;
  }
  float all() const { return max(load(reinterpret_cast<const bf16*>(&best))); }

 private:
  static constexpr uint16_t kSize = 0x7FFF;
};

// A row, of which `largest` is known, in 8 bits.
template <class T, class Out>
inline void quantize_row(Out* out, float* scale, const T* x, int64_t width, float largest) {
  const float factor = quantize_factor<Out>(largest);
  *scale = quantize_scale<Out>(largest);
  for_lanes(width, [=](int64_t i, int64_t n) { store_lanes(out + i, load_lanes(x + i, n) * factor, n); });
}

constexpr int64_t kHeld = 4096;  // of a row that is computed once; a wider one is computed for its largest, and again

// y(i, n): the row's result, with 0 in the lanes past n; T: the type it is rounded to before it becomes Out.
template <class T, class Out, class F>
inline void write_row(Out* out, float* scale, int64_t width, F y) {
  if constexpr (sizeof(Out) == sizeof(T)) {
    for_lanes(width, [&](int64_t i, int64_t n) { store_lanes(out + i, y(i, n), n); });
  } else {
    alignas(64) T held[kHeld];
    Largest<T> largest;
    if (width <= kHeld) {
      for_lanes(width, [&](int64_t i, int64_t n) {
        store(held + i, y(i, n));
        largest.add(held + i);
      });
      return quantize_row(out, scale, held, width, largest.all());
    }
    const auto again = [&](int64_t i, int64_t n) {
      store(held, y(i, n));
      return held;
    };
    for_lanes(width, [&](int64_t i, int64_t n) { largest.add(again(i, n)); });
    const float factor = quantize_factor<Out>(largest.all());
    *scale = quantize_scale<Out>(largest.all());
    for_lanes(width, [&](int64_t i, int64_t n) { store_lanes(out + i, load(again(i, n)) * factor, n); });
  }
}

}  // namespace qdengine::QDENGINE_ISA
