"""The ops on rows: norms, activations, and numbers of 8 bits."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import triton_kernels as kernels
from .check import Check, _name, require_tensor

_EIGHT_BITS = (torch.int8, torch.float8_e4m3fn)


def _check_output(op: str, out: Tensor, scales: Tensor | None, arg: str, x: Tensor) -> Check:
    """Checks `out`, which may be of 8 bits, and its scales; the checks returned want the dtype of the inputs."""
    require_tensor(op, "out", out)
    eight = out.dtype in _EIGHT_BITS
    check = Check(op, arg, x) if eight else Check(op, "out", out)
    check("out", out, (-1, -1), out.dtype)
    if eight and scales is None:
        check.fail("scales", f"float32 [T] for an output in {_name(out.dtype)}", None)
    if scales is not None:
        if not eight:
            check.fail("scales", f"None for an output in {_name(out.dtype)}", "a tensor")
        check("scales", scales, out.shape[:1], torch.float32, dense=True)
        _check_width(check, out)
    return check


def _check_width(check: Check, out: Tensor) -> None:
    if out.shape[1] > kernels.MAX_WIDTH:
        check.fail("out", f"a width of at most {kernels.MAX_WIDTH}", out.shape[1])


def _check_norm(
    op: str, out: Tensor, scales: Tensor | None, residual: Tensor | None, x: Tensor, weight: Tensor,
    bias: Tensor | None, eps: float,
) -> None:  # fmt: skip
    check = _check_output(op, out, scales, "x", x)
    _check_width(check, out)
    if residual is not None:
        check("residual", residual, out.shape)
    check("x", x, out.shape)
    check("weight", weight, out.shape[1:])
    if bias is not None:
        check("bias", bias, out.shape[1:])
    check.positive("eps", eps)


def rms_norm(out: Tensor, scales: Tensor | None, x: Tensor, weight: Tensor, eps: float) -> None:
    _check_norm("rms_norm", out, scales, None, x, weight, None, eps)
    with torch.cuda.device_of(out):
        kernels.rms_norm(out, scales, x, weight, eps)


def layer_norm(out: Tensor, scales: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
    require_tensor("layer_norm", "bias", bias)
    _check_norm("layer_norm", out, scales, None, x, weight, bias, eps)
    with torch.cuda.device_of(out):
        kernels.layer_norm(out, scales, x, weight, bias, eps)


def add_rms_norm(out: Tensor, scales: Tensor | None, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
    require_tensor("add_rms_norm", "residual", residual)
    _check_norm("add_rms_norm", out, scales, residual, x, weight, None, eps)
    with torch.cuda.device_of(out):
        kernels.add_rms_norm(out, scales, residual, x, weight, eps)


def add_layer_norm(
    out: Tensor, scales: Tensor | None, residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> None:
    require_tensor("add_layer_norm", "residual", residual)
    require_tensor("add_layer_norm", "bias", bias)
    _check_norm("add_layer_norm", out, scales, residual, x, weight, bias, eps)
    with torch.cuda.device_of(out):
        kernels.add_layer_norm(out, scales, residual, x, weight, bias, eps)


def silu_mul(out: Tensor, scales: Tensor | None, gate_up: Tensor) -> None:
    check = _check_output("silu_mul", out, scales, "gate_up", gate_up)
    check("gate_up", gate_up, (out.shape[0], 2 * out.shape[1]))
    with torch.cuda.device_of(out):
        kernels.silu_mul(out, scales, gate_up)


def gelu(out: Tensor, scales: Tensor | None, x: Tensor) -> None:
    check = _check_output("gelu", out, scales, "x", x)
    check("x", x, out.shape)
    with torch.cuda.device_of(out):
        kernels.gelu(out, scales, x)


def quantize(out: Tensor, scales: Tensor, x: Tensor) -> None:
    require_tensor("quantize", "out", out)
    if out.dtype not in _EIGHT_BITS:
        Check("quantize", "x", x).fail("out", "int8 or float8_e4m3fn", _name(out.dtype))
    check = _check_output("quantize", out, scales, "x", x)
    check("x", x, out.shape)
    with torch.cuda.device_of(out):
        kernels.quantize(out, scales, x)


def dequantize(out: Tensor, sums: Tensor, scales: Tensor, weight_scales: Tensor, bias: Tensor | None) -> None:
    check = Check("dequantize", "out", out)
    check("out", out, (-1, -1))
    check.index("sums", sums, *out.shape, dense=False)
    check("scales", scales, out.shape[:1], torch.float32, dense=True)
    check("weight_scales", weight_scales, out.shape[1:], torch.float32, dense=True)
    if bias is not None:
        check("bias", bias, out.shape[1:])
    with torch.cuda.device_of(out):
        kernels.dequantize(out, sums, scales, weight_scales, bias)
