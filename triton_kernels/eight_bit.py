"""Numbers of 8 bits: int8, and e4m3 (arXiv 2209.05433) as its bytes, uint8. With integers and float16 alone: so float8
needs no GPU that has it, and interpreted results are those of a GPU.

The contract is `quantize` of ops/reference: number = round(x * (largest / max |x|)), to nearest, ties to even.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def numbers(x: Tensor) -> Tensor:
    """What the kernels get for x: the bytes of a float8 tensor, else the tensor."""
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x


@triton.jit
def widen(x):
    """Numbers of a cache in float32, without their scale."""
    if x.dtype == tl.uint8:
        # Exponent and mantissa at the places of a float16's; the difference of the biases, 15 - 7, as a factor.
        bits = x.to(tl.uint16)
        bits = ((bits & 0x7F) << 7) | ((bits & 0x80) << 8)
        wide = bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    else:
        wide = x.to(tl.float32)
    return wide


@triton.jit
def largest(dtype: tl.constexpr):
    return 448.0 if dtype == tl.uint8 else 127.0


@triton.jit
def scale_of(top, dtype: tl.constexpr):
    """The scale of rows whose largest magnitude is `top`, and the factor that divides by it."""
    most = tl.full(top.shape, largest(dtype), tl.float32)
    live = top >= 1.2037062152420224e-35  # 2^-116: below it the factor would be infinite
    return tl.div_rn(top, most), tl.where(live, tl.div_rn(most, tl.where(live, top, 1.0)), 0.0)


@triton.jit
def quantize(x, dtype: tl.constexpr):
    """float32 `x`, already divided by its scale, as the nearest number; ties to even."""
    if dtype == tl.uint8:
        bits = x.to(tl.uint32, bitcast=True)
        size = tl.minimum(bits & 0x7FFFFFFF, 0x43E00000)  # 448
        # Neighbours are 2^(exponent - 3) apart, at least 2^-9. Of a sum with 1.5 * 2^23 of that, no more is left.
        magic = (((tl.maximum(size >> 23, 121) + 20) << 23) | 0x400000).to(tl.float32, bitcast=True)
        near = ((size.to(tl.float32, bitcast=True) + magic) - magic) * 0.00390625
        code = near.to(tl.float16).to(tl.uint16, bitcast=True) >> 7
        number = (code | ((bits >> 24) & 0x80).to(tl.uint16)).to(tl.uint8)
    else:
        cut = tl.minimum(tl.maximum(x, -127.0), 127.0)
        number = ((cut + 12582912.0) - 12582912.0).to(tl.int8)  # 1.5 * 2^23
    return number
