"""silu_mul, gelu, quantize and dequantize.

    silu_mul:    out = silu(gate) * up with gate, up = the halves of gate_up, [T, 2F] -> [T, F]
    gelu:        out = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), [T, F]
    quantize:    out = x in 8 bits with a scale of each row, [T, F]; silu_mul and gelu write that where out is of 8 bits
    dequantize:  out = sums * scales * weight_scales + bias, [T, F]

Bound by memory: everything is read and written once. Plan: a program a tile of 2048 elements, at most 1024 of a row, or
whole rows where their largest number is needed.
Limits: F up to 65535 * 1024, for outputs of 8 bits up to MAX_WIDTH. Not measured on a GPU yet.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import OPTIONS, narrow
from .eight_bit import numbers
from .rows import store_rows


@triton.jit(do_not_specialize=["rows"])
def _activation_kernel(
    out, scales, x, rows, width, out_stride, x_stride, OP: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)[None, :]
    mask = (row < rows) & (col < width)
    source = x + row * x_stride + col
    y = tl.load(source, mask, 0.0).to(tl.float32)
    if OP == "silu_mul":
        y = y / (1.0 + tl.exp(-y)) * tl.load(source + width, mask, 0.0).to(tl.float32)
    elif OP == "gelu":  # x/2 (1 + tanh(u)) = x / (1 + exp(-2u))
        u = (y + y * y * y * 0.044715) * -1.5957691216057308
        y = y / (1.0 + tl.exp(tl.minimum(u, 80.0)))  # e^80 is enough to make 0, and finite
    store_rows(out, scales, y, row, rows, row * out_stride + col, mask, x.dtype.element_ty)


@triton.jit(do_not_specialize=["rows"])
def _dequantize_kernel(
    out, sums, scales, weight_scales, bias, rows, width, out_stride, sums_stride, ROWS: tl.constexpr, COLS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)[None, :]
    inside = col < width
    mask = (row < rows) & inside
    factor = tl.load(weight_scales + col, inside, 0.0) * tl.load(scales + row, row < rows, 0.0)
    y = tl.load(sums + row * sums_stride + col, mask, 0).to(tl.float32) * factor
    if bias is not None:
        y += tl.load(bias + col, inside, 0.0).to(tl.float32)
    tl.store(out + row * out_stride + col, narrow(y, out.dtype.element_ty), mask)


def _tiles(rows: int, width: int, cols: int) -> tuple[tuple[int, int], int]:
    """The grid, and rows of a tile of `cols` columns."""
    each = min(64, max(1, 2048 // cols))
    return (triton.cdiv(rows, each), triton.cdiv(width, cols)), each


def _activate(op: str, out: Tensor, scales: Tensor | None, x: Tensor) -> None:
    rows, width = out.shape
    if out.numel() == 0:
        return
    cols = triton.next_power_of_2(width)
    cols = min(1024, cols) if scales is None else cols
    grid, each = _tiles(rows, width, cols)
    _activation_kernel[grid](
        numbers(out), scales, x, rows, width, out.stride(0), x.stride(0),
        OP=op, ROWS=each, COLS=cols, num_warps=min(16, max(4, cols // 512)), **OPTIONS,
    )  # fmt: skip


def silu_mul(out: Tensor, scales: Tensor | None, gate_up: Tensor) -> None:
    _activate("silu_mul", out, scales, gate_up)


def gelu(out: Tensor, scales: Tensor | None, x: Tensor) -> None:
    _activate("gelu", out, scales, x)


def quantize(out: Tensor, scales: Tensor, x: Tensor) -> None:
    _activate("quantize", out, scales, x)


def dequantize(out: Tensor, sums: Tensor, scales: Tensor, weight_scales: Tensor, bias: Tensor | None) -> None:
    rows, width = out.shape
    if out.numel() == 0:
        return
    cols = min(1024, triton.next_power_of_2(width))
    grid, each = _tiles(rows, width, cols)
    _dequantize_kernel[grid](
        out,
        sums,
        scales,
        weight_scales,
        bias,
        rows,
        width,
        out.stride(0),
        sums.stride(0),
        ROWS=each,
        COLS=cols,
        **OPTIONS,
    )
