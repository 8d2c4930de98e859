// paged_attention: softmax(q k^T scale) v, one pass over the keys with a running maximum (arXiv 2205.14135).
//
// A work item is a tile of at most kTokenTile new tokens of one sequence with the query heads that share one kv head, so that the
// keys of a split (attention.h) are gathered from their blocks, widened and laid out once for all of its rows (192 for 64 tokens of
// SmolLM2). Then, for a block of rows at a time, whose scores stay in the first cache: scores of all keys of the split, softmax, sums
// of values, and those to the sums of the splits before. Both products run in registers (attention_registers.h), or with AMX, in
// bfloat16, in tiles (attention_tiles.h). Bound by the exponentials with AMX, else by float32 multiply-adds. A split begins at a
// multiple of its size and a row's sums run over its keys in order, so a row's result does not depend on the batch, on how the prompt
// was cut into chunks, or on the thread. Numbers of 8 bits are widened, with their scale, as they are gathered.
#include "attention_registers.h"
#include "attention_tiles.h"
#include "thread_memory.h"

namespace qdengine::QDENGINE_ISA {
namespace {

// Of some rows and some of their keys: the largest score, times log2(e), or -infinity where a row sees none of them, and the sum of
// 2^(score - largest).
template <int64_t kCount>
struct Partials {
  float top[kCount + kWidth], total[kCount + kWidth];
};

constexpr int kStepRegs = kKeyStep / kWidth;
static_assert(kStepRegs == 2 * kRegs);

// Aligned, so that a row of an AMX tile is one cache line.
template <class Products>
struct alignas(64) Scratch {
  typename Products::Operands operands;
  float scores[1 + Products::kAhead][Products::kBlockRows * kScores];
  float part[Products::kBlockRows * kMaxHeadWidth];  // sums of values of a block of rows in one split
  float out[kMaxRows * kMaxHeadWidth];               // and of all rows in the splits so far
  Partials<Products::kBlockRows> split;
  Partials<kMaxRows> whole;
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

  // Calls f(row, token, where its head begins in a row of q) for all rows.
  template <class F>
  void each_row(F f) const {
    for (int32_t token = 0, row = 0; token < rows.new_tokens; ++token) {
      for (int32_t head = 0; head < rows.group; ++head, ++row) f(row, rows.first_token + token, (kv_head * rows.group + head) * a.head_width);
    }
  }

  // Keys and values from `begin` to `end`; and zeros up to a whole step, so that 0 * value stays 0.
  void gather(Memory& s, int64_t begin, int64_t end) const {
    static const C zeros[kMaxHeadWidth] = {};
    Gathered<C> found;
    const int64_t d = a.head_width, n = end - begin;
    const int32_t* table = a.block_tables + sequence * a.table_stride;
    int64_t block = begin / a.block_tokens, offset = begin % a.block_tokens;
    found.count = divide_up(n, kKeyStep) * kKeyStep;
    for (int64_t j = 0; j < n; ++j) {
      const int64_t at = (table[block] * a.block_tokens + offset) * a.kv_heads + kv_head;
      found.keys[j] = static_cast<const C*>(a.k_cache) + at * d;
      found.values[j] = static_cast<const C*>(a.v_cache) + at * d;
      if constexpr (sizeof(C) == 1) found.key_scales[j] = a.k_scales[at], found.value_scales[j] = a.v_scales[at];
      if constexpr (sizeof(C) > 1) found.key_scales[j] = found.value_scales[j] = 1.0f;
      if (++offset == a.block_tokens) offset = 0, ++block;
    }
    for (int64_t j = n; j < found.count; ++j) {
      found.keys[j] = found.values[j] = zeros;
      found.key_scales[j] = found.value_scales[j] = 1.0f;
    }
    Products::lay(s.operands, found, d);
  }

  Reg scaled(const Memory& s, const float* scores, int64_t j) const {
    return Products::scaled(s.operands, load_reg(scores + j) * (a.scale * kLog2e), j);
  }

