// paged_attention: softmax(q k^T scale) v, one pass over the keys with a running maximum (arXiv 2205.14135).
//
// A work item is a tile of at most kTokenTile new tokens of one sequence with the query heads that share one kv head, so that a
// tile of 64 keys is gathered from its blocks, widened to float32 and transposed once for all of its rows (96 rows for 32 tokens
// of SmolLM2). Both products run in a register block of kRows x kCols vectors. Bound by float32 multiply-adds in a prefill, by
// the gather for a single token. Key tiles always begin at multiples of 64 and are added in order, split by split as attention.h
// defines it, so a row's result does not depend on the batch, on how the prompt was cut into chunks, or on the thread. Numbers
// of 8 bits are widened, with their scale, as they are gathered.
#include "qdengine/attention.h"
#include "simd.h"

namespace qdengine::QDENGINE_ISA {
namespace {

#if defined(QDENGINE_ISA_avx512)
constexpr int kRows = 6, kCols = 4;
#elif defined(QDENGINE_ISA_avx2)
constexpr int kRows = 6, kCols = 1;
#else
constexpr int kRows = 2, kCols = 1;
#endif
constexpr int32_t kKeys = 64, kTokenTile = 32;
constexpr int64_t kMaxHeadWidth = 512, kMaxGroup = 16;
constexpr int64_t kMaxRows = kTokenTile * kMaxGroup;

// c[R][C lanes] += a[R][depth] b[depth][C lanes]; a by rows of lda, b and c by rows of ldb, ldc.
template <int R, int C>
inline void block(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t depth) {
  constexpr int kRegs = C * kLanes / kWidth;  // of a row
  Reg acc[R][kRegs];
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < kRegs; ++j) acc[r][j] = load_reg(c + r * ldc + j * kWidth);
  }
  for (int64_t k = 0; k < depth; ++k) {
    Reg column[kRegs];
    for (int j = 0; j < kRegs; ++j) column[j] = load_reg(b + k * ldb + j * kWidth);
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < kRegs; ++j) acc[r][j] += column[j] * a[r * lda + k];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < kRegs; ++j) store_reg(c + r * ldc + j * kWidth, acc[r][j]);
  }
}

// The same for `rows` <= R rows, all in one register block: a row's sums do not depend on its neighbours.
template <int R, int C>
inline void last_block(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t rows,
                       int64_t depth) {
  if constexpr (R > 0) {
    if (rows == R) return block<R, C>(a, lda, b, ldb, c, ldc, depth);
    last_block<R - 1, C>(a, lda, b, ldb, c, ldc, rows, depth);
  }
}

// c[rows][cols] += a b, cols a multiple of 16.
void multiply_add(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t rows, int64_t cols,
                  int64_t depth) {
  int64_t j = 0;
  for (; j + kCols * kLanes <= cols; j += kCols * kLanes) {
    int64_t r = 0;
    for (; r + kRows <= rows; r += kRows) block<kRows, kCols>(a + r * lda, lda, b + j, ldb, c + r * ldc + j, ldc, depth);
    last_block<kRows - 1, kCols>(a + r * lda, lda, b + j, ldb, c + r * ldc + j, ldc, rows - r, depth);
  }
  for (; j < cols; j += kLanes) {
    for (int64_t r = 0; r < rows; ++r) block<1, 1>(a + r * lda, lda, b + j, ldb, c + r * ldc + j, ldc, depth);
  }
}

inline int64_t padded(int64_t width) { return (width + kLanes - 1) / kLanes * kLanes; }

struct Scratch {
  float q[kMaxRows * kMaxHeadWidth];
  float out[kMaxRows * kMaxHeadWidth], part[kMaxRows * kMaxHeadWidth];  // sums of values: of all splits so far, of this one
  attention::Partial whole[kMaxRows], split[kMaxRows];
  float scores[kMaxRows * kKeys];
  float k[kMaxHeadWidth * kKeys];  // transposed: [D][64]
  float v[kKeys * kMaxHeadWidth];
  float wide[kKeys * kMaxHeadWidth];  // keys of 8 bits
};

// Per thread, allocated once: 4.5 MiB, of which a common shape touches a few hundred KiB.
Scratch& scratch() {
  static thread_local Scratch* buffers = new Scratch;
  return *buffers;
}

// A head of a slot in the cache, `scale` times the numbers, to float32.
template <class C>
void widen(const C* from, float scale, float* to, int64_t d) {
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) store(to + i, load(from + i) * scale);
  if (i < d) store(to + i, load_some(from + i, d - i) * scale);
}

