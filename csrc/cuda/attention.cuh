// What the kernels of paged_attention share: how a block finds its sequence, and where the cache holds a token.
#pragma once

#include "common.cuh"
#include "qdengine/attention.h"
#include "qdengine/eight_bit.h"

namespace qdengine::cuda {

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

__device__ __forceinline__ attention::Rows rows_of(const AttentionArgs& a, int s) {
  return {a.q_indptr[s], a.q_indptr[s + 1] - a.q_indptr[s], a.kv_lens[s], static_cast<int32_t>(a.heads / a.kv_heads)};
}

// Row (token, head) of q and out, counted over all sequences.
__device__ __forceinline__ int64_t line_of(const AttentionArgs& a, const attention::Rows& rows, int kv_head, int row) {
  return (static_cast<int64_t>(rows.first_token) + token(rows, row)) * a.heads + kv_head * rows.group + head(rows, row);
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

__device__ __forceinline__ Slots slots_of(const AttentionArgs& a, int sequence, int shift) {
  return {a.block_tables + sequence * a.table_stride, static_cast<int>(a.block_tokens), shift};
}

}  // namespace qdengine::cuda
