// ngram_propose and verify_draft on the device; their logic is qdengine/ngram.h, which the CPU kernels share.
//
// Propose: a block a sequence; its threads weigh the places of document and output in strides (coalesced reads, since almost
// every comparison ends at the first token) and reduce to the best, whose order is total, so the result does not depend on the
// reduction. Verify: a warp a sequence, 32 drafted tokens a ballot. Both are bound by latency. Not measured on a GPU yet.
#include "common.cuh"
#include "qdengine/ngram.h"

namespace qdengine::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ int64_t best_in(const ngram::History& h, const ngram::Region& region) {
  int64_t best = ngram::kNone;
  for (int32_t place = region.low + static_cast<int32_t>(threadIdx.x); place < region.high; place += kThreads) {
    const int64_t worth = ngram::worth(h, region, place);
    best = worth > best ? worth : best;
  }
  return best;
}

__global__ __launch_bounds__(kThreads) void propose_kernel(ProposeArgs a) {
  __shared__ int32_t place, length;
  const int64_t s = blockIdx.x;
  const ngram::History h = ngram::history(a.tokens + s * a.tokens_stride, a.ranks + s * a.ranks_stride, a.bounds + 4 * s,
                                          static_cast<int32_t>(a.capacity));
  const int64_t limit = a.limits[s] < a.max_draft ? a.limits[s] : a.max_draft;
  int64_t best = ngram::kNone;
  if (limit > 0) {
    const int64_t document = best_in(h, ngram::document_region(h)), output = best_in(h, ngram::output_region(h));
    best = document > output ? document : output;
  }
  best = block_max<kThreads>(best);
  if (threadIdx.x == 0) {
    place = ngram::place_of(best);
    length = best == ngram::kNone ? 0 : ngram::draft_length(h, place, static_cast<int32_t>(limit));
    a.draft_lens[s] = length;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < length; i += kThreads) a.drafts[s * a.drafts_stride + i] = h.tokens[place + i];
}

__global__ __launch_bounds__(kThreads) void verify_kernel(VerifyArgs a) {
  const int64_t s = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  if (s >= a.sequences) return;
  const int lane = threadIdx.x % kWarp;
  const int32_t begin = a.row_indptr[s] < 0 ? 0 : a.row_indptr[s];
  const int32_t end = a.row_indptr[s + 1] > a.rows ? static_cast<int32_t>(a.rows) : a.row_indptr[s + 1];
  if (begin >= end) {
    if (lane == 0) a.out_lens[s] = 0;
    return;
  }
  const int32_t drafted = a.draft_lens[s] < a.max_draft ? a.draft_lens[s] : static_cast<int32_t>(a.max_draft);
  const int32_t* draft = a.drafts + s * a.drafts_stride;
  const int32_t* sampled = a.sampled + begin;
  int32_t kept = 0;
  while (true) {
    const unsigned agree = __ballot_sync(kAll, ngram::agrees(draft, drafted, sampled, end - begin, kept + lane));
    kept += agree == kAll ? kWarp : __ffs(~agree) - 1;
    if (agree != kAll) break;
  }
  for (int32_t i = lane; i <= kept; i += kWarp) a.out[s * a.out_stride + i] = sampled[i];
  if (lane == 0) a.out_lens[s] = kept + 1;
}

}  // namespace

void ngram_propose(const ProposeArgs& a, Stream stream) {
  const DeviceGuard guard(stream);
  propose_kernel<<<static_cast<unsigned>(a.sequences), kThreads, 0, handle(stream)>>>(a);
  check_launch("ngram_propose");
}

void verify_draft(const VerifyArgs& a, Stream stream) {
  const DeviceGuard guard(stream);
  const unsigned grid = static_cast<unsigned>(divide_up(a.sequences * kWarp, kThreads));
  verify_kernel<<<grid, kThreads, 0, handle(stream)>>>(a);
  check_launch("verify_draft");
}

}  // namespace qdengine::cuda
