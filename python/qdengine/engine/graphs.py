"""Captured steps: launching a small model's kernels one by one costs a GPU more than running them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm


class Buckets:
    """The sizes of steps that are planned ahead: powers of two and the numbers half way between, up to the largest.

    Rows go up to the tokens, or to a power of four: a prefill wants few of them, and the head is dear.
    """

    def __init__(self, step_tokens: int) -> None:
        halves = {3 << n for n in range(step_tokens.bit_length())}
        powers = {1 << n for n in range(step_tokens.bit_length())}
        self.tokens = [*sorted(size for size in halves | powers if size < step_tokens), step_tokens]
        self._rows = [64, 256, 1024, 4096]

    def __call__(self, tokens: int, rows: int) -> tuple[int, int]:
        """The smallest sizes that hold a step of `tokens`, `rows` of them wanted."""
        size = self.tokens[bisect_left(self.tokens, tokens)]
        return size, min([size, *(n for n in self._rows if n >= rows)])

    def all(self) -> list[tuple[int, int]]:
        """Every bucket there is, the largest first."""
        return sorted({self(size, rows) for size in self.tokens for rows in (*self._rows, size) if rows <= size})[::-1]


class Graphs:
    """`forward` captured once for every bucket, and `finish` once, to be replayed. All share one pool of memory.

    Both read and write arrays that stay where they are, and are the same work for the same sizes. nbytes: device memory
    that the captures took.
    """

    def __init__(self, forward: Callable[[int, int], Tensor], finish: Callable[[], None], sizes: Buckets) -> None:
        pool = torch.cuda.graph_pool_handle()
        self._captured: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        before = torch.cuda.memory_reserved()
        # Largest first: the smaller ones then fit the memory of those before them.
        for size in tqdm(sizes.all(), desc="capturing steps", unit="graph", leave=False, disable=None):
            forward(*size)  # libraries allocate at a first call, which a capture forbids
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                logits = forward(*size)
            self._captured[size] = graph, logits
        finish()
        torch.cuda.synchronize()
        self._finish = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._finish, pool=pool):
            finish()
        self.nbytes = torch.cuda.memory_reserved() - before

    def forward(self, tokens: int, rows: int) -> Tensor:
        """As `forward`, for the sizes of a bucket; the logits are overwritten by the next call."""
        graph, logits = self._captured[tokens, rows]
        graph.replay()
        return logits

    def finish(self) -> None:
        self._finish.replay()
