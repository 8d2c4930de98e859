#include "qdengine/check.h"
#include "qdengine/kernels.h"
#include "qdengine/ops.h"

namespace qdengine::ops {
namespace {

void norm(const char* op, const Tensor& out, const Tensor* residual, const Tensor& x, const Tensor& weight,
          const Tensor* bias, double eps) {
  const Check check(op);
  check.shape("out", out, {-1, -1});
  check.floating("out", out);
  const int64_t rows = out.dim(0), width = out.dim(1);
  const auto same = [&](const char* arg, const Tensor& t, bool matrix) {
    matrix ? check.shape(arg, t, {rows, width}) : check.shape(arg, t, {width});
    check.like(arg, t, out);
  };
  if (residual) same("residual", *residual, true);
  same("x", x, true);
  same("weight", weight, false);
  if (bias) same("bias", *bias, false);
  check.positive("eps", eps);
  if (rows == 0 || width == 0) return;
  kernels_for(out).norm({.out = out.data,
                         .residual = residual ? residual->data : nullptr,
                         .x = x.data,
                         .weight = weight.data,
                         .bias = bias ? bias->data : nullptr,
                         .rows = rows,
                         .width = width,
                         .out_stride = out.stride[0],
                         .residual_stride = residual ? residual->stride[0] : 0,
                         .x_stride = x.stride[0],
                         .eps = static_cast<float>(eps),
                         .dtype = out.dtype},
                        out.stream);
}

}  // namespace

void rms_norm(const Tensor& out, const Tensor& x, const Tensor& weight, double eps) {
  norm("rms_norm", out, nullptr, x, weight, nullptr, eps);
}

void layer_norm(const Tensor& out, const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  norm("layer_norm", out, nullptr, x, weight, &bias, eps);
}

void add_rms_norm(const Tensor& out, const Tensor& residual, const Tensor& x, const Tensor& weight, double eps) {
  norm("add_rms_norm", out, &residual, x, weight, nullptr, eps);
}

void add_layer_norm(const Tensor& out, const Tensor& residual, const Tensor& x, const Tensor& weight, const Tensor& bias,
                    double eps) {
  norm("add_layer_norm", out, &residual, x, weight, &bias, eps);
}

}  // namespace qdengine::ops
