// The logic of ngram_propose and verify_draft, shared by host and device. The contract is ops/reference.
//
// A candidate's worth is packed in one integer, so that "longest, then sentence start, then overlap, then latest" is a plain
// maximum: threads of a block can each scan a part of the places and reduce.
#pragma once

#include <cstdint>

#include "qdengine/host_device.h"

namespace qdengine::ngram {

constexpr int kMaxMatch = 32;         // as MAX_MATCH of ops/reference
constexpr int kMaxOverlap = 0xFFFF;   // overlaps above it count as it
constexpr int64_t kNone = -1;

// The part of one sequence's row that holds candidates of one kind.
struct Region {
  int32_t low, high;  // tokens [low, high)
  bool document;
};

struct History {
  const int32_t* tokens;  // the row: prompt, then output
  const int32_t* ranks;
  int32_t document_begin, document_end, output_begin, length;
};

// Bounds as given, made safe: no read outside [0, capacity) whatever they say.
QDENGINE_HD History history(const int32_t* tokens, const int32_t* ranks, const int32_t* bounds, int32_t capacity) {
  const auto clamp = [capacity](int32_t x) { return x < 0 ? 0 : (x > capacity ? capacity : x); };
  return {tokens, ranks, clamp(bounds[0]), clamp(bounds[1]), clamp(bounds[2]), clamp(bounds[3])};
}

QDENGINE_HD Region document_region(const History& h) { return {h.document_begin, h.document_end, true}; }
QDENGINE_HD Region output_region(const History& h) { return {h.output_begin, h.length, false}; }

// The worth of continuing at `place` (low <= place < high), or kNone:
// match length (6 bits) | sentence start (1) | overlap (16) | place (32); the document before the output on no tie, since
// places differ.
QDENGINE_HD int64_t worth(const History& h, const Region& region, int32_t place) {
  const int32_t output = h.length - h.output_begin;
  const int32_t most = output < kMaxMatch ? (output < 0 ? 0 : output) : kMaxMatch;
  int32_t match = 0;
  while (match < most && place - match > region.low &&
         h.tokens[place - 1 - match] == h.tokens[h.length - 1 - match]) {
    ++match;
  }
  const int32_t rank = region.document ? h.ranks[place - match] : 0;
  const int32_t start = rank & 1;
  if (match == 0 && (most > 0 || !start)) return kNone;
  int32_t overlap = rank >> 1;
  overlap = overlap < 0 ? 0 : (overlap > kMaxOverlap ? kMaxOverlap : overlap);
  return (static_cast<int64_t>(match) << 49) | (static_cast<int64_t>(start) << 48) |
         (static_cast<int64_t>(overlap) << 32) | static_cast<int64_t>(place);
}

QDENGINE_HD int32_t place_of(int64_t worth) { return static_cast<int32_t>(worth & 0x7FFFFFFF); }

// Tokens to draft from `place` on: to the end of the region that holds it, at most `limit`. A place in both regions
// (bounds that overlap) counts as the document's.
QDENGINE_HD int32_t draft_length(const History& h, int32_t place, int32_t limit) {
  const bool document = place >= h.document_begin && place < h.document_end;
  const int32_t left = (document ? h.document_end : h.length) - place;
  return limit < 0 ? 0 : (left < limit ? left : limit);
}

// Whether the model would have written drafted token i, where sampled[i] is its token after row i; a row is left for the
// model's own token after the last one kept.
QDENGINE_HD bool agrees(const int32_t* draft, int32_t drafted, const int32_t* sampled, int32_t rows, int32_t i) {
  return i < drafted && i + 1 < rows && sampled[i] == draft[i];
}

// How many leading drafted tokens are kept.
QDENGINE_HD int32_t accepted(const int32_t* draft, int32_t drafted, const int32_t* sampled, int32_t rows) {
  int32_t n = 0;
  while (agrees(draft, drafted, sampled, rows, n)) ++n;
  return n;
}

}  // namespace qdengine::ngram
