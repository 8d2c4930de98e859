#include "qdengine/check.h"
#include "qdengine/kernels.h"
#include "qdengine/ops.h"

namespace qdengine::ops {
namespace {

constexpr int64_t kMaxHeadWidth = 512, kMaxGroup = 16;

void head_width(const Check& check, int64_t width) {
  if (width < 1 || width > kMaxHeadWidth) check.fail("q", "a head width of 1 to 512", std::to_string(width));
}

bool eight_bit(const Tensor& cache) { return cache.dtype == DType::i8 || cache.dtype == DType::f8; }

void scales(const Check& check, const char* arg, const OptionalTensor& t, const Tensor& cache) {
  if (t.has_value() != eight_bit(cache)) {
    check.fail(arg, eight_bit(cache) ? "scales of the 8-bit cache" : std::string("none for a cache of ") + name(cache.dtype),
               t ? "a tensor" : "none");
  }
  if (!t) return;
  check.dense(arg, *t, {cache.dim(0), cache.dim(1), cache.dim(2)});
  check.dtype(arg, *t, DType::f32);
  check.device(arg, *t, cache);
}

// k_cache and v_cache with their scales, and how they fit q.
void caches(const Check& check, const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const OptionalTensor& k_scales,
            const OptionalTensor& v_scales) {
  check.dense("k_cache", k_cache, {-1, -1, -1, q.dim(2)});
  check.device("k_cache", k_cache, q);
  if (k_cache.dtype != q.dtype && !eight_bit(k_cache)) {
    check.fail("k_cache", std::string(name(q.dtype)) + ", int8 or float8_e4m3fn", name(k_cache.dtype));
  }
  check.dense("v_cache", v_cache, {k_cache.dim(0), k_cache.dim(1), k_cache.dim(2), q.dim(2)});
  check.like("v_cache", v_cache, k_cache);
  scales(check, "k_scales", k_scales, k_cache);
  scales(check, "v_scales", v_scales, v_cache);
  const int64_t kv_heads = k_cache.dim(2);
  if (kv_heads == 0 || q.dim(1) % kv_heads != 0 || q.dim(1) / kv_heads > kMaxGroup) {
    check.fail("k_cache", "kv heads that divide the " + std::to_string(q.dim(1)) + " query heads into groups of at most 16",
               std::to_string(kv_heads));
  }
  if (k_cache.dim(0) * k_cache.dim(1) > INT32_MAX) check.fail("k_cache", "fewer than 2^31 slots", "more");
}

}  // namespace

void rope_append(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const OptionalTensor& k_scales,
                 const OptionalTensor& v_scales, const Tensor& qkv, const Tensor& positions, const Tensor& slots,
                 const OptionalTensor& cos, const OptionalTensor& sin, const OptionalTensor& q_weight,
                 const OptionalTensor& k_weight, double eps) {
  const Check check("rope_append");
  check.dense("q", q, {-1, -1, -1});
  check.floating("q", q);
  const int64_t tokens = q.dim(0), heads = q.dim(1), width = q.dim(2);
  head_width(check, width);
  caches(check, q, k_cache, v_cache, k_scales, v_scales);
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
                              .k_scales = k_scales ? k_scales->as<float>() : nullptr,
                              .v_scales = v_scales ? v_scales->as<float>() : nullptr,
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
                              .dtype = q.dtype,
                              .cache_dtype = k_cache.dtype},
                             q.stream);
}

void paged_attention(const Tensor& out, const Tensor& q, const Tensor& k_cache, const Tensor& v_cache,
                     const OptionalTensor& k_scales, const OptionalTensor& v_scales, const OptionalTensor& workspace,
                     const Tensor& block_tables, const Tensor& kv_lens, const Tensor& q_indptr, double scale) {
  const Check check("paged_attention");
  check.dense("out", out, {-1, -1, -1});
  check.floating("out", out);
  check.dense("q", q, {out.dim(0), out.dim(1), out.dim(2)});
  check.like("q", q, out);
  head_width(check, q.dim(2));
  caches(check, q, k_cache, v_cache, k_scales, v_scales);
  if (workspace) {
    check.dense("workspace", *workspace, {-1});
    check.dtype("workspace", *workspace, DType::f32);
    check.device("workspace", *workspace, q);
  }
  check.shape("block_tables", block_tables, {-1, -1});
  check.index("block_tables", block_tables, q);
  const int64_t sequences = block_tables.dim(0);
  check.dense("kv_lens", kv_lens, {sequences});
  check.index("kv_lens", kv_lens, q);
  check.dense("q_indptr", q_indptr, {sequences + 1});
  check.index("q_indptr", q_indptr, q);
  check.positive("scale", scale);
  if (out.dim(0) == 0 || sequences == 0) return;
  kernels_for(out).paged_attention({.out = out.data,
                                    .q = q.data,
                                    .k_cache = k_cache.data,
                                    .v_cache = v_cache.data,
                                    .k_scales = k_scales ? k_scales->as<const float>() : nullptr,
                                    .v_scales = v_scales ? v_scales->as<const float>() : nullptr,
                                    .workspace = workspace ? workspace->as<float>() : nullptr,
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
                                    .table_blocks = block_tables.dim(1),
                                    .table_stride = block_tables.stride[0],
                                    .q_stride = q.dim(1) * q.dim(2),
                                    .workspace_size = workspace ? workspace->dim(0) : 0,
                                    .scale = static_cast<float>(scale),
                                    .dtype = q.dtype,
                                    .cache_dtype = k_cache.dtype},
                                   out.stream);
}

}  // namespace qdengine::ops
