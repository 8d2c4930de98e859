#include "qdengine/kernels.h"
#include "qdengine/ops.h"
#include "output.h"

namespace qdengine::ops {
namespace {

using Kernel = void (*Kernels::*)(const ActivationArgs&, Stream);

// `ratio` columns of the input for one of the output.
void activate(const char* op, Kernel kernel, const Tensor& out, const OptionalTensor& scales, const char* arg, const Tensor& x,
              int64_t ratio) {
  const Check check(op);
  output(check, out, scales);
  input(check, arg, x, out, {out.dim(0), ratio * out.dim(1)});
  if (out.dim(0) == 0 || out.dim(1) == 0) return;
  (kernels_for(out).*kernel)({.out = out.data,
                              .scales = scales ? scales->as<float>() : nullptr,
                              .x = x.data,
                              .rows = out.dim(0),
                              .width = out.dim(1),
                              .out_stride = out.stride[0],
                              .x_stride = x.stride[0],
                              .dtype = x.dtype,
                              .out_dtype = out.dtype},
                             out.stream);
}

}  // namespace

void silu_mul(const Tensor& out, const OptionalTensor& scales, const Tensor& gate_up) {
  activate("silu_mul", &Kernels::silu_mul, out, scales, "gate_up", gate_up, 2);
}

void gelu(const Tensor& out, const OptionalTensor& scales, const Tensor& x) {
  activate("gelu", &Kernels::gelu, out, scales, "x", x, 1);
}

void quantize(const Tensor& out, const Tensor& scales, const Tensor& x) {
  if (!eight_bits(out)) Check("quantize").fail("out", "int8 or float8_e4m3fn", name(out.dtype));
  activate("quantize", &Kernels::quantize, out, scales, "x", x, 1);
}

void dequantize(const Tensor& out, const Tensor& sums, const Tensor& scales, const Tensor& weight_scales,
                const OptionalTensor& bias) {
  const Check check("dequantize");
  check.shape("out", out, {-1, -1});
  check.floating("out", out);
  const int64_t rows = out.dim(0), width = out.dim(1);
  check.shape("sums", sums, {rows, width});
  check.index("sums", sums, out);
  const auto factors = [&](const char* arg, const Tensor& t, int64_t size) {
    check.dense(arg, t, {size});
    check.device(arg, t, out);
    check.dtype(arg, t, DType::f32);
  };
  factors("scales", scales, rows);
  factors("weight_scales", weight_scales, width);
  if (bias) {
    check.dense("bias", *bias, {width});
    check.like("bias", *bias, out);
  }
  if (rows == 0 || width == 0) return;
  kernels_for(out).dequantize({.out = out.data,
                               .sums = sums.as<const int32_t>(),
                               .scales = scales.as<const float>(),
                               .weight_scales = weight_scales.as<const float>(),
                               .bias = bias ? bias->data : nullptr,
                               .rows = rows,
                               .width = width,
                               .out_stride = out.stride[0],
                               .sums_stride = sums.stride[0],
                               .dtype = out.dtype},
                              out.stream);
}

}  // namespace qdengine::ops
