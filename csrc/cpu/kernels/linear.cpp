// linear: y = x W^T + bias, with W packed once; float32, bfloat16 and int8, whose sums are exact integers, scaled by row and column
// as they are written.
//
// Bound by multiply-adds from about eight rows on, by reading W below. W lies in panels of 16 columns (outputs), a panel as
// [groups][16][depth]: a group is what one instruction takes of a column, 32 bits of numbers or one that is widened. A task takes
// kChunk rows and a few panels, which stay in the core's caches: some rows at a time against one panel (two with AVX-512) in
// registers, or 32 rows against two panels in AMX tiles. Every sum runs over all of the width in one order, from zero: a row's
// result does not depend on the rows beside it, on how many there are, or on the thread.
#include "dot.h"
#include "thread_memory.h"
#include "tiles.h"

namespace qdengine::QDENGINE_ISA {
namespace {

constexpr int64_t kPanel = 16, kChunk = 96, kTaskPanels = 4;
static_assert(kPanel == kLanes);  // a row of a panel is kRegs registers
#if defined(QDENGINE_ISA_avx512)
constexpr int kRows = 12, kPanels = 2;
#elif defined(QDENGINE_ISA_avx2)
constexpr int kRows = 6, kPanels = 1;
#else
constexpr int kRows = 2, kPanels = 1;
#endif
#if defined(QDENGINE_ISA_amx)
constexpr bool kTiles = true;
constexpr int64_t kGroups = kTileRows;
#else
constexpr bool kTiles = false;
constexpr int64_t kGroups = 1;
#endif
// Whether a row's int8 numbers have 128 added; AMX multiplies signed ones.
constexpr bool kUnsigned = Int8Dot::kDepth == 4 && !kTiles;

// What stands before the panels, so that a matrix is not read as another instruction set packed it.
struct Header {
  int64_t columns, width, number, depth, groups, pair, unused[2];
};
static_assert(sizeof(Header) == 64);

// [Header][panels][groups][16][depth]; and of int8 for every column its scale, and what its sum is too large by where rows are unsigned.
template <class Dot>
struct Packed {
  using B = typename Dot::B;
  static constexpr bool kEightBit = sizeof(B) == 1;
  int64_t columns, width;
  int64_t panels = divide_up(columns, kPanel);
  // Padded to whole tiles; float32 rows are read where they are, and end with the last group.
  int64_t groups = Dot::kDepth == 1 ? width : divide_up(divide_up(width, Dot::kDepth), kGroups) * kGroups;

  int64_t panel_numbers() const { return groups * kPanel * Dot::kDepth; }
  int64_t numbers_bytes() const { return divide_up(panels * panel_numbers() * static_cast<int64_t>(sizeof(B)), 64) * 64; }
  int64_t bytes() const { return static_cast<int64_t>(sizeof(Header)) + numbers_bytes() + (kEightBit ? 8 * panels * kPanel : 0); }
  Header header(DType number) const { return {columns, width, static_cast<int64_t>(number), Dot::kDepth, groups, kEightBit ? kLargestPair : 0, {}}; }
  static char* numbers(const void* packed) { return static_cast<char*>(const_cast<void*>(packed)) + sizeof(Header); }
  B* panel(const void* packed, int64_t p) const { return reinterpret_cast<B*>(numbers(packed)) + p * panel_numbers(); }
  float* scales(const void* packed) const { return reinterpret_cast<float*>(numbers(packed) + numbers_bytes()); }
  int32_t* excess(const void* packed) const { return reinterpret_cast<int32_t*>(scales(packed) + panels * kPanel); }
};

template <class F>
auto with_dot(DType number, F f) {
  if (number == DType::i8) return f(Int8Dot{}, int8_t{});
  if (number == DType::bf16) return f(BfloatDot{}, bf16{});
  return f(FloatDot<float>{}, float{});
}

// n <= depth numbers of a row to a unit; the rest of it is met by zeros of the column.
inline void put(float* unit, const bf16* x, int64_t) { *unit = load1(x); }
inline void put(int32_t* unit, const bf16* x, int64_t n) { __builtin_memcpy(unit, x, static_cast<size_t>(n) * sizeof(bf16)); }
inline void put(int32_t* unit, const int8_t* x, int64_t n) {
  uint32_t all = 0;
  if constexpr (Int8Dot::kDepth == 2) {
    for (int64_t i = 0; i < n; ++i) all |= static_cast<uint32_t>(static_cast<uint16_t>(x[i])) << 16 * i;
  } else {
    __builtin_memcpy(&all, x, static_cast<size_t>(n));
    all ^= kUnsigned ? 0x80808080u : 0u;
  }
  *unit = static_cast<int32_t>(all);
}

template <class Dot, class X>
void lay_row(typename Dot::Unit* units, const X* x, int64_t width, int64_t groups) {
  const int64_t whole = width / Dot::kDepth;
  for (int64_t g = 0; g < whole; ++g) put(units + g, x + g * Dot::kDepth, Dot::kDepth);
  for (int64_t g = whole; g < groups; ++g) {
    units[g] = 0;
    if (g * Dot::kDepth < width) put(units + g, x + g * Dot::kDepth, width - g * Dot::kDepth);
  }
}

// Rows as units, one after the other `stride` units apart; float32 is read where it is.
template <class Dot, class X>
struct Units {
  using Unit = typename Dot::Unit;
  const Unit* first;
  int64_t stride;

