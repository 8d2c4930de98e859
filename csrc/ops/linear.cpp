// A CPU's linear layers, over weights that are packed for its instruction set.
#include "qdengine/check.h"
#include "qdengine/kernels.h"
#include "qdengine/ops.h"

namespace qdengine::ops {
namespace {

// Of int8, of which a sum of the largest still fits int32.
constexpr int64_t kMostWidth = 2147483647 / (127 * 127);

// Whether a number is one of those that are multiplied.
void number(const Check& check, const char* arg, const Tensor& t) {
  if (t.device != Device::cpu) check.fail(arg, "a tensor on the CPU", "one on another device");
  if (t.dtype != DType::i8) check.floating(arg, t);
}

void scales(const Check& check, const char* arg, const OptionalTensor& scales, const Tensor& of, int64_t rows) {
  if ((of.dtype == DType::i8) != scales.has_value()) {
    check.fail(arg, of.dtype == DType::i8 ? "float32 for int8" : std::string("none for ") + name(of.dtype), scales ? "a tensor" : "none");
  }
  if (!scales) return;
  check.dense(arg, *scales, {rows});
  check.device(arg, *scales, of);
  check.dtype(arg, *scales, DType::f32);
}

void bytes(const Check& check, const Tensor& packed, const Tensor& like) {
  check.dense("packed", packed, {-1});
  check.device("packed", packed, like);
  check.dtype("packed", packed, DType::u8);
}

}  // namespace

int64_t packed_bytes(const Tensor& weight) {
  const Check check("packed_bytes");
  check.shape("weight", weight, {-1, -1});
  number(check, "weight", weight);
  if (weight.dim(1) == 0) check.fail("weight", "at least one column", "none");
  if (weight.dtype == DType::i8 && weight.dim(1) > kMostWidth) {
    check.fail("weight", "at most " + std::to_string(kMostWidth) + " columns of int8", std::to_string(weight.dim(1)));
  }
  return cpu_kernels().pack_linear({.columns = weight.dim(0), .width = weight.dim(1), .number = weight.dtype});
}

void pack_linear(const Tensor& packed, const Tensor& weight, const OptionalTensor& weight_scales) {
  const Check check("pack_linear");
  check.shape("weight", weight, {-1, -1});
  number(check, "weight", weight);
  scales(check, "weight_scales", weight_scales, weight, weight.dim(0));
  bytes(check, packed, weight);
  if (packed.dim(0) != packed_bytes(weight)) check.fail("packed", std::to_string(packed_bytes(weight)) + " bytes", std::to_string(packed.dim(0)));
  cpu_kernels().pack_linear({.packed = packed.data,
                             .weight = weight.data,
                             .scales = weight_scales ? weight_scales->as<float>() : nullptr,
                             .columns = weight.dim(0),
                             .width = weight.dim(1),
                             .weight_stride = weight.stride[0],
                             .number = weight.dtype});
}

bool gates(int64_t ffn_width) { return cpu_kernels().gates && ffn_width % kPanelColumns == 0; }

void linear(const Tensor& out, const Tensor& x, const OptionalTensor& x_scales, const Tensor& packed, const OptionalTensor& bias,
            bool gated) {
  const Check check("linear");
  check.shape("x", x, {-1, -1});
  number(check, "x", x);
  const int64_t rows = x.dim(0);
  check.shape("out", out, {rows, -1});
  check.device("out", out, x);
  check.floating("out", out);
  const int64_t columns = out.dim(1) * (gated ? 2 : 1);
  if (gated && !gates(out.dim(1))) {
    check.fail("gated", "an instruction set that gates, and a multiple of " + std::to_string(kPanelColumns) + " columns",
               std::string(cpu_kernels().isa) + " and " + std::to_string(out.dim(1)));
  }
  scales(check, "scales", x_scales, x, rows);
  bytes(check, packed, x);
  if (bias) {
    check.shape("bias", *bias, {columns});
    check.like("bias", *bias, out);
  }
  if (rows == 0) return;
  const bool fits = cpu_kernels().linear({.out = out.data,
                                          .x = x.data,
                                          .scales = x_scales ? x_scales->as<float>() : nullptr,
                                          .weight = packed.data,
                                          .bias = bias ? bias->data : nullptr,
                                          .rows = rows,
                                          .columns = columns,
                                          .width = x.dim(1),
                                          .out_stride = out.stride[0],
                                          .x_stride = x.stride[0],
                                          .weight_bytes = packed.dim(0),
                                          .dtype = out.dtype,
                                          .number = x.dtype,
                                          .gated = gated});
  if (!fits) {
    check.fail("packed", "a " + std::string(name(x.dtype)) + " matrix of " + std::to_string(x.dim(1)) + " to " +
                             std::to_string(columns) + " that pack_linear packed for " + cpu_kernels().isa, "another");
  }
}

}  // namespace qdengine::ops
