"""silu_mul and gelu.

    silu_mul:  out = silu(gate) * up with gate, up = the halves of gate_up, [T, 2F] -> [T, F]
    gelu:      out = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), [T, F]

Bound by memory: everything is read and written once. Plan: a program a tile of 2048 elements, at most 1024 of a row.
Limits: F up to 65535 * 1024. Not measured on a GPU yet.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import OPTIONS, narrow


@triton.jit(do_not_specialize=["rows"])
def _activation_kernel(
    out, x, rows, width, out_stride, x_stride, GATED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)[None, :]
    mask = (row < rows) & (col < width)
    source = x + row * x_stride + col
    wide = tl.load(source, mask, 0.0).to(tl.float32)
    if GATED:
        y = wide / (1.0 + tl.exp(-wide)) * tl.load(source + width, mask, 0.0).to(tl.float32)
    else:  # x/2 (1 + tanh(u)) = x / (1 + exp(-2u))
        u = (wide + wide * wide * wide * 0.044715) * -1.5957691216057308
        y = wide / (1.0 + tl.exp(tl.minimum(u, 80.0)))  # e^80 is enough to make 0, and finite
    tl.store(out + row * out_stride + col, narrow(y, out.dtype.element_ty), mask)


def _activate(out: Tensor, x: Tensor, gated: bool) -> None:
    rows, width = out.shape
    if out.numel() == 0:
        return
    cols = min(1024, triton.next_power_of_2(width))
    each = min(64, 2048 // cols)
    _activation_kernel[(triton.cdiv(rows, each), triton.cdiv(width, cols))](
        out, x, rows, width, out.stride(0), x.stride(0), GATED=gated, ROWS=each, COLS=cols, **OPTIONS
    )


def silu_mul(out: Tensor, gate_up: Tensor) -> None:
    _activate(out, gate_up, True)


def gelu(out: Tensor, x: Tensor) -> None:
    _activate(out, x, False)
