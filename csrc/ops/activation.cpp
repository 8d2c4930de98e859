#include "qdengine/check.h"
#include "qdengine/kernels.h"
#include "qdengine/ops.h"

namespace qdengine::ops {
namespace {

using Kernel = void (*Kernels::*)(const ActivationArgs&, Stream);

// `ratio` columns of the input for one of the output.
void activate(const char* op, Kernel kernel, const Tensor& out, const char* arg, const Tensor& x, int64_t ratio) {
  const Check check(op);
  check.shape("out", out, {-1, -1});
  check.floating("out", out);
  check.shape(arg, x, {out.dim(0), ratio * out.dim(1)});
  check.like(arg, x, out);
  if (out.dim(0) == 0 || out.dim(1) == 0) return;
  (kernels_for(out).*kernel)({.out = out.data,
                              .x = x.data,
                              .rows = out.dim(0),
                              .width = out.dim(1),
                              .out_stride = out.stride[0],
                              .x_stride = x.stride[0],
                              .dtype = out.dtype},
                             out.stream);
}

}  // namespace

void silu_mul(const Tensor& out, const Tensor& gate_up) { activate("silu_mul", &Kernels::silu_mul, out, "gate_up", gate_up, 2); }

void gelu(const Tensor& out, const Tensor& x) { activate("gelu", &Kernels::gelu, out, "x", x, 1); }

}  // namespace qdengine::ops
