// linear: y = x W^T + bias, with W packed once; float32, bfloat16 and int8, whose sums are exact integers, scaled by row and column
// as they are written.
//
// Bound by multiply-adds from about eight rows on, by reading W below. W lies in panels of 16 columns (outputs), a panel as
// [groups][16][depth]: a group is what one instruction takes of a column, 32 bits of numbers or one that is widened. A task takes
// kChunk rows and a few panels, which stay in the core's caches: some rows at a time against one panel (two with AVX-512) in
// registers, or, of as many rows as stay near the core, 32 against two panels in AMX tiles. Every sum runs over all of the width in one order, from zero: a row's
// result does not depend on the rows beside it, on how many there are, or on the thread.
#include "linear_tiles.h"

namespace qdengine::QDENGINE_ISA {
namespace {

constexpr int64_t kChunk = 96, kTaskPanels = 4, kNearBytes = 768 << 10;
#if defined(QDENGINE_ISA_avx512)
constexpr int kRows = 12, kPanels = 2;
#elif defined(QDENGINE_ISA_avx2)
constexpr int kRows = 6, kPanels = 1;
#else
constexpr int kRows = 2, kPanels = 1;
#endif
static_assert(kGates == (kPanels > 1));

template <class F>
auto with_dot(DType number, F f) {
  if (number == DType::i8) return f(Int8Dot{}, int8_t{});
  if (number == DType::bf16) return f(BfloatDot{}, bf16{});
  return f(FloatDot<float>{}, float{});
}

// Sums of R rows, whose units are `x`, and S panels, `apart` numbers from one to the next, to [R][S][16].
template <class Dot, int R, int S>
inline void add_up(const typename Dot::Unit* x, int64_t stride, const typename Dot::B* b, int64_t apart, int64_t groups, char* to) {
  typename Dot::Sum sums[R][S * kRegs] = {};
  for (int64_t g = 0; g < groups; ++g, b += kPanel * Dot::kDepth) {
    decltype(Dot::load(b)) columns[S * kRegs];
#pragma GCC unroll 8
    for (int j = 0; j < S * kRegs; ++j) columns[j] = Dot::load(b + j / kRegs * apart + j % kRegs * kWidth * Dot::kDepth);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int j = 0; j < S * kRegs; ++j) sums[r][j] = Dot::add(sums[r][j], x[r * stride + g], columns[j]);
    }
  }
  // By way of other memory: an array whose address goes elsewhere would stay in memory in the loop above.
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < S * kRegs; ++j) {
      *reinterpret_cast<typename Dot::Sum*>(to + (r * S * kRegs + j) * sizeof(typename Dot::Sum)) = sums[r][j];
    }
  }
}

// R rows from number `row` on against a set of S panels.
template <int R, int S, class Dot, class T, bool gated>
inline void block(const Writer<Dot, T, gated>& write, const typename Dot::Unit* x, int64_t stride, int64_t row, int64_t panel) {
  const Packed<Dot>& packed = write.packed;
  alignas(64) char sums[R * S * sizeof(typename Dot::Sums)];
  add_up<Dot, R, S>(x, stride, packed.panel(write.a.weight, panel), write.apart() * packed.panel_numbers(), packed.groups, sums);
  typename Writer<Dot, T, gated>::template Rows<S> rows;
  rows.begin(write, row, panel, R, reinterpret_cast<const typename Dot::Sums*>(sums));
  rows.write(R);
}

// The last rows, fewer than kRows, all in one block.
template <int R, int S, class W, class Unit>
inline void last_block(const W& write, const Unit* x, int64_t stride, int64_t row, int64_t panel, int64_t rows) {
  if constexpr (R > 0) {
    if (rows == R) return block<R, S>(write, x, stride, row, panel);
    last_block<R - 1, S>(write, x, stride, row, panel, rows);
  }
}

template <int S, class W, class Unit>
void multiply(const W& write, const Unit* x, int64_t stride, int64_t row, int64_t rows, int64_t panel) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) block<kRows, S>(write, x + r * stride, stride, row + r, panel);
  last_block<kRows - 1, S>(write, x + r * stride, stride, row + r, panel, rows - r);
}

// Sets that begin with panels from `panel` to `end`.
template <class X, class Dot, class T, bool gated>
void run_in_registers(const Writer<Dot, T, gated>& write, int64_t row, int64_t rows, int64_t panel, int64_t end) {
  const Units<Dot, X> x(write.a, write.packed.groups, row, rows);
  if constexpr (gated) {
    for (; panel < end; ++panel) multiply<2>(write, x.first, x.stride, row, rows, panel);
  } else {
    for (; panel + kPanels <= end; panel += kPanels) multiply<kPanels>(write, x.first, x.stride, row, rows, panel);
    for (; panel < end; ++panel) multiply<1>(write, x.first, x.stride, row, rows, panel);
  }
}

template <class X, class Dot, class T, bool gated>
void run_task(const Writer<Dot, T, gated>& write, int64_t row, int64_t rows, int64_t panel, int64_t end) {
#if defined(QDENGINE_ISA_amx)
  if constexpr (Dot::kDepth > 1) return run_in_tiles<X>(write, row, rows, panel, end);
#endif
  run_in_registers<X>(write, row, rows, panel, end);
}

