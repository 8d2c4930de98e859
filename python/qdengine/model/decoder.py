"""The model as the engine runs it: ops over ragged rows and a paged KV cache; `reference.py` defines it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..config import ModelConfig, is_linear
from ..ops import OpTable
from . import layers, linear, smooth
from .head import Head
from .kv_cache import KVCache
from .layers import StepInputs


class Decoder:
    """Weights (canonical names, see `checkpoint`) bound to one backend, dtype and device.

    number: of weights and activations of the layers: int8 or float8_e4m3fn, made here, or None for dtype.
    batch_invariant, fused_head: as in `EngineConfig`. ready: take the weights for 8 bits as they are:
    smoothed, or of 8 bits already.
    """

    def __init__(
        self, config: ModelConfig, weights: dict[str, Tensor], ops: OpTable, dtype: torch.dtype, device: torch.device,
        number: torch.dtype | None = None, batch_invariant: bool = False, fused_head: bool = False,
        ready: bool = False,
    ) -> None:  # fmt: skip
        if number is not None:
            linear.require(number, device)
        weights = {name: tensor.to(device, None if is_linear(name) else dtype) for name, tensor in weights.items()}
        self.config, self.ops, self.dtype, self.device, self.number = config, ops, dtype, device, number
        head = weights.get("head.weight", weights["embed.weight"])
        self.head = Head(ops, head, number, batch_invariant, fused_head)
        build = layers.Build(ops, config, weights, dtype, number, batch_invariant)
        if number is not None and not ready:
            build = replace(build, weights=smooth.smoothed(build))
        self.layers = layers.make(build, self.head.number)

    @torch.inference_mode()
    def forward(self, step: StepInputs, cache: KVCache) -> Tensor:
        """The wanted rows as the head keeps them: logits, [R, V] in the model's dtype, or what it makes those from.
        The cache gets the step's keys and values."""
        x = self.layers(step, cache)
        return self.head(*x) if len(step.rows) else self.head.nothing(x[0])
