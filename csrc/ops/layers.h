// All layers of a decoder on a CPU in one call. Op by op from Python, as on other backends, dispatch and fresh memory for every
// result would take a tenth of a short step, and more where products are fast; here results lie in memory that is kept. Between two
// attentions every thread takes some rows through all ops, so that what one op leaves is still in the core's cache for the next.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "qdengine/tensor.h"

namespace qdengine::ops {

// bias: of a layer norm; none: RMS norm.
struct Norm {
  Tensor weight;
  OptionalTensor bias;
};

// packed: by pack_linear.
struct Product {
  Tensor packed;
  OptionalTensor bias;
};

struct Layer {
  Norm norm1, norm2;
  Product qkv, out, up, down;
  OptionalTensor q_norm, k_norm;
};

struct DecoderShape {
  int64_t heads, kv_heads, head_width, ffn_width;
  bool gated;  // silu_mul of an `up` of twice the width; else gelu
  bool int8;   // what the products take; else the dtype of the tables
  double eps;

  // Widths of rows.
  int64_t attended() const { return heads * head_width; }
  int64_t qkv() const { return (heads + 2 * kv_heads) * head_width; }
  int64_t up() const { return gated ? 2 * ffn_width : ffn_width; }
};

// What is the same in all layers of a forward pass; see StepInputs of python/qdengine/model/layers.py.
struct Step {
  Tensor ids, positions, slots, rows, block_tables, kv_lens, q_indptr;
};

// For every layer.
struct Caches {
  std::vector<Tensor> keys, values;
  std::vector<OptionalTensor> key_scales, value_scales;
};

// Tensors are views: who makes one keeps their owners.
class Layers {
 public:
  Layers(const DecoderShape& shape, const Tensor& embed, const OptionalTensor& places, const OptionalTensor& cos,
         const OptionalTensor& sin, std::vector<Layer> layers, const Norm& last);
  ~Layers();

  // Keys and values of all tokens to the caches, and the last norm of step.rows to out, [R, E] in the tables' dtype or int8 with scales.
  void forward(const Tensor& out, const OptionalTensor& scales, const Step& step, const Caches& caches);

  // Spent since it was made, by op.
  std::vector<std::pair<std::string, double>> seconds() const;

 private:
  enum Op { kTakeRows, kNorm, kLinear, kRopeAppend, kPagedAttention, kActivation, kQuantize, kOps };
  using Seconds = std::array<double, kOps>;
  class Memory;
  struct Place;
  struct Rows;
  struct Results;

  template <class F>
  static void run(Seconds& spent, Op op, F f);
  template <class F>
  void by_rows(int64_t tokens, F f);
  Rows rows(int64_t tokens);
  Results results(int64_t n) const;
  void normalise(Seconds& spent, const Norm& norm, const Tensor& out, const OptionalTensor& scales, const Tensor& residual,
                 const Tensor* added) const;
  void multiply(Seconds& spent, const Product& product, const Tensor& out, const Tensor& x, const OptionalTensor& scales,
                bool gated = false) const;
  Tensor taken(Seconds& spent, const Tensor& rows, const Results& to) const;
  void begin(Seconds& spent, const Tensor& residual, const Results& to, const Step& step) const;
  void project(Seconds& spent, size_t layer, const Tensor& q, const Results& to, const Step& step, const Caches& caches) const;
  void feed(Seconds& spent, const Layer& layer, const Tensor& mixed, const Tensor& residual, const Results& to, const Norm& next,
            const Tensor& out, const OptionalTensor& out_scales) const;
  void attend(size_t layer, const Rows& rows, const Step& step, const Caches& caches);

  DecoderShape shape_;
  Tensor embed_;
  OptionalTensor places_, cos_, sin_;
  std::vector<Layer> layers_;
  Norm last_;
  mutable std::mutex mutex_;  // of the memory and the seconds
  std::unique_ptr<Memory> memory_;
  Seconds seconds_{};
};

}  // namespace qdengine::ops
