// pack_step: what the running sequences put into the next step, in one launch.
//
// A block a sequence, and one more for the padding. Every block sums the shares of the sequences before its own (a few hundred at
// most, read from L2), so that nothing waits for another block; its threads then lay the tokens down. Bound by latency. Not
// measured on a GPU yet.
#include "common.cuh"
#include "qdengine/step.h"

namespace qdengine::cuda {
namespace {

constexpr int kThreads = 128;

__device__ __forceinline__ step::Share share(const PackArgs& a, int64_t s) {
  return step::share(a.bounds[4 * s + 3], a.computed[s], a.most[s], a.draft_lens[s], static_cast<int32_t>(a.capacity),
                     static_cast<int32_t>(a.max_draft));
}

__global__ __launch_bounds__(kThreads) void pack_kernel(PackArgs a) {
  __shared__ int32_t sums[4];  // known of all sequences; known, wanted and writes of those before this one
  const int64_t s = blockIdx.x;
  if (threadIdx.x < 4) sums[threadIdx.x] = 0;
  __syncthreads();
  int32_t known = 0;
  step::Before before = {0, 0, 0};
  for (int64_t j = threadIdx.x; j < a.sequences; j += kThreads) {
    const step::Share other = share(a, j);
    known += other.known;
    if (j < s) before = {before.known + other.known, before.wanted + other.wanted, before.writes + other.writes};
  }
  atomicAdd(&sums[0], known);
  atomicAdd(&sums[1], before.known);
  atomicAdd(&sums[2], before.wanted);
  atomicAdd(&sums[3], before.writes);
  __syncthreads();
  const int32_t tokens = static_cast<int32_t>(a.step_tokens), rows = static_cast<int32_t>(a.step_rows);
  const int32_t room = sums[0] < tokens ? tokens - sums[0] : 0;
  before = {sums[1], sums[2], sums[3]};
  const int32_t begin = step::token_begin(before, room, tokens), row = step::row_begin(before, room, rows);
  if (threadIdx.x == 0) {
    a.q_indptr[s] = begin;
    a.row_indptr[s] = row;
  }
  if (s == a.sequences) {
    for (int32_t i = begin + threadIdx.x; i < tokens; i += kThreads) a.ids[i] = a.positions[i] = 0, a.slots[i] = -1;
    for (int32_t i = row + threadIdx.x; i < rows; i += kThreads) a.rows[i] = 0;
    return;
  }
  const step::Share mine = share(a, s);
  const step::Before after = {before.known + mine.known, before.wanted + mine.wanted, before.writes + mine.writes};
  const int32_t end = step::token_begin(after, room, tokens), row_end = step::row_begin(after, room, rows);
  if (threadIdx.x == 0) {
    a.drafted[s] = step::drafted(after.wanted, room) - step::drafted(before.wanted, room);
    a.kv_lens[s] = end > begin ? mine.computed + end - begin : 0;
  }
  const int32_t* tokens_of = a.tokens + s * a.tokens_stride + mine.computed;
  const int32_t* draft = a.drafts + s * a.drafts_stride;
  for (int32_t n = threadIdx.x; n < end - begin; n += kThreads) {
    const int32_t position = mine.computed + n;
    a.ids[begin + n] = n < mine.known ? tokens_of[n] : draft[n - mine.known];
    a.positions[begin + n] = position;
    a.slots[begin + n] =
        step::slot(a.block_tables + s * a.table_stride, a.table_blocks, static_cast<int32_t>(a.block_tokens), position);
  }
  for (int32_t i = row + threadIdx.x; i < row_end; i += kThreads) a.rows[i] = step::token_of_row(i, row_end, end);
}

}  // namespace

void pack_step(const PackArgs& a, Stream stream) {
  const DeviceGuard guard(stream);
  pack_kernel<<<static_cast<unsigned>(a.sequences + 1), kThreads, 0, handle(stream)>>>(a);
  check_launch("pack_step");
}

}  // namespace qdengine::cuda
