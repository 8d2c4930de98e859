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

__global__ __launch_bounds__(kThreads) void pack_kernel(PackArgs a) {
  __shared__ int32_t sums[4];  // known of all sequences; known, wanted and writes of those before this one
  const int64_t s = blockIdx.x;
  if (threadIdx.x < 4) sums[threadIdx.x] = 0;
  __syncthreads();
  step::Sums all = {0, 0, 0}, before = {0, 0, 0};
  for (int64_t j = threadIdx.x; j < a.sequences; j += kThreads) {
    const step::Share other = step::share(a, j);
    all = step::plus(all, other);
    if (j < s) before = step::plus(before, other);
  }
  atomicAdd(&sums[0], all.known);
  atomicAdd(&sums[1], before.known);
  atomicAdd(&sums[2], before.wanted);
  atomicAdd(&sums[3], before.writes);
  __syncthreads();
  const int32_t room = step::room_for_drafts(a, sums[0]), thread = static_cast<int32_t>(threadIdx.x);
  before = {sums[1], sums[2], sums[3]};
  const step::Place at = step::place(a, before, room);
  if (thread == 0) {
    a.q_indptr[s] = at.token;
    a.row_indptr[s] = at.row;
  }
  if (s == a.sequences) {
    for (int32_t i = at.token + thread; i < a.step_tokens; i += kThreads) step::pad_token(a, i);
    for (int32_t i = at.row + thread; i < a.step_rows; i += kThreads) a.rows[i] = 0;
    return;
  }
  const step::Share mine = step::share(a, s);
  const step::Place after = step::place(a, step::plus(before, mine), room);
  if (thread == 0) step::lay_sequence(a, s, mine, at, after);
  for (int32_t i = at.token + thread; i < after.token; i += kThreads) step::lay_token(a, s, mine, at.token, i);
  for (int32_t i = at.row + thread; i < after.row; i += kThreads) step::lay_row(a, after, i);
}

}  // namespace

void pack_step(const PackArgs& a, Stream stream) {
  const DeviceGuard guard(stream);
  pack_kernel<<<static_cast<unsigned>(a.sequences + 1), kThreads, 0, handle(stream)>>>(a);
  check_launch("pack_step");
}

}  // namespace qdengine::cuda