// The keys of a tile, transposed.
template <class C>
void lay_keys(Scratch& s, const C* const* keys, int64_t d) {
  const int64_t whole = d / kWidth * kWidth;
  for (int64_t j = 0; j < kKeys; j += kWidth) {
    for (int64_t i = 0; i < whole; i += kWidth) transpose(keys + j, i, s.k + i * kKeys + j, kKeys);
    for (int64_t i = whole; i < d; ++i) {
      for (int64_t r = j; r < j + kWidth; ++r) s.k[i * kKeys + r] = load1(keys[r] + i);
    }
  }
}

// T: of q and out; C: of the cache.
template <class T, class C>
struct Item {
  static constexpr bool kEightBit = sizeof(C) == 1;

  const AttentionArgs& a;
  int64_t sequence, kv_head;
  attention::Rows rows;  // of this tile: `kv_len` ends with its last token

  int64_t head_offset(int32_t row) const { return (kv_head * rows.group + head(rows, row)) * a.head_width; }
  int64_t token_of(int32_t row) const { return rows.first_token + token(rows, row); }

  // 64 keys and values from `begin` on; those past `end` are zero, so that 0 * value stays 0.
  void gather(Scratch& s, int64_t begin, int64_t end) const {
    static const C zeros[kMaxHeadWidth] = {};
    const C *keys[kKeys], *values[kKeys];
    float key_scales[kKeys], value_scales[kKeys];
    const int64_t d = a.head_width, ld = padded(d);
    const int32_t* table = a.block_tables + sequence * a.table_stride;
    int64_t block = begin / a.block_tokens, offset = begin % a.block_tokens;
    for (int64_t j = 0; j < kKeys; ++j) {
      keys[j] = values[j] = zeros;
      key_scales[j] = value_scales[j] = 1.0f;
      if (begin + j >= end) continue;
      const int64_t at = (table[block] * a.block_tokens + offset) * a.kv_heads + kv_head;
      keys[j] = static_cast<const C*>(a.k_cache) + at * d;
      values[j] = static_cast<const C*>(a.v_cache) + at * d;
      if constexpr (kEightBit) key_scales[j] = a.k_scales[at], value_scales[j] = a.v_scales[at];
      if (++offset == a.block_tokens) offset = 0, ++block;
    }
    if constexpr (kEightBit) {
      const float* wide[kKeys];
      for (int64_t j = 0; j < kKeys; ++j) {
        wide[j] = s.wide + j * ld;
        widen(keys[j], key_scales[j], s.wide + j * ld, d);
      }
      lay_keys(s, wide, d);
    } else {
      lay_keys(s, keys, d);
    }
    for (int64_t j = 0; j < kKeys; ++j) widen(values[j], value_scales[j], s.v + j * ld, d);
  }

  // Scores of one row to weights; `seen` keys of the tile are visible to it.
  void soften(Scratch& s, int64_t row, int64_t seen) const {
    float* x = s.scores + row * kKeys;
    const int64_t ld = padded(a.head_width);
    attention::Partial& split = s.split[row];
    if (seen < kKeys) {
      for (int64_t j = seen < 0 ? 0 : seen; j < kKeys; ++j) x[j] = -__builtin_inff();
    }
    Reg best[kRegs];
    for (Reg& lanes : best) lanes = splat_reg(split.top);
    for (int64_t j = 0; j < kKeys; j += kLanes) {
#pragma GCC unroll 4
      for (int i = 0; i < kRegs; ++i) best[i] = vmax(best[i], load_reg(x + j + i * kWidth) * a.scale);
    }
    const float top = max(*reinterpret_cast<const Vec*>(best));
    Reg total[kRegs] = {};
    for (int64_t j = 0; j < kKeys; j += kLanes) {
#pragma GCC unroll 4
      for (int i = 0; i < kRegs; ++i) {
        const Reg weight = exp(load_reg(x + j + i * kWidth) * a.scale - top);
        store_reg(x + j + i * kWidth, weight);
        total[i] += weight;
      }
    }
    const float decay = split.top == top ? 1.0f : exp(splat_reg(split.top - top))[0];
    split = {top, split.total * decay + sum(*reinterpret_cast<const Vec*>(total))};
    if (decay == 1.0f) return;
    float* part = s.part + row * ld;
    for (int64_t i = 0; i < ld; i += kLanes) store(part + i, load(part + i) * decay);
  }

