// ngram_propose and verify_draft: 1-3 us for a sequence of 1,000-4,000 tokens, a scan whose inner loop almost always ends at
// its first comparison.
#include "qdengine/ngram.h"
#include "simd.h"

namespace qdengine::QDENGINE_ISA {
namespace {

int64_t best_in(const ngram::History& h, const ngram::Region& region) {
  int64_t best = ngram::kNone;
  for (int32_t place = region.low; place < region.high; ++place) {
    const int64_t worth = ngram::worth(h, region, place);
    best = worth > best ? worth : best;
  }
  return best;
}

void propose(const ProposeArgs& a, int64_t s) {
  const ngram::History h = ngram::history(a.tokens + s * a.tokens_stride, a.ranks + s * a.ranks_stride, a.bounds + 4 * s,
                                          static_cast<int32_t>(a.capacity));
  const int64_t limit = a.limits[s] < a.max_draft ? a.limits[s] : a.max_draft;
  a.draft_lens[s] = 0;
  if (limit <= 0) return;
  const int64_t document = best_in(h, ngram::document_region(h)), output = best_in(h, ngram::output_region(h));
  const int64_t best = document > output ? document : output;
  if (best == ngram::kNone) return;
  const int32_t place = ngram::place_of(best);
  const int32_t length = ngram::draft_length(h, place, static_cast<int32_t>(limit));
  int32_t* draft = a.drafts + s * a.drafts_stride;
  for (int32_t i = 0; i < length; ++i) draft[i] = h.tokens[place + i];
  a.draft_lens[s] = length;
}

void verify(const VerifyArgs& a, int64_t s) {
  const int32_t total = static_cast<int32_t>(a.rows);
  int32_t begin = a.row_indptr[s], end = a.row_indptr[s + 1];
  begin = begin < 0 ? 0 : begin;
  end = end > total ? total : end;
  a.out_lens[s] = 0;
  if (begin >= end) return;
  int32_t drafted = a.draft_lens[s];
  drafted = drafted < static_cast<int32_t>(a.max_draft) ? drafted : static_cast<int32_t>(a.max_draft);
  const int32_t kept = ngram::accepted(a.drafts + s * a.drafts_stride, drafted, a.sampled + begin, end - begin);
  for (int32_t i = 0; i <= kept; ++i) a.out[s * a.out_stride + i] = a.sampled[begin + i];
  a.out_lens[s] = kept + 1;
}

}  // namespace

void ngram_propose(const ProposeArgs& a, Stream) {
  parallel_rows(a.sequences, a.capacity, [&](int64_t s) { propose(a, s); });
}

void verify_draft(const VerifyArgs& a, Stream) {
  for (int64_t s = 0; s < a.sequences; ++s) verify(a, s);
}

}  // namespace qdengine::QDENGINE_ISA
