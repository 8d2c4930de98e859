// pack_step: a pass over the sequences for the sums, one to lay their tokens end to end.
#include "qdengine/step.h"
#include "simd.h"

namespace qdengine::QDENGINE_ISA {
namespace {

step::Share share(const PackArgs& a, int64_t s) {
  return step::share(a.bounds[4 * s + 3], a.computed[s], a.most[s], a.draft_lens[s], static_cast<int32_t>(a.capacity),
                     static_cast<int32_t>(a.max_draft));
}

void lay(const PackArgs& a, int64_t s, const step::Share& mine, int32_t begin, int32_t end) {
  const int32_t* known = a.tokens + s * a.tokens_stride + mine.computed;
  const int32_t* draft = a.drafts + s * a.drafts_stride;
  for (int32_t i = begin; i < end; ++i) {
    const int32_t n = i - begin, position = mine.computed + n;
    a.ids[i] = n < mine.known ? known[n] : draft[n - mine.known];
    a.positions[i] = position;
    a.slots[i] = step::slot(a.block_tables + s * a.table_stride, a.table_blocks, static_cast<int32_t>(a.block_tokens), position);
  }
}

}  // namespace

void pack_step(const PackArgs& a, Stream) {
  const int32_t tokens = static_cast<int32_t>(a.step_tokens), rows = static_cast<int32_t>(a.step_rows);
  int32_t known = 0;
  for (int64_t s = 0; s < a.sequences; ++s) known += share(a, s).known;
  const int32_t room = known < tokens ? tokens - known : 0;
  step::Before before = {0, 0, 0};
  a.q_indptr[0] = a.row_indptr[0] = 0;
  for (int64_t s = 0; s < a.sequences; ++s) {
    const step::Share mine = share(a, s);
    const step::Before after = {before.known + mine.known, before.wanted + mine.wanted, before.writes + mine.writes};
    const int32_t begin = a.q_indptr[s], row = a.row_indptr[s];
    const int32_t end = step::token_begin(after, room, tokens), row_end = step::row_begin(after, room, rows);
    lay(a, s, mine, begin, end);
    for (int32_t i = row; i < row_end; ++i) a.rows[i] = step::token_of_row(i, row_end, end);
    a.drafted[s] = step::drafted(after.wanted, room) - step::drafted(before.wanted, room);
    a.kv_lens[s] = end > begin ? mine.computed + end - begin : 0;
    a.q_indptr[s + 1] = end;
    a.row_indptr[s + 1] = row_end;
    before = after;
  }
  for (int32_t i = a.q_indptr[a.sequences]; i < tokens; ++i) a.ids[i] = a.positions[i] = 0, a.slots[i] = -1;
  for (int32_t i = a.row_indptr[a.sequences]; i < rows; ++i) a.rows[i] = 0;
}

}  // namespace qdengine::QDENGINE_ISA
