// What the ops check whose output may be of 8 bits, with a scale of each row.
#pragma once

#include "qdengine/check.h"

namespace qdengine::ops {

inline bool eight_bits(const Tensor& t) { return t.dtype == DType::i8 || t.dtype == DType::f8; }

// out [T, F] and scales; the dtype of an input is checked by `input`.
inline void output(const Check& check, const Tensor& out, const OptionalTensor& scales) {
  check.shape("out", out, {-1, -1});
  if (!eight_bits(out)) {
    check.floating("out", out);
    if (scales) check.fail("scales", std::string("none for an output in ") + name(out.dtype), "a tensor");
    return;
  }
  if (!scales) check.fail("scales", std::string("float32 [T] for an output in ") + name(out.dtype), "none");
  check.dense("scales", *scales, {out.dim(0)});
  check.device("scales", *scales, out);
  check.dtype("scales", *scales, DType::f32);
}

// An input of the shape given: of the output's dtype, or for one of 8 bits of any that is floating.
inline void input(const Check& check, const char* arg, const Tensor& x, const Tensor& out, std::initializer_list<int64_t> shape) {
  check.shape(arg, x, shape);
  check.device(arg, x, out);
  eight_bits(out) ? check.floating(arg, x) : check.dtype(arg, x, out.dtype);
}

}  // namespace qdengine::ops
