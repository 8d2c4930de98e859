// pack_step, a pass over the sequences for the sums and one to lay their tokens end to end; commit_step and admit_rows, a pass each.
#include "qdengine/step.h"
#include "simd.h"

namespace qdengine::QDENGINE_ISA {

void pack_step(const PackArgs& a, Stream) {
  step::Sums all = {0, 0, 0}, before = {0, 0, 0};
  for (int64_t s = 0; s < a.sequences; ++s) all = step::plus(all, step::share(a, s));
  const int32_t room = step::room_for_drafts(a, all);
  step::Place at = {0, 0, 0};
  a.q_indptr[0] = a.row_indptr[0] = 0;
  for (int64_t s = 0; s < a.sequences; ++s) {
    const step::Share mine = step::share(a, s);
    before = step::plus(before, mine);
    const step::Place after = step::place(a, before, room);
    for (int32_t i = at.token; i < after.token; ++i) step::lay_token(a, s, mine, at.token, i);
    for (int32_t i = at.row; i < after.row; ++i) step::lay_row(a, after, i);
    step::lay_sequence(a, s, mine, at, after);
    a.q_indptr[s + 1] = after.token;
    a.row_indptr[s + 1] = after.row;
    at = after;
  }
  for (int32_t i = at.token; i < a.step_tokens; ++i) step::pad_token(a, i);
  for (int32_t i = at.row; i < a.step_rows; ++i) a.rows[i] = 0;
}

void commit_step(const CommitArgs& a, Stream) {
  for (int64_t s = 0; s < a.sequences; ++s) {
    a.kept[s] = 0;
    if (a.q_indptr[s + 1] <= a.q_indptr[s]) continue;
    const int32_t* out = a.out + s * a.out_stride;
    int32_t stop = 0;
    while (stop < step::written(a, s) && !step::stops(a, out[stop])) ++stop;
    const step::Outcome o = step::outcome(a, s, stop);
    for (int32_t i = 0; i < o.taken; ++i) a.tokens[s * a.tokens_stride + o.length + i] = out[i];
    step::take(a, s, o);
  }
}

void admit_rows(const AdmitArgs& a, Stream) {
  for (int64_t i = 0; i < a.count; ++i) {
    const step::Record r = step::record(a, i);
    if (!step::whole(a, r)) continue;
    const int32_t* staged = a.staged + r.at;
    for (int32_t j = 0; j < r.length; ++j) {
      a.tokens[r.row * a.tokens_stride + j] = staged[j];
      a.ranks[r.row * a.ranks_stride + j] = staged[r.length + j];
    }
    step::lay_record(a, r);
  }
}

}  // namespace qdengine::QDENGINE_ISA
