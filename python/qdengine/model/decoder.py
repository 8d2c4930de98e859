"""The model as the engine runs it: ops over ragged rows and a paged KV cache; `reference.py` defines it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import ModelConfig
from ..ops import OpTable
from .kv_cache import KVCache
from .linear import Linear
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


class _Norm:
    def __init__(self, ops: OpTable, weights: dict[str, Tensor], name: str, eps: float) -> None:
        self.weight, self.bias, self.eps = weights[f"{name}.weight"], weights.get(f"{name}.bias"), eps
        self._ops = ops

    def __call__(self, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        if self.bias is None:
            self._ops.rms_norm(out, x, self.weight, self.eps)
        else:
            self._ops.layer_norm(out, x, self.weight, self.bias, self.eps)
        return out

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual += x; returns its norm."""
        out = torch.empty_like(residual)
        if self.bias is None:
            self._ops.add_rms_norm(out, residual, x, self.weight, self.eps)
        else:
            self._ops.add_layer_norm(out, residual, x, self.weight, self.bias, self.eps)
        return out


class _Layer:
    def __init__(self, ops: OpTable, config: ModelConfig, weights: dict[str, Tensor], index: int) -> None:
        def linear(name: str) -> Linear:
            return Linear(weights[f"{prefix}.{name}.weight"], weights.get(f"{prefix}.{name}.bias"))

        prefix = f"layers.{index}"
        self.norm1 = _Norm(ops, weights, f"{prefix}.norm1", config.norm_eps)
        self.norm2 = _Norm(ops, weights, f"{prefix}.norm2", config.norm_eps)
        self.qkv, self.out, self.down = linear("qkv"), linear("out"), linear("down")
        self.up = linear("gate_up" if config.family == "llama" else "up")
        self.q_norm, self.k_norm = weights.get(f"{prefix}.q_norm.weight"), weights.get(f"{prefix}.k_norm.weight")


class Decoder:
    """Weights (canonical names, see `checkpoint`) bound to one backend, dtype and device."""

    def __init__(
        self, config: ModelConfig, weights: dict[str, Tensor], ops: OpTable, dtype: torch.dtype, device: torch.device
    ) -> None:
        weights = {name: tensor.to(device, dtype) for name, tensor in weights.items()}
        self.config, self.ops, self.dtype, self.device = config, ops, dtype, device
        self.embed = weights["embed.weight"]
        self.positions = weights.get("positions.weight")
        self.layers = [_Layer(ops, config, weights, i) for i in range(config.layers)]
        self.norm = _Norm(ops, weights, "norm", config.norm_eps)
        self.head = Linear(weights.get("head.weight", self.embed))
        self.cos: Tensor | None = None
        self.sin: Tensor | None = None
        if self.positions is None:
            cos, sin = rope_tables(config, config.max_positions)
            self.cos, self.sin = cos.to(device).contiguous(), sin.to(device).contiguous()

    @torch.inference_mode()
    def forward(self, step: StepInputs, cache: KVCache) -> Tensor:
        """Logits of the wanted rows, [R, V] in the model's dtype; the cache gets the step's keys and values."""
        residual = self.embed.index_select(0, step.ids)
        if self.positions is not None:
            residual += self.positions.index_select(0, step.positions)
        x = self.layers[0].norm1(residual)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            mixed = self._attend(i, layer, x, step, cache)
            if i == last:  # behind the last attention only the wanted rows matter
                if len(step.rows) == 0:
                    return residual.new_empty(0, self.config.vocab_size)
                mixed, residual = mixed.index_select(0, step.rows), residual.index_select(0, step.rows)
            x = layer.norm2.add(residual, layer.out(mixed))
            x = layer.down(self._activate(layer.up(x)))
            x = (self.norm if i == last else self.layers[i + 1].norm1).add(residual, x)
        return self.head(x)

    def _attend(self, index: int, layer: _Layer, x: Tensor, step: StepInputs, cache: KVCache) -> Tensor:
        config = self.config
        qkv = layer.qkv(x)
        q = torch.empty(len(x), config.heads, config.head_width, dtype=x.dtype, device=x.device)
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

    def _activate(self, x: Tensor) -> Tensor:
        if self.config.family == "gpt2":
            out = torch.empty_like(x)
            self.ops.gelu(out, x)
        else:
            out = torch.empty(len(x), x.shape[1] // 2, dtype=x.dtype, device=x.device)
            self.ops.silu_mul(out, x)
        return out
