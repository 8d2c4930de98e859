"""Types that are computed in, and numbers of 8 bits."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def in_8_bits(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The rows of x in 8 bits, and their scales in float32."""
    wide = x.float()
    top = wide.abs().amax(-1, keepdim=True)
    # A tensor: of numbers torch takes the reciprocal, and rounds once more.
    largest = torch.full_like(top, 127 if dtype == torch.int8 else torch.finfo(dtype).max)
    numbers = wide * torch.where(top >= 2.0**-116, largest / top, 0.0)  # else the factor would be infinite
    return (numbers.round() if dtype == torch.int8 else numbers).to(dtype), (top / largest).squeeze(-1)