  Units(const LinearArgs& a, int64_t groups, int64_t row, int64_t rows) {
    const X* x = static_cast<const X*>(a.x) + row * a.x_stride;
    if constexpr (sizeof(X) == sizeof(Unit)) {
      first = x;
      stride = a.x_stride;
    } else {
      Unit* laid = static_cast<Unit*>(thread_memory(kChunk * groups * static_cast<int64_t>(sizeof(Unit))));
      for (int64_t r = 0; r < rows; ++r) lay_row<Dot>(laid + r * groups, x + r * a.x_stride, a.width, groups);
      first = laid;
      stride = groups;
    }
  }
};

// Where sums go.
template <class Dot>
struct Writer {
  const LinearArgs& a;
  const Packed<Dot>& packed;
};

// 16 sums of each of some rows, `stride` apart, to one panel's columns. What all rows share is read before the first is written.
template <class T, class Dot>
inline void write_panel(const Writer<Dot>& write, const typename Dot::Sums* sums, int64_t stride, int64_t rows, int64_t row, int64_t panel) {
  const LinearArgs& a = write.a;
  const int64_t column = panel * kPanel, left = a.columns - column, next = a.out_stride;
  const T* biases = static_cast<const T*>(a.bias) + column;
  const float* row_scales = nullptr;
  T* out = static_cast<T*>(a.out) + row * next + column;
  const bool whole = left >= kPanel, biased = a.bias;
  Vec bias = {}, scales = {};
  IVec excess = {};
  if (biased) bias = whole ? load(biases) : load_some(biases, left);
  if constexpr (Packed<Dot>::kEightBit) scales = load(write.packed.scales(a.weight) + column), row_scales = a.scales + row;
  if constexpr (kUnsigned) excess = *reinterpret_cast<const IVec*>(write.packed.excess(a.weight) + column);
  for (int64_t r = 0; r < rows; ++r, out += next) {
    Vec y;
    if constexpr (Packed<Dot>::kEightBit) {
      y = __builtin_convertvector(sums[r * stride] - excess, Vec) * (scales * row_scales[r]);
    } else {
      y = sums[r * stride];
    }
    if (biased) y += bias;
    whole ? store(out, y) : store_some(out, y, left);
  }
}

// The sums of some rows and panels, [rows][panels][16]. One copy of it for all blocks: compiled for one of them alone, it might round
// otherwise.
template <class Dot>
__attribute__((noinline, noipa)) void write_block(const Writer<Dot>& write, const void* sums, int64_t rows, int64_t panels, int64_t row,
                                           int64_t panel) {
  for (int64_t p = 0; p < panels; ++p) {
    const auto* first = static_cast<const typename Dot::Sums*>(sums) + p;
    write.a.dtype == DType::bf16 ? write_panel<bf16>(write, first, panels, rows, row, panel + p)
                                 : write_panel<float>(write, first, panels, rows, row, panel + p);
  }
}

// R rows from number `row` on, whose units are `x`, against P panels.
template <class Dot, int R, int P>
inline void block(const Writer<Dot>& write, const typename Dot::Unit* x, int64_t stride, int64_t row, int64_t panel) {
  const Packed<Dot>& packed = write.packed;
  const auto* b = packed.panel(write.a.weight, panel);
  const int64_t next = packed.panel_numbers();
  typename Dot::Sum sums[R][P * kRegs] = {};
  for (int64_t g = 0; g < packed.groups; ++g, b += kPanel * Dot::kDepth) {
    decltype(Dot::load(b)) columns[P * kRegs];
#pragma GCC unroll 8
    for (int j = 0; j < P * kRegs; ++j) columns[j] = Dot::load(b + j / kRegs * next + j % kRegs * kWidth * Dot::kDepth);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int j = 0; j < P * kRegs; ++j) sums[r][j] = Dot::add(sums[r][j], x[r * stride + g], columns[j]);
    }
  }
  // By way of memory, in a function of its own: an array whose address goes elsewhere would stay in memory in the loop above.
  alignas(64) char done[sizeof sums];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int j = 0; j < P * kRegs; ++j) {
      *reinterpret_cast<typename Dot::Sum*>(done + (r * P * kRegs + j) * sizeof(typename Dot::Sum)) = sums[r][j];
    }
  }
  write_block(write, done, R, P, row, panel);
}

