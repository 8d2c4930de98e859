// paged_attention: softmax(q k^T scale) v of the new tokens of every sequence over its paged keys and values, causal.
//
// q, out [T, H, D]; k_cache, v_cache [N, P, G, D]. Prefill is bound by the tensor cores (4 T L H D FLOPs for L keys), decode and
// verification by reading the keys and values once a kv head (4 L G D bytes in 16 bits).
//
// Plan for bf16 and fp16 with D = 64 or 128 (arXiv 2307.08691): a block of 4 warps takes 64 rows (token, head of one kv head) of
// one sequence; 64 keys and values at a time come by 16-byte asynchronous copies, two stages deep, the next tile under the
// present one's products; rows of shared memory are swizzled by 16-byte chunks, so that matrix loads have no bank conflicts; a
// running maximum in base 2. Other types and widths: a warp a row, a lane a key, in float32.
//
// The grid is sized from shapes alone, and blocks find their sequence in q_indptr: no host wait. Key tiles begin at multiples of
// 64 and are added in order, so a row's result does not depend on the batch or on how the prompt was cut into chunks.
// Limits: no split over keys yet, so a single sequence uses few multiprocessors. Not measured on a GPU yet.
#include "mma.cuh"
#include "qdengine/attention.h"

namespace qdengine::cuda {
namespace {

using attention::Rows;

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kTileRows = 16 * kWarps, kKeys = 64;
constexpr float kLog2E = 1.4426950408889634f;

// Which tile of which sequence is number `index`; false past the last. Every lane of the warp must come here.
__device__ __forceinline__ bool locate(const AttentionArgs& a, int tile_rows, int index, int& sequence, int& tile) {
  const int lane = threadIdx.x % kWarp, group = static_cast<int>(a.heads / a.kv_heads);
  int before = 0;
  for (int base = 0; base < a.sequences; base += kWarp) {
    const int s = base + lane;
    const int mine = s < a.sequences ? attention::tiles(a.q_indptr[s + 1] - a.q_indptr[s], group, tile_rows) : 0;
    int upto = mine;
    for (int step = 1; step < kWarp; step *= 2) {
      const int other = __shfl_up_sync(kAll, upto, step);
      upto += lane >= step ? other : 0;
    }
    const unsigned past = __ballot_sync(kAll, before + upto > index);
    if (past) {
      const int first = __ffs(past) - 1;
      sequence = base + first;
      tile = index - before - __shfl_sync(kAll, upto - mine, first);
      return true;
    }
    before += __shfl_sync(kAll, upto, kWarp - 1);
  }
  return false;
}

__device__ __forceinline__ Rows rows_of(const AttentionArgs& a, int s) {
  return {a.q_indptr[s], a.q_indptr[s + 1] - a.q_indptr[s], a.kv_lens[s], static_cast<int32_t>(a.heads / a.kv_heads)};
}

// Where the cache holds position `at` of a sequence. P is almost always a power of two: `shift`, or -1.
struct Slots {
  const int32_t* table;
  int size, shift;
  __device__ __forceinline__ int64_t operator()(int at) const {
    const int block = shift >= 0 ? at >> shift : at / size;
    return static_cast<int64_t>(table[block]) * size + (at - block * size);
  }
};

// A [rows][D] tile in shared memory, its 16-byte chunks swizzled by row.
template <class T, int D>
struct Tile {
  static constexpr int kChunk = 16 / sizeof(T), kChunks = D / kChunk;
  T* data;
  __device__ __forceinline__ T* chunk(int row, int c) const { return data + row * D + ((c ^ (row & 7)) * kChunk); }
};

template <class T, int D>
struct Block {
  static constexpr int kSteps = D / 16;       // of 16 along the head width
  static constexpr int kTileBytes = kKeys * D * sizeof(T);
  static constexpr int kSharedBytes = 4 * kTileBytes;  // keys and values, two stages; the queries pass through first

  const AttentionArgs& a;
  Rows rows;
  Slots slots;
  int tile, kv_head;
  char* shared;

