// Where a linear layer's sums go.
#pragma once

#include "activations.h"
#include "linear_layout.h"

namespace qdengine::QDENGINE_ISA {

// What becomes of sums: scaled, the bias added, rounded to T; or, where `gated`, then silu of the first half of all columns, times
// the second. Blocks take sets of panels: neighbours, or a panel of each half.
template <class Dot, class T, bool gated>
struct Writer {
  using Sums = typename Dot::Sums;
  const LinearArgs& a;
  const Packed<Dot>& packed;

  int64_t sets() const { return gated ? packed.panels / 2 : packed.panels; }  // panels that may be a set's first
  int64_t apart() const { return gated ? packed.panels / 2 : 1; }             // from a set's first panel to its second

  // What the rows of a panel share.
  struct alignas(64) Columns {
    Vec bias, scales;
    IVec excess;
    int64_t left;
    bool biased;

    void begin(const Writer& w, int64_t panel) {
      left = w.a.columns - panel * kPanel;
      biased = w.a.bias;
      const T* biases = static_cast<const T*>(w.a.bias) + panel * kPanel;
      if (biased) bias = left >= kPanel ? load(biases) : load_some(biases, left);
      if constexpr (Packed<Dot>::kEightBit) scales = load(w.packed.scales(w.a.weight) + panel * kPanel);
      if constexpr (kUnsigned) excess = *reinterpret_cast<const IVec*>(w.packed.excess(w.a.weight) + panel * kPanel);
    }
    bool plain() const { return left >= kPanel && !biased; }
    template <bool plain>
    Vec result(Sums sums, const float* row_scale) const {
      Vec y;
      if constexpr (Packed<Dot>::kEightBit) {
        if constexpr (kUnsigned) sums -= excess;
        y = __builtin_convertvector(sums, Vec) * (scales * *row_scale);
      } else {
        y = sums;
      }
      return !plain && biased ? y + bias : y;
    }
    template <bool plain>
    void write(T* out, Vec y) const {
      plain || left >= kPanel ? store(out, y) : store_some(out, y, left);
    }
  };

  // Some rows and the columns of a set of S panels: n times [S][16] sums.
  template <int S>
  class Rows {
   public:
    void begin(const Writer& w, int64_t row, int64_t panel, int64_t n, const Sums* sums) {
      out_ = static_cast<T*>(w.a.out) + row * w.a.out_stride + panel * kPanel;
      next_ = w.a.out_stride;
      scales_ = w.a.scales + row;
      sums_ = sums;
      rows_ = n;
      written_ = 0;
      if (panel == panel_) return;
      panel_ = panel;
      for (int i = 0; i < S; ++i) columns_[i].begin(w, panel + i * w.apart());
      plain_ = columns_[0].plain() && columns_[S - 1].plain();
    }
    int64_t left() const { return rows_ - written_; }
    // The next n of them, or those that are left.
    void write(int64_t n) {
      if (n > left()) n = left();
      if (n <= 0) return;
      plain_ ? write_rows<true>(n) : write_rows<false>(n);
      written_ += n;
    }

   private:
    template <bool plain>
    void write_rows(int64_t n) const {
      Columns columns[S];  // in registers: what is written could change those in memory
      for (int i = 0; i < S; ++i) columns[i] = columns_[i];
      const Sums* sums = sums_ + written_ * S;
      const float* scale = scales_ + written_;
      T* out = out_ + written_ * next_;
      for (const int64_t next = next_; n > 0; --n, out += next, ++scale, sums += S) {
        if constexpr (gated) {
          const Vec gate = columns[0].template result<plain>(sums[0], scale), up = columns[1].template result<plain>(sums[1], scale);
          store(out, silu(rounded<T>(gate)) * rounded<T>(up));
        } else {
#pragma GCC unroll 2
          for (int i = 0; i < S; ++i) columns[i].template write<plain>(out + i * kPanel, columns[i].template result<plain>(sums[i], scale));
        }
      }
    }

    T* out_ = nullptr;
    int64_t next_ = 0;
    const float* scales_ = nullptr;
    const Sums* sums_ = nullptr;
    int64_t rows_ = 0, written_ = 0, panel_ = -1;
    bool plain_ = false;
    Columns columns_[S];
  };
};

}  // namespace qdengine::QDENGINE_ISA