// The last rows, fewer than kRows, all in one block.
template <class Dot, int R, int P>
inline void last_block(const Writer<Dot>& write, const typename Dot::Unit* x, int64_t stride, int64_t row, int64_t panel,
                       int64_t rows) {
  if constexpr (R > 0) {
    if (rows == R) return block<Dot, R, P>(write, x, stride, row, panel);
    last_block<Dot, R - 1, P>(write, x, stride, row, panel, rows);
  }
}

template <class Dot, int P>
void multiply(const Writer<Dot>& write, const typename Dot::Unit* x, int64_t stride, int64_t row, int64_t rows, int64_t panel) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) block<Dot, kRows, P>(write, x + r * stride, stride, row + r, panel);
  last_block<Dot, kRows - 1, P>(write, x + r * stride, stride, row + r, panel, rows - r);
}

template <class Dot, class X>
void run_in_registers(const Writer<Dot>& write, int64_t row, int64_t rows, int64_t panel, int64_t end) {
  const Units<Dot, X> x(write.a, write.packed.groups, row, rows);
  for (; panel + kPanels <= end; panel += kPanels) multiply<Dot, kPanels>(write, x.first, x.stride, row, rows, panel);
  for (; panel < end; ++panel) multiply<Dot, 1>(write, x.first, x.stride, row, rows, panel);
}

#if defined(QDENGINE_ISA_amx)
constexpr int64_t kBlockRows = 2 * kTileRows;
constexpr int64_t kAhead = 4 * kTileRows * kTileBytes;  // bytes of a panel that are fetched beforehand

template <class Dot, int C, int A, int B>
inline void dot_tiles() {
  if constexpr (sizeof(typename Dot::B) == 1) {
    dot_int8<C, A, B>();
  } else {
    dot_bf16<C, A, B>();
  }
}