  __device__ __forceinline__ Tile<T, D> keys(int stage) const { return {reinterpret_cast<T*>(shared + 2 * stage * kTileBytes)}; }
  __device__ __forceinline__ Tile<T, D> values(int stage) const {
    return {reinterpret_cast<T*>(shared + (2 * stage + 1) * kTileBytes)};
  }

  __device__ __forceinline__ int64_t row_offset(int row) const {
    const int h = kv_head * rows.group + head(rows, row);
    return ((static_cast<int64_t>(rows.first_token) + token(rows, row)) * a.heads + h) * D;
  }

  // Starts copying the keys and values [begin, begin + 64) to a stage; those past the sequence become zeros.
  __device__ __forceinline__ void fetch(int begin, int stage) const {
    constexpr int kChunks = Tile<T, D>::kChunks;
    const Tile<T, D> k = keys(stage), v = values(stage);
#pragma unroll
    for (int i = threadIdx.x; i < kKeys * kChunks; i += kThreads) {
      const int row = i / kChunks, c = i % kChunks;
      const bool live = begin + row < rows.kv_len;
      const int64_t at = ((live ? slots(begin + row) : 0) * a.kv_heads + kv_head) * D + c * Tile<T, D>::kChunk;
      copy_async(k.chunk(row, c), static_cast<const T*>(a.k_cache) + at, live);
      copy_async(v.chunk(row, c), static_cast<const T*>(a.v_cache) + at, live);
    }
    commit_copies();
  }

  // The queries of the tile, through the second stage's memory, to fragments.
  __device__ __forceinline__ void load_queries(uint32_t (&q)[kSteps][4]) const {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const Tile<T, D> staged = keys(1);
    for (int i = threadIdx.x; i < kTileRows * Tile<T, D>::kChunks; i += kThreads) {
      const int r = i / Tile<T, D>::kChunks, c = i % Tile<T, D>::kChunks, row = tile * kTileRows + r;
      const bool live = row < count(rows);
      copy_async(staged.chunk(r, c), static_cast<const T*>(a.q) + (live ? row_offset(row) : 0) + c * Tile<T, D>::kChunk, live);
    }
    commit_copies();
    wait_copies<0>();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kSteps; ++k) load_matrices(q[k], staged.chunk(warp * 16 + lane % 16, 2 * k + lane / 16));
    __syncthreads();
  }

  // s[16 x 64] = q k^T
  __device__ __forceinline__ void scores(float (&s)[kKeys / 8][4], const uint32_t (&q)[kSteps][4], int stage) const {
    const int lane = threadIdx.x % kWarp;
    const Tile<T, D> k = keys(stage);
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; n += 2) {
        uint32_t b[4];
        load_matrices(b, k.chunk(8 * n + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
        multiply_add<T>(s[n], q[step], b[0], b[1]);
        multiply_add<T>(s[n + 1], q[step], b[2], b[3]);
      }
    }
  }

  // o[16 x D] += p v, with p rounded to T.
  __device__ __forceinline__ void mix(float (&o)[D / 8][4], const float (&p)[kKeys / 8][4], int stage) const {
    const int lane = threadIdx.x % kWarp;
    const Tile<T, D> v = values(stage);
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      const uint32_t weights[4] = {pack_pair<T>(p[2 * k][0], p[2 * k][1]), pack_pair<T>(p[2 * k][2], p[2 * k][3]),
                                   pack_pair<T>(p[2 * k + 1][0], p[2 * k + 1][1]), pack_pair<T>(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
      for (int n = 0; n < D / 8; n += 2) {
        uint32_t b[4];
        load_matrices_transposed(b, v.chunk(16 * k + lane % 16, n + lane / 16));
        multiply_add<T>(o[n], weights, b[0], b[1]);
        multiply_add<T>(o[n + 1], weights, b[2], b[3]);
      }
    }
  }

  __device__ __forceinline__ void run() const {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const int first = tile * kTileRows, last = min(first + kTileRows, count(rows)) - 1;
    const int length = min(visible(rows, last), rows.kv_len);
    uint32_t q[kSteps][4];
    load_queries(q);

    // This lane's rows of the 16 of its warp, and how many keys each sees.
    const int mine[2] = {first + warp * 16 + lane / 4, first + warp * 16 + lane / 4 + 8};
    const int seen[2] = {visible(rows, min(mine[0], last)), visible(rows, min(mine[1], last))};
    const int everyone = visible(rows, first);
    const float scale = a.scale * kLog2E;
    float o[D / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, total[2] = {};

    fetch(0, 0);
    for (int begin = 0, stage = 0; begin < length; begin += kKeys, stage ^= 1) {
      wait_copies<0>();
      __syncthreads();  // this tile is here, and nobody reads the other stage any more
      if (begin + kKeys < length) fetch(begin + kKeys, stage ^ 1);
      float s[kKeys / 8][4];
      scores(s, q, stage);
      if (begin + kKeys > everyone) {
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if (begin + 8 * n + lane % 4 * 2 + j % 2 >= seen[j / 2]) s[n][j] = -INFINITY;
          }
        }
      }
      soften(s, o, top, total, scale);
      mix(o, s, stage);
    }
    store(o, total, mine, last);
  }

