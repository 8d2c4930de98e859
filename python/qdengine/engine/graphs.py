"""Captured steps: launching a small model's kernels one by one costs a GPU more than running them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

# Tokens and rows of a step to (the model's tokens [R], its logits [R, V]).
Forward = Callable[[int, int], tuple[Tensor, Tensor]]


class Buckets:
    """The sizes of captured steps: powers of two and the numbers half way between, up to the largest step.

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
    """`forward` captured once for every bucket, and replayed. All graphs share one pool of memory.

    forward: reads buffers that stay where they are, and is the same work for the same sizes.
    """

    def __init__(self, forward: Forward, step_tokens: int) -> None:
        self._forward = forward
        self._bucket = Buckets(step_tokens)
        self._captured: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        pool = torch.cuda.graph_pool_handle()
        # Largest first: the smaller ones then fit the memory of those before them.
        for bucket in tqdm(self._bucket.all(), desc="capturing steps", unit="graph", leave=False, disable=None):
            forward(*bucket)  # libraries allocate at a first call, which a capture forbids
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                sampled, logits = forward(*bucket)
            self._captured[bucket] = graph, sampled, logits

    def __call__(self, tokens: int, rows: int) -> tuple[Tensor, Tensor]:
        """As `forward`; what it returns is overwritten by the next call."""
        graph, sampled, logits = self._captured[self._bucket(tokens, rows)]
        graph.replay()
        return sampled[:rows], logits[:rows]