  static void clear(attention::Partial& partial, float* sums, int64_t ld) {
    partial = {-__builtin_inff(), 0.0f};
    for (int64_t i = 0; i < ld; i += kLanes) store(sums + i, Vec{});
  }

  // The first row that sees a key from `begin` on. Skipping those before it is exact, and halves a long prefill's work.
  int32_t first_row(int32_t begin) const {
    const int32_t position = rows.kv_len - rows.new_tokens;  // of the first token
    return begin > position ? (begin - position) * rows.group : 0;
  }

  void run_split(Scratch& s, int32_t begin, int32_t end) const {
    const int64_t d = a.head_width, ld = padded(d);
    const int32_t n = count(rows), first = first_row(begin);
    for (int32_t row = first; row < n; ++row) clear(s.split[row], s.part + row * ld, ld);
    for (; begin < end; begin += kKeys) {
      gather(s, begin, rows.kv_len);
      const int32_t skip = first_row(begin);
      for (int64_t i = skip * kKeys; i < n * kKeys; ++i) s.scores[i] = 0.0f;
      multiply_add(s.q + skip * d, d, s.k, kKeys, s.scores + skip * kKeys, kKeys, n - skip, kKeys, d);
      for (int32_t row = skip; row < n; ++row) soften(s, row, visible(rows, row) - begin);
      multiply_add(s.scores + skip * kKeys, kKeys, s.v, ld, s.part + skip * ld, ld, n - skip, ld, kKeys);
    }
    for (int32_t row = first; row < n; ++row) {
      const auto shares = attention::fold(s.whole[row], s.split[row], [](float x) { return exp(splat_reg(x))[0]; });
      float *whole = s.out + row * ld, *part = s.part + row * ld;
      for (int64_t i = 0; i < ld; i += kLanes) store(whole + i, load(whole + i) * shares.whole + load(part + i) * shares.part);
    }
  }

  void run() const {
    Scratch& s = scratch();
    const int64_t d = a.head_width, ld = padded(d);
    const int32_t n = count(rows);
    for (int32_t row = 0; row < n; ++row) {
      const T* q = static_cast<const T*>(a.q) + token_of(row) * a.q_stride + head_offset(row);
      for (int64_t i = 0; i < d; ++i) s.q[row * d + i] = load1(q + i);
      clear(s.whole[row], s.out + row * ld, ld);
    }
    for (int32_t begin = 0, end; begin < rows.kv_len; begin = end) {
      end = attention::split_end(begin, rows.kv_len);
      run_split(s, begin, end);
    }
    for (int32_t row = 0; row < n; ++row) {
      T* out = static_cast<T*>(a.out) + token_of(row) * a.heads * d + head_offset(row);
      const float inverse = 1.0f / s.whole[row].total;
      for (int64_t i = 0; i < d; ++i) store1(out + i, s.out[row * ld + i] * inverse);
    }
  }
};

inline int64_t tiles(const AttentionArgs& a, int64_t s) {
  return attention::tiles(a.q_indptr[s + 1] - a.q_indptr[s], 1, kTokenTile);
}

template <class T, class C>
void run_tile(const AttentionArgs& a, int64_t s, int64_t tile, int64_t kv_head) {
  const int32_t first = a.q_indptr[s] + static_cast<int32_t>(tile) * kTokenTile;
  const int32_t left = a.q_indptr[s + 1] - first, tokens = left < kTokenTile ? left : kTokenTile;
  const attention::Rows rows{first, tokens, a.kv_lens[s] - left + tokens, static_cast<int32_t>(a.heads / a.kv_heads)};
  Item<T, C>{a, s, kv_head, rows}.run();
}

template <class T, class C>
void run(const AttentionArgs& a) {
  int64_t total = 0;
  for (int64_t s = 0; s < a.sequences; ++s) total += tiles(a, s);
  // The last tiles of a sequence see the most keys: handing work out from the end keeps the threads even.
  parallel(total * a.kv_heads, [&](int64_t i) {
    const int64_t item = total * a.kv_heads - 1 - i;
    int64_t s = 0, tile = item / a.kv_heads;
    while (tile >= tiles(a, s)) tile -= tiles(a, s++);
    run_tile<T, C>(a, s, tile, item % a.kv_heads);
  });
}

}  // namespace

void paged_attention(const AttentionArgs& a, Stream) {
  with_types(a.dtype, a.cache_dtype, [&](auto number, auto cached) { run<decltype(number), decltype(cached)>(a); });
}

}  // namespace qdengine::QDENGINE_ISA
