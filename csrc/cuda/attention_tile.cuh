// A tile of paged_attention on tensor cores: 64 rows (token, head of one kv head) of one sequence against all or some of its keys.
//
// Numbers of 8 bits enter the products as they lie in the cache: all are exact in 16 bits; a key's scale multiplies its scores, a
// value's its weights. The 16-byte rows that ldmatrix moves hold 16 of them instead of 8, so a lane gets four neighbours where a
// fragment has two: bytes 0 and 2 make one register of 16-bit numbers, bytes 1 and 3 another. Along the keys' width that is another
// order of a sum, which the queries share; along the values' width lanes hold other columns of the result (`column`).
#pragma once

#include "attention.cuh"
#include "mma.cuh"

namespace qdengine::cuda {

constexpr int kTileWarps = 4, kTileThreads = kTileWarps * kWarp;
constexpr int kTileRows = 16 * kTileWarps, kKeys = 64;
static_assert(attention::kSplitKeys % kKeys == 0);

// A [rows][D] tile in shared memory, its 16-byte chunks swizzled by row: eight rows of one chunk touch every bank once.
template <class C, int D>
struct Tile {
  static constexpr int kChunk = 16 / sizeof(C), kChunks = D / kChunk;
  C* data;
  __device__ __forceinline__ C* chunk(int row, int c) const {
    const int turn = kChunks >= 8 ? row & 7 : row >> 1 & 3;
    return data + row * D + (c ^ turn) * kChunk;
  }
};

// What a lane knows of its two rows: of one split, or of all so far. `o` are fragments; `total` of a split is this lane's share.
template <int D>
struct Sums {
  float o[D / 8][4];
  attention::Partial rows[2];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.0f;
    rows[0] = rows[1] = {-INFINITY, 0.0f};
  }
};

// T: of q and out; C: of the cache, T or a number of 8 bits.
template <class T, class C, int D>
struct TileBlock {
  static constexpr bool kEightBit = sizeof(C) == 1;
  static constexpr int kSteps = D / 16;  // of 16 along the head width
  static constexpr int kTileBytes = kKeys * D * sizeof(C);
  static constexpr int kStageBytes = 2 * kTileBytes + (kEightBit ? 2 * kKeys * sizeof(float) : 0);
  // Fragments of queries are kept in registers, where these have room for them. Those of 16-bit caches come through shared memory:
  // through the second stage's, or they stay behind both.
  static constexpr bool kQueriesStay = !kEightBit && D == 128;
  static constexpr int kSharedBytes = 2 * kStageBytes + (kQueriesStay ? kTileRows * D * sizeof(T) : 0);
  using Queries = uint32_t[kQueriesStay ? 1 : kSteps][4];

  const AttentionArgs& a;
  attention::Rows rows;
  Slots slots;
  int tile, kv_head;
  char* shared;

  __device__ __forceinline__ Tile<C, D> keys(int stage) const { return {reinterpret_cast<C*>(shared + stage * kStageBytes)}; }
  __device__ __forceinline__ Tile<C, D> values(int stage) const {
    return {reinterpret_cast<C*>(shared + stage * kStageBytes + kTileBytes)};
  }
  // Of the keys; those of the values are behind them.
  __device__ __forceinline__ float* scales(int stage) const {
    return reinterpret_cast<float*>(shared + stage * kStageBytes + 2 * kTileBytes);
  }

  // Starts copying the keys and values [begin, begin + 64) to a stage; those past the sequence become zeros.
  __device__ __forceinline__ void fetch(int begin, int stage) const {
    constexpr int kChunks = Tile<C, D>::kChunks;
    const Tile<C, D> k = keys(stage), v = values(stage);
#pragma unroll
    for (int i = threadIdx.x; i < kKeys * kChunks; i += kTileThreads) {
      const int row = i / kChunks, c = i % kChunks;
      const bool live = begin + row < rows.kv_len;
      const int64_t at = ((live ? slots(begin + row) : 0) * a.kv_heads + kv_head) * D + c * Tile<C, D>::kChunk;
      copy_async(k.chunk(row, c), static_cast<const C*>(a.k_cache) + at, live);
      copy_async(v.chunk(row, c), static_cast<const C*>(a.v_cache) + at, live);
    }
    if constexpr (kEightBit) {
      static_assert(kTileThreads == 2 * kKeys);
      const int row = threadIdx.x % kKeys;
      const bool live = begin + row < rows.kv_len;
      const float* from = threadIdx.x < kKeys ? a.k_scales : a.v_scales;
      copy_async4(scales(stage) + threadIdx.x, from + (live ? slots(begin + row) : 0) * a.kv_heads + kv_head, live);
    }
    commit_copies();
  }

