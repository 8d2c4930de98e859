// A linear layer's products in AMX tiles.
#pragma once

#include "linear_writer.h"

#if defined(QDENGINE_ISA_amx)
namespace qdengine::QDENGINE_ISA {

template <class Dot, int C, int A, int B>
inline void dot_tiles() {
  if constexpr (sizeof(typename Dot::B) == 1) {
    dot_int8<C, A, B>();
  } else {
    dot_bf16<C, A, B>();
  }
}

constexpr int64_t kBlockRows = 2 * kTileRows;

// Blocks of up to 32 rows by a set of S panels, one after the other: while one is multiplied, the sums of the one before are written
// and the set that comes next is fetched, a little at each step.
template <int S, class Dot, class T, bool gated>
class TileBlocks {
 public:
  // blocks: of rows, with each set.
  TileBlocks(const Writer<Dot, T, gated>& write, int64_t blocks) : write_(write), fetched_(divide_up(kTileRows, blocks)) {}
  ~TileBlocks() { write_some(kBlockRows); }

  // The set is that which begins with `panel` now; `next` comes then.
  void take(int64_t panel, int64_t next) {
    panel_ = panel;
    fetch_ = bytes(next);
  }

  // M times 16 rows, of which n are wanted and whose bytes are at x.
  template <int M>
  void multiply(const char* x, int64_t stride, int64_t row, int64_t n) {
    const Packed<Dot>& packed = write_.packed;
    const char *b = bytes(panel_), *fetch = fetch_;
    const int64_t apart = write_.apart() * packed.panel_numbers() * static_cast<int64_t>(sizeof(typename Dot::B));
    const int64_t steps = packed.groups / kTileRows, fetched = fetched_;
    const int64_t written = divide_up(rows_[now_ ^ 1].left(), steps);
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
    for (int64_t step = 0; step < steps; ++step, x += kTileBytes, b += kTileRows * kTileBytes) {
      tile_load<4>(x, stride);
      tile_load<6>(b, kTileBytes);
      dot_tiles<Dot, 0, 4, 6>();
      if constexpr (S > 1) {
        tile_load<7>(b + apart, kTileBytes);
        dot_tiles<Dot, 1, 4, 7>();
      }
      if constexpr (M > 1) {
        tile_load<5>(x + kTileRows * stride, stride);
        dot_tiles<Dot, 2, 5, 6>();
        if constexpr (S > 1) dot_tiles<Dot, 3, 5, 7>();
      }
      for (int64_t i = 0; i < fetched; ++i, fetch += kTileBytes) {
        __builtin_prefetch(fetch, 0, 2);
        if constexpr (S > 1) __builtin_prefetch(fetch + apart, 0, 2);
      }
      write_some(written);
    }
    fetch_ = fetch;
    Sums* sums = sums_[now_];
    constexpr int64_t kApart = S * sizeof(Sums);
    tile_store<0>(sums, kApart);
    if constexpr (S > 1) tile_store<1>(sums + 1, kApart);
    if constexpr (M > 1) tile_store<2>(sums + kTileRows * S, kApart);
    if constexpr (M > 1 && S > 1) tile_store<3>(sums + kTileRows * S + 1, kApart);
    rows_[now_].begin(write_, row, panel_, n, sums);
    now_ ^= 1;
  }

 private:
  using Sums = typename Dot::Sums;
  using Rows = typename Writer<Dot, T, gated>::template Rows<S>;

  const char* bytes(int64_t panel) const { return reinterpret_cast<const char*>(write_.packed.panel(write_.a.weight, panel)); }
  // Of the block before. Not in line: the loop over tiles has no registers to spare.
  __attribute__((noinline)) void write_some(int64_t n) { rows_[now_ ^ 1].write(n); }

  const Writer<Dot, T, gated>& write_;
  alignas(64) Sums sums_[2][kBlockRows * S];
  Rows rows_[2];
  int now_ = 0;  // which of both are the next block's
  int64_t panel_ = 0, fetched_;
  const char* fetch_ = nullptr;
};

// Rows, where their tiles' bytes are: in place, unless they end inside a tile.
template <class Dot, class X>
class TileRows {
 public:
  TileRows(const LinearArgs& a, int64_t groups, int64_t row, int64_t rows)
      : first_(reinterpret_cast<const char*>(static_cast<const X*>(a.x) + row * a.x_stride)),
        stride_(a.x_stride * static_cast<int64_t>(sizeof(X))), in_place_(whole(a, rows)),
        laid_(a, groups, row + in_place_, rows - in_place_) {}

  // f(bytes, stride) of those from number r on, r a multiple of a block's.
  template <class F>
  void at(int64_t r, F f) const {
    if (r < in_place_) return f(first_ + r * stride_, stride_);
    f(reinterpret_cast<const char*>(laid_.first + (r - in_place_) * laid_.stride), laid_.stride * static_cast<int64_t>(sizeof *laid_.first));
  }

 private:
  static int64_t whole(const LinearArgs& a, int64_t rows) {
    if (a.width * static_cast<int64_t>(sizeof(X)) % kTileBytes) return 0;
    return rows % kTileRows ? rows / kBlockRows * kBlockRows : rows;
  }
  const char* first_;
  int64_t stride_, in_place_;
  Units<Dot, X> laid_;
};

// Sets whose first panels are `panel`, panel + each, and so on up to `end`.
template <int S, class Dot, class X, class T, bool gated>
void run_sets(const Writer<Dot, T, gated>& write, const TileRows<Dot, X>& x, int64_t row, int64_t rows, int64_t panel, int64_t end, int64_t each) {
  TileBlocks<S, Dot, T, gated> blocks(write, divide_up(rows, kBlockRows));
  for (; panel < end; panel += each) {
    blocks.take(panel, panel + each);
    for (int64_t r = 0; r < rows; r += kBlockRows) {
      const int64_t n = rows - r < kBlockRows ? rows - r : kBlockRows;
      x.at(r, [&](const char* bytes, int64_t stride) {
        n > kTileRows ? blocks.template multiply<2>(bytes, stride, row + r, n) : blocks.template multiply<1>(bytes, stride, row + r, n);
      });
    }
  }
}

template <class X, class Dot, class T, bool gated>
void run_in_tiles(const Writer<Dot, T, gated>& write, int64_t row, int64_t rows, int64_t panel, int64_t end) {
  const TileRows<Dot, X> x(write.a, write.packed.groups, row, rows);
  tile_begin();
  if constexpr (gated) {
    run_sets<2>(write, x, row, rows, panel, end, 1);
  } else {
    const int64_t paired = panel + (end - panel) / 2 * 2;
    run_sets<2>(write, x, row, rows, panel, paired, 2);
    if (paired < end) run_sets<1>(write, x, row, rows, paired, end, 1);
  }
  tile_end();
}

}  // namespace qdengine::QDENGINE_ISA
#endif
