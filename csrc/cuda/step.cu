// pack_step, commit_step and admit_rows: what the running sequences put into a step and take from it, in a launch each.
//
// Pack: a block a sequence, and one more for the padding. Every block sums the shares of the sequences before its own (a few hundred
// at most, read from L2), so that nothing waits for another block; its threads then lay the tokens down. Commit: a warp a sequence,
// 32 written tokens a ballot. Admit: a block a record. All are bound by latency. Not measured on a GPU yet.
#include "common.cuh"
#include "qdengine/step.h"

namespace qdengine::cuda {
namespace {

constexpr int kThreads = 128;

__global__ __launch_bounds__(kThreads) void pack_kernel(PackArgs a) {
  __shared__ int32_t sums[5];  // known and writes of all sequences; known, wanted and writes of those before this one
  const int64_t s = blockIdx.x;
  if (threadIdx.x < 5) sums[threadIdx.x] = 0;
  __syncthreads();
  step::Sums all = {0, 0, 0}, before = {0, 0, 0};
  for (int64_t j = threadIdx.x; j < a.sequences; j += kThreads) {
    const step::Share other = step::share(a, j);
    all = step::plus(all, other);
    if (j < s) before = step::plus(before, other);
  }
  atomicAdd(&sums[0], all.known);
  atomicAdd(&sums[1], all.writes);
  atomicAdd(&sums[2], before.known);
  atomicAdd(&sums[3], before.wanted);
  atomicAdd(&sums[4], before.writes);
  __syncthreads();
  const int32_t room = step::room_for_drafts(a, {sums[0], 0, sums[1]}), thread = static_cast<int32_t>(threadIdx.x);
  before = {sums[2], sums[3], sums[4]};
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

__global__ __launch_bounds__(kThreads) void commit_kernel(CommitArgs a) {
  const int64_t s = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  if (s >= a.sequences) return;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % kWarp;
  if (a.q_indptr[s + 1] <= a.q_indptr[s]) {
    if (lane == 0) a.kept[s] = 0;
    return;
  }
  const int32_t* out = a.out + s * a.out_stride;
  const int32_t count = step::written(a, s);
  int32_t stop = count;
  for (int32_t first = 0; first < count && stop == count; first += kWarp) {
    const int32_t i = first + lane;
    const unsigned found = __ballot_sync(kAll, i < count && step::stops(a, out[i]));
    if (found) stop = first + __ffs(found) - 1;
  }
  const step::Outcome o = step::outcome(a, s, stop);
  __syncwarp();  // every lane has read what lane 0 is about to change
  for (int32_t i = lane; i < o.taken; i += kWarp) a.tokens[s * a.tokens_stride + o.length + i] = out[i];
  if (lane == 0) step::take(a, s, o);
}

__global__ __launch_bounds__(kThreads) void admit_kernel(AdmitArgs a) {
  const step::Record r = step::record(a, blockIdx.x);
  if (!step::whole(a, r)) return;
  if (threadIdx.x == 0) step::lay_record(a, r);
  const int32_t* staged = a.staged + r.at;
  for (int32_t j = static_cast<int32_t>(threadIdx.x); j < r.length; j += kThreads) {
    a.tokens[r.row * a.tokens_stride + j] = staged[j];
    a.ranks[r.row * a.ranks_stride + j] = staged[r.length + j];
  }
}

}  // namespace

void pack_step(const PackArgs& a, Stream stream) {
  const DeviceGuard guard(stream);
  pack_kernel<<<static_cast<unsigned>(a.sequences + 1), kThreads, 0, handle(stream)>>>(a);
  check_launch("pack_step");
}

void commit_step(const CommitArgs& a, Stream stream) {
  const DeviceGuard guard(stream);
  const unsigned grid = static_cast<unsigned>(divide_up(a.sequences * kWarp, kThreads));
  commit_kernel<<<grid, kThreads, 0, handle(stream)>>>(a);
  check_launch("commit_step");
}

void admit_rows(const AdmitArgs& a, Stream stream) {
  const DeviceGuard guard(stream);
  admit_kernel<<<static_cast<unsigned>(a.count), kThreads, 0, handle(stream)>>>(a);
  check_launch("admit_rows");
}

}  // namespace qdengine::cuda
