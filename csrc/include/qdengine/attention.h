// What the paged_attention of host and device share: which rows and keys a tile covers, and what a split of the keys is; and how a
// device adds splits up.
//
// The rows of a sequence are (new token, query head of one kv head) pairs laid end to end: row r is token r / group and head
// r % group, so that the heads which share keys share their load.
#pragma once

#include <cstdint>

#include "qdengine/host_device.h"

namespace qdengine::attention {

struct Rows {
  int32_t first_token;  // row of q of the sequence's first new token
  int32_t new_tokens;   // of the sequence
  int32_t kv_len;       // tokens of the sequence with the new ones
  int32_t group;        // query heads for each kv head
};

QDENGINE_HD int32_t count(const Rows& rows) { return rows.new_tokens * rows.group; }
QDENGINE_HD int32_t token(const Rows& rows, int32_t row) { return row / rows.group; }
QDENGINE_HD int32_t head(const Rows& rows, int32_t row) { return row % rows.group; }

// Keys that a row sees: those up to its own position.
QDENGINE_HD int32_t visible(const Rows& rows, int32_t row) { return rows.kv_len - rows.new_tokens + token(rows, row) + 1; }

// Tiles of `tile_rows` rows that a sequence needs; none when its bounds make no sense.
QDENGINE_HD int32_t tiles(int32_t new_tokens, int32_t group, int32_t tile_rows) {
  return new_tokens <= 0 ? 0 : (new_tokens * group + tile_rows - 1) / tile_rows;
}

// A split is kSplitKeys keys from a multiple of that on; as SPLIT_KEYS of ops/reference. The result of a row is by
// definition the left fold of its splits, each computed from nothing: whether one block takes all of them or every split has
// its own, the bits are the same.
constexpr int32_t kSplitKeys = 256;

QDENGINE_HD int64_t splits(int64_t keys) { return (keys + kSplitKeys - 1) / kSplitKeys; }

// Where the split of key `begin` ends, if there are `length` keys.
QDENGINE_HD int32_t split_end(int32_t begin, int32_t length) {
  const int32_t end = (begin / kSplitKeys + 1) * kSplitKeys;
  return end < length ? end : length;
}

// Of a row and some of its keys: the largest score (-infinity when it sees none of them) and the sum of exp(score - largest).
// The third part is the sum of exp(score - largest) value.
struct Partial {
  float top, total;
};

// By what the values' sums of the whole and of the part are multiplied when they are added.
struct Shares {
  float whole, part;
};

// Rounded in one way whatever surrounds it.
QDENGINE_HD float add(float whole, float part, Shares shares) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(whole, shares.whole, __fmul_rn(part, shares.part));
#else
  return whole * shares.whole + part * shares.part;
#endif
}

// Folds a split into the whole of those before it, which begins with {-infinity, 0}.
template <class Exp>
QDENGINE_HD Shares fold(Partial& whole, Partial part, Exp exp) {
  const float top = whole.top > part.top ? whole.top : part.top;
  const float shift = top > -__builtin_inff() ? top : 0.0f;
  const Shares shares{exp(whole.top - shift), exp(part.top - shift)};
  whole = {top, add(whole.total, part.total, shares)};
  return shares;
}

// The workspace of a step whose splits run by themselves, as attention_workspace of ops/reference: for every split and row
// (token, head) the values' sum, [splits, T H, D], and behind all of them top and total, [splits, T H, 2].
struct Workspace {
  int64_t splits, rows, head_width;
};

QDENGINE_HD int64_t size(const Workspace& w) { return w.splits * w.rows * (w.head_width + 2); }
QDENGINE_HD int64_t sum_at(const Workspace& w, int64_t split, int64_t row) { return (split * w.rows + row) * w.head_width; }
QDENGINE_HD int64_t partial_at(const Workspace& w, int64_t split, int64_t row) {
  return w.splits * w.rows * w.head_width + 2 * (split * w.rows + row);
}

}  // namespace qdengine::attention
