// allowed_argmax: a scan of the document's ranks for every row of a verbatim sequence. The logits of a few tokens are read, and
// not the row.
#include "qdengine/span.h"
#include "simd.h"

namespace qdengine::QDENGINE_ISA {
namespace {

// The best token so far: of the highest logits the lowest id.
struct Best {
  float value;
  int32_t token;
};

inline void take(Best& best, float value, int32_t token) {
  value = value == value ? value : -__builtin_inff();  // NaN is below everything
  if (best.token == span::kNone || value > best.value || (value == best.value && token < best.token)) best = {value, token};
}

template <class T>
int32_t choose(const AllowedArgs& a, int64_t s, int32_t row) {
  const T* logits = static_cast<const T*>(a.logits) + row * a.logits_stride;
  const span::Document d = span::document(a, s);
  const span::Context c = span::context(a, s, row);
  int32_t opened = c.length;
  while (opened > 0 && span::at(c, opened - 1) != d.break_id) --opened;
  Best best = {0.0f, span::kNone};
  bool may_end = false;
  for (int32_t place = d.begin; place < d.end; ++place) {
    const span::Next next = span::next(d, c, opened, place);
    may_end |= next.ends;
    if (next.token == span::kNone) continue;
    take(best, load1(logits + next.token), next.token);
    take(best, load1(logits + span::twin(d, opened == c.length, next.token)), next.token);
  }
  const int32_t closing = span::closing(a, c, opened, may_end);
  for (int32_t i = 0; i < closing; ++i) {
    const int32_t token = span::closer(a, d, i);
    if (token != span::kNone) take(best, load1(logits + token), token);
  }
  return best.token == span::kNone ? a.stop_ids[0] : best.token;
}

template <class T>
void run(const AllowedArgs& a) {
  parallel_rows(a.sequences, a.rows * a.capacity, [&](int64_t s) {
    const int32_t begin = span::clamp(a.row_indptr[s], a.rows), end = span::clamp(a.row_indptr[s + 1], a.rows);
    for (int32_t row = begin; row < end && a.verbatim[s] != 0; ++row) a.chosen[row] = choose<T>(a, s, row);
  });
}

}  // namespace

void allowed_argmax(const AllowedArgs& a, Stream) { a.dtype == DType::bf16 ? run<bf16>(a) : run<float>(a); }

}  // namespace qdengine::QDENGINE_ISA
