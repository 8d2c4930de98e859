"""Who owns which block of KV memory. Pure bookkeeping: no torch, no tensors.

A block is *free*, *held* (one or more sequences refer to it) or *idle* (nobody refers to it, but its contents are a
known piece of a document, kept until the memory is wanted: least recently used first).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

import numpy as np


def prefix_keys(namespace: str, tokens: np.ndarray, block_tokens: int) -> list[bytes]:
    """Keys of the whole blocks of `tokens` (int32). A key covers its block and all before it, so equal keys mean equal
    keys and values; 128 bits of BLAKE2b make a chance collision beyond concern."""
    raw = np.ascontiguousarray(tokens, dtype=np.int32).tobytes()
    size = 4 * block_tokens
    key = hashlib.blake2b(namespace.encode(), digest_size=16).digest()
    keys = []
    for begin in range(0, len(raw) - size + 1, size):
        key = hashlib.blake2b(key + raw[begin : begin + size], digest_size=16).digest()
        keys.append(key)
    return keys


class BlockPool:
    """`blocks` blocks, handed out one by one and shared by key."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._free = list(range(blocks - 1, -1, -1))
        self._refs = [0] * blocks
        self._key: list[bytes | None] = [None] * blocks
        self._by_key: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # oldest first

    @property
    def available(self) -> int:
        """Blocks that `allocate` can still give."""
        return len(self._free) + len(self._idle)

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks for one holder, their contents unknown; None, and none taken, where so many are not left."""
        if count > self.available:
            return None
        blocks = []
        for _ in range(count):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._idle.popitem(last=False)
                self._forget(block)
            self._refs[block] = 1
            blocks.append(block)
        return blocks

    def known(self, keys: list[bytes]) -> int:
        """How many leading keys a block holds."""
        return next((i for i, key in enumerate(keys) if key not in self._by_key), len(keys))

    def acquire(self, keys: list[bytes]) -> list[int]:
        """The blocks of the leading keys that are held, with one more holder each."""
        blocks = [self._by_key[key] for key in keys[: self.known(keys)]]
        for block in blocks:
            self._idle.pop(block, None)
            self._refs[block] += 1
        return blocks

    def publish(self, blocks: list[int], keys: list[bytes]) -> None:
        """Say that held blocks are filled with keys. The first block to say so keeps the key."""
        for block, key in zip(blocks, keys, strict=True):
            if key not in self._by_key:
                self._by_key[key] = block
                self._key[block] = key

    def release(self, blocks: Iterable[int]) -> None:
        """One holder less for each. Give a sequence's blocks in order: its last ones are then evicted first."""
        for block in reversed(list(blocks)):
            self._refs[block] -= 1
            if self._refs[block] == 0:
                if self._key[block] is None:
                    self._free.append(block)
                else:
                    self._idle[block] = None

    def _forget(self, block: int) -> None:
        key = self._key[block]
        if key is not None:
            del self._by_key[key]
            self._key[block] = None
