#include "layers.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <new>
#include <numeric>

#include "../cpu/pool.h"
#include "qdengine/check.h"
#include "qdengine/ops.h"

namespace qdengine::ops {
namespace {

constexpr int64_t kAlign = 64;

int64_t divide_up(int64_t x, int64_t by) { return (x + by - 1) / by; }

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

// n rows from `begin` on.
Tensor slice(Tensor t, int64_t begin, int64_t n) {
  t.data = t.as<char>() + begin * t.stride[0] * size_of(t.dtype);
  t.shape[0] = n;
  return t;
}

// So many rows go through the layers together, where all threads have as many: what one op leaves is then still near the core for
// the next. Fewer are not shared out: each thread would read all weights for them.
constexpr int64_t kLeastRows = 24, kMostRows = 320;

int64_t chunk_of(int64_t tokens) {
  const int64_t threads = call_threads(), each = tokens / threads;
  if (each < kLeastRows) return tokens;
  const int64_t chunks = threads * divide_up(each, kMostRows);
  return divide_up(tokens, chunks);
}

}  // namespace

// Aligned, kept, grown as needed.
class Layers::Memory {
 public:
  ~Memory() { std::free(at_); }
  char* reserve(int64_t bytes) {
    if (bytes > bytes_) {
      std::free(at_);
      bytes_ = 0;
      at_ = std::aligned_alloc(kAlign, static_cast<size_t>(bytes));
      if (!at_) throw std::bad_alloc();
      bytes_ = bytes;
    }
    return static_cast<char*>(at_);
  }

 private:
  void* at_ = nullptr;
  int64_t bytes_ = 0;
};

// Lays tensors one after the other.
struct Layers::Place {
  char* at = nullptr;
  int64_t bytes = 0;