  __device__ __forceinline__ const T* query(int row) const {
    return static_cast<const T*>(a.q) + line_of(a, rows, kv_head, row) * D;
  }
  __device__ __forceinline__ Tile<T, D> queries() const {
    return {reinterpret_cast<T*>(shared + (kQueriesStay ? 2 : 1) * kStageBytes)};
  }
  __device__ __forceinline__ void load_fragment(uint32_t (&q)[4], int step) const {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    load_matrices(q, queries().chunk(warp * 16 + lane % 16, 2 * step + lane / 16));
  }

  // The queries of the tile, straight to fragments where lanes need four neighbours.
  __device__ __forceinline__ void load_queries(Queries& q) const {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    if constexpr (kEightBit) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = tile * kTileRows + warp * 16 + 8 * half + lane / 4;
        const bool live = row < count(rows);
        const T* from = query(live ? row : 0) + lane % 4 * 4;
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          uint2 four = {0u, 0u};
          if (live) four = *reinterpret_cast<const uint2*>(from + 16 * k);
          q[k][half] = __byte_perm(four.x, four.y, 0x5410);
          q[k][2 + half] = __byte_perm(four.x, four.y, 0x7632);
        }
      }
    } else {
      const Tile<T, D> staged = queries();
      for (int i = threadIdx.x; i < kTileRows * Tile<T, D>::kChunks; i += kTileThreads) {
        const int r = i / Tile<T, D>::kChunks, c = i % Tile<T, D>::kChunks, row = tile * kTileRows + r;
        const bool live = row < count(rows);
        copy_async(staged.chunk(r, c), query(live ? row : 0) + c * Tile<T, D>::kChunk, live);
      }
      commit_copies();
      wait_copies<0>();
      __syncthreads();
      if constexpr (!kQueriesStay) {
#pragma unroll
        for (int k = 0; k < kSteps; ++k) load_fragment(q[k], k);
        __syncthreads();
      }
    }
  }

  // s[16 x 64] = q k^T
  __device__ __forceinline__ void scores(float (&s)[kKeys / 8][4], Queries& q, int stage) const {
    const int lane = threadIdx.x % kWarp;
    const Tile<C, D> k = keys(stage);
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t(&query)[4] = q[kQueriesStay ? 0 : step];
      if constexpr (kQueriesStay) load_fragment(query, step);
      if constexpr (kEightBit) {
#pragma unroll
        for (int n = 0; n < kKeys / 8; n += 4) {
          uint32_t b[4];
          load_matrices(b, k.chunk(8 * n + lane, step));
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            uint32_t even, odd;
            unpack<T>(C{}, b[i], even, odd);
            multiply_add<T>(s[n + i], query, even, odd);
          }
        }
      } else {
#pragma unroll
        for (int n = 0; n < kKeys / 8; n += 2) {
          uint32_t b[4];
          load_matrices(b, k.chunk(8 * n + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
          multiply_add<T>(s[n], query, b[0], b[1]);
          multiply_add<T>(s[n + 1], query, b[2], b[3]);
        }
      }
    }
    if constexpr (kEightBit) multiply_columns(s, scales(stage));
  }

  // s[., key] *= scales[key]
  static __device__ __forceinline__ void multiply_columns(float (&s)[kKeys / 8][4], const float* scales) {
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      const float2 by = *reinterpret_cast<const float2*>(scales + 8 * n + threadIdx.x % 4 * 2);
#pragma unroll
      for (int j = 0; j < 4; ++j) s[n][j] *= j % 2 ? by.y : by.x;
    }
  }

  // o[16 x D] += p v, with p rounded to T.
  __device__ __forceinline__ void mix(float (&o)[D / 8][4], float (&p)[kKeys / 8][4], int stage) const {
    const int lane = threadIdx.x % kWarp;
    const Tile<C, D> v = values(stage);
    if constexpr (kEightBit) multiply_columns(p, scales(stage) + kKeys);
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      const uint32_t weights[4] = {pack_pair<T>(p[2 * k][0], p[2 * k][1]), pack_pair<T>(p[2 * k][2], p[2 * k][3]),
                                   pack_pair<T>(p[2 * k + 1][0], p[2 * k + 1][1]), pack_pair<T>(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
      for (int c = 0; c < Tile<C, D>::kChunks; c += 2) {
        uint32_t b[4];
        load_matrices_transposed(b, v.chunk(16 * k + lane % 16, c + lane / 16));
        if constexpr (kEightBit) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            uint32_t even[2], odd[2];
            unpack<T>(C{}, b[2 * i], even[0], odd[0]);
            unpack<T>(C{}, b[2 * i + 1], even[1], odd[1]);
            multiply_add<T>(o[2 * (c + i)], weights, even[0], even[1]);
            multiply_add<T>(o[2 * (c + i) + 1], weights, odd[0], odd[1]);
          }
        } else {
          multiply_add<T>(o[c], weights, b[0], b[1]);
          multiply_add<T>(o[c + 1], weights, b[2], b[3]);
        }
      }
    }
  }

  // Keys [begin, end), of which `begin` begins a split, folded split by split into `whole`.
  __device__ __forceinline__ void run(int begin, int end, Sums<D>& whole) const {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const int first = tile * kTileRows, last = count(rows) - 1;
    Queries q;
    load_queries(q);
    int seen[2];  // keys, of this lane's two rows
#pragma unroll
    for (int half = 0; half < 2; ++half) seen[half] = visible(rows, min(first + warp * 16 + 8 * half + lane / 4, last));
    const float scale = a.scale * 1.4426950408889634f;  // to base 2
    Sums<D> split;
    whole.clear();
    split.clear();

    fetch(begin, 0);
    for (int stage = 0; begin < end; begin += kKeys, stage ^= 1) {
      wait_copies<0>();
      __syncthreads();  // this tile is here, and nobody reads the other stage any more
      if (begin + kKeys < end) fetch(begin + kKeys, stage ^ 1);
      float s[kKeys / 8][4];
      scores(s, q, stage);
      if (begin + kKeys > seen[0]) {
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if (begin + 8 * n + lane % 4 * 2 + j % 2 >= seen[j / 2]) s[n][j] = -INFINITY;
          }
        }
      }
      soften(s, split, scale);
      mix(split.o, s, stage);
      if ((begin + kKeys) % attention::kSplitKeys == 0 || begin + kKeys >= end) {
        fold(whole, split);
        split.clear();
      }
    }
  }

  // Scores to weights in base 2; what was summed so far is rescaled to the new maximum. A tile of which a row sees nothing leaves
  // every bit of it as it was: then `decay` is 1.
  static __device__ __forceinline__ void soften(float (&s)[kKeys / 8][4], Sums<D>& split, float scale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      attention::Partial& row = split.rows[half];
      float best = -INFINITY;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) best = fmaxf(best, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
      const float top = fmaxf(row.top, __fmul_rn(max_over(best, 4), scale));
      const float shift = top > -INFINITY ? top : 0.0f, decay = exp2_fast(row.top - shift);
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int j = 2 * half; j < 2 * half + 2; ++j) {
          s[n][j] = exp2_fast(__fmaf_rn(s[n][j], scale, -shift));
          sum += s[n][j];
        }
      }
      row = {top, __fmaf_rn(row.total, decay, sum)};
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        split.o[n][2 * half] *= decay;
        split.o[n][2 * half + 1] *= decay;
      }
    }
  }

  static __device__ __forceinline__ void fold(Sums<D>& whole, const Sums<D>& split) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const attention::Partial part{split.rows[half].top, sum_over(split.rows[half].total, 4)};
      const auto shares = attention::fold(whole.rows[half], part, exp2_fast);
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
#pragma unroll
        for (int j = 2 * half; j < 2 * half + 2; ++j) whole.o[n][j] = attention::add(whole.o[n][j], split.o[n][j], shares);
      }
    }
  }

  // Where pair n of a row's sums belongs, and the pair.
  static __device__ __forceinline__ int column(int n) {
    const int lane = threadIdx.x % 4;
    return kEightBit ? n / 2 * 16 + 4 * lane + n % 2 * 2 : 8 * n + 2 * lane;
  }
  static __device__ __forceinline__ float2 pair(const Sums<D>& sums, int n, int half) {
    if constexpr (kEightBit) return {sums.o[n & ~1][2 * half + n % 2], sums.o[n | 1][2 * half + n % 2]};
    return {sums.o[n][2 * half], sums.o[n][2 * half + 1]};
  }

  // The finished rows to out, or, where a split ran by itself, their partial results to the workspace.
  __device__ __forceinline__ void store(const Sums<D>& whole, const attention::Workspace& w, int split) const {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = tile * kTileRows + warp * 16 + 8 * half + lane / 4;
      if (row >= count(rows)) continue;
      const int64_t line = line_of(a, rows, kv_head, row);
      const float inverse = 1.0f / whole.rows[half].total;
      T* out = static_cast<T*>(a.out) + line * D;
      float* sums = a.workspace + sum_at(w, split, line);
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        const float2 two = pair(whole, n, half);
        if (w.splits > 1) {
          *reinterpret_cast<float2*>(sums + column(n)) = two;
        } else {
          *reinterpret_cast<uint32_t*>(out + column(n)) = pack_pair<T>(two.x * inverse, two.y * inverse);
        }
      }
      if (w.splits > 1 && lane % 4 == 0) {
        float* partial = a.workspace + partial_at(w, split, line);
        *reinterpret_cast<float2*>(partial) = {whole.rows[half].top, whole.rows[half].total};
      }
    }
  }
};

