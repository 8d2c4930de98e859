// paged_attention: softmax(q k^T scale) v of the new tokens of every sequence over its paged keys and values, causal.
//
// q, out [T, H, D]; k_cache, v_cache [N, P, G, D], in 16 bits, float32 or 8 bits with a scale for every token and kv head. Prefill
// is bound by the tensor cores (4 T L H D FLOPs for L keys), decode and verification by reading the keys and values once a kv head
// (4 L G D bytes in 16 bits, half of it in 8).
//
// Plan for bf16 and fp16 with D = 64 or 128 (arXiv 2307.08691), in attention_tile.cuh: a block of 4 warps takes 64 rows (token, head
// of one kv head) of one sequence; 64 keys and values at a time come by 16-byte asynchronous copies, two stages deep, the next tile
// under the present one's products; rows of shared memory are swizzled by 16-byte chunks, so that matrix loads have no bank
// conflicts; a running maximum in base 2. Other types and widths: a warp a row, a lane a key, in float32.
//
// A row's result is the left fold of splits of 256 keys (attention.h). A block takes all splits of its rows; in a step so small that
// their partial results fit the workspace every split has a block, and fold_kernel folds them: the same code and arithmetic, and
// so the same bits.
//
// The grid is sized from shapes alone, and blocks find their sequence in q_indptr: no host wait. Key tiles begin at multiples of
// 64 and are added in order, so a row's result does not depend on the batch or on how the prompt was cut into chunks.
// Limits: the kernel for other types is not split, and reads keys without coalescing. Measured on an H200: docs/benchmarks.md.
#include "attention_tile.cuh"

namespace qdengine::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;

// A warp a row: lane j weighs key begin + j, then every lane adds up its elements i = lane, lane + 32, ... of the values.
template <class T, class C, int kPerLane>
__global__ __launch_bounds__(kThreads) void general_kernel(AttentionArgs a, int shift) {
  const int warp = static_cast<int>(blockIdx.x) * kWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  int sequence, row;
  if (!locate(a, 1, warp, sequence, row)) return;
  const attention::Rows rows = rows_of(a, sequence);
  const Slots slots = slots_of(a, sequence, shift);
  const int width = static_cast<int>(a.head_width), kv_head = static_cast<int>(blockIdx.y);
  const int64_t at = line_of(a, rows, kv_head, row) * width;
  const T* q = static_cast<const T*>(a.q) + at;
  const int length = min(visible(rows, row), rows.kv_len);
  float o[kPerLane] = {}, top = -INFINITY, total = 0.0f;
  for (int begin = 0; begin < length; begin += kWarp) {
    const bool live = begin + lane < length;
    const int64_t mine = live ? slots(begin + lane) * a.kv_heads + kv_head : 0;
    float score = 0.0f;
    const C* key = static_cast<const C*>(a.k_cache) + mine * width;
    for (int i = 0; i < width; ++i) score += widen(q[i]) * widen(key[i]);
    if constexpr (sizeof(C) == 1) score *= a.k_scales[mine];
    score = live ? score * a.scale : -INFINITY;
    const float best = fmaxf(top, max_over(score, kWarp)), decay = expf(top - best);
    const float weight = expf(score - best);
    top = best;
    total = total * decay + sum_over(weight, kWarp);
#pragma unroll
    for (int k = 0; k < kPerLane; ++k) o[k] *= decay;
    for (int j = 0; j < min(kWarp, length - begin); ++j) {
      const int64_t slot = __shfl_sync(kAll, mine, j);
      float share = __shfl_sync(kAll, weight, j);
      if constexpr (sizeof(C) == 1) share *= a.v_scales[slot];
      const C* value = static_cast<const C*>(a.v_cache) + slot * width;
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

// Blocks that suffice whatever q_indptr says: full tiles of all rows, and one partial tile a sequence that has a token.
unsigned tiles_at_most(const AttentionArgs& a, int64_t tile_rows) {
  const int64_t rows = a.tokens * (a.heads / a.kv_heads);
  return static_cast<unsigned>(rows / tile_rows + (a.tokens < a.sequences ? a.tokens : a.sequences));
}

// One split: none run by themselves. Else as many as the block tables have room for.
attention::Workspace workspace_of(const AttentionArgs& a) {
  const attention::Workspace w{attention::splits(a.table_blocks * a.block_tokens), a.tokens * a.heads, a.head_width};
  const bool fits = w.splits > 1 && w.splits <= 65535 && aligned(a.workspace) && size(w) <= a.workspace_size;
  return fits ? w : attention::Workspace{1, w.rows, w.head_width};
}

template <class T, class C, int D>
void run_tiles(const AttentionArgs& a, cudaStream_t stream) {
  constexpr int bytes = TileBlock<T, C, D>::kSharedBytes;
  if constexpr (bytes > 48 * 1024) {
    check("paged_attention", cudaFuncSetAttribute(tile_kernel<T, C, D>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  }
  const attention::Workspace w = workspace_of(a);
  const dim3 grid(tiles_at_most(a, kTileRows), static_cast<unsigned>(a.kv_heads), static_cast<unsigned>(w.splits));
  tile_kernel<T, C, D><<<grid, kTileThreads, bytes, stream>>>(a, shift_of(a.block_tokens), w);
  if (w.splits == 1) return;
  fold_kernel<T, D><<<static_cast<unsigned>(divide_up(w.rows, kTileWarps)), kTileThreads, 0, stream>>>(a, w);
}

template <class T, class C>
void run_general(const AttentionArgs& a, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>(divide_up(tiles_at_most(a, 1), kWarps)), static_cast<unsigned>(a.kv_heads));
  const int shift = shift_of(a.block_tokens);
  const int64_t per_lane = divide_up(a.head_width, kWarp);
  if (per_lane <= 2) {
    general_kernel<T, C, 2><<<blocks, kThreads, 0, stream>>>(a, shift);
  } else if (per_lane <= 4) {
    general_kernel<T, C, 4><<<blocks, kThreads, 0, stream>>>(a, shift);
  } else {
    general_kernel<T, C, 16><<<blocks, kThreads, 0, stream>>>(a, shift);
  }
}

template <class T, class C>
void run(const AttentionArgs& a, cudaStream_t stream) {
  if constexpr (sizeof(T) == 2) {
    const bool packs = aligned(a.q) && aligned(a.k_cache) && aligned(a.v_cache) && reinterpret_cast<uintptr_t>(a.out) % 8 == 0;
    if (packs && a.head_width == 64) return run_tiles<T, C, 64>(a, stream);
    if (packs && a.head_width == 128) return run_tiles<T, C, 128>(a, stream);
  }
  run_general<T, C>(a, stream);
}

}  // namespace

void paged_attention(const AttentionArgs& a, Stream stream) {
  const DeviceGuard guard(stream);
  with_types(a.dtype, a.cache_dtype,
             [&](auto number, auto cached) { run<decltype(number), decltype(cached)>(a, handle(stream)); });
  check_launch("paged_attention");
}

}  // namespace qdengine::cuda
