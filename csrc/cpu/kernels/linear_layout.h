// How a linear layer's weights and rows lie in memory: panels of 16 columns, and units that one instruction takes.
#pragma once

#include "dot.h"
#include "thread_memory.h"
#include "tiles.h"

namespace qdengine::QDENGINE_ISA {

constexpr int64_t kPanel = kPanelColumns;
static_assert(kPanel == kLanes);  // a row of a panel is kRegs registers
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

}  // namespace qdengine::QDENGINE_ISA
