"""The model as the engine runs it: ops over ragged rows and a paged KV cache; `reference.py` defines it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import ModelConfig, is_linear
from ..ops import OpTable
from . import linear
from .head import Head
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


def _rows(like: Tensor, width: int, number: torch.dtype | None) -> Rows:
    out = torch.empty(len(like), width, dtype=number or like.dtype, device=like.device)
    return out, None if number is None else torch.empty(len(like), device=like.device)


@dataclass(frozen=True, slots=True)
class _Build:
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

    def __init__(self, build: _Build, name: str, number: torch.dtype | None) -> None:
        self.weight, self.bias = build.weights[f"{name}.weight"], build.weights.get(f"{name}.bias")
        self.eps, self.number, self._ops = build.config.norm_eps, number, build.ops

    def __call__(self, x: Tensor) -> Rows:
        out, scales = _rows(x, x.shape[1], self.number)
        if self.bias is None:
            self._ops.rms_norm(out, scales, x, self.weight, self.eps)
        else:
            self._ops.layer_norm(out, scales, x, self.weight, self.bias, self.eps)
        return out, scales

    def add(self, residual: Tensor, x: Tensor) -> Rows:
        """residual += x; returns its norm."""
        out, scales = _rows(residual, residual.shape[1], self.number)
        if self.bias is None:
            self._ops.add_rms_norm(out, scales, residual, x, self.weight, self.eps)
        else:
            self._ops.add_layer_norm(out, scales, residual, x, self.weight, self.bias, self.eps)
        return out, scales


class _Layer:
    def __init__(self, build: _Build, index: int) -> None:
        prefix = f"layers.{index}"
        self.norm1 = _Norm(build, f"{prefix}.norm1", build.number)
        self.norm2 = _Norm(build, f"{prefix}.norm2", build.number)
        self.qkv, self.out, self.down = (build.linear(f"{prefix}.{name}") for name in ("qkv", "out", "down"))
        self.up = build.linear(f"{prefix}.{'gate_up' if build.config.family == 'llama' else 'up'}")
        self.q_norm, self.k_norm = (build.weights.get(f"{prefix}.{name}.weight") for name in ("q_norm", "k_norm"))


class Decoder:
    """Weights (canonical names, see `checkpoint`) bound to one backend, dtype and device.

    number: of weights and activations of the layers: int8 or float8_e4m3fn, made here, or None for dtype.
    batch_invariant, fused_head: as in `EngineConfig`.
    """

    def __init__(
        self, config: ModelConfig, weights: dict[str, Tensor], ops: OpTable, dtype: torch.dtype, device: torch.device,
        number: torch.dtype | None = None, batch_invariant: bool = False, fused_head: bool = False,
    ) -> None:  # fmt: skip
        if number is not None:
            linear.require(number, device)
        weights = {name: tensor.to(device, None if is_linear(name) else dtype) for name, tensor in weights.items()}
        build = _Build(ops, config, weights, dtype, number, batch_invariant)
        self.config, self.ops, self.dtype, self.device, self.number = config, ops, dtype, device, number
        self.embed = weights["embed.weight"]
        self.positions = weights.get("positions.weight")
        self.layers = [_Layer(build, i) for i in range(config.layers)]
        self.head = Head(ops, weights.get("head.weight", self.embed), number, batch_invariant, fused_head)
        self.norm = _Norm(build, "norm", self.head.number)
        self.cos: Tensor | None = None
        self.sin: Tensor | None = None
        if self.positions is None:
            cos, sin = rope_tables(config, config.max_positions)
            self.cos, self.sin = cos.to(device).contiguous(), sin.to(device).contiguous()

    @torch.inference_mode()
    def forward(self, step: StepInputs, cache: KVCache) -> Tensor:
        """The wanted rows as the head keeps them: logits, [R, V] in the model's dtype, or what it makes those from.
        The cache gets the step's keys and values."""
        residual = self._take(self.embed, step.ids)
        if self.positions is not None:
            residual += self._take(self.positions, step.positions)
        x = self.layers[0].norm1(residual)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            mixed = self._attend(i, layer, x, step, cache)
            if i == last:  # behind the last attention only the wanted rows matter
                mixed, residual = self._take(mixed, step.rows), self._take(residual, step.rows)
                if len(step.rows) == 0:
                    return self.head.nothing(residual)
            x = layer.norm2.add(residual, layer.out(*self._quantize(mixed)))
            x = (self.norm if i == last else self.layers[i + 1].norm1).add(
                residual, layer.down(*self._activate(layer.up(*x)))
            )
        return self.head(*x)

    def _take(self, table: Tensor, rows: Tensor) -> Tensor:
        if self.ops.backend != "cpu":
            return table.index_select(0, rows)
        from ..ops import native

        out = torch.empty(len(rows), table.shape[1], dtype=table.dtype)
        native.take_rows(out, table, rows)
        return out

    def _attend(self, index: int, layer: _Layer, x: Rows, step: StepInputs, cache: KVCache) -> Tensor:
        config = self.config
        qkv = layer.qkv(*x)
        q = torch.empty(len(qkv), config.heads, config.head_width, dtype=qkv.dtype, device=qkv.device)
        kv = cache.keys[index], cache.values[index], cache.key_scales[index], cache.value_scales[index]
        self.ops.rope_append(
            q, *kv, qkv, step.positions, step.slots,
            self.cos, self.sin, layer.q_norm, layer.k_norm, config.norm_eps,
        )  # fmt: skip
        out = torch.empty_like(q)
        self.ops.paged_attention(
            out, q, *kv, cache.workspace, step.block_tables, step.kv_lens, step.q_indptr, config.head_width**-0.5
        )
        return out.flatten(1)

    def _quantize(self, x: Tensor) -> Rows:
        if self.number is None:
            return x, None
        out, scales = _rows(x, x.shape[1], self.number)
        self.ops.quantize(out, scales, x)
        return out, scales

    def _activate(self, x: Tensor) -> Rows:
        if self.config.family == "gpt2":
            out, scales = _rows(x, x.shape[1], self.number)
            self.ops.gelu(out, scales, x)
        else:
            out, scales = _rows(x, x.shape[1] // 2, self.number)
            self.ops.silu_mul(out, scales, x)
        return out, scales
