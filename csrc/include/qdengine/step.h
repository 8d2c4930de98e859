// What each sequence puts into a step and takes from it, shared by host and device. The contracts are pack_step, commit_step and
// admit_rows of ops/reference.
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
  const int32_t reach = clamp(a.reach[s], 0, INT32_MAX);
  const int32_t ahead = length < reach ? length - computed : reach - computed;  // known, and within reach
  const int32_t known = ahead > 0 ? clamp(a.most[s], 0, ahead) : 0;
  const int32_t writes = known > 0 && known == length - computed;
  const int32_t most = static_cast<int32_t>(a.max_draft) < reach - length ? static_cast<int32_t>(a.max_draft) : reach - length;
  return {computed, known, writes ? clamp(a.draft_lens[s], 0, most) : 0, writes};
}

// Sums of shares: of all those before a sequence, say.
struct Sums {
  int32_t known, wanted, writes;
};

QDENGINE_HD Sums plus(const Sums& sums, const Share& one) {
  return {sums.known + one.known, sums.wanted + one.wanted, sums.writes + one.writes};
}

// Room for drafts beside what is known of all sequences: each takes a token and a row.
QDENGINE_HD int32_t room_for_drafts(const PackArgs& a, const Sums& all) {
  const int32_t tokens = static_cast<int32_t>(a.step_tokens) - all.known, rows = static_cast<int32_t>(a.step_rows) - all.writes;
  const int32_t room = tokens < rows ? tokens : rows;
  return room > 0 ? room : 0;
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

// What sequence s takes from a step: `accepted` drafted tokens count as computed, `taken` of the written ones are appended from
// `length` on, and finished is 0, 1 (a stop id) or 2 (the end).
struct Outcome {
  int32_t length, computed, taken, finished;
};

QDENGINE_HD bool stops(const CommitArgs& a, int32_t token) {
  for (int64_t i = 0; i < a.stops; ++i) {
    if (a.stop_ids[i] == token) return true;
  }
  return false;
}

QDENGINE_HD int32_t written(const CommitArgs& a, int64_t s) { return clamp(a.out_lens[s], 0, static_cast<int32_t>(a.max_out)); }

// first_stop: the place of the first stop id of what was written, or `written`.
QDENGINE_HD Outcome outcome(const CommitArgs& a, int64_t s, int32_t first_stop) {
  const int32_t count = written(a, s), capacity = static_cast<int32_t>(a.capacity);
  const int32_t length = clamp(a.bounds[4 * s + 3], 0, capacity), end = clamp(a.ends[s], 0, capacity);
  const int32_t share = a.q_indptr[s + 1] - a.q_indptr[s];
  const int32_t taken = clamp(first_stop, 0, end > length ? end - length : 0);
  const int32_t computed = a.computed[s] + share - a.drafted[s] + (count > 0 ? count - 1 : 0);
  if (count == 0 || (length + taken < end && taken == count)) return {length, computed, taken, 0};
  return {length, length + taken, taken, length + taken >= end ? 2 : 1};
}

QDENGINE_HD void take(const CommitArgs& a, int64_t s, const Outcome& o) {
  a.kept[s] = o.taken;
  a.bounds[4 * s + 3] = o.length + o.taken;
  a.computed[s] = o.computed;
  if (o.finished) a.finished[s] = o.finished;
}

// A record of admit_rows.
struct Record {
  int32_t row, document_begin, document_end, output_begin, length, computed, end, at;
};

QDENGINE_HD Record record(const AdmitArgs& a, int64_t i) {
  const int32_t* r = a.admitted + 8 * i;
  return {r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7]};
}

QDENGINE_HD bool whole(const AdmitArgs& a, const Record& r) {
  return r.row >= 0 && r.row < a.sequences && r.length >= 0 && r.length <= a.capacity && r.at >= 0 &&
         r.at <= a.staged_size - 2 * static_cast<int64_t>(r.length);
}

QDENGINE_HD void lay_record(const AdmitArgs& a, const Record& r) {
  int32_t* bounds = a.bounds + 4 * static_cast<int64_t>(r.row);
  bounds[0] = r.document_begin, bounds[1] = r.document_end, bounds[2] = r.output_begin, bounds[3] = r.length;
  a.computed[r.row] = r.computed;
  a.ends[r.row] = r.end;
  a.finished[r.row] = 0;
}

}  // namespace qdengine::step
