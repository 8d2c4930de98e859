"""The memory for keys and values of every layer, in blocks of P tokens."""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import ConfigError
from ..ops.reference import attention_workspace

EIGHT_BITS = {"int8": torch.int8, "float8": torch.float8_e4m3fn}
# On a GPU a step of few tokens is split over its keys; one of more keeps a GPU busy without. For large models and
# contexts fewer tokens are few.
SPLIT_TOKENS, _WORKSPACE_BYTES = 256, 32 << 20


def shortage(device: torch.device) -> type[RuntimeError]:
    """What torch raises when `device` is out of memory: for a CPU it has no class of its own."""
    return torch.OutOfMemoryError if device.type == "cuda" else RuntimeError


def _large_pages(tensor: Tensor) -> Tensor:
    """The tensor, in large pages where the system has them (Linux): in small ones the first tokens of every block would
    wait for thousands of page faults, which took a fifth of a cold request's time on a CPU."""
    if tensor.device.type == "cpu" and hasattr(mmap, "MADV_HUGEPAGE"):
        begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        size = tensor.data_ptr() + tensor.nbytes - begin
        if size > 0:  # a hint: what it returns does not matter
            ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)
    return tensor


class KVCache:
    """`keys[l]`, `values[l]`: [N, P, G, D] of layer l, in the model's dtype or in 8 bits, then with
    `key_scales[l]`, `value_scales[l]`: float32 [N, P, G], else None. N follows from a budget in bytes.

    dtype: the model's. kv_dtype: "auto" (the same), "int8" or "float8".
    workspace: of `paged_attention`, on a GPU; not in the budget.
    """

    def __init__(
        self,
        config: ModelConfig,
        kv_bytes: int,
        block_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        kv_dtype: str = "auto",
    ) -> None:
        self.block_tokens = block_tokens
        self.dtype = EIGHT_BITS.get(kv_dtype, dtype)
        head_bytes = config.head_width * self.dtype.itemsize + (4 if kv_dtype in EIGHT_BITS else 0)
        self.block_bytes = 2 * config.layers * config.kv_heads * head_bytes * block_tokens
        self.blocks = min(kv_bytes // self.block_bytes, (2**31 - 1) // block_tokens)
        if self.blocks < 1:
            raise ConfigError(
                f"EngineConfig.kv_bytes is {kv_bytes}, less than one block of {block_tokens} tokens "
                f"({self.block_bytes} bytes for this model in {self.dtype}); raise it"
            )
        self.nbytes = self.blocks * self.block_bytes
        shape = (config.layers, self.blocks, block_tokens, config.kv_heads)
        self.key_scales: list[Tensor] | list[None] = [None] * config.layers
        self.value_scales: list[Tensor] | list[None] = [None] * config.layers
        self.workspace: Tensor | None = None
        # Not cleared: pages that no sequence has touched cost no memory on a CPU (of 2 MiB, for each layer).
        try:
            self.keys, self.values = (
                list(_large_pages(torch.empty(*shape, config.head_width, dtype=self.dtype, device=device)))
                for _ in range(2)
            )
            if kv_dtype in EIGHT_BITS:
                self.key_scales = list(torch.empty(shape, device=device))
                self.value_scales = list(torch.empty(shape, device=device))
            if device.type == "cuda":
                wanted = attention_workspace(SPLIT_TOKENS, config.heads, config.head_width, config.max_positions)
                self.workspace = torch.empty(min(wanted, _WORKSPACE_BYTES // 4), device=device)
        except shortage(device) as error:
            raise ConfigError(
                f"EngineConfig.kv_bytes is {kv_bytes}, and {device} has not that much memory; lower it"
            ) from error
