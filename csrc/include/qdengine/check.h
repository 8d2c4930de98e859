// Validation of op arguments. Every message says: op, argument, expected, got.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "qdengine/tensor.h"

namespace qdengine {

class Check {
 public:
  explicit Check(const char* op) : op_(op) {}

  [[noreturn]] void fail(const char* arg, const std::string& expected, const std::string& got) const {
    throw std::invalid_argument(std::string(op_) + ": " + arg + ": expected " + expected + ", got " + got);
  }

  // Shape, with -1 for "any"; the last dimension must be contiguous.
  void shape(const char* arg, const Tensor& t, std::initializer_list<int64_t> expected) const {
    bool same = t.ndim == static_cast<int>(expected.size());
    int i = 0;
    for (int64_t want : expected) {
      same = same && (want < 0 || t.shape[i] == want);
      ++i;
    }
    if (!same) fail(arg, "shape " + show(expected.begin(), static_cast<int>(expected.size())), show(t.shape, t.ndim));
    const int last = t.ndim - 1;
    if (last >= 0 && t.shape[last] > 1 && t.stride[last] != 1) {
      fail(arg, "a contiguous last dimension", "stride " + std::to_string(t.stride[last]));
    }
  }

  // As `shape`, and every dimension contiguous: for outputs that kernels index as one array.
  void dense(const char* arg, const Tensor& t, std::initializer_list<int64_t> expected) const {
    shape(arg, t, expected);
    int64_t stride = 1;
    for (int i = t.ndim - 1; i >= 0; --i) {
      if (t.shape[i] > 1 && t.stride[i] != stride) fail(arg, "a contiguous tensor", "strides " + show(t.stride, t.ndim));
      stride *= t.shape[i];
    }
  }

  void floating(const char* arg, const Tensor& t) const {
    const bool usable = t.dtype == DType::f32 || t.dtype == DType::bf16 || (t.dtype == DType::f16 && t.device == Device::cuda);
    if (!usable) fail(arg, t.device == Device::cuda ? "float32, bfloat16 or float16" : "float32 or bfloat16", name(t.dtype));
  }

  void dtype(const char* arg, const Tensor& t, DType expected) const {
    if (t.dtype != expected) fail(arg, name(expected), name(t.dtype));
  }

  void device(const char* arg, const Tensor& t, const Tensor& like) const {
    if (t.device != like.device || t.stream.device != like.stream.device) fail(arg, "the device of the first argument", "another");
  }

  // `t` has the dtype and device of `like`.
  void like(const char* arg, const Tensor& t, const Tensor& like) const {
    device(arg, t, like);
    dtype(arg, t, like.dtype);
  }

  void index(const char* arg, const Tensor& t, const Tensor& like) const {
    device(arg, t, like);
    dtype(arg, t, DType::i32);
  }

  // An array of indices that kernels take as one piece.
  void indices(const char* arg, const Tensor& t, const Tensor& like, std::initializer_list<int64_t> expected) const {
    dense(arg, t, expected);
    index(arg, t, like);
  }

  void positive(const char* arg, double value) const {
    if (!(value > 0)) fail(arg, "a positive number", std::to_string(value));
  }

 private:
  static std::string show(const int64_t* dims, int n) {
    std::string text = "[";
    for (int i = 0; i < n; ++i) text += (i ? ", " : "") + (dims[i] < 0 ? std::string("any") : std::to_string(dims[i]));
    return text + "]";
  }

  const char* op_;
};

}  // namespace qdengine
