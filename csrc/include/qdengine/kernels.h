// What a kernel gets: raw pointers and sizes, already checked by csrc/ops. Strides are in elements. The letters are those of
// python/qdengine/ops/reference.py, which is the contract of every op.
#pragma once

#include "qdengine/tensor.h"

namespace qdengine {

// RMS norm, layer norm (bias set) and their residual-adding forms (residual and x set): out is always written.
struct NormArgs {
  void* out;
  void* residual;  // null: normalise x; else residual += x first, and normalise that
  const void* x;
  const void* weight;
  const void* bias;  // null: RMS norm; else layer norm
  int64_t rows, width;
  int64_t out_stride, residual_stride, x_stride;
  float eps;
  DType dtype;
};

struct ActivationArgs {
  void* out;      // [T, F]
  const void* x;  // silu_mul: [T, 2F]; gelu: [T, F]
  int64_t rows, width;
  int64_t out_stride, x_stride;
  DType dtype;
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
  const int32_t *tokens, *bounds, *computed, *most;              // [S, C], [S, 4] dense, [S], [S]
  const int32_t *drafts, *draft_lens, *block_tables;             // [S, K], [S], [S, B]
  int64_t sequences, step_tokens, step_rows;                     // S, T, R
  int64_t capacity, max_draft, table_blocks, block_tokens;       // C, K, B, P
  int64_t tokens_stride, drafts_stride, table_stride;
};

// One table per CPU instruction set, and one for CUDA.
struct Kernels {
  const char* isa;
  void (*norm)(const NormArgs&, Stream);
  void (*silu_mul)(const ActivationArgs&, Stream);
  void (*gelu)(const ActivationArgs&, Stream);
  void (*rope_append)(const RopeAppendArgs&, Stream);
  void (*paged_attention)(const AttentionArgs&, Stream);
  void (*greedy_argmax)(const ArgmaxArgs&, Stream);
  void (*ngram_propose)(const ProposeArgs&, Stream);
  void (*verify_draft)(const VerifyArgs&, Stream);
  void (*pack_step)(const PackArgs&, Stream);
};

// The kernels for the device of `t`. Throws std::runtime_error, naming the remedy, where there are none.
const Kernels& kernels_for(const Tensor& t);

const Kernels& cpu_kernels();   // resolved once; QDENGINE_ISA=generic|avx2|avx512 forces one
const Kernels* cuda_kernels();  // null in a build without CUDA

}  // namespace qdengine
