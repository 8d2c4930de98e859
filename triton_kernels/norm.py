"""RMS norm and layer norm, with or without adding to the residual first.

    RMS norm:    out = x / sqrt(mean(x^2) + eps) * weight
    layer norm:  out = (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias

and where out is of 8 bits, that in 8 bits with a scale of each row. [T, E] rows. Bound by memory: a row is read
once (and the residual written) and out is written once.
Plan: a program holds whole rows in registers, as many as make 2048 elements, so a narrow row does not leave lanes idle.
The tile follows from E alone, so a row's result does not depend on the batch.
Limits: E up to MAX_WIDTH. Not measured on a GPU yet.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import OPTIONS, narrow
from .eight_bit import numbers
from .rows import store_rows

MAX_WIDTH = 65536


@triton.jit(do_not_specialize=["rows"])
def _norm_kernel(
    out, scales, residual, x, weight, bias, rows, out_stride, residual_stride, x_stride, eps,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, COLS)[None, :]
    inside = col < WIDTH
    mask = (row < rows) & inside
    wide = tl.load(x + row * x_stride + col, mask, 0.0).to(tl.float32)
    if residual is not None:
        place = residual + row * residual_stride + col
        total = narrow(tl.load(place, mask, 0.0).to(tl.float32) + wide, x.dtype.element_ty)
        tl.store(place, total, mask)
        wide = total.to(tl.float32)
    if bias is not None:
        wide = tl.where(inside, wide - tl.sum(wide, 1, keep_dims=True) / WIDTH, 0.0)
    y = wide * tl.rsqrt(tl.sum(wide * wide, 1, keep_dims=True) / WIDTH + eps)
    y *= tl.load(weight + col, inside, 0.0).to(tl.float32)
    if bias is not None:
        y += tl.load(bias + col, inside, 0.0).to(tl.float32)
    store_rows(out, scales, y, row, rows, row * out_stride + col, mask, x.dtype.element_ty)


def _norm(
    out: Tensor,
    scales: Tensor | None,
    residual: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
) -> None:
    rows, width = out.shape
    if out.numel() == 0:
        return
    cols = triton.next_power_of_2(width)
    each = min(16, max(1, 2048 // cols))
    _norm_kernel[(triton.cdiv(rows, each),)](
        numbers(out), scales, residual, x, weight, bias, rows,
        out.stride(0), 0 if residual is None else residual.stride(0), x.stride(0), eps,
        WIDTH=width, ROWS=each, COLS=cols, num_warps=min(16, max(4, cols // 512)), **OPTIONS,
    )  # fmt: skip


def rms_norm(out: Tensor, scales: Tensor | None, x: Tensor, weight: Tensor, eps: float) -> None:
    _norm(out, scales, None, x, weight, None, eps)


def layer_norm(out: Tensor, scales: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
    _norm(out, scales, None, x, weight, bias, eps)


def add_rms_norm(out: Tensor, scales: Tensor | None, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
    _norm(out, scales, residual, x, weight, None, eps)


def add_layer_norm(
    out: Tensor, scales: Tensor | None, residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> None:
    _norm(out, scales, residual, x, weight, bias, eps)
