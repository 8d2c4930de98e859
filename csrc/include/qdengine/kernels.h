// What a kernel gets: raw pointers and sizes, already checked by csrc/ops. Strides are in elements. The letters are those of
// python/qdengine/ops/reference, which is the contract of every op.
#pragma once

#include "qdengine/tensor.h"

namespace qdengine {

// RMS norm, layer norm (bias set) and their residual-adding forms (residual and x set): out is always written.
struct NormArgs {
  void* out;
  float* scales;   // [T], of an out of 8 bits; else null
  void* residual;  // null: normalise x; else residual += x first, and normalise that
  const void* x;
  const void* weight;
  const void* bias;  // null: RMS norm; else layer norm
  int64_t rows, width;
  int64_t out_stride, residual_stride, x_stride;
  float eps;
  DType dtype, out_dtype;  // of all but out; out_dtype is the same, or one of 8 bits
};

struct ActivationArgs {
  void* out;      // [T, F]
  float* scales;  // [T], of an out of 8 bits; else null
  const void* x;  // silu_mul: [T, 2F]; gelu, quantize: [T, F]
  int64_t rows, width;
  int64_t out_stride, x_stride;
  DType dtype, out_dtype;  // of x; out_dtype is the same, or one of 8 bits
};

struct DequantizeArgs {
  void* out;                            // [T, F]
  const int32_t* sums;                  // [T, F]
  const float *scales, *weight_scales;  // [T], [F]
  const void* bias;                     // [F]; null: none
  int64_t rows, width;
  int64_t out_stride, sums_stride;
  DType dtype;
};

// linear: of a CPU alone. Weights lie in panels of so many columns.
constexpr int64_t kPanelColumns = 16;

struct LinearArgs {
  void* out;             // [T, columns], or half of them where gated
  const void* x;         // [T, width]
  const float* scales;   // [T], of an x of int8; else null
  const void* weight;    // as pack_linear laid it
  const void* bias;      // [columns]; null: none
  int64_t rows, columns, width;
  int64_t out_stride, x_stride, weight_bytes;
  DType dtype, number;   // of out and bias; of x and weight
  bool gated;            // silu of the first half of the columns times the second; halves are whole panels
};

struct PackLinearArgs {
  void* packed = nullptr;         // null: only the bytes are asked for
  const void* weight = nullptr;   // [columns, width]
  const float* scales = nullptr;  // [columns], of a weight of int8; else null
  int64_t columns, width;
  int64_t weight_stride = 0;
  DType number;
};

struct RopeAppendArgs {
  void* q;                  // [T, H, D] dense
  void *k_cache, *v_cache;  // [N, P, G, D] dense
  float *k_scales, *v_scales;  // [N, P, G] dense; null: the caches are no 8-bit ones
  const void* qkv;          // [T, (H + 2G) D]
  const int32_t *positions, *slots;
  const float *cos, *sin;                // [C, D/2] dense; null: no rotation
  const void *q_weight, *k_weight;       // [D]; null: no norm
  int64_t tokens, heads, kv_heads, head_width, qkv_stride;
  int64_t max_positions, cache_slots;    // bounds of positions and slots; what lies outside is clamped or skipped
  float eps;
  DType dtype, cache_dtype;
};

struct AttentionArgs {
  void* out;                            // [T, H, D] dense
  const void* q;                        // [T, H, D]
  const void *k_cache, *v_cache;        // [N, P, G, D] dense
  const float *k_scales, *v_scales;     // [N, P, G] dense; null: the caches are no 8-bit ones
  float* workspace;                     // [workspace_size]
  const int32_t* block_tables;          // [S, B]
  const int32_t *kv_lens, *q_indptr;    // [S], [S + 1]
  int64_t tokens, sequences, heads, kv_heads, head_width, block_tokens, blocks, table_blocks, table_stride, q_stride;
  int64_t workspace_size;
  float scale;
  DType dtype, cache_dtype;
};

struct ArgmaxArgs {
  int32_t* out;        // [R]
  const void* logits;  // [R, V]
  int64_t rows, vocab, stride;
  DType dtype;
};

struct AllowedArgs {
  int32_t* chosen;                                      // [R]
  const void* logits;                                   // [R, V]
  const int32_t *row_indptr, *tokens, *ranks, *bounds;  // [S + 1], [S, C], [S, C], [S, 4] dense
  const int32_t *drafts, *verbatim, *twins, *stop_ids;  // [S, K], [S], [V], [stops]
  int64_t sequences, rows, vocab, capacity, max_draft, stops;  // S, R, V, C, K
  int64_t logits_stride, tokens_stride, ranks_stride, drafts_stride;
  int32_t break_id;
  DType dtype;
};

struct ProposeArgs {
  int32_t *drafts, *draft_lens;                      // [S, K], [S]
  const int32_t *tokens, *ranks, *bounds, *limits;   // [S, C], [S, C], [S, 4] dense, [S]
  int64_t sequences, capacity, max_draft;            // S, C, K
  int64_t drafts_stride, tokens_stride, ranks_stride;
};

struct VerifyArgs {
  int32_t *out, *out_lens;                                    // [S, K + 1], [S]
  const int32_t *drafts, *draft_lens, *sampled, *row_indptr;  // [S, K], [S], [R], [S + 1]
  int64_t sequences, max_draft, rows;
  int64_t out_stride, drafts_stride;
};

struct PackArgs {
  int32_t *ids, *positions, *slots, *rows;                       // [T], [T], [T], [R]
  int32_t *kv_lens, *q_indptr, *row_indptr, *drafted;            // [S], [S + 1], [S + 1], [S]
  const int32_t *tokens, *bounds, *computed, *most, *reach;      // [S, C], [S, 4] dense, [S], [S], [S]
  const int32_t *drafts, *draft_lens, *block_tables;             // [S, K], [S], [S, B]
  int64_t sequences, step_tokens, step_rows;                     // S, T, R
  int64_t capacity, max_draft, table_blocks, block_tokens;       // C, K, B, P
  int64_t tokens_stride, drafts_stride, table_stride;
};

struct CommitArgs {
  int32_t *tokens, *bounds, *computed, *finished, *kept;          // [S, C], [S, 4] dense, [S], [S], [S]
  const int32_t *out, *out_lens, *drafted, *q_indptr, *ends;      // [S, K + 1], [S], [S], [S + 1], [S]
  const int32_t* stop_ids;                                        // [stops]
  int64_t sequences, capacity, max_out, stops;                    // S, C, K + 1
  int64_t tokens_stride, out_stride;
};

struct AdmitArgs {
  int32_t *tokens, *ranks, *bounds, *computed, *finished, *ends;  // [S, C], [S, C], [S, 4] dense, [S], [S], [S]
  const int32_t *admitted, *staged;                               // [A, 8] dense, [N]
  int64_t sequences, capacity, count, staged_size;                // S, C, A, N
  int64_t tokens_stride, ranks_stride;
};

// One table per CPU instruction set, and one for CUDA.
struct Kernels {
  const char* isa;
  void (*norm)(const NormArgs&, Stream);
  void (*silu_mul)(const ActivationArgs&, Stream);
  void (*gelu)(const ActivationArgs&, Stream);
  void (*quantize)(const ActivationArgs&, Stream);
  void (*dequantize)(const DequantizeArgs&, Stream);
  void (*rope_append)(const RopeAppendArgs&, Stream);
  void (*paged_attention)(const AttentionArgs&, Stream);
  void (*greedy_argmax)(const ArgmaxArgs&, Stream);
  void (*allowed_argmax)(const AllowedArgs&, Stream);
  void (*ngram_propose)(const ProposeArgs&, Stream);
  void (*verify_draft)(const VerifyArgs&, Stream);
  void (*pack_step)(const PackArgs&, Stream);
  void (*commit_step)(const CommitArgs&, Stream);
  void (*admit_rows)(const AdmitArgs&, Stream);
  bool (*linear)(const LinearArgs&) = nullptr;  // of a CPU alone; false: the weight is not as this instruction set packs it
  int64_t (*pack_linear)(const PackLinearArgs&) = nullptr;  // the bytes of a packed weight
  int32_t largest_pair = 0;  // sum of two int8 weights that linear takes, to which pack_linear scales a column; 0: any
  bool gates = false;        // whether linear takes gated
};

// The kernels for the device of `t`. Throws std::runtime_error, naming the remedy, where there are none.
const Kernels& kernels_for(const Tensor& t);

const Kernels& cpu_kernels();   // resolved once; QDENGINE_ISA forces one
const Kernels* cuda_kernels();  // null in a build without CUDA

}  // namespace qdengine
