"""Linear layers, y = x weight^T + bias: the extension's on a CPU; on a GPU library calls, cuBLAS and cuBLASLt through
torch, and Triton where a row's bits must not depend on the batch.

Every class has one interface: weight [out, in] and bias [out] or None when it is made; then x [T, in], or numbers of
8 bits with scales [T], to y [T, out]. y has the weight's dtype, or the dtype that a class is given which makes 8 bits
of the weight.
"""

from __future__ import annotations

from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from ..errors import BackendError, ConfigError
from ..ops import OpTable

_EXACT_WIDTH = 2**24 // 127**2
"""Products of int8 of which any sum is an integer that float32 has."""


class Layer(Protocol):
    def __call__(self, x: Tensor, scales: Tensor | None = None) -> Tensor: ...


class PackedLinear:
    """On a CPU, over weights that are laid out once for its instruction set: float32, bfloat16, and int8 by int8 with
    exact sums in int32, scaled as they are written. A row's bits depend on that row alone.

    number: int8, or None for the weight's dtype, which y then has.
    """

    def __init__(
        self, ops: OpTable, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, number: torch.dtype | None = None
    ) -> None:
        from ..ops import native

        self._linear, self.bias, self._dtype, self._columns = native.linear, bias, dtype, len(weight)
        scales: Tensor | None = None
        if number is not None:
            weight, scales = _quantized(ops, weight, number)
        self.packed = torch.empty(native.packed_bytes(weight), dtype=torch.uint8)
        native.pack_linear(self.packed, weight, scales)

    def __call__(self, x: Tensor, scales: Tensor | None = None) -> Tensor:
        out = torch.empty(len(x), self._columns, dtype=self._dtype)
        self._linear(out, x, scales, self.packed, self.bias, False)
        return out


class Linear:
    """The library's product. Its rounding may depend on the number of rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor, scales: Tensor | None = None) -> Tensor:
        return torch.nn.functional.linear(x, self.weight, self.bias)


class TiledLinear:
    """Batch-invariant on a GPU: tiles of one size, in Triton. number: float8_e4m3fn, or None for the weight's dtype."""

    def __init__(
        self, ops: OpTable, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, number: torch.dtype | None = None
    ) -> None:
        from ..ops.triton.linear import linear

        self._linear, self.bias, self._dtype = linear, bias, dtype
        self.weight = weight
        self.scales: Tensor | None = None
        if number is not None:
            self.weight, self.scales = _quantized(ops, weight, number)

    def __call__(self, x: Tensor, scales: Tensor | None = None) -> Tensor:
        out = torch.empty(len(x), len(self.weight), dtype=self._dtype, device=x.device)
        self._linear(out, x, scales, self.weight, self.scales, self.bias)
        return out


class Int8Linear:
    """int8 by int8 with exact sums in int32, so batch-invariant by nature; then the scales of rows and columns. Away
    from a GPU, for tests, in float32, and as exactly: sums of so many are integers that float32 has.
    """

    def __init__(self, ops: OpTable, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        if weight.is_cuda:
            _check_widths(weight, "int8", 8)
        self._ops, self.bias, self._dtype = ops, bias, dtype
        self.weight, self.scales = _quantized(ops, weight, torch.int8)
        self._wide = None if weight.is_cuda else [Linear(part.float()) for part in self.weight.split(_EXACT_WIDTH, 1)]

    def _sums(self, x: Tensor) -> Tensor:
        if self._wide is not None:
            parts = zip(self._wide, x.split(_EXACT_WIDTH, 1), strict=True)
            return reduce(torch.add, (part(numbers.float()).to(torch.int32) for part, numbers in parts))
        rows = len(x)
        if rows <= 16:  # cuBLASLt wants more
            x = torch.nn.functional.pad(x, (0, 0, 0, 32 - rows))
        return torch._int_mm(x, self.weight.t())[:rows]

    def __call__(self, x: Tensor, scales: Tensor | None = None) -> Tensor:
        sums = self._sums(x)
        out = torch.empty(sums.shape, dtype=self._dtype, device=x.device)
        self._ops.dequantize(out, sums, scales, self.scales, self.bias)
        return out


class Float8Linear:
    """float8_e4m3fn by float8_e4m3fn, with sums in float32 and the scales of rows and columns. bfloat16 results."""

    def __init__(self, ops: OpTable, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        _check_widths(weight, "float8", 16)
        self.bias, self._dtype = bias, dtype
        self.weight, scales = _quantized(ops, weight, torch.float8_e4m3fn)
        self.scales = scales.unsqueeze(0)

    def __call__(self, x: Tensor, scales: Tensor | None = None) -> Tensor:
        assert scales is not None
        return torch._scaled_mm(
            x, self.weight.t(), scale_a=scales.unsqueeze(1), scale_b=self.scales, bias=self.bias, out_dtype=self._dtype
        )


def make(
    ops: OpTable, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, number: torch.dtype | None,
    batch_invariant: bool,
) -> Layer:  # fmt: skip
    """The layer for y in `dtype`, and x in `number` (int8, float8_e4m3fn) or where that is None in `dtype` as well."""
    if number is None:
        weight = weight.to(dtype)
    if ops.backend == "cpu":
        return PackedLinear(ops, weight, bias, dtype, number)
    if number == torch.int8:
        return Int8Linear(ops, weight, bias, dtype)
    if batch_invariant:
        if ops.backend == "reference":
            raise ConfigError(
                "EngineConfig.batch_invariant: backend 'reference' multiplies by the library, whose rounding depends "
                "on the rows; leave it out, or use backend 'cpu', 'cuda' or 'triton'"
            )
        return TiledLinear(ops, weight, bias, dtype, number)
    return Linear(weight, bias) if number is None else Float8Linear(ops, weight, bias, dtype)


def require(number: torch.dtype, device: torch.device) -> None:
    """Raise `BackendError` where `device` cannot multiply numbers of 8 bits as the layers need it."""
    has_float8 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
    if number == torch.float8_e4m3fn and not has_float8:
        raise BackendError(
            f"precision 'float8' needs a GPU of compute capability 8.9 or later (L4, L20, L40, H100), and {device} "
            "is none; use precision 'int8' or 'bfloat16'"
        )


def _quantized(ops: OpTable, weight: Tensor, number: torch.dtype) -> tuple[Tensor, Tensor]:
    """The weight in 8 bits, and the scales of its rows."""
    numbers = torch.empty(weight.shape, dtype=number, device=weight.device)
    scales = torch.empty(len(weight), device=weight.device)
    ops.quantize(numbers, scales, weight)
    return numbers, scales


def _check_widths(weight: Tensor, precision: str, multiple: int) -> None:
    if any(n % multiple for n in weight.shape):
        raise ConfigError(
            f"precision {precision!r} needs layers whose widths are multiples of {multiple}; this model has one of "
            f"{weight.shape[1]} to {weight.shape[0]}; use precision 'bfloat16'"
        )
