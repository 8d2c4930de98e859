"""The layers of a decoder, between its tables and its head: op by op, or on a CPU all of them in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import ModelConfig
from ..ops import OpTable
from . import linear
from .kv_cache import KVCache
from .rope import rope_tables


@dataclass(slots=True)
class StepInputs:
    """One forward pass over T tokens of S sequences, laid end to end.

    ids, positions, slots: int32 [T]; block_tables: int32 [S, B]; kv_lens: int32 [S]; q_indptr: int32 [S + 1];
    rows: int32 [R], the tokens whose logits are wanted. All on the model's device.
    """

    ids: Tensor
    positions: Tensor
    slots: Tensor
    block_tables: Tensor
    kv_lens: Tensor
    q_indptr: Tensor
    rows: Tensor


Rows = tuple[Tensor, Tensor | None]
"""What a linear layer takes: rows in the model's dtype and None, or in 8 bits and their scales."""


def _rows(like: Tensor, shape: Sequence[int], number: torch.dtype | None) -> Rows:
    out = torch.empty(shape, dtype=number or like.dtype, device=like.device)
    return out, None if number is None else torch.empty(len(out), device=like.device)


@dataclass(frozen=True, slots=True)
class Build:
    """What the parts of a decoder are made from. number: of weights and activations of the layers, int8 or
    float8_e4m3fn; None for dtype. Matrices are as the file has them, for `number` to be made of that; all else is in
    dtype."""

    ops: OpTable
    config: ModelConfig
    weights: dict[str, Tensor]
    dtype: torch.dtype
    number: torch.dtype | None
    batch_invariant: bool

    def linear(self, name: str) -> linear.Layer:
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        return linear.make(self.ops, weight, bias, self.dtype, self.number, self.batch_invariant)


class _Norm:
    """Writes `number`, with scales if it has 8 bits; None: the dtype of its input."""

    def __init__(self, build: Build, name: str, number: torch.dtype | None) -> None:
        self.weight, self.bias = build.weights[f"{name}.weight"], build.weights.get(f"{name}.bias")
        self.eps, self.number, self._ops = build.config.norm_eps, number, build.ops

    def __call__(self, residual: Tensor, x: Tensor | None) -> Rows:
        """residual += x, where there is one; returns its norm."""
        out, scales = _rows(residual, residual.shape, self.number)
        added = () if x is None else (x,)
        if self.bias is None:
            norm = self._ops.add_rms_norm if added else self._ops.rms_norm
            norm(out, scales, residual, *added, self.weight, self.eps)
        else:
            norm = self._ops.add_layer_norm if added else self._ops.layer_norm
            norm(out, scales, residual, *added, self.weight, self.bias, self.eps)
        return out, scales


class _Layer:
    def __init__(self, build: Build, index: int) -> None:
        prefix = f"layers.{index}"
        self.norm1 = _Norm(build, f"{prefix}.norm1", build.number)
        self.norm2 = _Norm(build, f"{prefix}.norm2", build.number)
        self.qkv, self.out, self.down = (build.linear(f"{prefix}.{name}") for name in ("qkv", "out", "down"))
        self.up = build.linear(f"{prefix}.{'gate_up' if build.config.family == 'llama' else 'up'}")
        self.q_norm, self.k_norm = (build.weights.get(f"{prefix}.{name}.weight") for name in ("q_norm", "k_norm"))