  // The largest score of row number `row` of a block, of which it sees the first `seen` of `keys`; the others are hidden.
  float largest(const Memory& s, float* scores, int64_t row, int64_t seen, int64_t keys) const {
    float* x = scores + row * kScores;
    for (int64_t j = seen; j < keys; ++j) x[j] = -__builtin_inff();
    alignas(64) Reg best[kStepRegs];  // read as 16 lanes
#pragma GCC unroll 8
    for (Reg& lanes : best) lanes = splat_reg(-__builtin_inff());
    for (int64_t j = 0; j < keys; j += kKeyStep) {
#pragma GCC unroll 8
      for (int i = 0; i < kStepRegs; ++i) best[i] = vmax(best[i], scaled(s, x, j + i * kWidth));
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRegs; ++i) best[i] = vmax(best[i], best[i + kRegs]);
    return max(*reinterpret_cast<const Vec*>(best));
  }

  // Its scores to weights. Returns their sum.
  float weigh(Memory& s, float* scores, int64_t row, int64_t keys, float top) const {
    float* x = scores + row * kScores;
    const float scale = a.scale * kLog2e;
    alignas(64) Reg total[kStepRegs] = {};
    for (int64_t j = 0; j < keys; j += kKeyStep) {
#pragma GCC unroll 8
      for (int i = 0; i < kStepRegs; ++i) {
        const Reg weight = Products::weight(Products::below(s.operands, load_reg(x + j + i * kWidth), j + i * kWidth, scale, top));
        Products::weigh(s.operands, x + j + i * kWidth, row, j + i * kWidth, weight);
        total[i] += weight;
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRegs; ++i) total[i] += total[i + kRegs];
    return sum(*reinterpret_cast<const Vec*>(total));
  }

  // The first row that sees a key from `begin` on. Skipping those before it is exact, and halves a long prefill's work.
  int32_t first_row(int32_t begin) const {
    const int32_t position = rows.kv_len - rows.new_tokens;  // of the first token
    return begin > position ? (begin - position) * rows.group : 0;
  }

  // A block of rows and the keys of a split that they see.
  struct Block {
    int64_t first, rows, keys;
    float* scores;
  };

  // Calls f(first, n) for blocks of rows that see keys of the split from `begin` to `end`, when `split` and `part` are theirs. Where
  // products leave the processor time for other work, a block's scores are multiplied while the block before is softened.
  template <class F>
  void run_split(Memory& s, int32_t begin, int32_t end, F f) const {
    const int64_t d = a.head_width, all = count(rows), from = first_row(begin);
    gather(s, begin, end);
    const auto seen = [&](int64_t row) {
      const int32_t visible = attention::visible(rows, static_cast<int32_t>(row));
      return (visible < end ? visible : end) - begin;
    };
    const auto block = [&](int64_t i) {
      const int64_t first = from + i * Products::kBlockRows, left = all - first;
      const int64_t n = left < Products::kBlockRows ? (left > 0 ? left : 0) : Products::kBlockRows;
      const int64_t keys = n > 0 ? divide_up(seen(first + n - 1), kKeyStep) * kKeyStep : 0;
      return Block{first, n, keys, s.scores[i & Products::kAhead]};
    };
    const auto measure = [&](const Block& b, int64_t row) {
      if (row < b.rows) s.split.top[row] = largest(s, b.scores, row, seen(b.first + row), b.keys);
    };
    const auto soften = [&](const Block& b, int64_t row) {
      if (row < b.rows) s.split.total[row] = weigh(s, b.scores, row, b.keys, s.split.top[row]);
    };
    const int64_t blocks = divide_up(all - from, Products::kBlockRows);
    static_assert(Products::kAhead <= 1);
    if constexpr (Products::kAhead) {
      Block before{};
      for (int64_t i = 0; i <= blocks; ++i) {
        const Block now = block(i);
        Products::score(s.operands, now.scores, now.first, now.rows, now.keys, d, [&](int64_t row) { soften(before, row); });
        if (i == 0) {
          for (int64_t row = 0; row < now.rows; ++row) measure(now, row);
        } else {
          float tops[Products::kBlockRows];  // of this block, while those of the one before are folded
          Products::add_values(s.operands, before.scores, s.part, before.rows, before.keys, d, [&](int64_t row) {
            if (row < now.rows) tops[row] = largest(s, now.scores, row, seen(now.first + row), now.keys);
          });
          f(before.first, before.rows);
          for (int64_t row = 0; row < now.rows; ++row) s.split.top[row] = tops[row];
        }
        before = now;
      }
    } else {
      for (int64_t i = 0; i < blocks; ++i) {
        const Block now = block(i);
        const auto nothing = [](int64_t) {};
        // In passes over the rows, since what a row needs next waits long for what it needed before.
        Products::score(s.operands, now.scores, now.first, now.rows, now.keys, d, nothing);
        for (int64_t row = 0; row < now.rows; ++row) measure(now, row);
        for (int64_t row = 0; row < now.rows; ++row) soften(now, row);
        Products::add_values(s.operands, now.scores, s.part, now.rows, now.keys, d, nothing);
        f(now.first, now.rows);
      }
    }
  }

  // Adds a split of n rows from `first` on to those before it.
  void fold(Memory& s, int64_t first, int64_t n, const float* top, const float* total, const float* part) const {
    const int64_t ld = Products::stride(a.head_width);
    for (int64_t row = 0; row < n; row += kWidth) {
      float *whole_top = s.whole.top + first + row, *whole_total = s.whole.total + first + row;
      const Reg before = load_reg(whole_top), now = load_reg(top + row), both = vmax(before, now);
      const Reg share = exp2(before - both), added = exp2(now - both);
      float tops[kWidth], totals[kWidth], shares[kWidth], adds[kWidth];
      store_reg(tops, both), store_reg(shares, share), store_reg(adds, added);
      store_reg(totals, load_reg(whole_total) * share + load_reg(total + row) * added);
      const int64_t left = n - row < kWidth ? n - row : kWidth;
      for (int64_t i = 0; i < left; ++i) {
        whole_top[i] = tops[i], whole_total[i] = totals[i];
        float* out = s.out + (first + row + i) * ld;
        const float* values = part + (row + i) * ld;
        for (int64_t c = 0; c < ld; c += kLanes) store(out + c, load(out + c) * shares[i] + load(values + c) * adds[i]);
      }
    }
  }

  void lay_queries(Memory& s) const {
    each_row([&](int32_t row, int64_t token, int64_t head) {
      Products::lay_query(s.operands, row, static_cast<const T*>(a.q) + token * a.q_stride + head, a.head_width);
    });
  }

  void run() const {
    Memory& s = scratch<Products>();
    clear(s);
    Products::begin();
    lay_queries(s);
    for (int32_t begin = 0, end; begin < rows.kv_len; begin = end) {
      end = attention::split_end(begin, rows.kv_len);
      run_split(s, begin, end, [&](int64_t first, int64_t n) { fold(s, first, n, s.split.top, s.split.total, s.part); });
    }
    Products::end();
    write(s);
  }

  // Floats of a split of all rows: top, total and the sums of values. Whole registers of the first two are read.
  int64_t part_size() const { return count(rows) * (Products::stride(a.head_width) + 2) + kWidth; }

  // One split alone, to `to`.
  void run_part(int64_t split, float* to) const {
    const int32_t begin = static_cast<int32_t>(split) * kKeys;
    if (begin >= rows.kv_len) return;
    Memory& s = scratch<Products>();
    const int64_t all = count(rows), ld = Products::stride(a.head_width);
    Products::begin();
    lay_queries(s);
    run_split(s, begin, attention::split_end(begin, rows.kv_len), [&](int64_t first, int64_t n) {
      const auto copy = [](float* there, const float* from, int64_t size) { __builtin_memcpy(there, from, static_cast<size_t>(size) * sizeof *from); };
      copy(to + first, s.split.top, n);
      copy(to + all + first, s.split.total, n);
      copy(to + 2 * all + kWidth + first * ld, s.part, n * ld);
    });
    Products::end();
  }

  // All splits, `apart` floats from one to the next.
  void gather_parts(const float* parts, int64_t apart) const {
    Memory& s = scratch<Products>();
    clear(s);
    const int64_t all = count(rows), ld = Products::stride(a.head_width);
    for (int32_t begin = 0; begin < rows.kv_len; begin += kKeys, parts += apart) {
      const int64_t first = first_row(begin);
      fold(s, first, all - first, parts + first, parts + all + first, parts + 2 * all + kWidth + first * ld);
    }
    write(s);
  }

  void clear(Memory& s) const {
    const int64_t ld = Products::stride(a.head_width), all = count(rows);
    for (int64_t row = 0; row < all; ++row) s.whole.top[row] = -__builtin_inff(), s.whole.total[row] = 0.0f;
    for (int64_t i = 0; i < all * ld; i += kLanes) store(s.out + i, Vec{});
  }

  void write(const Memory& s) const {
    const int64_t d = a.head_width, ld = Products::stride(d);
    each_row([&](int32_t row, int64_t token, int64_t head) {
      T* out = static_cast<T*>(a.out) + token * a.heads * d + head;
      const float inverse = 1.0f / s.whole.total[row], *sums = s.out + row * ld;
      int64_t i = 0;
      for (; i + kLanes <= d; i += kLanes) store(out + i, load(sums + i) * inverse);
      if (i < d) store_some(out + i, load(sums + i) * inverse, d - i);
    });
  }
};

// Tokens of a tile: all tiles of the longest sequence about as large.
inline int32_t even_tile(const AttentionArgs& a) {
  int32_t longest = 1;
  for (int64_t s = 0; s < a.sequences; ++s) {
    const int32_t length = a.q_indptr[s + 1] - a.q_indptr[s];
    longest = longest > length ? longest : length;
  }
  return static_cast<int32_t>(divide_up(longest, divide_up(longest, kTokenTile)));
}

template <class Products>
Item<Products> item_of(const AttentionArgs& a, int32_t tile_tokens, int64_t item) {
  int64_t s = 0, tile = item / a.kv_heads;
  const auto tiles = [&] { return attention::tiles(a.q_indptr[s + 1] - a.q_indptr[s], 1, tile_tokens); };
  for (; tile >= tiles(); ++s) tile -= tiles();
  const int32_t first = a.q_indptr[s] + static_cast<int32_t>(tile) * tile_tokens;
  const int32_t left = a.q_indptr[s + 1] - first, tokens = left < tile_tokens ? left : tile_tokens;
  return {a, s, item % a.kv_heads, {first, tokens, a.kv_lens[s] - left + tokens, static_cast<int32_t>(a.heads / a.kv_heads)}};
}

constexpr int64_t kItemsOfThread = 4;
constexpr int64_t kMostParts = 8 << 20;  // floats

// Every split a task of its own, and then all of an item: for few items, which would leave threads without work. The same bits.
template <class Products>
void run_parts(const AttentionArgs& a, int32_t tile_tokens, int64_t items, int64_t splits, int64_t apart) {
  float* parts = static_cast<float*>(thread_memory(items * splits * apart * static_cast<int64_t>(sizeof(float))));
  parallel(items * splits, [&](int64_t i) {
    const int64_t item = i / splits, split = i % splits;
    item_of<Products>(a, tile_tokens, item).run_part(split, parts + i * apart);
  });
  parallel(items, [&](int64_t item) { item_of<Products>(a, tile_tokens, item).gather_parts(parts + item * splits * apart, apart); });
}

template <class Products>
void run(const AttentionArgs& a) {
  const int32_t tile = even_tile(a), group = static_cast<int32_t>(a.heads / a.kv_heads);
  int64_t items = 0, keys = 0;
  for (int64_t s = 0; s < a.sequences; ++s) {
    const int64_t tiles = attention::tiles(a.q_indptr[s + 1] - a.q_indptr[s], 1, tile);
    items += tiles * a.kv_heads;
    if (tiles > 0 && keys < a.kv_lens[s]) keys = a.kv_lens[s];
  }
  const Item<Products> whole{a, 0, 0, {0, tile, tile, group}};
  const int64_t splits = attention::splits(keys), apart = whole.part_size(), threads = call_threads();
  if (splits > 1 && threads > 1 && items < kItemsOfThread * threads && items * splits * apart <= kMostParts) {
    return run_parts<Products>(a, tile, items, splits, apart);
  }
  // The last tiles of a sequence see the most keys: handing work out from the end keeps the threads even.
  parallel(items, [&](int64_t i) { item_of<Products>(a, tile, items - 1 - i).run(); });
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
