#include "qdengine/kernels.h"
#include "qdengine/ops.h"
#include "output.h"

namespace qdengine::ops {
namespace {

void norm(const char* op, const Tensor& out, const OptionalTensor& scales, const Tensor* residual, const Tensor& x,
          const Tensor& weight, const Tensor* bias, double eps) {
  const Check check(op);
  output(check, out, scales);
  const int64_t rows = out.dim(0), width = out.dim(1);
  input(check, "x", x, out, {rows, width});
  const auto vector = [&](const char* arg, const Tensor& t) {
    check.shape(arg, t, {width});
    check.like(arg, t, x);
  };
  if (residual) {
    check.shape("residual", *residual, {rows, width});
    check.like("residual", *residual, x);
  }
  vector("weight", weight);
  if (bias) vector("bias", *bias);
  check.positive("eps", eps);
  if (rows == 0 || width == 0) return;
  kernels_for(out).norm({.out = out.data,
                         .scales = scales ? scales->as<float>() : nullptr,
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
                         .dtype = x.dtype,
                         .out_dtype = out.dtype},
                        out.stream);
}

}  // namespace

void rms_norm(const Tensor& out, const OptionalTensor& scales, const Tensor& x, const Tensor& weight, double eps) {
  norm("rms_norm", out, scales, nullptr, x, weight, nullptr, eps);
}

void layer_norm(const Tensor& out, const OptionalTensor& scales, const Tensor& x, const Tensor& weight, const Tensor& bias,
                double eps) {
  norm("layer_norm", out, scales, nullptr, x, weight, &bias, eps);
}

void add_rms_norm(const Tensor& out, const OptionalTensor& scales, const Tensor& residual, const Tensor& x, const Tensor& weight,
                  double eps) {
  norm("add_rms_norm", out, scales, &residual, x, weight, nullptr, eps);
}

void add_layer_norm(const Tensor& out, const OptionalTensor& scales, const Tensor& residual, const Tensor& x,
                    const Tensor& weight, const Tensor& bias, double eps) {
  norm("add_layer_norm", out, scales, &residual, x, weight, &bias, eps);
}

}  // namespace qdengine::ops
