// What each sequence puts into a step, shared by host and device. The contract is pack_step of ops/reference.py.
#pragma once

#include <cstdint>

#include "qdengine/host_device.h"

namespace qdengine::step {

QDENGINE_HD int32_t clamp(int32_t x, int32_t low, int32_t high) { return x < low ? low : (x > high ? high : x); }

// known: tokens from `computed` on; wanted: drafted tokens after them, if the step has room; writes: 1 when the share reaches the
// newest token, so that its model output is a new one.
struct Share {
  int32_t computed, known, wanted, writes;
};

// No read outside the sequence's row, whatever the arguments say.
QDENGINE_HD Share share(int32_t length, int32_t computed, int32_t most, int32_t draft_len, int32_t capacity, int32_t max_draft) {
  length = clamp(length, 0, capacity);
  computed = clamp(computed, 0, length);
  const int32_t known = clamp(most, 0, length - computed);
  const int32_t writes = known > 0 && known == length - computed;
  return {computed, known, writes ? clamp(draft_len, 0, max_draft) : 0, writes};
}

// Sums of the shares before a sequence.
struct Before {
  int32_t known, wanted, writes;
};

// Drafts are dropped from the last ones on where a step has no room for all: the place after drafts that want `wanted` tokens.
QDENGINE_HD int32_t drafted(int32_t wanted, int32_t room) { return wanted < room ? wanted : room; }

// Where a sequence's tokens and the rows whose output is wanted begin.
QDENGINE_HD int32_t token_begin(const Before& b, int32_t room, int32_t tokens) {
  return clamp(b.known + drafted(b.wanted, room), 0, tokens);
}
QDENGINE_HD int32_t row_begin(const Before& b, int32_t room, int32_t rows) {
  return clamp(b.writes + drafted(b.wanted, room), 0, rows);
}

// The token of row `row` of a sequence whose rows and tokens end at `row_end` and `end`: its last ones.
QDENGINE_HD int32_t token_of_row(int32_t row, int32_t row_end, int32_t end) {
  return clamp(end - row_end + row, 0, end > 0 ? end - 1 : 0);
}

// The slot of a position; -1 for one outside the sequence's block table.
QDENGINE_HD int32_t slot(const int32_t* table, int64_t blocks, int32_t block_tokens, int32_t position) {
  const int32_t block = position / block_tokens;
  return block < blocks ? table[block] * block_tokens + position % block_tokens : -1;
}

}  // namespace qdengine::step