  // Scores to weights in base 2; what was summed so far is rescaled to the new maximum.
  static __device__ __forceinline__ void soften(float (&s)[kKeys / 8][4], float (&o)[D / 8][4], float (&top)[2],
                                                float (&total)[2], float scale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float best = top[half];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) best = fmaxf(best, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
      best = max_over(best, 4);
      // Key 0 is visible to every row, so `best` is finite, unless the inputs are not.
      const float shift = best * scale, decay = exp2f(top[half] * scale - shift);
      top[half] = best;
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int j = 2 * half; j < 2 * half + 2; ++j) {
          s[n][j] = exp2f(s[n][j] * scale - shift);
          sum += s[n][j];
        }
      }
      total[half] = total[half] * decay + sum;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        o[n][2 * half] *= decay;
        o[n][2 * half + 1] *= decay;
      }
    }
  }

  __device__ __forceinline__ void store(const float (&o)[D / 8][4], const float (&total)[2], const int (&mine)[2], int last) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float inverse = 1.0f / sum_over(total[half], 4);
      if (mine[half] > last) continue;
      T* out = static_cast<T*>(a.out) + row_offset(mine[half]) + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        *reinterpret_cast<uint32_t*>(out + 8 * n) = pack_pair<T>(o[n][2 * half] * inverse, o[n][2 * half + 1] * inverse);
      }
    }
  }
};

template <class T, int D>
__global__ __launch_bounds__(kThreads) void tensor_core_kernel(AttentionArgs a, int shift) {
  extern __shared__ __align__(128) char shared[];
  int sequence, tile;
  if (!locate(a, kTileRows, static_cast<int>(blockIdx.x), sequence, tile)) return;
  const Rows rows = rows_of(a, sequence);
  // The last tiles see the most keys: they start first.
  tile = attention::tiles(rows.new_tokens, rows.group, kTileRows) - 1 - tile;
  const Slots slots{a.block_tables + sequence * a.table_stride, static_cast<int>(a.block_tokens), shift};
  Block<T, D>{a, rows, slots, tile, static_cast<int>(blockIdx.y), shared}.run();
}