// M x N tiles of sums: M times 16 rows, whose bytes are at x, against N panels.
template <class Dot, int M, int N>
void tile_block(const Writer<Dot>& write, const char* x, int64_t stride, int64_t row, int64_t rows, int64_t panel) {
  const Packed<Dot>& packed = write.packed;
  const char* b = reinterpret_cast<const char*>(packed.panel(write.a.weight, panel));
  const int64_t next = packed.panel_numbers() * static_cast<int64_t>(sizeof(typename Dot::B));
  tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  for (int64_t g = 0; g < packed.groups; g += kTileRows, x += kTileBytes, b += kTileRows * kTileBytes) {
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      __builtin_prefetch(b + kAhead + i * kTileBytes);
      if constexpr (N > 1) __builtin_prefetch(b + next + kAhead + i * kTileBytes);
    }
    tile_load<4>(x, stride);
    tile_load<6>(b, kTileBytes);
    dot_tiles<Dot, 0, 4, 6>();
    if constexpr (N > 1) {
      tile_load<7>(b + next, kTileBytes);
      dot_tiles<Dot, 1, 4, 7>();
    }
    if constexpr (M > 1) {
      tile_load<5>(x + kTileRows * stride, stride);
      dot_tiles<Dot, 2, 5, 6>();
      if constexpr (N > 1) dot_tiles<Dot, 3, 5, 7>();
    }
  }
  alignas(64) typename Dot::Sums sums[kBlockRows][N];
  constexpr int64_t kApart = sizeof sums[0];
  tile_store<0>(&sums[0][0], kApart);
  if constexpr (N > 1) tile_store<1>(&sums[0][1], kApart);
  if constexpr (M > 1) tile_store<2>(&sums[kTileRows][0], kApart);
  if constexpr (M > 1 && N > 1) tile_store<3>(&sums[kTileRows][1], kApart);
  write_block(write, sums, rows, N, row, panel);
}

// Two panels at a time, which stay near the core for all rows. Rows are read where they are, unless they end inside a tile.
template <class Dot, class X>
void run_in_tiles(const Writer<Dot>& write, int64_t row, int64_t rows, int64_t panel, int64_t end) {
  const LinearArgs& a = write.a;
  const bool ragged = a.width * static_cast<int64_t>(sizeof(X)) % kTileBytes;
  const int64_t in_place = ragged ? 0 : rows - (rows % kTileRows ? rows % kBlockRows : 0);
  const Units<Dot, X> laid(a, write.packed.groups, row + in_place, rows - in_place);
  tile_begin();
  for (int64_t p = panel; p < end; p += 2) {
    for (int64_t r = 0; r < rows; r += kBlockRows) {
      const int64_t n = rows - r < kBlockRows ? rows - r : kBlockRows;
      const char* x = reinterpret_cast<const char*>(static_cast<const X*>(a.x) + (row + r) * a.x_stride);
      int64_t stride = a.x_stride * static_cast<int64_t>(sizeof(X));
      if (r >= in_place) {
        x = reinterpret_cast<const char*>(laid.first + (r - in_place) * laid.stride);
        stride = laid.stride * static_cast<int64_t>(sizeof(typename Dot::Unit));
      }
      const bool wide = n > kTileRows, two = p + 1 < end;
      const auto multiply_tiles = wide ? (two ? tile_block<Dot, 2, 2> : tile_block<Dot, 2, 1>)
                                       : (two ? tile_block<Dot, 1, 2> : tile_block<Dot, 1, 1>);
      multiply_tiles(write, x, stride, row + r, n, p);
    }
  }
  tile_end();
}
#endif

template <class Dot, class X>
void run_task(const Writer<Dot>& write, int64_t row, int64_t rows, int64_t panel, int64_t end) {
#if defined(QDENGINE_ISA_amx)
  if constexpr (Dot::kDepth > 1) return run_in_tiles<Dot, X>(write, row, rows, panel, end);
#endif
  run_in_registers<Dot, X>(write, row, rows, panel, end);
}

template <class Dot, class X>
void run(const LinearArgs& a, const Packed<Dot>& packed) {
  const Writer<Dot> write{a, packed};
  const int64_t each = packed.panels > 8 * kTaskPanels ? kTaskPanels : kPanels;
  const int64_t parts = divide_up(packed.panels, each), chunks = divide_up(a.rows, kChunk);
  parallel(chunks * parts, [&](int64_t task) {
    const int64_t row = task / parts * kChunk, panel = task % parts * each;
    const int64_t rows = a.rows - row < kChunk ? a.rows - row : kChunk;
    const int64_t end = panel + each < packed.panels ? panel + each : packed.panels;
    run_task<Dot, X>(write, row, rows, panel, end);
  });
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
    run<decltype(dot), decltype(x)>(a, packed);
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
