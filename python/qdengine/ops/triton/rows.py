"""The ops on rows: norms and activations."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import triton_kernels as kernels
from .check import Check, require_tensor


def _check_norm(
    op: str, out: Tensor, residual: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> None:
    check = Check(op, "out", out)
    check("out", out, (-1, -1))
    if out.shape[1] > kernels.MAX_WIDTH:
        check.fail("out", f"a width of at most {kernels.MAX_WIDTH}", out.shape[1])
    if residual is not None:
        check("residual", residual, out.shape)
    check("x", x, out.shape)
    check("weight", weight, out.shape[1:])
    if bias is not None:
        check("bias", bias, out.shape[1:])
    check.positive("eps", eps)


def rms_norm(out: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
    _check_norm("rms_norm", out, None, x, weight, None, eps)
    with torch.cuda.device_of(out):
        kernels.rms_norm(out, x, weight, eps)


def layer_norm(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
    require_tensor("layer_norm", "bias", bias)
    _check_norm("layer_norm", out, None, x, weight, bias, eps)
    with torch.cuda.device_of(out):
        kernels.layer_norm(out, x, weight, bias, eps)


def add_rms_norm(out: Tensor, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
    require_tensor("add_rms_norm", "residual", residual)
    _check_norm("add_rms_norm", out, residual, x, weight, None, eps)
    with torch.cuda.device_of(out):
        kernels.add_rms_norm(out, residual, x, weight, eps)


def add_layer_norm(out: Tensor, residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
    require_tensor("add_layer_norm", "residual", residual)
    require_tensor("add_layer_norm", "bias", bias)
    _check_norm("add_layer_norm", out, residual, x, weight, bias, eps)
    with torch.cuda.device_of(out):
        kernels.add_layer_norm(out, residual, x, weight, bias, eps)


def silu_mul(out: Tensor, gate_up: Tensor) -> None:
    check = Check("silu_mul", "out", out)
    check("out", out, (-1, -1))
    check("gate_up", gate_up, (out.shape[0], 2 * out.shape[1]))
    with torch.cuda.device_of(out):
        kernels.silu_mul(out, gate_up)


def gelu(out: Tensor, x: Tensor) -> None:
    check = Check("gelu", "out", out)
    check("out", out, (-1, -1))
    check("x", x, out.shape)
    with torch.cuda.device_of(out):
        kernels.gelu(out, x)
