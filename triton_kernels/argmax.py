"""greedy_argmax: the lowest id with the highest logit, [R, V] -> [R]. NaN is below everything.

Bound by memory: every logit is read once. Plan: a program a row; each lane keeps its highest logit and the first id
that reached it, and the lanes are compared once, at the end. Limits: V below 2^31 - 4096. Not measured on a GPU yet.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .common import OPTIONS

BLOCK = 4096


@triton.jit
def _argmax_kernel(out, logits, vocab, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    where = lane
    for begin in range(0, vocab, BLOCK):
        i = begin + lane
        x = tl.load(logits + row * stride + i, i < vocab, float("-inf")).to(tl.float32)
        better = x > best  # false for NaN, and for a later one of equals
        best = tl.where(better, x, best)
        where = tl.where(better, i, where)
    top = tl.max(best, 0)
    tl.store(out + row, tl.min(tl.where(best == top, where, 0x7FFFFFFF), 0))


def greedy_argmax(out: Tensor, logits: Tensor) -> None:
    rows, vocab = logits.shape
    if rows == 0:
        return
    block = min(BLOCK, triton.next_power_of_2(vocab))
    _argmax_kernel[(rows,)](out, logits, vocab, logits.stride(0), BLOCK=block, num_warps=8, **OPTIONS)
