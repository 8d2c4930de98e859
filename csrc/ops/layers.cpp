#include "layers.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <new>

#include "qdengine/check.h"
#include "qdengine/ops.h"

namespace qdengine::ops {
namespace {

constexpr int64_t kAlign = 64;

// A dense tensor.
Tensor dense(void* at, DType dtype, std::initializer_list<int64_t> shape) {
  Tensor t;
  t.data = at;
  t.dtype = dtype;
  t.device = Device::cpu;
  t.ndim = static_cast<int>(shape.size());
  std::copy(shape.begin(), shape.end(), t.shape);
  int64_t size = 1;
  for (int i = t.ndim - 1; i >= 0; size *= t.shape[i--]) t.stride[i] = size;
  return t;
}

// The same memory as another dense matrix.
Tensor matrix(const Tensor& t, int64_t rows, int64_t columns) { return dense(t.data, t.dtype, {rows, columns}); }

OptionalTensor first(OptionalTensor t, int64_t rows) {
  if (t) t->shape[0] = rows;
  return t;
}

}  // namespace

void Layers::Free::operator()(void* p) const { std::free(p); }

// Where results lie: each until the next of its kind.
struct Layers::Results {
  Tensor residual, sums;  // [T, E]: the stream of rows, and what is added to it next
  Tensor x;               // what a product takes, as wide as the widest
  OptionalTensor scales;  // of an x of int8
  Tensor wide;            // of the products qkv and up
  Tensor q, mixed;        // [T, H, D]
  Tensor kept_residual, kept_mixed;  // the rows of both that a step wants, where q and mixed were
};

Layers::Layers(const DecoderShape& shape, const Tensor& embed, const OptionalTensor& places, const OptionalTensor& cos,
               const OptionalTensor& sin, std::vector<Layer> layers, const Norm& last)
    : shape_(shape), embed_(embed), places_(places), cos_(cos), sin_(sin), layers_(std::move(layers)), last_(last) {
  const Check check("Layers");
  check.shape("embed", embed, {-1, -1});
  check.floating("embed", embed);
  if (embed.device != Device::cpu) check.fail("embed", "a tensor on the CPU", "one on another device");
  if (layers_.empty()) check.fail("layers", "at least one", "none");
}

Layers::Results Layers::results(int64_t tokens) {
  const DType dtype = embed_.dtype;
  const int64_t width = embed_.dim(1), attended = shape_.attended(), kept = std::max(width, attended);
  const int64_t x = std::max(kept, shape_.ffn_width), wide = std::max(shape_.qkv(), shape_.up());
  const DType number = shape_.int8 ? DType::i8 : dtype;
  const auto size = [&](DType of, int64_t columns) { return (tokens * columns * size_of(of) + kAlign - 1) / kAlign * kAlign; };
  reserve(2 * size(dtype, width) + size(number, x) + size(DType::f32, 1) + size(dtype, wide) + 2 * size(dtype, kept));
  char* at = static_cast<char*>(memory_.get());
  const auto next = [&](DType of, int64_t columns) {
    const Tensor t = dense(at, of, {tokens, columns});
    at += size(of, columns);
    return t;
  };
  Results r;
  r.residual = next(dtype, width);
  r.sums = next(dtype, width);
  r.x = next(number, x);
  if (shape_.int8) r.scales = dense(next(DType::f32, 1).data, DType::f32, {tokens});
  r.wide = next(dtype, wide);
  r.kept_mixed = next(dtype, kept);
  r.kept_residual = next(dtype, kept);
  r.q = dense(r.kept_mixed.data, dtype, {tokens, shape_.heads, shape_.head_width});
  r.mixed = dense(r.kept_residual.data, dtype, {tokens, shape_.heads, shape_.head_width});
  return r;
}

void Layers::reserve(int64_t bytes) {
  if (bytes <= bytes_) return;
  memory_.reset();
  bytes_ = 0;
  memory_.reset(std::aligned_alloc(kAlign, static_cast<size_t>(bytes)));
  if (!memory_) throw std::bad_alloc();
  bytes_ = bytes;
}

template <class F>
void Layers::run(Op op, F f) {
  const auto began = std::chrono::steady_clock::now();
  f();
  seconds_[op] += std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

void Layers::take(const Tensor& out, const Tensor& table, const Tensor& ids) {
  run(kTakeRows, [&] { take_rows(out, table, ids); });
}

void Layers::normalise(const Norm& norm, const Tensor& out, const OptionalTensor& scales, const Tensor& residual,
                       const Tensor* added) {
  run(kNorm, [&] {
    if (norm.bias) {
      added ? add_layer_norm(out, scales, residual, *added, norm.weight, *norm.bias, shape_.eps)
            : layer_norm(out, scales, residual, norm.weight, *norm.bias, shape_.eps);
    } else {
      added ? add_rms_norm(out, scales, residual, *added, norm.weight, shape_.eps)
            : rms_norm(out, scales, residual, norm.weight, shape_.eps);
    }
  });
}

void Layers::multiply(const Product& product, const Tensor& out, const Tensor& x, const OptionalTensor& scales) {
  run(kLinear, [&] { linear(out, x, scales, product.packed, product.bias); });
}

// From x, the normed rows, to mixed.
void Layers::attend(size_t i, const Results& to, const Step& step, const Caches& caches) {
  const Layer& layer = layers_[i];
  const int64_t tokens = to.residual.dim(0);
  const Tensor qkv = matrix(to.wide, tokens, shape_.qkv());
  multiply(layer.qkv, qkv, matrix(to.x, tokens, embed_.dim(1)), to.scales);
  run(kRopeAppend, [&] {
    rope_append(to.q, caches.keys[i], caches.values[i], caches.key_scales[i], caches.value_scales[i], qkv, step.positions,
                step.slots, cos_, sin_, layer.q_norm, layer.k_norm, shape_.eps);
  });
  run(kPagedAttention, [&] {
    paged_attention(to.mixed, to.q, caches.keys[i], caches.values[i], caches.key_scales[i], caches.value_scales[i], std::nullopt,
                    step.block_tables, step.kv_lens, step.q_indptr, 1.0 / std::sqrt(static_cast<double>(shape_.head_width)));
  });
}

// From x, the normed rows, to sums.
void Layers::feed(const Layer& layer, const Results& to, int64_t rows) {
  const Tensor up = matrix(to.wide, rows, shape_.up());
  const Tensor active = matrix(to.x, rows, shape_.ffn_width);
  const OptionalTensor scales = first(to.scales, rows);
  multiply(layer.up, up, matrix(to.x, rows, embed_.dim(1)), scales);
  run(kActivation, [&] { shape_.gated ? silu_mul(active, scales, up) : gelu(active, scales, up); });
  multiply(layer.down, matrix(to.sums, rows, embed_.dim(1)), active, scales);
}

void Layers::forward(const Tensor& out, const OptionalTensor& out_scales, const Step& step, const Caches& caches) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const Check check("Layers.forward");
  const size_t count = layers_.size();
  for (const size_t size : {caches.keys.size(), caches.values.size(), caches.key_scales.size(), caches.value_scales.size()}) {
    if (size != count) check.fail("keys", "caches of " + std::to_string(count) + " layers", std::to_string(size));
  }
  check.shape("ids", step.ids, {-1});
  check.shape("rows", step.rows, {-1});
  const int64_t tokens = step.ids.dim(0), width = embed_.dim(1), attended = shape_.attended();
  int64_t rows = tokens;
  if (step.rows.dim(0) > tokens) check.fail("rows", "at most the tokens, " + std::to_string(tokens), std::to_string(step.rows.dim(0)));
  const Results to = results(tokens);
  Tensor residual = to.residual;
  take(residual, embed_, step.ids);
  if (places_) take(to.sums, *places_, step.positions);
  normalise(layers_[0].norm1, matrix(to.x, tokens, width), to.scales, residual, places_ ? &to.sums : nullptr);
  for (size_t i = 0; i < count; ++i) {
    const Layer& layer = layers_[i];
    attend(i, to, step, caches);
    Tensor mixed = matrix(to.mixed, tokens, attended);
    if (i + 1 == count) {  // behind the last attention only the wanted rows matter
      rows = step.rows.dim(0);
      if (rows == 0) return;
      const Tensor kept_mixed = matrix(to.kept_mixed, rows, attended), kept_residual = matrix(to.kept_residual, rows, width);
      take(kept_mixed, mixed, step.rows);
      take(kept_residual, residual, step.rows);
      mixed = kept_mixed;
      residual = kept_residual;
    }
    const OptionalTensor scales = first(to.scales, rows);
    const Tensor sums = matrix(to.sums, rows, width), x = matrix(to.x, rows, width);
    if (shape_.int8) {
      const Tensor numbers = matrix(to.x, rows, attended);
      run(kQuantize, [&] { quantize(numbers, *scales, mixed); });
      mixed = numbers;
    }
    multiply(layer.out, sums, mixed, scales);
    normalise(layer.norm2, x, scales, residual, &sums);
    feed(layer, to, rows);
    if (i + 1 < count) {
      normalise(layers_[i + 1].norm1, x, scales, residual, &sums);
    } else {
      normalise(last_, out, out_scales, residual, &sums);
    }
  }
}

std::vector<std::pair<std::string, double>> Layers::seconds() const {
  constexpr const char* kNames[kOps] = {"take_rows", "norm", "linear", "rope_append", "paged_attention", "activation", "quantize"};
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::pair<std::string, double>> spent;
  for (int op = 0; op < kOps; ++op) spent.emplace_back(kNames[op], seconds_[op]);
  return spent;
}

}  // namespace qdengine::ops
