// linear: y = x W^T + bias, with W packed once; float32, bfloat16 and int8, whose sums are exact integers, scaled by row and column
// as they are written.
//
// Bound by multiply-adds from about eight rows on, by reading W below. W lies in panels of 16 columns (outputs), a panel as
// [groups][16][depth]: a group is what one instruction takes of a column, 32 bits of numbers or one that is widened. A task takes
// kChunk rows and a few panels, which stay in the core's caches: some rows at a time against one panel (two with AVX-512) in
// registers, or, of as many rows as stay near the core, 32 against two panels in AMX tiles. Every sum runs over all of the width in one order, from zero: a row's
// result does not depend on the rows beside it, on how many there are, or on the thread.
#include "activations.h"
#include "dot.h"
#include "thread_memory.h"
#include "tiles.h"

namespace qdengine::QDENGINE_ISA {
namespace {

constexpr int64_t kPanel = kPanelColumns, kChunk = 96, kTaskPanels = 4, kNearBytes = 768 << 10;
static_assert(kPanel == kLanes);  // a row of a panel is kRegs registers
#if defined(QDENGINE_ISA_avx512)
constexpr int kRows = 12, kPanels = 2;
#elif defined(QDENGINE_ISA_avx2)
constexpr int kRows = 6, kPanels = 1;
#else
constexpr int kRows = 2, kPanels = 1;
#endif
static_assert(kGates == (kPanels > 1));
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
      Unit* laid = static_cast<Unit*>(thread_memory(divide_up(rows, 32) * 32 * groups * static_cast<int64_t>(sizeof(Unit))));
      for (int64_t r = 0; r < rows; ++r) lay_row<Dot>(laid + r * groups, x + r * a.x_stride, a.width, groups);
      first = laid;
      stride = groups;
    }
  }
};

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

#if defined(QDENGINE_ISA_amx)
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
#endif

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
