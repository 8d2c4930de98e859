"""The last layer: logits of the vocabulary, and the likeliest token."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError
from ..ops import OpTable
from . import linear


class Head:
    """Of the rows that a step wants, `__call__` makes what is kept, which `argmax` and `logits` take.

    That is their logits [R, V]; `fused`, the rows [R, E] themselves: argmax is then one kernel with the product, and
    writes no logits. weight: [V, E]. number: of the layers; the head is of int8 with them on a CPU, and its rows then
    come so, as `self.number` says: None for the weight's dtype.
    """

    def __init__(
        self, ops: OpTable, weight: Tensor, number: torch.dtype | None, batch_invariant: bool, fused: bool
    ) -> None:
        self.number = number if number == torch.int8 and ops.backend == "cpu" else None
        self._ops, self._weight, self._fused = ops, weight, fused
        self._linear = linear.make(ops, weight, None, weight.dtype, self.number, batch_invariant)
        if fused:
            if ops.backend not in ("cuda", "triton"):
                raise ConfigError(
                    f"EngineConfig.fused_head is a Triton kernel for a GPU; backend {ops.backend!r} has none: leave it"
                )
            from ..ops.triton.linear import argmax_tiles, linear_argmax

            self._linear_argmax, self._tiles = linear_argmax, argmax_tiles(len(weight))

    def __call__(self, x: Tensor, scales: Tensor | None = None) -> Tensor:
        return x if self._fused else self._linear(x, scales)

    def nothing(self, rows: Tensor) -> Tensor:
        """What is kept of no rows: [0, V], or fused [0, E]."""
        return rows if self._fused else self._weight.new_empty(0, len(self._weight))

    def logits(self, kept: Tensor) -> Tensor:
        """[R, V], in the weight's dtype."""
        return self._linear(kept) if self._fused else kept

    def argmax(self, out: Tensor, kept: Tensor) -> None:
        """out[r] = the lowest id with the highest logit (`greedy_argmax`). out: int32 [R]."""
        if self._fused:
            workspace = torch.empty(len(kept), self._tiles, dtype=torch.int64, device=kept.device)
            self._linear_argmax(out, workspace, kept, self._weight)
        else:
            self._ops.greedy_argmax(out, kept)
