// The ops that choose tokens: greedy_argmax, allowed_argmax, ngram_propose, verify_draft.
#include "qdengine/check.h"
#include "qdengine/kernels.h"
#include "qdengine/ops.h"

namespace qdengine::ops {

void greedy_argmax(const Tensor& out, const Tensor& logits) {
  const Check check("greedy_argmax");
  check.shape("logits", logits, {-1, -1});
  check.floating("logits", logits);
  check.dense("out", out, {logits.dim(0)});
  check.index("out", out, logits);
  if (logits.dim(1) == 0) check.fail("logits", "at least one column", "none");
  if (logits.dim(0) == 0) return;
  kernels_for(logits).greedy_argmax({.out = out.as<int32_t>(),
                                     .logits = logits.data,
                                     .rows = logits.dim(0),
                                     .vocab = logits.dim(1),
                                     .stride = logits.stride[0],
                                     .dtype = logits.dtype},
                                    logits.stream);
}

void allowed_argmax(const Tensor& chosen, const Tensor& logits, const Tensor& row_indptr, const Tensor& tokens,
                    const Tensor& ranks, const Tensor& bounds, const Tensor& drafts, const Tensor& verbatim, const Tensor& twins,
                    const Tensor& stop_ids, int64_t break_id) {
  const Check check("allowed_argmax");
  check.shape("logits", logits, {-1, -1});
  check.floating("logits", logits);
  const auto index = [&](const char* arg, const Tensor& t) { check.index(arg, t, logits); };
  check.indices("chosen", chosen, logits, {logits.dim(0)});
  check.indices("verbatim", verbatim, logits, {-1});
  const int64_t sequences = verbatim.dim(0);
  check.indices("row_indptr", row_indptr, logits, {sequences + 1});
  check.shape("tokens", tokens, {sequences, -1});
  index("tokens", tokens);
  check.shape("ranks", ranks, {sequences, tokens.dim(1)});
  index("ranks", ranks);
  check.indices("bounds", bounds, logits, {sequences, 4});
  check.shape("drafts", drafts, {sequences, -1});
  index("drafts", drafts);
  check.indices("twins", twins, logits, {logits.dim(1)});
  check.indices("stop_ids", stop_ids, logits, {-1});
  if (stop_ids.dim(0) == 0) check.fail("stop_ids", "at least one id", "none");
  if (sequences == 0 || logits.dim(0) == 0) return;
  kernels_for(logits).allowed_argmax({.chosen = chosen.as<int32_t>(),
                                      .logits = logits.data,
                                      .row_indptr = row_indptr.as<const int32_t>(),
                                      .tokens = tokens.as<const int32_t>(),
                                      .ranks = ranks.as<const int32_t>(),
                                      .bounds = bounds.as<const int32_t>(),
                                      .drafts = drafts.as<const int32_t>(),
                                      .verbatim = verbatim.as<const int32_t>(),
                                      .twins = twins.as<const int32_t>(),
                                      .stop_ids = stop_ids.as<const int32_t>(),
                                      .sequences = sequences,
                                      .rows = logits.dim(0),
                                      .vocab = logits.dim(1),
                                      .capacity = tokens.dim(1),
                                      .max_draft = drafts.dim(1),
                                      .stops = stop_ids.dim(0),
                                      .logits_stride = logits.stride[0],
                                      .tokens_stride = tokens.stride[0],
                                      .ranks_stride = ranks.stride[0],
                                      .drafts_stride = drafts.stride[0],
                                      .break_id = static_cast<int32_t>(break_id),
                                      .dtype = logits.dtype},
                                     logits.stream);
}

void ngram_propose(const Tensor& drafts, const Tensor& draft_lens, const Tensor& tokens, const Tensor& ranks,
                   const Tensor& bounds, const Tensor& limits) {
  const Check check("ngram_propose");
  check.shape("drafts", drafts, {-1, -1});
  check.dtype("drafts", drafts, DType::i32);
  const int64_t sequences = drafts.dim(0);
  const auto index = [&](const char* arg, const Tensor& t) { check.index(arg, t, drafts); };
  check.indices("draft_lens", draft_lens, drafts, {sequences});
  check.shape("tokens", tokens, {sequences, -1});
  index("tokens", tokens);
  check.shape("ranks", ranks, {sequences, tokens.dim(1)});
  index("ranks", ranks);
  check.indices("bounds", bounds, drafts, {sequences, 4});
  check.indices("limits", limits, drafts, {sequences});
  if (sequences == 0) return;
  kernels_for(drafts).ngram_propose({.drafts = drafts.as<int32_t>(),
                                     .draft_lens = draft_lens.as<int32_t>(),
                                     .tokens = tokens.as<const int32_t>(),
                                     .ranks = ranks.as<const int32_t>(),
                                     .bounds = bounds.as<const int32_t>(),
                                     .limits = limits.as<const int32_t>(),
                                     .sequences = sequences,
                                     .capacity = tokens.dim(1),
                                     .max_draft = drafts.dim(1),
                                     .drafts_stride = drafts.stride[0],
                                     .tokens_stride = tokens.stride[0],
                                     .ranks_stride = ranks.stride[0]},
                                    drafts.stream);
}

void verify_draft(const Tensor& out, const Tensor& out_lens, const Tensor& drafts, const Tensor& draft_lens,
                  const Tensor& sampled, const Tensor& row_indptr) {
  const Check check("verify_draft");
  check.shape("drafts", drafts, {-1, -1});
  check.dtype("drafts", drafts, DType::i32);
  const int64_t sequences = drafts.dim(0);
  const auto index = [&](const char* arg, const Tensor& t) { check.index(arg, t, drafts); };
  check.shape("out", out, {sequences, drafts.dim(1) + 1});
  index("out", out);
  check.indices("out_lens", out_lens, drafts, {sequences});
  check.indices("draft_lens", draft_lens, drafts, {sequences});
  check.indices("sampled", sampled, drafts, {-1});
  check.indices("row_indptr", row_indptr, drafts, {sequences + 1});
  if (sequences == 0) return;
  kernels_for(drafts).verify_draft({.out = out.as<int32_t>(),
                                    .out_lens = out_lens.as<int32_t>(),
                                    .drafts = drafts.as<const int32_t>(),
                                    .draft_lens = draft_lens.as<const int32_t>(),
                                    .sampled = sampled.as<const int32_t>(),
                                    .row_indptr = row_indptr.as<const int32_t>(),
                                    .sequences = sequences,
                                    .max_draft = drafts.dim(1),
                                    .rows = sampled.dim(0),
                                    .out_stride = out.stride[0],
                                    .drafts_stride = drafts.stride[0]},
                                   drafts.stream);
}

}  // namespace qdengine::ops