// A warp a row: lane j weighs key begin + j, then every lane adds up its elements i = lane, lane + 32, ... of the values.
template <class T, int kPerLane>
__global__ __launch_bounds__(kThreads) void general_kernel(AttentionArgs a, int shift) {
  const int warp = static_cast<int>(blockIdx.x) * kWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  int sequence, row;
  if (!locate(a, 1, warp, sequence, row)) return;
  const Rows rows = rows_of(a, sequence);
  const Slots slots{a.block_tables + sequence * a.table_stride, static_cast<int>(a.block_tokens), shift};
  const int width = static_cast<int>(a.head_width), kv_head = static_cast<int>(blockIdx.y);
  const int h = kv_head * rows.group + head(rows, row);
  const int64_t at = ((static_cast<int64_t>(rows.first_token) + token(rows, row)) * a.heads + h) * width;
  const T* q = static_cast<const T*>(a.q) + at;
  const int length = min(visible(rows, row), rows.kv_len);
  float o[kPerLane] = {}, top = -INFINITY, total = 0.0f;
  for (int begin = 0; begin < length; begin += kWarp) {
    const bool live = begin + lane < length;
    const int64_t mine = live ? (slots(begin + lane) * a.kv_heads + kv_head) * width : 0;
    float score = 0.0f;
    const T* key = static_cast<const T*>(a.k_cache) + mine;
    for (int i = 0; i < width; ++i) score += widen(q[i]) * widen(key[i]);
    score = live ? score * a.scale : -INFINITY;
    const float best = fmaxf(top, max_over(score, kWarp)), decay = expf(top - best);
    const float weight = expf(score - best);
    top = best;
    total = total * decay + sum_over(weight, kWarp);
#pragma unroll
    for (int k = 0; k < kPerLane; ++k) o[k] *= decay;
    for (int j = 0; j < min(kWarp, length - begin); ++j) {
      const float share = __shfl_sync(kAll, weight, j);
      const T* value = static_cast<const T*>(a.v_cache) + __shfl_sync(kAll, mine, j);
#pragma unroll
      for (int k = 0; k < kPerLane; ++k) {
        if (lane + k * kWarp < width) o[k] += share * widen(value[lane + k * kWarp]);
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kPerLane; ++k) {
    if (lane + k * kWarp < width) static_cast<T*>(a.out)[at + lane + k * kWarp] = narrow<T>(o[k] / total);
  }
}

int shift_of(int64_t block_tokens) {
  int shift = 0;
  while ((int64_t{1} << shift) < block_tokens) ++shift;
  return (int64_t{1} << shift) == block_tokens ? shift : -1;
}

// Blocks that suffice whatever q_indptr says: full tiles of all rows, and one partial tile a sequence.
dim3 grid(const AttentionArgs& a, int64_t tile_rows) {
  const int64_t rows = a.tokens * (a.heads / a.kv_heads);
  return dim3(static_cast<unsigned>(rows / tile_rows + a.sequences), static_cast<unsigned>(a.kv_heads));
}

template <class T, int D>
void run_tensor_cores(const AttentionArgs& a, cudaStream_t stream) {
  constexpr int bytes = Block<T, D>::kSharedBytes;
  if constexpr (bytes > 48 * 1024) {
    check("paged_attention", cudaFuncSetAttribute(tensor_core_kernel<T, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  }
  tensor_core_kernel<T, D><<<grid(a, kTileRows), kThreads, bytes, stream>>>(a, shift_of(a.block_tokens));
}

template <class T>
void run_general(const AttentionArgs& a, cudaStream_t stream) {
  dim3 blocks = grid(a, 1);
  blocks.x = static_cast<unsigned>(divide_up(blocks.x, kWarps));
  const int shift = shift_of(a.block_tokens);
  const int64_t per_lane = divide_up(a.head_width, kWarp);
  if (per_lane <= 2) {
    general_kernel<T, 2><<<blocks, kThreads, 0, stream>>>(a, shift);
  } else if (per_lane <= 4) {
    general_kernel<T, 4><<<blocks, kThreads, 0, stream>>>(a, shift);
  } else {
    general_kernel<T, 16><<<blocks, kThreads, 0, stream>>>(a, shift);
  }
}

template <class T>
void run(const AttentionArgs& a, cudaStream_t stream) {
  if constexpr (sizeof(T) == 2) {
    const bool packs = aligned(a.q) && aligned(a.k_cache) && aligned(a.v_cache) && reinterpret_cast<uintptr_t>(a.out) % 4 == 0;
    if (packs && a.head_width == 64) return run_tensor_cores<T, 64>(a, stream);
    if (packs && a.head_width == 128) return run_tensor_cores<T, 128>(a, stream);
  }
  run_general<T>(a, stream);
}

}  // namespace

void paged_attention(const AttentionArgs& a, Stream stream) {
  const DeviceGuard guard(stream);
  with_type(a.dtype, [&](auto zero) { run<decltype(zero)>(a, handle(stream)); });
  check_launch("paged_attention");
}

}  // namespace qdengine::cuda