class Layers:
    """Op by op. number: of the rows that come out, for the head; None for the tables' dtype."""

    def __init__(self, build: Build, number: torch.dtype | None) -> None:
        self.config, self._ops, self._number = build.config, build.ops, build.number
        self.embed = build.weights["embed.weight"]
        self.places = build.weights.get("positions.weight")
        self.layers = [_Layer(build, i) for i in range(build.config.layers)]
        self.norm = _Norm(build, "norm", number)
        self.cos: Tensor | None = None
        self.sin: Tensor | None = None
        if self.places is None:
            cos, sin = rope_tables(build.config, build.config.max_positions)
            self.cos, self.sin = (table.to(self.embed.device).contiguous() for table in (cos, sin))

    def __call__(self, step: StepInputs, cache: KVCache) -> Rows:
        """The wanted rows behind the last norm, [R, E]. The cache gets the step's keys and values."""
        residual = self.embed.index_select(0, step.ids)
        places = None if self.places is None else self.places.index_select(0, step.positions)
        x = self.layers[0].norm1(residual, places)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            mixed = self._attend(i, layer, x, step, cache)
            if i == last:  # behind the last attention only the wanted rows matter
                mixed, residual = mixed.index_select(0, step.rows), residual.index_select(0, step.rows)
                if len(step.rows) == 0:
                    return _rows(residual, residual.shape, self.norm.number)
            x = layer.norm2(residual, layer.out(*self._quantize(mixed)))
            norm = self.norm if i == last else self.layers[i + 1].norm1
            x = norm(residual, layer.down(*self._activate(layer.up(*x))))
        return x

    def _attend(self, index: int, layer: _Layer, x: Rows, step: StepInputs, cache: KVCache) -> Tensor:
        config = self.config
        qkv = layer.qkv(*x)
        q = torch.empty(len(qkv), config.heads, config.head_width, dtype=qkv.dtype, device=qkv.device)
        kv = cache.keys[index], cache.values[index], cache.key_scales[index], cache.value_scales[index]
        self._ops.rope_append(
            q, *kv, qkv, step.positions, step.slots,
            self.cos, self.sin, layer.q_norm, layer.k_norm, config.norm_eps,
        )  # fmt: skip
        out = torch.empty_like(q)
        self._ops.paged_attention(
            out, q, *kv, cache.workspace, step.block_tables, step.kv_lens, step.q_indptr, config.head_width**-0.5
        )
        return out.flatten(1)

    def _quantize(self, x: Tensor) -> Rows:
        if self._number is None:
            return x, None
        out, scales = _rows(x, x.shape, self._number)
        self._ops.quantize(out, scales, x)
        return out, scales

    def _activate(self, x: Tensor) -> Rows:
        gated = self.config.family == "llama"
        out, scales = _rows(x, (len(x), x.shape[1] // 2 if gated else x.shape[1]), self._number)
        (self._ops.silu_mul if gated else self._ops.gelu)(out, scales, x)
        return out, scales


class NativeLayers:
    """The same on a CPU in one call of the extension, to the bit. parts: what it is made of; seconds(): spent since it
    was made, by op."""

    def __init__(self, build: Build, number: torch.dtype | None) -> None:
        from ..ops import native

        config = build.config
        self.parts = parts = Layers(build, number)
        tensors = [
            (
                layer.norm1.weight, layer.norm1.bias, *_packed(layer.qkv), *_packed(layer.out),
                layer.norm2.weight, layer.norm2.bias, *_packed(layer.up), *_packed(layer.down),
                layer.q_norm, layer.k_norm,
            )
            for layer in parts.layers
        ]  # fmt: skip
        self._native = native.Layers(
            config.heads, config.kv_heads, config.head_width, config.ffn_width, config.family == "llama",
            build.number is not None, config.norm_eps, parts.embed, parts.places, parts.cos, parts.sin, tensors,
            parts.norm.weight, parts.norm.bias,
        )  # fmt: skip
        self.seconds = self._native.seconds

    def __call__(self, step: StepInputs, cache: KVCache) -> Rows:
        embed = self.parts.embed
        out, scales = _rows(embed, (len(step.rows), embed.shape[1]), self.parts.norm.number)
        self._native.forward(
            out, scales, step.ids, step.positions, step.slots, step.rows, step.block_tables, step.kv_lens,
            step.q_indptr, cache.keys, cache.values, cache.key_scales, cache.value_scales,
        )  # fmt: skip
        return out, scales


def _packed(layer: linear.Layer) -> Rows:
    assert isinstance(layer, linear.PackedLinear)
    return layer.packed, layer.bias


def make(build: Build, number: torch.dtype | None) -> Layers | NativeLayers:
    return (NativeLayers if build.ops.backend == "cpu" else Layers)(build, number)
