// Which rows and keys a tile of paged_attention covers: the index logic that the kernels of host and device share.
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

}  // namespace qdengine::attention
