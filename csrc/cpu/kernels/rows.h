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

constexpr int64_t kHeld = 4096;  // of a row that is computed once; a wider one is computed for its largest, and again

// y(i, n): the row's result, with 0 in the lanes past n; T: the type it is rounded to before it becomes Out.
template <class T, class Out, class F>
inline void write_row(Out* out, float* scale, int64_t width, F y) {
  if constexpr (sizeof(Out) == sizeof(T)) {
    for_lanes(width, [&](int64_t i, int64_t n) { store_lanes(out + i, y(i, n), n); });
  } else {
    T held[kHeld];
    const bool holds = width <= kHeld;
    const auto rounded = [&](int64_t i, int64_t n) {
      T* place = held + (holds ? i : 0);
      store(place, y(i, n));
      return load(place);
    };
    Lanes best;
    for_lanes(width, [&](int64_t i, int64_t n) {
      best.combine(rounded(i, n), [](Reg most, Reg x) { return vmax(most, vmax(x, -x)); });
    });
    const float largest = max(best.all()), factor = quantize_factor<Out>(largest);
    *scale = quantize_scale<Out>(largest);
    if (holds) {
      for_lanes(width, [&](int64_t i, int64_t n) { store_lanes(out + i, load(held + i) * factor, n); });
    } else {
      for_lanes(width, [&](int64_t i, int64_t n) { store_lanes(out + i, rounded(i, n) * factor, n); });
    }
  }
}

}  // namespace qdengine::QDENGINE_ISA
