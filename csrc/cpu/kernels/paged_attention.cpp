// paged_attention: softmax(q k^T scale) v, one pass over the keys with a running maximum (arXiv 2205.14135).
//
// A work item is a tile of at most kTokenTile new tokens of one sequence with the query heads that share one kv head, so that a
// tile of 64 keys is gathered from its blocks, widened to float32 and transposed once for all of its rows (96 rows for 32 tokens
// of SmolLM2). Both products run in a register block of kRows x kCols vectors, for some rows at a time, whose scores stay in the
// first cache. Bound by float32 multiply-adds in a prefill, by the gather for a single token. Key tiles always begin at multiples
// of 64 and are added in order, split by split as attention.h defines it, so a row's result does not depend on the batch, on how
// the prompt was cut into chunks, or on the thread. Numbers of 8 bits are widened, with their scale, as they are gathered. With
// AMX the products of bfloat16 run in tiles (attention_tiles.h).
#include "attention_tiles.h"
#include "qdengine/attention.h"
#include "thread_memory.h"

namespace qdengine::QDENGINE_ISA {
namespace {

#if defined(QDENGINE_ISA_avx512)
constexpr int kRows = 6, kCols = 4;
#elif defined(QDENGINE_ISA_avx2)
constexpr int kRows = 6, kCols = 1;
#else
constexpr int kRows = 2, kCols = 1;
#endif

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
      for (int j = 0; j < kRegs; ++j) acc[r][j] = fused(column[j], splat_reg(a[r * lda + k]), acc[r][j]);
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

// The two products in float32, in registers. T: of queries; C: of the cache.
template <class T, class C>
struct InRegisters {
  using Query = T;
  using Cached = C;
  static constexpr int64_t kPadRows = 0, kBlockRows = 24;  // whole register blocks of every instruction set

  struct Operands {
    float q[kMaxRows * kMaxHeadWidth];
    float k[kMaxHeadWidth * kKeys];  // transposed: [D][64]
    float v[kKeys * kMaxHeadWidth];
    float wide[kKeys * kMaxHeadWidth];  // keys of 8 bits
  };

  static int64_t stride(int64_t d) { return padded(d); }
  static void begin() {}
  static void end() {}
  static void lay_query(Operands& m, int64_t row, const T* q, int64_t d) {
    for (int64_t i = 0; i < d; ++i) m.q[row * d + i] = load1(q + i);
  }
  static void lay(Operands& m, const Gathered<C>& from, int64_t d) {
    const int64_t ld = padded(d);
    if constexpr (sizeof(C) == 1) {
      const float* wide[kKeys];
      for (int64_t j = 0; j < kKeys; ++j) {
        wide[j] = m.wide + j * ld;
        widen(from.keys[j], from.key_scales[j], m.wide + j * ld, d);
      }
      lay_keys(m, wide, d);
    } else {
      lay_keys(m, from.keys, d);
    }
    for (int64_t j = 0; j < kKeys; ++j) widen(from.values[j], from.value_scales[j], m.v + j * ld, d);
  }
  static void score(Operands& m, float* scores, int64_t first, int64_t n, int64_t d) {
    for (int64_t i = first * kKeys; i < n * kKeys; ++i) scores[i] = 0.0f;
    multiply_add(m.q + first * d, d, m.k, kKeys, scores + first * kKeys, kKeys, n - first, kKeys, d);
  }
  static Reg scaled(const Operands&, Reg score, int64_t) { return score; }
  static void weigh(Operands&, float* score, int64_t, int64_t, Reg weight) { store_reg(score, weight); }
  static void add_values(Operands& m, const float* scores, float* part, int64_t first, int64_t n, int64_t d) {
    const int64_t ld = padded(d);
    multiply_add(scores + first * kKeys, kKeys, m.v, ld, part + first * ld, ld, n - first, ld, kKeys);
  }

