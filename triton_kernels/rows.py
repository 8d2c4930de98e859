"""How the result of a row is written: in the type of the inputs, or in 8 bits with one scale."""

from __future__ import annotations

import triton
import triton.language as tl

from .common import narrow
from .eight_bit import quantize, scale_of


@triton.jit
def store_rows(out, scales, y, row, rows, place, mask, dtype: tl.constexpr):
    """Store float32 `y` [R, C], 0 outside `mask`, at `out + place`: rounded to `dtype`, and with `scales` in 8 bits."""
    y = narrow(y, dtype)
    if scales is not None:
        y = y.to(tl.float32)
        top = tl.max(tl.abs(y), 1, keep_dims=True)
        scale, factor = scale_of(top, out.dtype.element_ty)
        tl.store(scales + row, scale, row < rows)
        y = quantize(y * factor, out.dtype.element_ty)
    tl.store(out + place, y, mask)
