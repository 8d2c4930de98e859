"""Products with a weight [N, K] in tiles of one size, so that a row's result does not depend on the rows beside it.

    linear:         out = x weight^T + bias, [M, K] -> [M, N]; of float8, scales[m] weight_scales[n] x weight^T + bias
    linear_argmax:  out[m] = the lowest n with the highest (x weight^T)[m, n] in the type of x, [M, K] -> [M]

Bound by reading the weight for few rows, by the tensor cores for many. Plan: a program a tile of the result; K is
summed up in order, 64 at a time, in float32, never split. linear_argmax writes no logits: each tile leaves its best
value and id packed in one integer, whose order is "higher, then lower id", and a second kernel takes their largest: no
order of arrival matters. NaN is below everything.
Limits: M up to 65535 * 64, N below 2^31. Not measured on a GPU yet.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import INTERPRETED, OPTIONS, factor, narrow
from .eight_bit import numbers, widen

ROWS, INNER = 64, 64
COLS, ARGMAX_COLS = 64, 128


@triton.jit
def _operand(x):
    """As tl.dot takes it; bytes are float8."""
    if x.dtype == tl.uint8:
        return widen(x) if INTERPRETED else x.to(tl.float8e4nv, bitcast=True)
    else:
        return factor(x)


@triton.jit
def _product(
    x,
    weight,
    row,
    col,
    rows,
    width,
    x_stride,
    weight_stride,
    K,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    INNER: tl.constexpr,
):
    """(x weight^T)[row, col] in float32."""
    x += row.to(tl.int64)[:, None] * x_stride
    weight += col.to(tl.int64)[None, :] * weight_stride
    total = tl.zeros([ROWS, COLS], tl.float32)
    for begin in range(0, K, INNER):
        k = begin + tl.arange(0, INNER)
        a = tl.load(x + k[None, :], (row < rows)[:, None] & (k < K)[None, :], 0)
        b = tl.load(weight + k[:, None], (col < width)[None, :] & (k < K)[:, None], 0)
        # Of float8, a GPU's own sums are less exact than float32: at most one step's are added so.
        total = tl.dot(_operand(a), _operand(b), total, input_precision="ieee", max_num_imprecise_acc=INNER)
    return total


@triton.jit(do_not_specialize=["rows"])
def _linear_kernel(
    out, x, scales, weight, weight_scales, bias, rows, width, K, out_stride, x_stride, weight_stride,
    ROWS: tl.constexpr, COLS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    y = _product(x, weight, row, col, rows, width, x_stride, weight_stride, K, ROWS, COLS, INNER)
    if scales is not None:
        of_row, of_col = tl.load(scales + row, row < rows, 0.0), tl.load(weight_scales + col, col < width, 0.0)
        y *= of_row[:, None] * of_col[None, :]
    if bias is not None:
        y += tl.load(bias + col, col < width, 0.0).to(tl.float32)[None, :]
    place = out + row.to(tl.int64)[:, None] * out_stride + col[None, :]
    tl.store(place, narrow(y, out.dtype.element_ty), (row < rows)[:, None] & (col < width)[None, :])


@triton.jit(do_not_specialize=["rows"])
def _linear_argmax_kernel(
    best, x, weight, rows, width, K, best_stride, x_stride, weight_stride,
    ROWS: tl.constexpr, COLS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    y = _product(x, weight, row, col, rows, width, x_stride, weight_stride, K, ROWS, COLS, INNER)
    y = narrow(y, x.dtype.element_ty).to(tl.float32)
    y = tl.where((y != y) | (col >= width)[None, :], float("-inf"), y)
    top = tl.max(y, 1)
    at = tl.min(tl.where(y == top[:, None], col[None, :], 0x7FFFFFFF), 1)
    top = tl.where(top == 0.0, 0.0, top)  # -0 and 0 are a tie
    bits = top.to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, ~bits, bits | -0x80000000).to(tl.uint32, bitcast=True).to(tl.int64)
    tl.store(best + row.to(tl.int64) * best_stride + tl.program_id(0), order << 31 | (0x7FFFFFFF - at), row < rows)


@triton.jit
def _best_kernel(out, best, tiles, best_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, BLOCK)
    top = tl.max(tl.load(best + row * best_stride + tile, tile < tiles, 0), 0)
    tl.store(out + row, (0x7FFFFFFF - (top & 0x7FFFFFFF)).to(tl.int32))


def linear(
    out: Tensor, x: Tensor, scales: Tensor | None, weight: Tensor, weight_scales: Tensor | None, bias: Tensor | None
) -> None:
    rows, width = out.shape
    if out.numel() == 0:
        return
    _linear_kernel[(triton.cdiv(width, COLS), triton.cdiv(rows, ROWS))](
        out, numbers(x), scales, numbers(weight), weight_scales, bias,
        rows, width, x.shape[1], out.stride(0), x.stride(0), weight.stride(0),
        ROWS=ROWS, COLS=COLS, INNER=INNER, num_warps=4, **OPTIONS,
    )  # fmt: skip


def argmax_tiles(vocab: int) -> int:
    """Columns of the workspace of `linear_argmax`."""
    return triton.cdiv(vocab, ARGMAX_COLS)


def linear_argmax(out: Tensor, workspace: Tensor, x: Tensor, weight: Tensor) -> None:
    rows, width = len(x), len(weight)
    if rows == 0:
        return
    tiles = argmax_tiles(width)
    _linear_argmax_kernel[(tiles, triton.cdiv(rows, ROWS))](
        workspace, x, weight, rows, width, x.shape[1], workspace.stride(0), x.stride(0), weight.stride(0),
        ROWS=ROWS, COLS=ARGMAX_COLS, INNER=INNER, num_warps=8, **OPTIONS,
    )  # fmt: skip
    _best_kernel[(rows,)](out, workspace, tiles, workspace.stride(0), BLOCK=triton.next_power_of_2(tiles), **OPTIONS)