 private:
  // The keys of a tile, transposed.
  template <class Number>
  static void lay_keys(Operands& m, const Number* const* keys, int64_t d) {
    const int64_t whole = d / kWidth * kWidth;
    for (int64_t j = 0; j < kKeys; j += kWidth) {
      for (int64_t i = 0; i < whole; i += kWidth) transpose(keys + j, i, m.k + i * kKeys + j, kKeys);
      for (int64_t i = whole; i < d; ++i) {
        for (int64_t r = j; r < j + kWidth; ++r) m.k[i * kKeys + r] = load1(keys[r] + i);
      }
    }
  }
};

// Aligned, so that a row of an AMX tile is one cache line.
template <class Products>
struct alignas(64) Scratch {
  typename Products::Operands operands;
  float out[kMaxRows * kMaxHeadWidth];                          // sums of values: of all splits so far,
  float part[(kMaxRows + Products::kPadRows) * kMaxHeadWidth];  // and of this one
  float scores[(kMaxRows + Products::kPadRows) * kKeys];
  float top[kMaxRows + kWidth], decay[kMaxRows + kWidth];
  attention::Partial whole[kMaxRows], split[kMaxRows + kWidth];
};

// Per thread: some MiB, of which a common shape touches a few hundred KiB.
template <class Products>
Scratch<Products>& scratch() {
  struct Held {
    Scratch<Products>* buffers = new Scratch<Products>;
    ~Held() { delete buffers; }
  };
  static thread_local Held held;
  return *held.buffers;
}

template <class Products>
struct Item {
  using T = typename Products::Query;
  using C = typename Products::Cached;
  using Memory = Scratch<Products>;

  const AttentionArgs& a;
  int64_t sequence, kv_head;
  attention::Rows rows;  // of this tile: `kv_len` ends with its last token

  int64_t head_offset(int32_t row) const { return (kv_head * rows.group + head(rows, row)) * a.head_width; }
  int64_t token_of(int32_t row) const { return rows.first_token + token(rows, row); }

  // 64 keys and values from `begin` on; those past `end` are zero, so that 0 * value stays 0.
  void gather(Memory& s, int64_t begin, int64_t end) const {
    static const C zeros[kMaxHeadWidth] = {};
    Gathered<C> found;
    const int64_t d = a.head_width;
    const int32_t* table = a.block_tables + sequence * a.table_stride;
    int64_t block = begin / a.block_tokens, offset = begin % a.block_tokens;
    for (int64_t j = 0; j < kKeys; ++j) {
      found.keys[j] = found.values[j] = zeros;
      found.key_scales[j] = found.value_scales[j] = 1.0f;
      if (begin + j >= end) continue;
      const int64_t at = (table[block] * a.block_tokens + offset) * a.kv_heads + kv_head;
      found.keys[j] = static_cast<const C*>(a.k_cache) + at * d;
      found.values[j] = static_cast<const C*>(a.v_cache) + at * d;
      if constexpr (sizeof(C) == 1) found.key_scales[j] = a.k_scales[at], found.value_scales[j] = a.v_scales[at];
      if (++offset == a.block_tokens) offset = 0, ++block;
    }
    Products::lay(s.operands, found, d);
  }

  Reg scaled(const Memory& s, const float* scores, int64_t j) const {
    return Products::scaled(s.operands, load_reg(scores + j) * a.scale, j);
  }

  // Hides the scores of one row behind the `seen` keys of the tile that are visible. Returns the largest of the others and those
  // before.
  float largest(Memory& s, int64_t row, int64_t seen) const {
    float* x = s.scores + row * kKeys;
    for (int64_t j = seen < 0 ? 0 : seen; j < kKeys; ++j) x[j] = -__builtin_inff();
    Reg best[kRegs];
    for (Reg& lanes : best) lanes = splat_reg(s.split[row].top);
    for (int64_t j = 0; j < kKeys; j += kLanes) {
#pragma GCC unroll 4
      for (int i = 0; i < kRegs; ++i) best[i] = vmax(best[i], scaled(s, x, j + i * kWidth));
    }
    return max(*reinterpret_cast<const Vec*>(best));
  }

  // One row's scores to weights. Returns their sum.
  float weigh(Memory& s, int64_t row, float top) const {
    float* x = s.scores + row * kKeys;
    Reg total[kRegs] = {};
    for (int64_t j = 0; j < kKeys; j += kLanes) {
#pragma GCC unroll 4
      for (int i = 0; i < kRegs; ++i) {
        const Reg weight = exp(scaled(s, x, j + i * kWidth) - top);
        Products::weigh(s.operands, x + j + i * kWidth, row, j + i * kWidth, weight);
        total[i] += weight;
      }
    }
    return sum(*reinterpret_cast<const Vec*>(total));
  }