template <class T, class C, int D>
__global__ __launch_bounds__(kTileThreads, D == 64 ? 3 : 2) void tile_kernel(AttentionArgs a, int shift, attention::Workspace w) {
  extern __shared__ __align__(128) char shared[];
  int sequence, tile;
  if (!locate(a, kTileRows, static_cast<int>(blockIdx.x), sequence, tile)) return;
  const attention::Rows rows = rows_of(a, sequence);
  // The last tiles see the most keys: they start first.
  tile = attention::tiles(rows.new_tokens, rows.group, kTileRows) - 1 - tile;
  const int last = min((tile + 1) * kTileRows, count(rows)) - 1;
  int begin = 0, end = min(visible(rows, last), rows.kv_len);
  if (w.splits > 1) {
    begin = static_cast<int>(blockIdx.z) * attention::kSplitKeys;
    end = attention::split_end(begin, end);
    if (begin >= end) return;
  }
  const TileBlock<T, C, D> block{a, rows, slots_of(a, sequence, shift), tile, static_cast<int>(blockIdx.y), shared};
  Sums<D> whole;
  block.run(begin, end, whole);
  block.store(whole, w, static_cast<int>(blockIdx.z));
}

// The partial results of all splits of a row, folded in order: a warp a row.
template <class T, int D>
__global__ __launch_bounds__(kTileThreads) void fold_kernel(AttentionArgs a, attention::Workspace w) {
  constexpr int kPerLane = D / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int64_t line = static_cast<int64_t>(blockIdx.x) * kTileWarps + threadIdx.x / kWarp;
  if (line >= w.rows) return;
  int sequence, row;
  const int group = static_cast<int>(a.heads / a.kv_heads);
  if (!locate(a, 1, static_cast<int>(line / a.heads) * group, sequence, row)) return;
  const attention::Rows rows = rows_of(a, sequence);
  const int splits = static_cast<int>(attention::splits(min(visible(rows, row), rows.kv_len)));
  using Values = Pack<float, kPerLane>;
  Values whole = {};
  attention::Partial all{-INFINITY, 0.0f};
#pragma unroll 4
  for (int split = 0; split < splits; ++split) {
    const float2 partial = *reinterpret_cast<const float2*>(a.workspace + partial_at(w, split, line));
    const Values part = Values::load(a.workspace + sum_at(w, split, line) + lane * kPerLane);
    const auto shares = attention::fold(all, {partial.x, partial.y}, exp2_fast);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) whole.at[i] = attention::add(whole.at[i], part.at[i], shares);
  }
  const float inverse = 1.0f / all.total;
  Pack<T, kPerLane> out;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) out.at[i] = narrow<T>(whole.at[i] * inverse);
  out.store(static_cast<T*>(a.out) + line * D + lane * kPerLane);
}

}  // namespace qdengine::cuda
