// What each sequence puts into a step, shared by host and device. The contract is pack_step of ops/reference.py.
#pragma once

#include <cstdint>

#include "qdengine/host_device.h"
#include "qdengine/kernels.h"

namespace qdengine::step {

QDENGINE_HD int32_t clamp(int32_t x, int32_t low, int32_t high) { return x < low ? low : (x > high ? high : x); }

// known: tokens from `computed` on; wanted: drafted tokens after them, if the step has room; writes: 1 when the share reaches the
// newest token, so that its model output is a new one.
struct Share {
  int32_t computed, known, wanted, writes;
};

// No read outside the sequence's row, whatever the arguments say.
QDENGINE_HD Share share(const PackArgs& a, int64_t s) {
  const int32_t length = clamp(a.bounds[4 * s + 3], 0, static_cast<int32_t>(a.capacity));
  const int32_t computed = clamp(a.computed[s], 0, length);
  const int32_t known = clamp(a.most[s], 0, length - computed);
  const int32_t writes = known > 0 && known == length - computed;
  return {computed, known, writes ? clamp(a.draft_lens[s], 0, static_cast<int32_t>(a.max_draft)) : 0, writes};
}

// Sums of shares: of all those before a sequence, say.
struct Sums {
  int32_t known, wanted, writes;
};

QDENGINE_HD Sums plus(const Sums& sums, const Share& one) {
  return {sums.known + one.known, sums.wanted + one.wanted, sums.writes + one.writes};
}

// Room for drafts beside `known` tokens.
QDENGINE_HD int32_t room_for_drafts(const PackArgs& a, int32_t known) {
  const int32_t tokens = static_cast<int32_t>(a.step_tokens);
  return known < tokens ? tokens - known : 0;
}

// Where the tokens, and the rows whose output is wanted, of the sequence behind some others begin. Drafts are dropped from the
// last ones on where a step has no room for all.
struct Place {
  int32_t token, row, drafted;
};

QDENGINE_HD Place place(const PackArgs& a, const Sums& before, int32_t room) {
  const int32_t drafted = before.wanted < room ? before.wanted : room;
  return {clamp(before.known + drafted, 0, static_cast<int32_t>(a.step_tokens)),
          clamp(before.writes + drafted, 0, static_cast<int32_t>(a.step_rows)), drafted};
}

// Token i of the step, of sequence s, whose tokens begin at `begin`: its id, position and slot (-1 outside the block table).
QDENGINE_HD void lay_token(const PackArgs& a, int64_t s, const Share& mine, int32_t begin, int32_t i) {
  const int32_t n = i - begin, position = mine.computed + n, size = static_cast<int32_t>(a.block_tokens);
  const int32_t block = position / size;
  a.ids[i] = n < mine.known ? a.tokens[s * a.tokens_stride + position] : a.drafts[s * a.drafts_stride + n - mine.known];
  a.positions[i] = position;
  a.slots[i] = block < a.table_blocks ? a.block_tables[s * a.table_stride + block] * size + position % size : -1;
}

// The token of row i of a sequence: its rows are its last tokens.
QDENGINE_HD void lay_row(const PackArgs& a, const Place& after, int32_t i) {
  a.rows[i] = clamp(after.token - after.row + i, 0, after.token > 0 ? after.token - 1 : 0);
}

// What is known of a sequence as a whole.
QDENGINE_HD void lay_sequence(const PackArgs& a, int64_t s, const Share& mine, const Place& at, const Place& after) {
  a.drafted[s] = after.drafted - at.drafted;
  a.kv_lens[s] = after.token > at.token ? mine.computed + after.token - at.token : 0;
}

QDENGINE_HD void pad_token(const PackArgs& a, int32_t i) { a.ids[i] = a.positions[i] = 0, a.slots[i] = -1; }

}  // namespace qdengine::step
