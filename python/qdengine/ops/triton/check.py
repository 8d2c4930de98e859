"""The checks of one call. Wrong arguments raise `ValueError` that says op, argument, expected and got."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
import triton
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)

_FLOATING = (torch.float32, torch.bfloat16, torch.float16)
_EIGHT_BIT = (torch.int8, torch.float8_e4m3fn)
_MAX_HEAD_WIDTH, _MAX_GROUP = 512, 16


class Check:
    """The checks of one call; `like` is the tensor whose device and dtype count."""

    def __init__(self, op: str, arg: str, like: Tensor, floating: bool = True) -> None:
        self.op, self.like = op, like
        require_tensor(op, arg, like)
        if not like.is_cuda and not (INTERPRETED and like.device.type == "cpu"):
            self.fail(arg, "a CUDA tensor (or a CPU tensor and TRITON_INTERPRET=1)", f"one on {like.device}")
        if floating and like.dtype not in _FLOATING:
            self.fail(arg, "float32, bfloat16 or float16", _name(like.dtype))

    def fail(self, arg: str, expected: str, got: object) -> NoReturn:
        raise ValueError(f"{self.op}: {arg}: expected {expected}, got {got}")

    def __call__(
        self, arg: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None, dense: bool = False
    ) -> None:
        """Shape with -1 for "any", dtype (None: that of `like`), device, and a contiguous last dimension, or all."""
        require_tensor(self.op, arg, tensor)
        if tensor.ndim != len(shape) or any(want not in (-1, n) for want, n in zip(shape, tensor.shape, strict=True)):
            self.fail(arg, f"shape {_show(shape)}", _show(tensor.shape))
        if dense and not tensor.is_contiguous():
            self.fail(arg, "a contiguous tensor", f"strides {_show(tensor.stride())}")
        if tensor.ndim and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            self.fail(arg, "a contiguous last dimension", f"stride {tensor.stride(-1)}")
        if tensor.device != self.like.device:
            self.fail(arg, f"the device of the first argument, {self.like.device}", tensor.device)
        if tensor.dtype != (dtype or self.like.dtype):
            self.fail(arg, _name(dtype or self.like.dtype), _name(tensor.dtype))

    def index(self, arg: str, tensor: Tensor, *shape: int, dense: bool = True) -> None:
        self(arg, tensor, shape, torch.int32, dense)

    def positive(self, arg: str, value: float) -> None:
        if not value > 0:
            self.fail(arg, "a positive number", value)

    def both(self, first: str, second: str, *given: bool) -> None:
        """Two optional arguments are both given, or neither is."""
        if any(given) and not all(given):
            self.fail(second, f"{first} and {second} together, or neither", "one of them")

    def caches(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, k_scales: Tensor | None, v_scales: Tensor | None
    ) -> None:
        """k_cache and v_cache with their scales, and how they fit q."""
        heads, width = q.shape[1:]
        if not 1 <= width <= _MAX_HEAD_WIDTH:
            self.fail("q", f"a head width of 1 to {_MAX_HEAD_WIDTH}", width)
        require_tensor(self.op, "k_cache", k_cache)
        cached = k_cache.dtype
        if cached not in (q.dtype, *_EIGHT_BIT):
            self.fail("k_cache", f"{_name(q.dtype)}, int8 or float8_e4m3fn", _name(cached))
        self("k_cache", k_cache, (-1, -1, -1, width), cached, dense=True)
        self("v_cache", v_cache, k_cache.shape, cached, dense=True)
        for arg, scales in (("k_scales", k_scales), ("v_scales", v_scales)):
            if (scales is not None) != (cached in _EIGHT_BIT):
                wanted = "scales of the 8-bit cache" if scales is None else f"none for a cache of {_name(cached)}"
                self.fail(arg, wanted, "none" if scales is None else "a tensor")
            if scales is not None:
                self(arg, scales, k_cache.shape[:3], torch.float32, dense=True)
        blocks, size, kv_heads, _ = k_cache.shape
        if kv_heads == 0 or heads % kv_heads or not 1 <= heads // kv_heads <= _MAX_GROUP:
            groups = f"kv heads that divide the {heads} query heads into groups of at most {_MAX_GROUP}"
            self.fail("k_cache", groups, kv_heads)
        if blocks * size >= 2**31:
            self.fail("k_cache", "fewer than 2^31 slots", blocks * size)


def require_tensor(op: str, arg: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {arg}: expected a torch.Tensor, got {type(value).__name__}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _show(shape: Sequence[int]) -> str:
    return f"[{', '.join('any' if n < 0 else str(n) for n in shape)}]"