// What a task takes.
struct Part {
  int64_t rows, panels;
};

// In tiles: as many rows as stay near a core, so that a weight is read from far but once, and enough tasks for all threads.
inline Part part_of(const LinearArgs& a, int64_t panels, bool tiled) {
  if (!tiled) return {kChunk, panels > 8 * kTaskPanels ? kTaskPanels : kPanels};
  const int64_t wanted = 8 * call_threads(), some = panels / wanted / 2 * 2;
  Part part{kNearBytes / (a.width * size_of(a.number)) / kChunk * kChunk, some > 2 ? some : 2};
  if (part.rows < kChunk) part.rows = kChunk;
  while (part.rows > kChunk && divide_up(a.rows, part.rows) * divide_up(panels, part.panels) < wanted) part.rows -= kChunk;
  return part;
}

template <class X, class Dot, class T, bool gated>
void run(const Writer<Dot, T, gated>& write) {
  const LinearArgs& a = write.a;
  const int64_t panels = write.sets();
  const Part part = part_of(a, panels, kTiles && Dot::kDepth > 1);
  const int64_t columns = divide_up(panels, part.panels);
  parallel(divide_up(a.rows, part.rows) * columns, [&](int64_t task) {
    const int64_t row = task / columns * part.rows, panel = task % columns * part.panels;
    const int64_t rows = a.rows - row < part.rows ? a.rows - row : part.rows;
    const int64_t end = panel + part.panels < panels ? panel + part.panels : panels;
    run_task<X>(write, row, rows, panel, end);
  });
}

template <class X, class T, class Dot>
void run(const LinearArgs& a, const Packed<Dot>& packed) {
  if constexpr (kGates) {
    if (a.gated) return run<X>(Writer<Dot, T, true>{a, packed});
  }
  run<X>(Writer<Dot, T, false>{a, packed});
}

// By what a column of int8 weights is divided, and multiplied by 127, so that no pair of them is too large; 127 where none is.
inline int pair_divisor(const int8_t* column, int64_t width) {
  int largest = 0;
  for (int64_t k = 0; k < width; k += 2) {
    const int first = column[k], second = k + 1 < width ? column[k + 1] : 0;
    const int sum = (first < 0 ? -first : first) + (second < 0 ? -second : second);
    largest = largest > sum ? largest : sum;
  }
  return kLargestPair && largest > kLargestPair ? largest : 127;
}

inline int8_t narrow(int8_t x, int divisor) { return static_cast<int8_t>((254 * x + (x > 0 ? divisor : -divisor)) / (2 * divisor)); }

template <class Dot, class X>
void pack_column(const PackLinearArgs& a, const Packed<Dot>& packed, int64_t at) {
  const X* from = static_cast<const X*>(a.weight) + at * a.weight_stride;
  auto* to = packed.panel(a.packed, at / kPanel) + at % kPanel * Dot::kDepth;
  const bool inside = at < a.columns;
  int divisor = 127;
  if constexpr (Packed<Dot>::kEightBit) divisor = inside ? pair_divisor(from, a.width) : 127;
  uint32_t sum = 0;
  for (int64_t k = 0; k < packed.groups * Dot::kDepth; ++k) {
    X number = inside && k < a.width ? from[k] : X{};
    if constexpr (Packed<Dot>::kEightBit) {
      number = narrow(number, divisor);
      sum += static_cast<uint32_t>(number);
    }
    __builtin_memcpy(to + k / Dot::kDepth * kPanel * Dot::kDepth + k % Dot::kDepth, &number, sizeof number);
  }
  if constexpr (Packed<Dot>::kEightBit) {
    packed.scales(a.packed)[at] = inside ? a.scales[at] * (static_cast<float>(divisor) / 127.0f) : 0.0f;
    packed.excess(a.packed)[at] = static_cast<int32_t>(128u * sum);
  }
}

template <class Dot, class X>
void pack(const PackLinearArgs& a, const Packed<Dot>& packed) {
  const Header header = packed.header(a.number);
  __builtin_memcpy(a.packed, &header, sizeof header);
  parallel(packed.panels, [&](int64_t p) {
    for (int64_t column = 0; column < kPanel; ++column) pack_column<Dot, X>(a, packed, p * kPanel + column);
  });
}

}  // namespace

bool linear(const LinearArgs& a) {
  return with_dot(a.number, [&](auto dot, auto x) {
    const Packed<decltype(dot)> packed{a.columns, a.width};
    const Header expected = packed.header(a.number);
    if (a.weight_bytes != packed.bytes() || __builtin_memcmp(a.weight, &expected, sizeof expected) != 0) return false;
    using X = decltype(x);
    a.dtype == DType::bf16 ? run<X, bf16>(a, packed) : run<X, float>(a, packed);
    return true;
  });
}

int64_t pack_linear(const PackLinearArgs& a) {
  return with_dot(a.number, [&](auto dot, auto x) {
    const Packed<decltype(dot)> packed{a.columns, a.width};
    if (a.packed) pack<decltype(dot), decltype(x)>(a, packed);
    return packed.bytes();
  });
}

}  // namespace qdengine::QDENGINE_ISA
