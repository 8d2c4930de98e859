// pack_step: a pass over the sequences for the sums, one to lay their tokens end to end.
#include "qdengine/step.h"
#include "simd.h"

namespace qdengine::QDENGINE_ISA {

void pack_step(const PackArgs& a, Stream) {
  step::Sums all = {0, 0, 0}, before = {0, 0, 0};
  for (int64_t s = 0; s < a.sequences; ++s) all = step::plus(all, step::share(a, s));
  const int32_t room = step::room_for_drafts(a, all.known);
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

}  // namespace qdengine::QDENGINE_ISA
