"""Norms, activations and 8 bits: one row at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .numbers import at_least_float32, in_8_bits


def _write(out: Tensor, scales: Tensor | None, y: Tensor, dtype: torch.dtype) -> None:
    """The result y, which is rounded to `dtype`, and where `out` is of 8 bits quantised."""
    if scales is None:
        out.copy_(y)
    else:
        numbers, scale = in_8_bits(y.to(dtype), out.dtype)
        out.copy_(numbers)
        scales.copy_(scale)


def rms_norm(out: Tensor, scales: Tensor | None, x: Tensor, weight: Tensor, eps: float) -> None:
    """out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight (arXiv 1910.07467). out, x: [T, E]; weight: [E].

    As of every op with `scales`, out has the dtype of the inputs and scales is None, or out is int8 or float8_e4m3fn
    and scales float32 [T]: the result, rounded to the dtype of the inputs, is then written as by `quantize`.
    """
    wide = at_least_float32(x)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    _write(out, scales, wide * scale * at_least_float32(weight), x.dtype)


def layer_norm(out: Tensor, scales: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
    """out[t] = (x[t] - mean) / sqrt(var + eps) * weight + bias (arXiv 1607.06450). out, x: [T, E]; others: [E]."""
    wide = at_least_float32(x)
    centred = wide - wide.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    _write(out, scales, centred * scale * at_least_float32(weight) + at_least_float32(bias), x.dtype)


def add_rms_norm(out: Tensor, scales: Tensor | None, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
    """residual += x (rounded to its dtype), then out = rms_norm(residual). out, residual, x: [T, E]; weight: [E]."""
    residual.add_(x)
    rms_norm(out, scales, residual, weight, eps)


def add_layer_norm(
    out: Tensor, scales: Tensor | None, residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> None:
    """residual += x (rounded to its dtype), then out = layer_norm(residual). out, residual, x: [T, E]; others: [E]."""
    residual.add_(x)
    layer_norm(out, scales, residual, weight, bias, eps)


def silu_mul(out: Tensor, scales: Tensor | None, gate_up: Tensor) -> None:
    """out = silu(gate) * up with gate, up = the halves of gate_up (arXiv 2002.05202). out: [T, F]; gate_up: [T, 2F]."""
    gate, up = at_least_float32(gate_up).chunk(2, -1)
    _write(out, scales, gate * torch.sigmoid(gate) * up, gate_up.dtype)


def gelu(out: Tensor, scales: Tensor | None, x: Tensor) -> None:
    """out = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): GPT-2's GELU (arXiv 1606.08415). out, x: [T, F]."""
    wide = at_least_float32(x)
    y = 0.5 * wide * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (wide + 0.044715 * wide**3)))
    _write(out, scales, y, x.dtype)


def quantize(out: Tensor, scales: Tensor, x: Tensor) -> None:
    """out[t] = round(x[t] * (largest / max |x[t]|)), to nearest, ties to even, and scales[t] = max |x[t]| / largest.

    out: int8 (largest = 127) or float8_e4m3fn (448) [T, F]; scales: float32 [T]; x: [T, F]. So x ~ out * scales. A row
    with max |x| < 2^-116 has zeros. In float32 whatever x is.
    """
    _write(out, scales, x, x.dtype)


def dequantize(out: Tensor, sums: Tensor, scales: Tensor, weight_scales: Tensor, bias: Tensor | None) -> None:
    """out[t, f] = sums[t, f] * scales[t] * weight_scales[f] + bias[f]: what a product of int8 matrices stands for.

    out: [T, F]; sums: int32 [T, F], the products' exact sums; scales: float32 [T], of the rows (`quantize`);
    weight_scales: float32 [F], of the weight's rows; bias: [F] or None.
    """
    wide = sums.to(at_least_float32(out).dtype) * (weight_scales * scales.unsqueeze(1))
    out.copy_(wide if bias is None else wide + at_least_float32(bias))
