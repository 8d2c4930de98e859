// The C++ contract: same names, order and meaning as python/qdengine/ops/reference. Each validates and runs one kernel.
#pragma once

#include "qdengine/tensor.h"

namespace qdengine::ops {

void rms_norm(const Tensor& out, const OptionalTensor& scales, const Tensor& x, const Tensor& weight, double eps);
void layer_norm(const Tensor& out, const OptionalTensor& scales, const Tensor& x, const Tensor& weight, const Tensor& bias,
                double eps);
void add_rms_norm(const Tensor& out, const OptionalTensor& scales, const Tensor& residual, const Tensor& x, const Tensor& weight,
                  double eps);
void add_layer_norm(const Tensor& out, const OptionalTensor& scales, const Tensor& residual, const Tensor& x,
                    const Tensor& weight, const Tensor& bias, double eps);
void silu_mul(const Tensor& out, const OptionalTensor& scales, const Tensor& gate_up);
void gelu(const Tensor& out, const OptionalTensor& scales, const Tensor& x);
void quantize(const Tensor& out, const Tensor& scales, const Tensor& x);
void dequantize(const Tensor& out, const Tensor& sums, const Tensor& scales, const Tensor& weight_scales,
                const OptionalTensor& bias);
void rope_append(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const OptionalTensor& k_scales,
                 const OptionalTensor& v_scales, const Tensor& qkv, const Tensor& positions, const Tensor& slots,
                 const OptionalTensor& cos, const OptionalTensor& sin, const OptionalTensor& q_weight,
                 const OptionalTensor& k_weight, double eps);
void paged_attention(const Tensor& out, const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                     const OptionalTensor& k_scales, const OptionalTensor& v_scales, const OptionalTensor& workspace,
                     const Tensor& block_tables, const Tensor& kv_lens, const Tensor& q_indptr, double scale);
void greedy_argmax(const Tensor& out, const Tensor& logits);
void allowed_argmax(const Tensor& chosen, const Tensor& logits, const Tensor& row_indptr, const Tensor& tokens,
                    const Tensor& ranks, const Tensor& bounds, const Tensor& drafts, const Tensor& verbatim, const Tensor& twins,
                    const Tensor& stop_ids, int64_t break_id);
void ngram_propose(const Tensor& drafts, const Tensor& draft_lens, const Tensor& tokens, const Tensor& ranks,
                   const Tensor& bounds, const Tensor& limits);
void verify_draft(const Tensor& out, const Tensor& out_lens, const Tensor& drafts, const Tensor& draft_lens,
                  const Tensor& sampled, const Tensor& row_indptr);
void pack_step(const Tensor& ids, const Tensor& positions, const Tensor& slots, const Tensor& rows, const Tensor& kv_lens,
               const Tensor& q_indptr, const Tensor& row_indptr, const Tensor& drafted, const Tensor& tokens, const Tensor& bounds,
               const Tensor& computed, const Tensor& most, const Tensor& reach, const Tensor& drafts, const Tensor& draft_lens,
               const Tensor& block_tables, int64_t block_tokens);
void commit_step(const Tensor& tokens, const Tensor& bounds, const Tensor& computed, const Tensor& finished, const Tensor& kept,
                 const Tensor& out, const Tensor& out_lens, const Tensor& drafted, const Tensor& q_indptr, const Tensor& ends,
                 const Tensor& stop_ids);
void admit_rows(const Tensor& tokens, const Tensor& ranks, const Tensor& bounds, const Tensor& computed, const Tensor& finished,
                const Tensor& ends, const Tensor& admitted, const Tensor& staged);

// Of a CPU alone, for python/qdengine/model: linear layers over weights that are packed for its instruction set, and rows of a table.
int64_t packed_bytes(const Tensor& weight);
void pack_linear(const Tensor& packed, const Tensor& weight, const OptionalTensor& weight_scales);
// gated: silu of the first half of the columns times the second, as silu_mul has it; for halves that this instruction set `gates`.
void linear(const Tensor& out, const Tensor& x, const OptionalTensor& scales, const Tensor& packed, const OptionalTensor& bias,
            bool gated);
bool gates(int64_t ffn_width);
void take_rows(const Tensor& out, const Tensor& table, const Tensor& ids);

}  // namespace qdengine::ops