  static int64_t padded(int64_t size) { return divide_up(size, kAlign) * kAlign; }
  void need(DType dtype, int64_t rows, int64_t columns) { bytes += padded(rows * columns * size_of(dtype)); }
  Tensor take(DType dtype, int64_t rows, int64_t columns) {
    const Tensor t = dense(at, dtype, {rows, columns});
    at += padded(rows * columns * size_of(dtype));
    return t;
  }
};

// Rows of all layers, and where they go between them.
struct Layers::Rows {
  Tensor residual;  // [T, E]: the stream
  Tensor q, mixed;  // [T, H D]: what attention reads and writes, with place for E columns
};

// What a few rows become in a layer: each until the next of its kind.
struct Layers::Results {
  Tensor sums;            // [n, E]: what is added to the residual next
  Tensor x;               // what a product takes, as wide as the widest
  OptionalTensor scales;  // of an x of int8
  Tensor wide;            // of the products qkv and up
};

Layers::Layers(const DecoderShape& shape, const Tensor& embed, const OptionalTensor& places, const OptionalTensor& cos,
               const OptionalTensor& sin, std::vector<Layer> layers, const Norm& last)
    : shape_(shape), embed_(embed), places_(places), cos_(cos), sin_(sin), layers_(std::move(layers)), last_(last),
      memory_(std::make_unique<Memory>()) {
  const Check check("Layers");
  check.shape("embed", embed, {-1, -1});
  check.floating("embed", embed);
  if (embed.device != Device::cpu) check.fail("embed", "a tensor on the CPU", "one on another device");
  if (layers_.empty()) check.fail("layers", "at least one", "none");
}

Layers::~Layers() = default;

Layers::Rows Layers::rows(int64_t tokens) {
  const DType dtype = embed_.dtype;
  const int64_t width = embed_.dim(1), attended = shape_.attended(), most = std::max(width, attended);
  Place place;
  for (int i = 0; i < 3; ++i) place.need(dtype, tokens, most);
  place.at = memory_->reserve(place.bytes);
  const auto next = [&](int64_t columns) { return matrix(place.take(dtype, tokens, most), tokens, columns); };
  return {next(width), next(attended), next(attended)};
}

// Of this thread: what one thread writes and reads again and again stays in its core's cache.
Layers::Results Layers::results(int64_t n) const {
  static thread_local Memory memory;
  const DType dtype = embed_.dtype, number = shape_.int8 ? DType::i8 : dtype;
  const int64_t width = embed_.dim(1), x = std::max({width, shape_.attended(), shape_.ffn_width});
  const int64_t wide = std::max(shape_.qkv(), shape_.up());
  Place place;
  place.need(dtype, n, width), place.need(number, n, x), place.need(DType::f32, n, 1), place.need(dtype, n, wide);
  place.at = memory.reserve(place.bytes);
  Results r{place.take(dtype, n, width), place.take(number, n, x), std::nullopt, {}};
  if (shape_.int8) r.scales = dense(place.take(DType::f32, n, 1).data, DType::f32, {n});
  r.wide = place.take(dtype, n, wide);
  return r;
}

template <class F>
void Layers::run(Seconds& spent, Op op, F f) {
  const auto began = std::chrono::steady_clock::now();
  f();
  spent[op] += std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

// f(first, n, seconds) for all rows, some at a time on every thread. What the threads spent counts as shares of the time of all.
template <class F>
void Layers::by_rows(int64_t tokens, F f) {
  const int64_t each = chunk_of(tokens);
  std::mutex mutex;
  std::exception_ptr error;
  Seconds spent{};
  const auto chunk = [&](int64_t i) {
    Seconds own{};
    std::exception_ptr failed;
    try {
      f(i * each, std::min(each, tokens - i * each), own);
    } catch (...) {
      failed = std::current_exception();
    }
    const std::lock_guard<std::mutex> lock(mutex);
    if (failed) error = failed;
    for (int op = 0; op < kOps; ++op) spent[op] += own[op];
  };
  const auto began = std::chrono::steady_clock::now();
  run_tasks(divide_up(tokens, each), [](const void* data, int64_t i) { (*static_cast<const decltype(chunk)*>(data))(i); }, &chunk);
  if (error) std::rethrow_exception(error);
  const double whole = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  const double all = std::accumulate(spent.begin(), spent.end(), 0.0);
  for (int op = 0; op < kOps; ++op) seconds_[op] += all > 0.0 ? spent[op] * std::min(1.0, whole / all) : 0.0;
}

void Layers::normalise(Seconds& spent, const Norm& norm, const Tensor& out, const OptionalTensor& scales, const Tensor& residual,
                       const Tensor* added) const {
  run(spent, kNorm, [&] {
    if (norm.bias) {
      added ? add_layer_norm(out, scales, residual, *added, norm.weight, *norm.bias, shape_.eps)
            : layer_norm(out, scales, residual, norm.weight, *norm.bias, shape_.eps);
    } else {
      added ? add_rms_norm(out, scales, residual, *added, norm.weight, shape_.eps)
            : rms_norm(out, scales, residual, norm.weight, shape_.eps);
    }
  });
}

void Layers::multiply(Seconds& spent, const Product& product, const Tensor& out, const Tensor& x, const OptionalTensor& scales,
                      bool gated) const {
  run(spent, kLinear, [&] { linear(out, x, scales, product.packed, product.bias, gated); });
}

// What a product takes of `rows`: themselves, or in 8 bits.
Tensor Layers::taken(Seconds& spent, const Tensor& rows, const Results& to) const {
  if (!shape_.int8) return rows;
  const Tensor numbers = matrix(to.x, rows.dim(0), rows.dim(1));
  run(spent, kQuantize, [&] { quantize(numbers, *to.scales, rows); });
  return numbers;
}

// The first rows, and their norm.
void Layers::begin(Seconds& spent, const Tensor& residual, const Results& to, const Step& step) const {
  run(spent, kTakeRows, [&] {
    take_rows(residual, embed_, step.ids);
    if (places_) take_rows(to.sums, *places_, step.positions);
  });
  normalise(spent, layers_[0].norm1, matrix(to.x, residual.dim(0), residual.dim(1)), to.scales, residual, places_ ? &to.sums : nullptr);
}

// From x, the normed rows, to q and the caches.
void Layers::project(Seconds& spent, size_t i, const Tensor& q, const Results& to, const Step& step, const Caches& caches) const {
  const Layer& layer = layers_[i];
  const int64_t n = q.dim(0);
  const Tensor qkv = matrix(to.wide, n, shape_.qkv());
  multiply(spent, layer.qkv, qkv, matrix(to.x, n, embed_.dim(1)), to.scales);
  run(spent, kRopeAppend, [&] {
    rope_append(dense(q.data, q.dtype, {n, shape_.heads, shape_.head_width}), caches.keys[i], caches.values[i], caches.key_scales[i],
                caches.value_scales[i], qkv, step.positions, step.slots, cos_, sin_, layer.q_norm, layer.k_norm, shape_.eps);
  });
}

// From attention's rows to the residual, and their norm by `next`.
void Layers::feed(Seconds& spent, const Layer& layer, const Tensor& mixed, const Tensor& residual, const Results& to, const Norm& next,
                  const Tensor& out, const OptionalTensor& out_scales) const {
  const int64_t n = residual.dim(0), width = residual.dim(1), ffn = shape_.ffn_width;
  const Tensor x = matrix(to.x, n, width), sums = matrix(to.sums, n, width);
  multiply(spent, layer.out, sums, taken(spent, mixed, to), to.scales);
  normalise(spent, layer.norm2, x, to.scales, residual, &sums);
  Tensor active;
  if (shape_.gated && gates(ffn)) {
    const Tensor wide = matrix(to.wide, n, ffn);
    multiply(spent, layer.up, wide, x, to.scales, true);
    active = taken(spent, wide, to);
  } else {
    const Tensor up = matrix(to.wide, n, shape_.up());
    active = matrix(to.x, n, ffn);
    multiply(spent, layer.up, up, x, to.scales);
    run(spent, kActivation, [&] { shape_.gated ? silu_mul(active, to.scales, up) : gelu(active, to.scales, up); });
  }
  multiply(spent, layer.down, sums, active, to.scales);
  normalise(spent, next, out, out_scales, residual, &sums);
}

void Layers::attend(size_t i, const Rows& rows, const Step& step, const Caches& caches) {
  const auto heads = [&](const Tensor& t) { return dense(t.data, t.dtype, {t.dim(0), shape_.heads, shape_.head_width}); };
  run(seconds_, kPagedAttention, [&] {
    paged_attention(heads(rows.mixed), heads(rows.q), caches.keys[i], caches.values[i], caches.key_scales[i], caches.value_scales[i],
                    std::nullopt, step.block_tables, step.kv_lens, step.q_indptr, 1.0 / std::sqrt(static_cast<double>(shape_.head_width)));
  });
}

void Layers::forward(const Tensor& out, const OptionalTensor& out_scales, const Step& step, const Caches& caches) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const Check check("Layers.forward");
  const size_t count = layers_.size();
  for (const size_t size : {caches.keys.size(), caches.values.size(), caches.key_scales.size(), caches.value_scales.size()}) {
    if (size != count) check.fail("keys", "caches of " + std::to_string(count) + " layers", std::to_string(size));
  }
  check.shape("ids", step.ids, {-1});
  const int64_t tokens = step.ids.dim(0), width = embed_.dim(1);
  check.shape("positions", step.positions, {tokens});
  check.shape("slots", step.slots, {tokens});
  check.shape("rows", step.rows, {-1});
  const int64_t wanted = step.rows.dim(0);
  if (wanted > tokens) check.fail("rows", "at most the tokens, " + std::to_string(tokens), std::to_string(wanted));
  if (tokens == 0) return;
  const Rows all = rows(tokens);
  for (size_t i = 0; i < count; ++i) {
    by_rows(tokens, [&](int64_t first, int64_t n, Seconds& spent) {
      const Results to = results(n);
      const Tensor residual = slice(all.residual, first, n);
      Step own = step;
      own.ids = slice(step.ids, first, n), own.positions = slice(step.positions, first, n), own.slots = slice(step.slots, first, n);
      if (i == 0) {
        begin(spent, residual, to, own);
      } else {
        feed(spent, layers_[i - 1], slice(all.mixed, first, n), residual, to, layers_[i].norm1, matrix(to.x, n, width), to.scales);
      }
      project(spent, i, slice(all.q, first, n), to, own, caches);
    });
    attend(i, all, step, caches);
  }
  if (wanted == 0) return;
  // Behind the last attention only the wanted rows matter: they take the place of queries, and the first of all.
  const Tensor mixed = slice(all.q, 0, wanted), residual = matrix(all.mixed, wanted, width);
  run(seconds_, kTakeRows, [&] { take_rows(mixed, all.mixed, step.rows); });
  run(seconds_, kTakeRows, [&] { take_rows(residual, all.residual, step.rows); });
  by_rows(wanted, [&](int64_t first, int64_t n, Seconds& spent) {
    OptionalTensor scales = out_scales;
    if (scales) scales = slice(*scales, first, n);
    feed(spent, layers_.back(), slice(mixed, first, n), slice(residual, first, n), results(n), last_, slice(out, first, n), scales);
  });
}

std::vector<std::pair<std::string, double>> Layers::seconds() const {
  constexpr const char* kNames[kOps] = {"take_rows", "norm", "linear", "rope_append", "paged_attention", "activation", "quantize"};
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::pair<std::string, double>> spent;
  for (int op = 0; op < kOps; ++op) spent.emplace_back(kNames[op], seconds_[op]);
  return spent;
}

}  // namespace qdengine::ops
