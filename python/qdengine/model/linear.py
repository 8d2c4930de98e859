"""Linear layers, y = x weight^T + bias, as library calls: oneDNN, cuBLAS and cuBLASLt through torch; in Triton where a
row's bits must not depend on the batch.

Every class has one interface: weight [out, in] and bias [out] or None when it is made; then x [T, in], or numbers of
8 bits with scales [T], to y [T, out]. y has the weight's dtype, or the dtype that a class is given which makes 8 bits
of the weight.
"""

from __future__ import annotations

from functools import cache, reduce
from typing import Protocol

import torch
from torch import Tensor

from ..errors import BackendError, ConfigError
from ..ops import OpTable

_EXACT_WIDTH = 2**24 // 127**2
"""Products of int8 of which any sum is an integer that float32 has."""
FIXED_ROWS = 16
"""Rows of every product of a batch-invariant layer on a CPU: with AMX 16 cost as much as one."""


class Layer(Protocol):
    def __call__(self, x: Tensor, scales: Tensor | None = None) -> Tensor: ...


class Linear:
    """The library's product. Its rounding may depend on the number of rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.bias = bias
        self.packed = weight.device.type == "cpu" and _packs(weight.dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None) if self.packed else weight

    def __call__(self, x: Tensor, scales: Tensor | None = None) -> Tensor:
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return torch.nn.functional.linear(x, self.weight, self.bias)


class FixedRowsLinear(Linear):
    """Batch-invariant on a CPU: the library only ever sees FIXED_ROWS rows, the last of them padding."""

    def __call__(self, x: Tensor, scales: Tensor | None = None) -> Tensor:
        padded = torch.nn.functional.pad(x, (0, 0, 0, -len(x) % FIXED_ROWS))
        parts = [super(FixedRowsLinear, self).__call__(part) for part in padded.split(FIXED_ROWS)]
        return torch.cat(parts)[: len(x)]


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
    """int8 by int8 with exact sums in int32, so batch-invariant by nature; then the scales of rows and columns.

    A CPU without such products multiplies the same numbers in float32, as fast as float32 is there, and as exactly:
    sums of so many are integers that float32 has.
    """

    def __init__(self, ops: OpTable, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        if weight.is_cuda:
            _check_widths(weight, "int8", 8)
        self._ops, self.bias, self._dtype = ops, bias, dtype
        self.weight, self.scales = _quantized(ops, weight, torch.int8)
        wide = not weight.is_cuda and not has_int8()
        self._wide = [Linear(part.float()) for part in self.weight.split(_EXACT_WIDTH, 1)] if wide else None

    def _sums(self, x: Tensor) -> Tensor:
        if self._wide is not None:
            parts = zip(self._wide, x.split(_EXACT_WIDTH, 1), strict=True)
            return reduce(torch.add, (part(numbers.float()).to(torch.int32) for part, numbers in parts))
        rows = len(x)
        if x.is_cuda and rows <= 16:  # cuBLASLt wants more
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
    if number == torch.int8:
        return Int8Linear(ops, weight, bias, dtype)
    if batch_invariant:
        on_cpu = weight.device.type == "cpu"
        return FixedRowsLinear(weight, bias) if on_cpu else TiledLinear(ops, weight, bias, dtype, number)
    return Linear(weight, bias) if number is None else Float8Linear(ops, weight, bias, dtype)


def require(number: torch.dtype, device: torch.device) -> None:
    """Raise `BackendError` where `device` cannot multiply numbers of 8 bits as the layers need it."""
    has_float8 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
    if number == torch.float8_e4m3fn and not has_float8:
        raise BackendError(
            f"precision 'float8' needs a GPU of compute capability 8.9 or later (L4, L20, L40, H100), and {device} "
            "is none; use precision 'int8' or 'bfloat16'"
        )


def _packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies `dtype` on this CPU with weights in its own layout."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def has_int8() -> bool:
    """Whether this CPU multiplies int8 fast and with exact sums: without VNNI the library's loop is plain C++, or adds
    pairs of products in 16 bits, which the largest numbers do not fit."""
    if not torch.cpu._is_vnni_supported():
        return False
    x, weight = torch.full((17, 64), 127, dtype=torch.int8), torch.full((64, 48), 127, dtype=torch.int8)
    want = 127 * 127 * 64
    return bool((torch._int_mm(x, weight) == want).all() and (torch._int_mm(-x, weight) == -want).all())


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