  // Scores of the rows from `first` to n, of the tile of keys from `begin` on, to weights; what is in `part` so far decays. In
  // passes over the rows, since what a row needs next waits long for what it needed before.
  void soften(Memory& s, int32_t first, int32_t n, int32_t begin) const {
    for (int32_t row = first; row < n; ++row) s.top[row] = largest(s, row, visible(rows, row) - begin);
    for (int32_t row = first; row < n; row += kWidth) {
      Reg before;
      for (int i = 0; i < kWidth; ++i) before[i] = s.split[row + i].top;
      store_reg(s.decay + row, exp(before - load_reg(s.top + row)));
    }
    for (int32_t row = first; row < n; ++row) {
      const float total = weigh(s, row, s.top[row]), decay = s.split[row].top == s.top[row] ? 1.0f : s.decay[row];
      s.split[row] = {s.top[row], s.split[row].total * decay + total};
      if (decay == 1.0f) continue;
      const int64_t ld = Products::stride(a.head_width);
      float* part = s.part + row * ld;
      for (int64_t i = 0; i < ld; i += kLanes) store(part + i, load(part + i) * decay);
    }
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

  // One copy of this and of fold for both ways to run an item: inlined twice, they might round otherwise.
  __attribute__((noinline, noipa)) void run_split(Memory& s, int32_t begin, int32_t end) const {
    const int64_t d = a.head_width, ld = Products::stride(d);
    const int32_t n = count(rows), first = first_row(begin);
    for (int32_t row = first; row < n; ++row) clear(s.split[row], s.part + row * ld, ld);
    for (; begin < end; begin += kKeys) {
      gather(s, begin, rows.kv_len);
      for (int32_t row = first_row(begin), last; row < n; row = last) {
        last = n - row < Products::kBlockRows ? n : row + static_cast<int32_t>(Products::kBlockRows);
        Products::score(s.operands, s.scores, row, last, d);
        soften(s, row, last, begin);
        Products::add_values(s.operands, s.scores, s.part, row, last, d);
      }
    }
  }

  // The split from `begin` on, as run_split leaves it, to the whole.
  __attribute__((noinline, noipa)) void fold(Memory& s, int32_t begin, const attention::Partial* split, const float* parts) const {
    const int64_t ld = Products::stride(a.head_width);
    for (int32_t row = first_row(begin); row < count(rows); ++row) {
      const auto shares = attention::fold(s.whole[row], split[row], [](float x) { return exp(splat_reg(x))[0]; });
      float* whole = s.out + row * ld;
      const float* part = parts + row * ld;
      for (int64_t i = 0; i < ld; i += kLanes) store(whole + i, load(whole + i) * shares.whole + load(part + i) * shares.part);
    }
  }

  void lay_queries(Memory& s) const {
    for (int32_t row = 0; row < count(rows); ++row) {
      Products::lay_query(s.operands, row, static_cast<const T*>(a.q) + token_of(row) * a.q_stride + head_offset(row), a.head_width);
    }
  }

  void run() const {
    Memory& s = scratch<Products>();
    clear_whole(s);
    Products::begin();
    lay_queries(s);
    for (int32_t begin = 0, end; begin < rows.kv_len; begin = end) {
      end = attention::split_end(begin, rows.kv_len);
      run_split(s, begin, end);
      fold(s, begin, s.split, s.part);
    }
    Products::end();
    write(s);
  }

  // One split alone, to `to`.
  void run_part(int64_t split, float* to) const {
    const int32_t begin = static_cast<int32_t>(split) * attention::kSplitKeys;
    if (begin >= rows.kv_len) return;
    Memory& s = scratch<Products>();
    const int64_t n = count(rows);
    Products::begin();
    lay_queries(s);
    run_split(s, begin, attention::split_end(begin, rows.kv_len));
    Products::end();
    __builtin_memcpy(to, s.split, static_cast<size_t>(n) * sizeof *s.split);
    __builtin_memcpy(to + 2 * n, s.part, static_cast<size_t>(n * Products::stride(a.head_width)) * sizeof *s.part);
  }

  // All splits, `apart` floats from one to the next.
  void gather_parts(const float* parts, int64_t apart) const {
    Memory& s = scratch<Products>();
    clear_whole(s);
    for (int32_t begin = 0; begin < rows.kv_len; begin += attention::kSplitKeys, parts += apart) {
      fold(s, begin, reinterpret_cast<const attention::Partial*>(parts), parts + 2 * count(rows));
    }
    write(s);
  }

  void clear_whole(Memory& s) const {
    const int64_t ld = Products::stride(a.head_width);
    for (int32_t row = 0; row < count(rows); ++row) clear(s.whole[row], s.out + row * ld, ld);
  }

  void write(const Memory& s) const {
    const int64_t d = a.head_width, ld = Products::stride(d);
    for (int32_t row = 0; row < count(rows); ++row) {
      T* out = static_cast<T*>(a.out) + token_of(row) * a.heads * d + head_offset(row);
      const float inverse = 1.0f / s.whole[row].total;
      for (int64_t i = 0; i < d; ++i) store1(out + i, s.out[row * ld + i] * inverse);
    }
  }
};

inline int64_t tiles(const AttentionArgs& a, int64_t s) {
  return attention::tiles(a.q_indptr[s + 1] - a.q_indptr[s], 1, kTokenTile);
}

template <class Products>
Item<Products> item_of(const AttentionArgs& a, int64_t item) {
  int64_t s = 0, tile = item / a.kv_heads;
  while (tile >= tiles(a, s)) tile -= tiles(a, s++);
  const int32_t first = a.q_indptr[s] + static_cast<int32_t>(tile) * kTokenTile;
  const int32_t left = a.q_indptr[s + 1] - first, tokens = left < kTokenTile ? left : kTokenTile;
  return {a, s, item % a.kv_heads, {first, tokens, a.kv_lens[s] - left + tokens, static_cast<int32_t>(a.heads / a.kv_heads)}};
}

constexpr int64_t kItemsOfThread = 4;
constexpr int64_t kMostParts = 8 << 20;  // floats

// Every split a task of its own, and then all of an item: for few items, which would leave threads without work. The same bits.
template <class Products>
void run_parts(const AttentionArgs& a, int64_t items, int64_t splits, int64_t apart) {
  float* parts = static_cast<float*>(thread_memory(items * splits * apart * static_cast<int64_t>(sizeof(float))));
  parallel(items * splits, [&](int64_t i) {
    const int64_t item = i / splits, split = i % splits;
    item_of<Products>(a, item).run_part(split, parts + i * apart);
  });
  parallel(items, [&](int64_t item) { item_of<Products>(a, item).gather_parts(parts + item * splits * apart, apart); });
}

template <class Products>
void run(const AttentionArgs& a) {
  int64_t items = 0, tokens = 0, keys = 0;
  for (int64_t s = 0; s < a.sequences; ++s) {
    const int64_t count = tiles(a, s), length = a.q_indptr[s + 1] - a.q_indptr[s];
    items += count * a.kv_heads;
    tokens = tokens > length ? tokens : length;
    if (count > 0 && keys < a.kv_lens[s]) keys = a.kv_lens[s];
  }
  tokens = tokens < kTokenTile ? tokens : kTokenTile;
  const int64_t splits = attention::splits(keys), apart = tokens * (a.heads / a.kv_heads) * (Products::stride(a.head_width) + 2);
  const int64_t threads = call_threads();
  if (splits > 1 && threads > 1 && items < kItemsOfThread * threads && items * splits * apart <= kMostParts) {
    return run_parts<Products>(a, items, splits, apart);
  }
  // The last tiles of a sequence see the most keys: handing work out from the end keeps the threads even.
  parallel(items, [&](int64_t i) { item_of<Products>(a, items - 1 - i).run(); });
}

}  // namespace

void paged_attention(const AttentionArgs& a, Stream) {
  with_types(a.dtype, a.cache_dtype, [&](auto number, auto cached) {
    using T = decltype(number);
    using C = decltype(cached);
#if defined(QDENGINE_ISA_amx)
    if constexpr (sizeof(T) == sizeof(bf16)) return run<InTiles<C>>(a);
#endif
    run<InRegisters<T, C>>(a);
  });
}

}  // namespace qdengine::QDENGINE_ISA
