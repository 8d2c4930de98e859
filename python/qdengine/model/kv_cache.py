"""The memory for keys and values of every layer, in blocks of P tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import ConfigError


def shortage(device: torch.device) -> type[RuntimeError]:
    """What torch raises when `device` is out of memory: for a CPU it has no class of its own."""
    return torch.OutOfMemoryError if device.type == "cuda" else RuntimeError


class KVCache:
    """`keys[l]`, `values[l]`: [N, P, G, D] of layer l, in the model's dtype. N follows from a budget in bytes."""

    def __init__(
        self, config: ModelConfig, kv_bytes: int, block_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.block_tokens = block_tokens
        per_token = 2 * config.layers * config.kv_heads * config.head_width * dtype.itemsize
        self.block_bytes = per_token * block_tokens
        self.blocks = min(kv_bytes // self.block_bytes, (2**31 - 1) // block_tokens)
        if self.blocks < 1:
            raise ConfigError(
                f"EngineConfig.kv_bytes is {kv_bytes}, less than one block of {block_tokens} tokens "
                f"({self.block_bytes} bytes for this model in {dtype}); raise it"
            )
        self.nbytes = self.blocks * self.block_bytes
        shape = (config.layers, self.blocks, block_tokens, config.kv_heads, config.head_width)
        # Not cleared: pages that no sequence has touched cost no memory on a CPU.
        try:
            self.keys: list[Tensor] = list(torch.empty(shape, dtype=dtype, device=device))
            self.values: list[Tensor] = list(torch.empty(shape, dtype=dtype, device=device))
        except shortage(device) as error:
            raise ConfigError(
                f"EngineConfig.kv_bytes is {kv_bytes}, and {device} has not that much memory; lower it"
            ) from error
