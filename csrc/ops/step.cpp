// The ops on the arrays of the running sequences: pack_step, commit_step, admit_rows.
#include "qdengine/check.h"
#include "qdengine/kernels.h"
#include "qdengine/ops.h"

namespace qdengine::ops {

void pack_step(const Tensor& ids, const Tensor& positions, const Tensor& slots, const Tensor& rows, const Tensor& kv_lens,
               const Tensor& q_indptr, const Tensor& row_indptr, const Tensor& drafted, const Tensor& tokens, const Tensor& bounds,
               const Tensor& computed, const Tensor& most, const Tensor& reach, const Tensor& drafts, const Tensor& draft_lens,
               const Tensor& block_tables, int64_t block_tokens) {
  const Check check("pack_step");
  check.shape("ids", ids, {-1});
  check.dtype("ids", ids, DType::i32);
  check.shape("computed", computed, {-1});
  check.shape("rows", rows, {-1});
  const int64_t step = ids.dim(0), sequences = computed.dim(0);
  const auto dense = [&](const char* arg, const Tensor& t, std::initializer_list<int64_t> shape) {
    check.indices(arg, t, ids, shape);
  };
  const auto matrix = [&](const char* arg, const Tensor& t) {
    check.shape(arg, t, {sequences, -1});
    check.index(arg, t, ids);
  };
  dense("positions", positions, {step});
  dense("slots", slots, {step});
  dense("rows", rows, {-1});
  dense("kv_lens", kv_lens, {sequences});
  dense("q_indptr", q_indptr, {sequences + 1});
  dense("row_indptr", row_indptr, {sequences + 1});
  dense("drafted", drafted, {sequences});
  matrix("tokens", tokens);
  dense("bounds", bounds, {sequences, 4});
  dense("computed", computed, {sequences});
  dense("most", most, {sequences});
  dense("reach", reach, {sequences});
  matrix("drafts", drafts);
  dense("draft_lens", draft_lens, {sequences});
  matrix("block_tables", block_tables);
  check.positive("block_tokens", static_cast<double>(block_tokens));
  kernels_for(ids).pack_step({.ids = ids.as<int32_t>(),
                              .positions = positions.as<int32_t>(),
                              .slots = slots.as<int32_t>(),
                              .rows = rows.as<int32_t>(),
                              .kv_lens = kv_lens.as<int32_t>(),
                              .q_indptr = q_indptr.as<int32_t>(),
                              .row_indptr = row_indptr.as<int32_t>(),
                              .drafted = drafted.as<int32_t>(),
                              .tokens = tokens.as<const int32_t>(),
                              .bounds = bounds.as<const int32_t>(),
                              .computed = computed.as<const int32_t>(),
                              .most = most.as<const int32_t>(),
                              .reach = reach.as<const int32_t>(),
                              .drafts = drafts.as<const int32_t>(),
                              .draft_lens = draft_lens.as<const int32_t>(),
                              .block_tables = block_tables.as<const int32_t>(),
                              .sequences = sequences,
                              .step_tokens = step,
                              .step_rows = rows.dim(0),
                              .capacity = tokens.dim(1),
                              .max_draft = drafts.dim(1),
                              .table_blocks = block_tables.dim(1),
                              .block_tokens = block_tokens,
                              .tokens_stride = tokens.stride[0],
                              .drafts_stride = drafts.stride[0],
                              .table_stride = block_tables.stride[0]},
                             ids.stream);
}

void commit_step(const Tensor& tokens, const Tensor& bounds, const Tensor& computed, const Tensor& finished, const Tensor& kept,
                 const Tensor& out, const Tensor& out_lens, const Tensor& drafted, const Tensor& q_indptr, const Tensor& ends,
                 const Tensor& stop_ids) {
  const Check check("commit_step");
  check.shape("tokens", tokens, {-1, -1});
  check.dtype("tokens", tokens, DType::i32);
  const int64_t sequences = tokens.dim(0);
  const auto dense = [&](const char* arg, const Tensor& t, std::initializer_list<int64_t> shape) {
    check.indices(arg, t, tokens, shape);
  };
  dense("bounds", bounds, {sequences, 4});
  dense("computed", computed, {sequences});
  dense("finished", finished, {sequences});
  dense("kept", kept, {sequences});
  check.shape("out", out, {sequences, -1});
  check.index("out", out, tokens);
  dense("out_lens", out_lens, {sequences});
  dense("drafted", drafted, {sequences});
  dense("q_indptr", q_indptr, {sequences + 1});
  dense("ends", ends, {sequences});
  dense("stop_ids", stop_ids, {-1});
  if (sequences == 0) return;
  kernels_for(tokens).commit_step({.tokens = tokens.as<int32_t>(),
                                   .bounds = bounds.as<int32_t>(),
                                   .computed = computed.as<int32_t>(),
                                   .finished = finished.as<int32_t>(),
                                   .kept = kept.as<int32_t>(),
                                   .out = out.as<const int32_t>(),
                                   .out_lens = out_lens.as<const int32_t>(),
                                   .drafted = drafted.as<const int32_t>(),
                                   .q_indptr = q_indptr.as<const int32_t>(),
                                   .ends = ends.as<const int32_t>(),
                                   .stop_ids = stop_ids.as<const int32_t>(),
                                   .sequences = sequences,
                                   .capacity = tokens.dim(1),
                                   .max_out = out.dim(1),
                                   .stops = stop_ids.dim(0),
                                   .tokens_stride = tokens.stride[0],
                                   .out_stride = out.stride[0]},
                                  tokens.stream);
}

void admit_rows(const Tensor& tokens, const Tensor& ranks, const Tensor& bounds, const Tensor& computed, const Tensor& finished,
                const Tensor& ends, const Tensor& admitted, const Tensor& staged) {
  const Check check("admit_rows");
  check.shape("tokens", tokens, {-1, -1});
  check.dtype("tokens", tokens, DType::i32);
  const int64_t sequences = tokens.dim(0);
  const auto dense = [&](const char* arg, const Tensor& t, std::initializer_list<int64_t> shape) {
    check.indices(arg, t, tokens, shape);
  };
  check.shape("ranks", ranks, {sequences, tokens.dim(1)});
  check.index("ranks", ranks, tokens);
  dense("bounds", bounds, {sequences, 4});
  dense("computed", computed, {sequences});
  dense("finished", finished, {sequences});
  dense("ends", ends, {sequences});
  dense("admitted", admitted, {-1, 8});
  dense("staged", staged, {-1});
  if (sequences == 0 || admitted.dim(0) == 0) return;
  kernels_for(tokens).admit_rows({.tokens = tokens.as<int32_t>(),
                                  .ranks = ranks.as<int32_t>(),
                                  .bounds = bounds.as<int32_t>(),
                                  .computed = computed.as<int32_t>(),
                                  .finished = finished.as<int32_t>(),
                                  .ends = ends.as<int32_t>(),
                                  .admitted = admitted.as<const int32_t>(),
                                  .staged = staged.as<const int32_t>(),
                                  .sequences = sequences,
                                  .capacity = tokens.dim(1),
                                  .count = admitted.dim(0),
                                  .staged_size = staged.dim(0),
                                  .tokens_stride = tokens.stride[0],
                                  .ranks_stride = ranks.stride[0]},
                                 tokens.stream);
}

}  // namespace qdengine::ops
