#include "qdengine/check.h"
#include "qdengine/kernels.h"
#include "qdengine/ops.h"

namespace qdengine::ops {
namespace {

constexpr int64_t kMaxHeadWidth = 512, kMaxGroup = 16;

void head_width(const Check& check, int64_t width) {
  if (width < 1 || width > kMaxHeadWidth) check.fail("q", "a head width of 1 to 512", std::to_string(width));
}

// k_cache and v_cache, and how they fit q.
void caches(const Check& check, const Tensor& q, const Tensor& k_cache, const Tensor& v_cache) {
  check.dense("k_cache", k_cache, {-1, -1, -1, q.dim(2)});
  check.like("k_cache", k_cache, q);
  check.dense("v_cache", v_cache, {k_cache.dim(0), k_cache.dim(1), k_cache.dim(2), q.dim(2)});
  check.like("v_cache", v_cache, q);
  const int64_t kv_heads = k_cache.dim(2);
  if (kv_heads == 0 || q.dim(1) % kv_heads != 0 || q.dim(1) / kv_heads > kMaxGroup) {
    check.fail("k_cache", "kv heads that divide the " + std::to_string(q.dim(1)) + " query heads into groups of at most 16",
               std::to_string(kv_heads));
  }
  if (k_cache.dim(0) * k_cache.dim(1) > INT32_MAX) check.fail("k_cache", "fewer than 2^31 slots", "more");
}

}  // namespace

void rope_append(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& qkv, const Tensor& positions,
                 const Tensor& slots, const OptionalTensor& cos, const OptionalTensor& sin, const OptionalTensor& q_weight,
                 const OptionalTensor& k_weight, double eps) {
  const Check check("rope_append");
  check.dense("q", q, {-1, -1, -1});
  check.floating("q", q);
  const int64_t tokens = q.dim(0), heads = q.dim(1), width = q.dim(2);
  head_width(check, width);
  caches(check, q, k_cache, v_cache);
  const int64_t kv_heads = k_cache.dim(2);
  check.shape("qkv", qkv, {tokens, (heads + 2 * kv_heads) * width});
  check.like("qkv", qkv, q);
  check.dense("positions", positions, {tokens});
  check.index("positions", positions, q);
  check.dense("slots", slots, {tokens});
  check.index("slots", slots, q);
  if (cos.has_value() != sin.has_value()) check.fail("sin", "cos and sin together, or neither", "one of them");
  if (q_weight.has_value() != k_weight.has_value()) check.fail("k_weight", "q_weight and k_weight together, or neither", "one");
  if (cos) {
    if (width % 2) check.fail("q", "an even head width for a rotation", std::to_string(width));
    check.dense("cos", *cos, {-1, width / 2});
    check.dtype("cos", *cos, DType::f32);
    check.device("cos", *cos, q);
    check.dense("sin", *sin, {cos->dim(0), width / 2});
    check.dtype("sin", *sin, DType::f32);
    check.device("sin", *sin, q);
    if (cos->dim(0) == 0) check.fail("cos", "at least one position", "none");
  }
  if (q_weight) {
    check.dense("q_weight", *q_weight, {width});
    check.like("q_weight", *q_weight, q);
    check.dense("k_weight", *k_weight, {width});
    check.like("k_weight", *k_weight, q);
    check.positive("eps", eps);
  }
  if (tokens == 0) return;
  kernels_for(q).rope_append({.q = q.data,
                              .k_cache = k_cache.data,
                              .v_cache = v_cache.data,
                              .qkv = qkv.data,
                              .positions = positions.as<const int32_t>(),
                              .slots = slots.as<const int32_t>(),
                              .cos = cos ? cos->as<const float>() : nullptr,
                              .sin = sin ? sin->as<const float>() : nullptr,
                              .q_weight = q_weight ? q_weight->data : nullptr,
                              .k_weight = k_weight ? k_weight->data : nullptr,
                              .tokens = tokens,
                              .heads = heads,
                              .kv_heads = kv_heads,
                              .head_width = width,
                              .qkv_stride = qkv.stride[0],
                              .max_positions = cos ? cos->dim(0) : INT32_MAX,
                              .cache_slots = k_cache.dim(0) * k_cache.dim(1),
                              .eps = static_cast<float>(eps),
                              .dtype = q.dtype},
                             q.stream);
}

void paged_attention(const Tensor& out, const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                     const Tensor& block_tables, const Tensor& kv_lens, const Tensor& q_indptr, double scale) {
  const Check check("paged_attention");
  check.dense("out", out, {-1, -1, -1});
  check.floating("out", out);
  check.dense("q", q, {out.dim(0), out.dim(1), out.dim(2)});
  check.like("q", q, out);
  head_width(check, q.dim(2));
  caches(check, q, k_cache, v_cache);
  check.shape("block_tables", block_tables, {-1, -1});
  check.index("block_tables", block_tables, q);
  const int64_t sequences = block_tables.dim(0);
  check.dense("kv_lens", kv_lens, {sequences});
  check.index("kv_lens", kv_lens, q);
  check.dense("q_indptr", q_indptr, {sequences + 1});
  check.index("q_indptr", q_indptr, q);
  if (out.dim(0) == 0 || sequences == 0) return;
  kernels_for(out).paged_attention({.out = out.data,
                                    .q = q.data,
                                    .k_cache = k_cache.data,
                                    .v_cache = v_cache.data,
                                    .block_tables = block_tables.as<const int32_t>(),
                                    .kv_lens = kv_lens.as<const int32_t>(),
                                    .q_indptr = q_indptr.as<const int32_t>(),
                                    .tokens = q.dim(0),
                                    .sequences = sequences,
                                    .heads = q.dim(1),
                                    .kv_heads = k_cache.dim(2),
                                    .head_width = q.dim(2),
                                    .block_tokens = k_cache.dim(1),
                                    .blocks = k_cache.dim(0),
                                    .table_stride = block_tables.stride[0],
                                    .q_stride = q.dim(1) * q.dim(2),
                                    .scale = static_cast<float>(scale),
                                    .dtype = q.dtype},
                                   out.stream);
}

}  // namespace qdengine::ops
