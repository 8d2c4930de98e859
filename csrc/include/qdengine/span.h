// The logic of allowed_argmax, shared by host and device: which token a place of the document goes on with, and where a sentence
// may end. The contract, and its words, are those of ops/reference. Almost every comparison ends at the first token.
#pragma once

#include <cstdint>

#include "qdengine/host_device.h"
#include "qdengine/kernels.h"

namespace qdengine::span {

constexpr int32_t kNone = -1;

QDENGINE_HD int32_t clamp(int64_t x, int64_t high) { return static_cast<int32_t>(x < 0 ? 0 : (x > high ? high : x)); }

// Whether row `row` is one of sequence s, and s is verbatim.
QDENGINE_HD bool owns(const AllowedArgs& a, int64_t s, int32_t row) {
  return a.verbatim[s] != 0 && a.row_indptr[s] <= row && row < a.row_indptr[s + 1];
}

// What is written before a row: the output, then the first drafted tokens.
struct Context {
  const int32_t *output, *draft;
  int32_t written, length;
};

QDENGINE_HD int32_t at(const Context& c, int32_t i) { return i < c.written ? c.output[i] : c.draft[i - c.written]; }

QDENGINE_HD Context context(const AllowedArgs& a, int64_t s, int32_t row) {
  const int32_t begin = clamp(a.bounds[4 * s + 2], a.capacity), length = clamp(a.bounds[4 * s + 3], a.capacity);
  const int32_t written = length > begin ? length - begin : 0;
  const int32_t drafted = clamp(int64_t{row} - a.row_indptr[s], a.max_draft);
  return {a.tokens + s * a.tokens_stride + begin, a.drafts + s * a.drafts_stride, written, written + drafted};
}

struct Document {
  const int32_t *tokens, *ranks, *twins;
  int32_t begin, end, vocab, break_id;
};

// No read outside the sequence's row, whatever the bounds say.
QDENGINE_HD Document document(const AllowedArgs& a, int64_t s) {
  return {a.tokens + s * a.tokens_stride,
          a.ranks + s * a.ranks_stride,
          a.twins,
          clamp(a.bounds[4 * s], a.capacity),
          clamp(a.bounds[4 * s + 1], a.capacity),
          static_cast<int32_t>(a.vocab),
          a.break_id};
}

QDENGINE_HD bool known(const Document& d, int32_t token) { return token >= 0 && token < d.vocab; }

QDENGINE_HD bool starts(const Document& d, int32_t place) { return place < d.end && (d.ranks[place] & 1) != 0; }

// Whether a sentence may end before `place`.
QDENGINE_HD bool ends(const Document& d, int32_t place) {
  while (place < d.end && d.tokens[place] != d.break_id && known(d, d.tokens[place]) && d.twins[d.tokens[place]] < 0) ++place;
  return place >= d.end || starts(d, place) || d.tokens[place] == d.break_id;
}

// Whether the first `length` tokens of the context have the sentence at `place`.
QDENGINE_HD bool has(const Document& d, const Context& c, int32_t length, int32_t place) {
  for (int32_t i = 0; i < length; ++i) {
    for (int32_t t = 0; i + t < length && place + t < d.end && at(c, i + t) == d.tokens[place + t]; ++t) {
      if (ends(d, place + t + 1)) return true;
    }
  }
  return false;
}

// What may follow when the open span, the context from `opened` on, is continued at a place: `token`, or kNone; and whether the
// span may end.
struct Next {
  int32_t token;
  bool ends;
};

QDENGINE_HD Next next(const Document& d, const Context& c, int32_t opened, int32_t place) {
  const Next nothing = {kNone, false};
  const int32_t count = c.length - opened;
  if (!starts(d, place) || count > d.end - place) return nothing;
  for (int32_t t = 0; t < count; ++t) {
    if (d.tokens[place + t] != at(c, opened + t)) return nothing;
  }
  if (has(d, c, opened, place)) return nothing;
  const int32_t e = place + count;
  const bool may_end = count > 0 && ends(d, e);
  if (e == d.end || (count > 0 && starts(d, e) && has(d, c, c.length, e))) return {kNone, may_end};
  const int32_t token = d.tokens[e];
  return {known(d, token) && (count > 0 || token != d.break_id) ? token : kNone, may_end};
}

// The token that counts as much as `token` where it begins a span; itself elsewhere, and for none.
QDENGINE_HD int32_t twin(const Document& d, bool begins, int32_t token) {
  return begins && known(d, d.twins[token]) ? d.twins[token] : token;
}

// How many of stop_ids, and of break_id behind them, are allowed.
QDENGINE_HD int32_t closing(const AllowedArgs& a, const Context& c, int32_t opened, bool may_end) {
  if (c.length == opened) return c.length > 0 ? static_cast<int32_t>(a.stops) : 0;
  return may_end ? static_cast<int32_t>(a.stops) + 1 : 0;
}

// The i-th of them, kNone where the vocabulary does not have it.
QDENGINE_HD int32_t closer(const AllowedArgs& a, const Document& d, int32_t i) {
  const int32_t token = i < a.stops ? a.stop_ids[i] : d.break_id;
  return known(d, token) ? token : kNone;
}

}  // namespace qdengine::span
